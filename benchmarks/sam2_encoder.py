# SPDX-License-Identifier: Apache-2.0
"""The image encoder of MONAI Label's built-in SAM 2 beside ours, on this machine.

python benchmarks/sam2_encoder.py [--sam2 sam2_hiera_l sam2_hiera_s] [--backbone resnet50] [--rounds 7]

Needs sam2, which the extra `label` brings; MONAI Label 0.8.5 uses sam2_hiera_l. Random weights, an image of 1024 x 1024
pixels, float32, turn by turn so that whatever else the machine does falls on all of them. Prints medians in seconds.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from sam2.build_sam import build_sam2

from monai_kdsam.networks import build_student

SIZE = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sam2", nargs="+", default=["sam2_hiera_l", "sam2_hiera_s"])
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()

    ours = build_student(arguments.backbone, image_size=SIZE).eval()
    encoders = {arguments.backbone: ours.encode}
    for name in arguments.sam2:
        model = build_sam2(f"configs/sam2/{name}.yaml", ckpt_path=None, device="cpu")
        encoders[name] = model.forward_image
    image, seconds = torch.randn(1, 3, SIZE, SIZE), {name: [] for name in encoders}
    with torch.inference_mode():
        for number in range(arguments.rounds + 1):
            for name, encode in encoders.items():
                begin = time.perf_counter()
                encode(image)
                if number:  # the first round warms up
                    seconds[name].append(time.perf_counter() - begin)
    own = statistics.median(seconds[arguments.backbone])
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"{name:14} {median:6.2f} s  {median / own:5.1f} x  ({min(times):.2f} to {max(times):.2f} s)")


if __name__ == "__main__":
    main()
