# SPDX-License-Identifier: Apache-2.0
"""How long a click takes through MONAI Label's server on this machine, over HTTP.

python benchmarks/label_latency.py [--backbone resnet50] [--sizes 1024 512] [--images 10] [--clicks 20]

Random weights, which cost as much as trained ones; pictures of about the network's size, as PNG. For each image one
click that the server has not seen, then clicks at other places. The first image warms the server up and does not count.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.label_server import LabelServer, random_bundle, running_server
from monai_kdsam.data.phantoms import PHANTOM_KINDS, make_phantom


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


def measure(backbone: str, size: int, images: int, clicks: int) -> tuple[list[float], list[float]]:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 512])
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--clicks", type=int, default=20)
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    given = parser.parse_args()
    print(f"{given.backbone}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}; milliseconds over HTTP")
    print("| pixels | first: median | p95 | later: median | p95 | later / first |")
    print("|---|---|---|---|---|---|")
    written = {}
    for size in given.sizes:
        first, later = measure(given.backbone, size, given.images, given.clicks)
        (one, one95), (two, two95) = (np.percentile(times, [50, 95]) for times in (first, later))
        print(f"| {size} | {one:.0f} | {one95:.0f} | {two:.0f} | {two95:.0f} | {two / one:.3f} |", flush=True)
        written[size] = {"first": first, "later": later}
    if given.json:
        given.json.write_text(json.dumps(written))


if __name__ == "__main__":
    main()
