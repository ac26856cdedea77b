# SPDX-License-Identifier: Apache-2.0
"""What the last answer is worth as a mask prompt, and what it costs: the bundle that ships, under corrective clicks.

    python benchmarks/corrections.py LIST.json --split validation --images 20

corrects the first images of each set of a datalist, once with the last answer and once without, as `report` does, which
has intervals and every image: `report` and `report --afresh`. Times are one thread's, of the processor.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections import defaultdict

import numpy as np
import torch
from machine import Table, table, write_result

from monai_kdsam.bundles import bundle_path
from monai_kdsam.data.layouts import Item
from monai_kdsam.networks import KDSAM, build_student
from monai_kdsam.report.corrective_clicks import correct
from monai_kdsam.report.items import load_reference, read_split, with_units
from monai_kdsam.report.metrics import overlap_scores
from monai_kdsam.report.models import BundleModel
from monai_kdsam.report.prompts import box_and_click

SHOWN = (1, 3, 5, 10)  # clicks
GOAL = 0.9  # IoU


def curves(model: BundleModel, item: Item) -> tuple[list[float], list[float]]:
    """Dice and IoU after each click."""
    reference = load_reference(item)
    model.set_image(item["image"])
    _, first = box_and_click(reference)
    ((mask, _),) = model.predict([first])
    masks = itertools.islice(correct(reference, first, mask, lambda prompt: model.correct(prompt)[0]), max(SHOWN))
    scores = [overlap_scores(mask, reference) for mask in masks]
    return [score.dice for score in scores], [score.iou for score in scores]


def clicks(items: list[Item]) -> Table:
    """Mean Dice after so many clicks, and clicks to a good mask, with and without the last answer."""
    rows = []
    models = {"without": BundleModel("without", bundle_path(), go_on=False), "with": BundleModel("with", bundle_path())}
    by_set: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        by_set[item["source"]].append(item)
    for name, own in by_set.items():
        for title, model in models.items():
            found = [curves(model, item) for item in own]
            dice = np.mean([values for values, _ in found], axis=0)
            needed = [next((n for n, iou in enumerate(ious, 1) if iou >= GOAL), max(SHOWN)) for _, ious in found]
            cells = [f"{dice[count - 1]:.3f}" for count in SHOWN]
            rows.append([name, len(own), title, *cells, f"{np.mean(needed):.1f}"])
            print(rows[-1], flush=True)
    columns = [f"Dice after {count}" for count in SHOWN]
    return table(["set", "images", "last answer", *columns, f"clicks to IoU {GOAL}, at most {max(SHOWN)}"], rows)


def milliseconds(network: KDSAM, *masks: torch.Tensor | None) -> list[float]:
    """Of a click with each mask, medians of turns."""
    size = network.image_size
    channels = 1024 if network.mask_decoder.fine_features else 256
    embedding = torch.rand(1, channels, size // 16, size // 16)
    click = torch.tensor([[[size / 3, size / 2]]]), torch.tensor([[1]])
    times: list[list[float]] = [[] for _ in masks]
    with torch.no_grad():
        for _ in range(15):
            for measured, mask in zip(times, masks, strict=True):
                begin = time.process_time()
                network.decode(embedding, *click, mask)
                measured.append(1000 * (time.process_time() - begin))
    return [statistics.median(measured) for measured in times]


def costs() -> Table:
    """What a click costs with a mask and without."""
    rows = []
    for size, drawn in ((256, True), (512, False), (1024, False)):
        network = build_student("resnet18", image_size=size, prompt_map=drawn, fine_features=drawn).eval()
        plain, masked = milliseconds(network, None, torch.randn(1, 1, size // 4, size // 4))
        rows.append([f"{size} px", "yes" if drawn else "no", f"{plain:.1f}", f"{masked:.1f}", f"{masked / plain:.2f}"])
    return table(["input", "prompts drawn", "a click, ms", "with the last answer, ms", "ratio"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_list")
    parser.add_argument("--split", default="test")
    parser.add_argument("--images", type=int, default=20, help="of each set")
    given = parser.parse_args()
    torch.set_num_threads(1)
    counted: dict[str, int] = defaultdict(int)
    chosen = []
    for item in with_units(read_split(given.data_list, given.split, None))[0]:
        counted[item["source"]] += 1
        if counted[item["source"]] <= given.images and load_reference(item).any():
            chosen.append(item)
    write_result("corrections", costs=costs(), clicks=clicks(chosen))


if __name__ == "__main__":
    main()
