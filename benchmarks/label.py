# SPDX-License-Identifier: Apache-2.0
"""MONAI Label's server over HTTP on this machine: its speed, many clients at once, and what its learning is worth.

    python benchmarks/label.py start [--rounds 3] [--pause 5]
    python benchmarks/label.py latency [--backbone resnet50] [--sizes 1024 512] [--images 10] [--clicks 20]
    python benchmarks/label.py load [--clients 8] [--requests 200] [--images 20] [--backbone resnet18] [--size 256]
    python benchmarks/label.py learning DATA [--set kvasir] [--labels 10 30]

in the environment of the extra `label`.

- start: of the student that ships, with pictures of 512 pixels; how long the first client waits, who asks PAUSE seconds
  after the server first answers.
- latency: for each image one click that the server has not seen, then clicks at other places. Random weights, which
  cost as much as trained ones. The first image warms the server up and does not count.
- load: clients ask at once for masks of images and prompts drawn at random; each answer is compared with a direct call.
  Memory is that of the server's process, after a tenth of all requests and at the end.
- learning: DATA holds the sets under the names of their official downloads. The student that ships is served; labels of
  the chosen set are submitted, a few more each time, and the server trains on those that it has. The Dice is that of 80
  images that are never submitted, at their own size.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import requests
from machine import table, write_result
from PIL import Image
from scipy.stats import spearmanr

from monai_kdsam.bundles import copy_bundle
from monai_kdsam.data import read_dataset
from monai_kdsam.data.phantoms import PHANTOM_KINDS, make_phantom
from monai_kdsam.inferers import BundlePredictor
from monai_kdsam.label.active_learning import score_file
from monai_kdsam.report.items import load_reference
from monai_kdsam.transforms import box_from_mask, center_click

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from hosts.label_server import MODEL, LabelServer, random_bundle, running_server

FOLDERS = {"kvasir": "Kvasir-SEG", "isic2017": ".", "hc18": "HC18", "busi": "Dataset_BUSI_with_GT"}
TEST = 80


PROMPTS: list[dict[str, Any]] = [
    {"foreground": [[60, 50]]},
    {"foreground": [[90, 70]], "background": [[20, 30]]},
    {"roi": [20, 15, 140, 120]},
    {},
]


def write_pictures(folder: Path, count: int, side: int) -> list[str]:
    folder.mkdir(parents=True)
    names = []
    for number in range(count):
        pixels, _ = make_phantom(PHANTOM_KINDS[number % len(PHANTOM_KINDS)], size=side, seed=number)
        names.append(f"picture_{number:02d}")
        Image.fromarray(pixels).save(folder / f"{names[-1]}.png")
    return names


def click(server: LabelServer, image: str, number: int) -> float:
    """Milliseconds of one request and its answer."""
    params = {"foreground": [[100 + 11 * number % 150, 90 + 7 * number % 150, 0]], "background": [], "device": "cpu"}
    begin = time.perf_counter()
    answer = server.post(image, params)
    answer.raise_for_status()
    return 1000 * (time.perf_counter() - begin)


def times_of_start(pause: float) -> list[float]:
    """Seconds until the server answers, and until the masks of two images, the second for comparison."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures = write_pictures(folder / "studies", 2, 512)
        begin = time.perf_counter()
        with running_server(copy_bundle(folder), folder / "studies", folder / "server") as server:
            answered, used = time.perf_counter() - begin, server.processor_seconds()
            time.sleep(pause)
            return [answered, used, *(click(server, picture, 0) / 1000 for picture in pictures)]


def run_start(given: argparse.Namespace) -> None:
    found = np.median([times_of_start(given.pause) for _ in range(given.rounds)], axis=0)
    columns = [
        "",
        "until it answers",
        "of the processor",
        f"first mask, {given.pause:g} s later",
        "next image's first mask",
    ]
    write_result("label_start", start=table(columns, [["seconds", *(f"{value:.2f}" for value in found)]]))


def times_of(backbone: str, size: int, images: int, clicks: int) -> tuple[list[float], list[float]]:
    """Milliseconds of first and of later clicks."""
    first, later = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures = write_pictures(folder / "studies", images + 1, size)
        with running_server(random_bundle(folder, backbone, size), folder / "studies", folder / "server") as server:
            for index, picture in enumerate(pictures):
                times = [click(server, picture, number) for number in range(clicks + 1)]
                if index:
                    first.append(times[0])
                    later += times[1:]
    return first, later


def run_latency(given: argparse.Namespace) -> None:
    rows = []
    for size in given.sizes:
        first, later = times_of(given.backbone, size, given.images, given.clicks)
        rows.append([size, *(f"{value:.0f}" for times in (first, later) for value in np.percentile(times, [50, 95]))])
    columns = ["pixels", "first click, median ms", "95 of 100", "later click, median ms", "95 of 100"]
    write_result("label_latency", clicks=table(columns, rows))


class Load:
    """Counts of what the clients saw; `run` is one client."""

    def __init__(self, server: LabelServer, expected: dict[tuple[str, int], np.ndarray], total: int) -> None:
        self.server, self.expected, self.total = server, expected, total
        self.errors, self.wrong, self.done, self.early_memory = 0, 0, 0, 0
        self.times: list[float] = []
        self.lock = threading.Lock()

    def run(self, client: int, requests: int) -> None:
        random = np.random.default_rng(client)
        jobs = list(self.expected)
        for _ in range(requests):
            image, prompt = jobs[random.integers(len(jobs))]
            begin = time.perf_counter()
            answer = self.server.post(image, PROMPTS[prompt], output="image")
            took = time.perf_counter() - begin
            right = answer.ok and np.array_equal(
                np.asarray(Image.open(BytesIO(answer.content))), self.expected[image, prompt]
            )
            with self.lock:
                self.errors += not answer.ok
                self.wrong += answer.ok and not right
                self.times.append(took)
                self.done += 1
                if self.done == self.total // 10:
                    self.early_memory = self.server.memory()


def run_load(given: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = write_pictures(folder / "studies", given.images, max(given.size, 200))
        bundle = random_bundle(folder, given.backbone, given.size)
        predict = BundlePredictor(bundle)
        expected = {
            (image, index): predict(folder / "studies" / f"{image}.png", **prompt)
            for image in images
            for index, prompt in enumerate(PROMPTS)
        }
        with running_server(bundle, folder / "studies", folder / "server") as server:
            load = Load(server, expected, given.clients * given.requests)
            with ThreadPoolExecutor(given.clients) as pool:
                list(pool.map(lambda client: load.run(client, given.requests), range(given.clients)))
            growth = (server.memory() - load.early_memory) / 2**20
    median, p95 = np.percentile(load.times, [50, 95])
    columns = ["clients", "requests", "errors", "wrong masks", "median, s", "95 of 100", "memory, MiB", "growth, MiB"]
    cells = [given.clients, load.done, load.errors, load.wrong, f"{median:.2f}", f"{p95:.2f}"]
    cells += [f"{load.early_memory / 2**20:.0f}", f"{growth:+.0f}"]
    write_result("label_load", load=table(columns, [cells]))
    sys.exit(bool(load.errors or load.wrong))


def measure(bundle: Path, items: list[dict]) -> list[float]:
    """Mean Dice with a box, one click and no prompt; rank correlation of the uncertainty with the last one."""
    predict, found, scores = BundlePredictor(bundle), [], []
    for item in items:
        truth = load_reference(item)
        box = box_from_mask(truth)
        box[1] += box[1] == box[0]
        prompts = [{"roi": box.ravel().tolist()}, {"foreground": center_click(truth).tolist()}, {}]
        masks = [predict(item["image"], **prompt) > 0 for prompt in prompts]
        found.append([2 * (mask & truth).sum() / (mask.sum() + truth.sum()) for mask in masks])
        scores.append(score_file(predict, item["image"]).score)
    dice = np.array(found)
    return [*dice.mean(axis=0), spearmanr(scores, dice[:, 2]).statistic]


def submit(server: LabelServer, item: dict, folder: Path) -> None:
    name = Path(item["image"]).stem
    Image.fromarray(load_reference(item).astype(np.uint8) * 255).save(folder / f"{name}.png")
    with open(folder / f"{name}.png", "rb") as label:
        address, query = f"{server.address}/datastore/label", {"image": name, "tag": "final"}
        requests.put(address, params=query, files={"label": label}, timeout=60).raise_for_status()


def train(server: LabelServer, params: dict) -> str:
    """Train in the server; its decision."""
    address = f"{server.address}/train/{MODEL}"
    answer = requests.post(address, params={"run_sync": True}, json=params, timeout=3600)
    answer.raise_for_status()
    report = answer.json()
    verb = "replaced" if report["replaced"] else "kept"
    return f"{report['before']['mean']:.3f} to {report['after']['mean']:.3f}, {verb}"


def run_learning(given: argparse.Namespace) -> None:
    items = [item for item in read_dataset(given.set, given.data / FOLDERS[given.set]) if load_reference(item).any()]
    chosen = [items[number] for number in np.random.default_rng(0).permutation(len(items))]
    test, rest = chosen[:TEST], chosen[TEST:]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = copy_bundle(folder)
        (folder / "studies").mkdir()
        for item in rest[: max(given.labels)]:
            shutil.copy(item["image"], folder / "studies")
        rows = [[0, *(f"{value:.3f}" for value in measure(bundle, test)), ""]]
        with running_server(bundle, folder / "studies", folder / "server") as server:
            for before, count in itertools.pairwise([0, *given.labels]):
                for item in rest[before:count]:
                    submit(server, item, folder)
                decision = train(server, given.params)
                rows.append([count, *(f"{value:.3f}" for value in measure(bundle, test)), decision])
    columns = ["labels", "box", "click", "none", "uncertainty and Dice", "the server's comparison"]
    write_result("label_learning", **{given.set: table(columns, rows)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    start, latency, load, learning = (commands.add_parser(n) for n in ("start", "latency", "load", "learning"))
    start.set_defaults(run=run_start)
    start.add_argument("--rounds", type=int, default=3)
    start.add_argument("--pause", type=float, default=5)
    latency.set_defaults(run=run_latency)
    latency.add_argument("--backbone", default="resnet50")
    latency.add_argument("--sizes", type=int, nargs="+", default=[1024, 512])
    latency.add_argument("--images", type=int, default=10)
    latency.add_argument("--clicks", type=int, default=20)
    load.set_defaults(run=run_load)
    load.add_argument("--clients", type=int, default=8)
    load.add_argument("--requests", type=int, default=200)
    load.add_argument("--images", type=int, default=20)
    load.add_argument("--backbone", default="resnet18")
    load.add_argument("--size", type=int, default=256)
    learning.set_defaults(run=run_learning)
    learning.add_argument("data", type=Path)
    learning.add_argument("--labels", type=int, nargs="+", default=[10, 30])
    learning.add_argument("--set", default="kvasir", choices=sorted(FOLDERS))
    learning.add_argument("--params", type=json.loads, default={}, help="of the request for a training, as JSON")
    given = parser.parse_args()
    given.run(given)


if __name__ == "__main__":
    main()
