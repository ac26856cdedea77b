# SPDX-License-Identifier: Apache-2.0
"""What embedding and distillation cost: time, disk and network, by counting operations and dividing by a rate.

    python benchmarks/costs.py --teraflops 100 [--backbone resnet50] [--epochs 20] [--images 1e4 1e6 1e8]

`--teraflops` is what one device sustains, in 10^12 floating-point operations (a multiplication and an addition are two)
a second: divide the counts printed here by seconds that you measured. Operations are counted by torch on networks
without storage at 1024 pixels, so this takes seconds and needs no weights. A student's step is its forward and its
backward pass; the loss, the optimizer and reading come on top.
"""

from __future__ import annotations

import argparse
import logging

import torch
from machine import table, write_result
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from monai_kdsam.networks import build_student, build_teacher

TEACHERS = ("vit_b", "vit_l", "vit_h")
IMAGE_SIZE = 1024
EMBEDDING_MIB = 256 * (IMAGE_SIZE // 16) ** 2 * 2 / 2**20  # float16


def count(encoder: nn.Module, *, backward: bool) -> float:
    """10^12 operations for one image."""
    encoder.train(backward)
    image = torch.empty(1, 3, IMAGE_SIZE, IMAGE_SIZE, device="meta")
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        embedding = encoder(image)
        if backward:
            embedding.sum().backward()
    return counter.get_total_flops() / 1e12


def duration(seconds: float) -> str:
    """In the largest unit that leaves at least one of it."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.2g} s"


def disk(mib: float) -> str:
    """In the largest unit that leaves at least one of it."""
    for unit, size in (("PiB", 2.0**30), ("TiB", 2.0**20), ("GiB", 2.0**10)):
        if mib >= size:
            return f"{mib / size:.3g} {unit}"
    return f"{mib:.0f} MiB"


def main() -> None:
    """Print a table of the networks and one of the costs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--teraflops", type=float, required=True)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--images", type=float, nargs="+", default=[1e4, 1e6, 1e8])
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    with torch.device("meta"):
        teachers = {name: count(build_teacher(name).image_encoder, backward=False) for name in TEACHERS}
        step = count(build_student(arguments.backbone).image_encoder, backward=True)
    rate, epochs = arguments.teraflops, arguments.epochs
    print(f"{arguments.backbone}, {IMAGE_SIZE} pixels, a step: {step:.3f} Tflop an image\n")
    counted = [[name, f"{teacher:.2f}", f"{(teacher + step) / step:.1f}"] for name, teacher in teachers.items()]
    reading = EMBEDDING_MIB * rate / step
    print(f"\n{rate:g} Tflop/s, {epochs} epochs, one variant of each image; reading: {reading:.0f} MiB/s\n")
    rows = []
    for images in arguments.images:
        for name, teacher in teachers.items():
            embed, cached = images * teacher / rate, images * epochs * step / rate
            times = (embed, cached, embed + cached, images * epochs * (teacher + step) / rate)
            rows.append([f"{images:.0e}", name, *map(duration, times), disk(images * EMBEDDING_MIB)])
    write_result(
        "costs",
        teachers=table(["teacher", "Tflop an image", "live step over cached step"], counted),
        costs=table(["images", "teacher", "embed", "distill, cached", "together", "distill, live", "cache"], rows),
    )


if __name__ == "__main__":
    main()
