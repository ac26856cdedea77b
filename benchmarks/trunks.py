# SPDX-License-Identifier: Apache-2.0
"""Dice of the student that ships on other trunks, the peers' among them, from the same start and at the same budget.

    python benchmarks/trunks.py LIST.json OUT [--steps 300] [--seeds 0] [--plot docs/images/dice_latency.svg]

LIST.json is a datalist with `training` and `validation`, whose items name their set (`source`). Every arm is the
bundle's own network and the recipe `promptable` at 256 pixels but for its trunk: random weights, `--steps` batches of 8
of the same images in the same order, one corrective click a prompt. None is chosen by: the last moving average is
scored, on validation images. The latency beside it is that of benchmarks/peers.py, which runs first. OUT keeps what is
done, and an interrupted run goes on there.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from docs_tables import RESULTS
from machine import table, write_result
from peer_models import TRUNK_SIZE, TRUNKS, backbone

from monai_kdsam.bundles import bundle_path
from monai_kdsam.data.layouts import Item
from monai_kdsam.phases import run_phase
from monai_kdsam.report.intervals import estimate_mean_of_sets
from monai_kdsam.report.items import load_reference
from monai_kdsam.report.metrics import overlap_scores
from monai_kdsam.report.models import BundleModel
from monai_kdsam.report.prompts import named_prompts
from monai_kdsam.weights.download import download

BATCH, SCORED = 8, 40  # images: of a step, and of each set that is scored
PROMPTS = {"box_10pct": "box 10 % off", "center_click": "one click", "automatic": "no prompt"}
IMAGENET = "lite0, ImageNet"  # what ships begins with these; nobody else's weights are at hand
Rows = list[tuple[str, str, str, float]]  # set, subject, prompt, Dice


def write_lists(source: Path, out: Path, most: int) -> None:
    """`list.json`, with the first images of each set; those of validation are only there because a phase wants some."""
    content = json.loads(source.read_text(encoding="utf-8"))
    training = first_of_each_set(content["training"], most)
    scored = first_of_each_set(content["validation"], min(most, SCORED))
    for item in training + scored:
        item |= {key: str(source.parent / item[key]) for key in ("image", "label")}
    lists = {"training": training, "validation": scored[:1], "test": scored}
    (out / "list.json").write_text(json.dumps(lists), encoding="utf-8")


def first_of_each_set(items: list[Item], most: int) -> list[Item]:
    """Set by set its first items, at most so many; the set is an item's `source`."""
    by_set: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        by_set[item["source"]].append(item)
    return [item for own in by_set.values() for item in own[:most]]


def train(out: Path, arm: str, seed: int, steps: int, settings: dict[str, Any]) -> Path:
    """One arm; its weights."""
    folder = out / f"{arm}_{seed}"
    count = len(json.loads((out / "list.json").read_text(encoding="utf-8"))["training"])
    epochs = max(1, round(steps / (count // BATCH)))
    start: dict[str, Any] = {"imagenet_weights": None, "initial_checkpoint": None, "trunk_rate": 1.0}
    if arm == IMAGENET:
        start = {"imagenet_weights": str(download("efficientnet_lite0", out))}
    common = {
        "dataset_dir": out / "list.json",
        "split_file": folder / "split.json",
        "output_dir": folder,
        "ckpt_dir": folder,
        "batch_size": BATCH,
        "correction_rounds": 1,
        "ema_decay": 0.98,  # of a short training
        "epochs": epochs,
        "val_interval": epochs,
        "seed": seed,
        "num_workers": 0,
        "overwrite": True,
        "progress": False,
        "logging_file": False,
    }
    run_phase(bundle_path(), "train", "datasets/datalist", "recipes/promptable", "offline", **common | settings | start)
    return folder / "model.pt"


def score(out: Path, weights: Path, settings: dict[str, Any]) -> Iterator[tuple[str, str, str, float]]:
    """Dice of every scored image under each prompt, without a close-up, as the network alone would have it."""
    model = BundleModel("", bundle_path(), checkpoint=str(weights), close_up=0, fill_holes=False, **settings)
    for item in json.loads((out / "list.json").read_text(encoding="utf-8"))["test"]:
        reference = load_reference(item)
        if not reference.any():
            continue
        prompts = named_prompts(reference)
        model.set_image(item["image"])
        for name, (mask, _) in zip(PROMPTS, model.predict([prompts[name] for name in PROMPTS]), strict=True):
            yield item["source"], item["subject"], name, overlap_scores(mask, reference).dice


def run_arm(out: Path, arm: str, seed: int, steps: int) -> Rows:
    """Train and score what is not there yet."""
    file = out / f"{arm}_{seed}.json"
    settings = {"backbone": backbone(arm.partition(",")[0]), "image_size": TRUNK_SIZE}
    if not file.exists():
        began = time.process_time()
        rows = [*score(out, train(out, arm, seed, steps, settings), settings)]
        file.write_text(json.dumps({"seconds": time.process_time() - began, "rows": rows}), encoding="utf-8")
    found = json.loads(file.read_text(encoding="utf-8"))
    print(f"{arm}, seed {seed}: {found['seconds']:.0f} s of processor time", flush=True)
    return found["rows"]


def over_sets(seeds: list[Rows], prompts: set[str], base: list[Rows] | None = None) -> tuple[float, float, float]:
    """Mean over sets of an image's mean, or of its difference from another arm's, and the 95 % interval."""
    images: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for number, rows in enumerate(seeds):
        for row, (source, subject, prompt, dice) in enumerate(rows):
            if prompt in prompts:
                images[source][subject].append(dice - (base[number][row][3] if base else 0.0))
    parts = [([float(np.mean(values)) for values in own.values()], [*own]) for own in images.values()]
    found = estimate_mean_of_sets(parts)
    return found.mean, found.low, found.high


def latencies() -> dict[str, float]:
    """Milliseconds of each trunk's encoder in 8 bits, by title, out of the results of benchmarks/peers.py."""
    found = json.loads((RESULTS / "peers.json").read_text(encoding="utf-8"))["tables"]["trunks"]
    column = found["columns"].index("OpenVINO INT8")
    return {row[0]: float(row[column]) for row in found["rows"]}


def front(points: dict[str, tuple[float, float]]) -> set[str]:
    """Names of (ms, Dice) with which no other is at least level in both."""

    def beaten(name: str) -> bool:
        ms, dice = points[name]
        return any(a <= ms and b >= dice and (a, b) != (ms, dice) for a, b in points.values())

    return {name for name in points if not beaten(name)}


def plot(points: dict[str, tuple[float, float]], best: set[str], file: Path) -> None:
    """Dice over latency, with the front."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, (ms, dice) in points.items():
        axes.plot(ms, dice, "o" if name in best else "x", color="C0" if name in best else "C7")
        side = {"xytext": (-6, 4), "ha": "right"} if ms > 20 else {"xytext": (6, 4), "ha": "left"}
        axes.annotate(name, (ms, dice), textcoords="offset points", fontsize=8, **side)
    axes.plot(*zip(*sorted(points[name] for name in best), strict=True), "--", linewidth=1)
    axes.set_xscale("log")
    ticks = [5, 7, 10, 15, 20, 30, 40]
    axes.set_xticks(ticks, map(str, ticks))
    axes.minorticks_off()
    axes.set_xlabel(f"image encoder in 8 bits, {TRUNK_SIZE} px, ms (log scale)")
    axes.set_ylabel("mean Dice of box, click and no prompt")
    axes.grid(alpha=0.3)
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("list", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--images", type=int, default=200, help="of each set, to train with")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--arms", nargs="+", choices=[*TRUNKS, IMAGENET], default=[*TRUNKS, IMAGENET], metavar="ARM")
    parser.add_argument("--plot", type=Path, help="picture of Dice against latency")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    write_lists(given.list.resolve(), out, given.images)
    scores = {arm: [run_arm(out, arm, seed, given.steps) for seed in given.seeds] for arm in given.arms}
    ms = latencies()
    title = {arm: TRUNKS[arm.partition(",")[0]] for arm in scores}
    judged = {arm: over_sets(found, {*PROMPTS})[0] for arm, found in scores.items()}
    starts = {arm: "ImageNet" if arm == IMAGENET else "random" for arm in scores}
    points = {f"{title[arm]}, {starts[arm]}": (ms[title[arm]], judged[arm]) for arm in scores}
    best, base = front(points), scores.get("lite0")
    rows = []
    for arm, found in scores.items():
        each = [f"{over_sets(found, {prompt})[0]:.3f}" for prompt in PROMPTS]
        change = (
            "-"
            if arm == "lite0" or not base
            else "{:+.3f} [{:+.3f}, {:+.3f}]".format(*over_sets(found, {*PROMPTS}, base))
        )
        on_front = "yes" if f"{title[arm]}, {starts[arm]}" in best else "no"
        rows.append([title[arm], starts[arm], f"{ms[title[arm]]:.1f}", *each, f"{judged[arm]:.3f}", change, on_front])
    columns = ["trunk", "start", "8-bit encoder, ms", *PROMPTS.values(), "mean Dice", "minus Lite0, paired", "front"]
    write_result("peers_dice", dice=table(columns, rows))
    if given.plot:
        plot(points, best, given.plot)


if __name__ == "__main__":
    main()
