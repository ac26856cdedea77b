# SPDX-License-Identifier: Apache-2.0
"""Time and peak memory of one step of distillation and one of fine-tuning, at full size.

A vit_b teacher and a ResNet-50 student at 1024 pixels, random weights, one random image with three prompts:

    python benchmarks/full_size_step.py [--image-size 1024] [--batch-size 1] [--repeats 3]

Each phase runs in a process of its own, so that its peak memory is its own. The first step is a warm-up, the median of
the others is printed.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import time

import torch
from monai.losses import DiceLoss
from peak_memory import peak_mib

from monai_kdsam.engines import TeacherPrepareBatch
from monai_kdsam.losses import EmbeddingMSELoss, PerceptualLoss, WeightedSumLoss, build_vgg16
from monai_kdsam.networks import TeacherEncoder, build_student, build_teacher


def distill_step(size: int, batch: int):
    """The teacher's forward, the student encoder's forward and backward, MSE and perceptual loss, AdamW."""
    prepare = TeacherPrepareBatch(TeacherEncoder(build_teacher("vit_b", image_size=size)))
    encoder = build_student("resnet50", image_size=size).image_encoder.train()
    loss = WeightedSumLoss({"mse": EmbeddingMSELoss(), "perceptual": PerceptualLoss(build_vgg16(None))})
    optimizer = torch.optim.AdamW(encoder.parameters())
    batchdata = {"image": torch.randn(batch, 3, size, size), "valid": torch.ones(batch, 1, size, size)}

    def step() -> None:
        image, target = prepare(batchdata)
        optimizer.zero_grad()
        loss(encoder(image), target).backward()
        optimizer.step()

    return step


def train_step(size: int, batch: int):
    """The student with a frozen encoder, three prompts an image, Dice, AdamW."""
    network = build_student("resnet50", image_size=size).freeze("image_encoder", "prompt_encoder").train()
    optimizer = torch.optim.AdamW(parameter for parameter in network.parameters() if parameter.requires_grad)
    loss = DiceLoss(sigmoid=True)
    image, masks = torch.randn(batch, 3, size, size), torch.randint(0, 2, (batch, 3, size, size)).float()
    points = torch.rand(batch, 3, 7, 2) * size
    labels = torch.tensor([[2, 3, -1, -1, -1, -1, -1], [1, 1, 0, -1, -1, -1, -1], [-1] * 7]).repeat(batch, 1, 1)

    def step() -> None:
        optimizer.zero_grad()
        loss(network(image, points, labels), masks).backward()
        optimizer.step()

    return step


def measure(phase: str, size: int, batch: int, repeats: int) -> None:
    step = {"distill": distill_step, "train": train_step}[phase](size, batch)
    seconds = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begin)
    peak = peak_mib() / 2**10
    print(f"{phase:8} {statistics.median(seconds[1:]):6.1f} s a step, peak memory {peak:.1f} GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--phase", choices=["distill", "train"])
    arguments = parser.parse_args()
    if arguments.phase:
        measure(arguments.phase, arguments.image_size, arguments.batch_size, arguments.repeats)
        return
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, Python {platform.python_version()}", flush=True
    )
    for phase in ("distill", "train"):
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--phase", phase], check=True)


if __name__ == "__main__":
    main()
