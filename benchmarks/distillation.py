# SPDX-License-Identifier: Apache-2.0
"""What a step of distillation costs with a live teacher and with the embedding cache, and what it is made of.

A ResNet-50 student and a vit_b teacher with random weights at 1024 pixels on generated pictures, through the bundle's
own configs, each way in a process of its own (so that its peak memory is its own), in turns:

    python benchmarks/distillation.py [--image-size 1024] [--teacher vit_b] [--backbone resnet50] [--rounds 3]

- student: the student's forward, loss, backward and optimizer step on one batch in memory: nothing can be faster
- cached: the phase `distill` with `cached_embeddings`, images decoded and embeddings read
- two: cached, shared by two processes of half the threads (gloo); peak memory is that of one of them
- live: the phase `distill` with the teacher run in every step
- huber: live, with NanoSAM's loss (Huber on the embedding, nothing else)
- embed: the phase `embed`: the teacher's forward, and the embedding written

The first step of each is a warm-up. Printed are medians over the rounds, in seconds an image.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from machine import peak_mib, table, write_result
from monai.bundle import ConfigParser
from torch import Tensor

from monai_kdsam.bundles import bundle_path
from monai_kdsam.data.phantoms import write_phantoms
from monai_kdsam.networks import build_teacher
from monai_kdsam.phases import read_phase

WAYS = ("student", "cached", "two", "live", "huber", "embed")
IMAGES = 4


def read_config(folder: Path, way: str, settings: dict[str, Any]) -> ConfigParser:
    """The merged config of the phase that a way needs."""
    own = {
        "dataset_dir": folder / "phantoms",
        "bundle_root": folder,
        "teacher_checkpoint": folder / "teacher.pt",
        "cached_embeddings": way in ("cached", "two", "embed"),
        "embedding_variants": 1,
        "augment": False,
        "split_fractions": [1.0, 0.0, 0.0],
        "num_workers": 0,
        "prompt_map": False,
        "fine_features": False,
    }
    phase, overlays = "embed" if way == "embed" else "distill", ("multi_gpu_train",) * (way == "two")
    return read_phase(bundle_path(), phase, *overlays, "offline", **own | settings)


def batches(parser: ConfigParser) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Batches as the trainer gets them, without end."""
    loader, prepare = parser.get_parsed_content("train#dataloader"), parser.get_parsed_content("prepare_batch")
    while True:
        for batch in loader:
            yield prepare(batch, torch.device("cpu"))


def train_seconds(parser: ConfigParser, way: str, steps: int) -> list[float]:
    """Seconds an image of a few steps."""
    processes = parser.get_parsed_content("world_size")
    if processes > 1:
        parser.get_parsed_content("process_group")
    encoder = parser.get_parsed_content("train#trainer#network" if processes > 1 else "trained_network").train()
    optimizer, loss = parser.get_parsed_content("optimizer"), parser.get_parsed_content("loss")
    found = batches(parser)
    if way == "student":
        found = cycle([next(found)])
    seconds = []
    for _ in range(steps + 1):
        begin = time.perf_counter()
        image, target = next(found)
        optimizer.zero_grad()
        embedding = encoder(image)
        value = F.huber_loss(embedding, target["embedding"]) if way == "huber" else loss(embedding, target)
        value.backward()
        optimizer.step()
        seconds.append((time.perf_counter() - begin) / len(image) / processes)
    return seconds[1:]


def embed_seconds(parser: ConfigParser) -> list[float]:
    """Seconds an image of the teacher's forward and the writing."""
    encoder = parser.get_parsed_content("teacher_encoder")
    saver = parser.get_parsed_content("embed#handlers")[-1]
    seconds = []
    begin = time.perf_counter()
    for batch in parser.get_parsed_content("embed#dataloader"):
        for row, embedding in enumerate(encoder(batch["image"])):
            saver.writer.add(f"{batch['checksum'][row]}/{int(batch['variant'][row])}", batch["file"][row], embedding)
        seconds.append((time.perf_counter() - begin) / len(batch["image"]))
        begin = time.perf_counter()
    saver.writer.flush()
    return seconds[1:]


def measure(folder: Path, way: str, arguments: argparse.Namespace) -> None:
    """Print the seconds and the peak memory (GiB) of one way as JSON."""
    settings = {name: getattr(arguments, name) for name in ("image_size", "teacher", "backbone", "bfloat16")}
    parser = read_config(folder, way, {**settings, "batch_size": arguments.batch_size * (2 if way == "two" else 1)})
    seconds = embed_seconds(parser) if way == "embed" else train_seconds(parser, way, arguments.steps)
    peak = peak_mib() / 2**10
    if int(os.environ.get("RANK", "0")) == 0:
        print(json.dumps({"seconds": statistics.median(seconds), "peak": peak}))


def main() -> None:
    """Measure all ways in turns and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--image-size", type=int, default=1024)
    parser.add_argument("--teacher", default="vit_b")
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", nargs=2, metavar=("FOLDER", "WAY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        measure(Path(arguments.way[0]), arguments.way[1], arguments)
        return
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_phantoms(folder / "phantoms", per_kind=IMAGES // 2, size=512)
        torch.save(
            build_teacher(arguments.teacher, image_size=arguments.image_size).state_dict(), folder / "teacher.pt"
        )
        for _ in range(arguments.rounds):
            for way in ("embed", *WAYS[:-1]):
                if way == "embed":
                    for cache in folder.glob("output/embeddings"):
                        shutil.rmtree(cache)
                start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if way == "two" else []
                command = [sys.executable, "-W", "ignore", *start, __file__, *sys.argv[1:], "--way", name, way]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                found[way].append(json.loads(done.stdout.splitlines()[-1]))
    medians = {way: statistics.median(one["seconds"] for one in rounds) for way, rounds in found.items()}
    rows = []
    for way, seconds in medians.items():
        peak = max(one["peak"] for one in found[way])
        rows.append([way, f"{seconds:.2f}", f"{seconds / medians['student']:.2f}", f"{peak:.1f} GiB"])
    columns = ["way", "seconds an image", "of the student's own time", "peak memory"]
    write_result("distillation", steps=table(columns, rows))


if __name__ == "__main__":
    main()
