# SPDX-License-Identifier: Apache-2.0
"""Several clients at MONAI Label's server at once: is each mask right, does anything fail, does memory grow?

python benchmarks/label_load.py [--clients 8] [--requests 200] [--images 20] [--backbone resnet18] [--size 256]

Each client asks `requests` times for masks of images and prompts drawn at random; each is compared with a direct call
of the bundle. Memory is that of the server's process, after a tenth of all requests and at the end.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.label_latency import write_pictures
from benchmarks.label_server import LabelServer, random_bundle, running_server
from monai_kdsam.inferers import BundlePredictor

PROMPTS: list[dict[str, Any]] = [
    {"foreground": [[60, 50]]},
    {"foreground": [[90, 70]], "background": [[20, 30]]},
    {"roi": [20, 15, 140, 120]},
    {},
]


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=256)
    given = parser.parse_args()
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
    print(f"{load.done} requests of {given.clients} clients over {given.images} images: {load.errors} errors, ", end="")
    print(f"{load.wrong} wrong masks; {median:.2f} s median, {p95:.2f} s p95 in the queue of all clients; ", end="")
    print(f"memory {load.early_memory / 2**20:.0f} MiB after a tenth, {growth:+.0f} MiB at the end")
    sys.exit(bool(load.errors or load.wrong))


if __name__ == "__main__":
    main()
