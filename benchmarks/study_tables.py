# SPDX-License-Identifier: Apache-2.0
"""The tables of `study.py`: means over sets and seeds, and paired differences with intervals over subjects."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence, Set
from pathlib import Path
from typing import NamedTuple

import numpy as np
from machine import table, write_result

from monai_kdsam.report.corrective_clicks import clicks_needed
from monai_kdsam.report.intervals import estimate_mean_of_sets
from monai_kdsam.report.metrics import calibration

SHOWN = {
    "box": "exact box",
    "box_20px": "box up to 2 % too wide",
    "box_20pct": "box 20 % off",
    "center_click": "one click",
    "automatic": "no prompt",
    "clicks_5": "5 clicks",
}
NOC = "NoC@85"  # corrective clicks to an IoU of 0.85, the most where it is not reached
KEPT = ("box", "center_click", "automatic")  # what is looked at on the other organs


class Case(NamedTuple):
    """A test image under one prompt."""

    source: str
    number: int
    subject: str
    prompt: str


class Arm:
    """The scores of all seeds of one arm."""

    def __init__(self, files: Sequence[Path]) -> None:
        runs = [json.loads(file.read_text()) for file in files]
        self.name: str = runs[0]["arm"]
        self.seeds = {run["seed"] for run in runs}
        self.seconds = float(np.median([run.get("seconds", math.nan) for run in runs]))
        self.values: dict[Case, dict[int, float]] = defaultdict(dict)  # Dice, or clicks of `NOC`; by seed
        self.trained = self.seconds > 1
        self.judged: list[tuple[str, float, float]] = []  # source, expected and real IoU
        for run in runs:
            number, curves = -1, defaultdict(list)
            for source, subject, prompt, dice, iou, expected, _ in run["rows"]:
                number += prompt == "box" or math.isnan(dice)
                if math.isnan(dice):
                    continue
                self.values[Case(source, number, subject, prompt)][run["seed"]] = dice
                if prompt.startswith("clicks_"):
                    curves[Case(source, number, subject, NOC)].append(iou)
                else:
                    self.judged.append((source, expected, iou))
            for case, ious in curves.items():
                self.values[case][run["seed"]] = clicks_needed(ious, 0.85) or len(ious)

    def mean(self, case: Case, seeds: Set[int]) -> float:
        """Over those of the seeds that it has; what is not trained has one, which stands for all."""
        return float(np.mean([value for seed, value in self.values[case].items() if seed in seeds or not self.trained]))

    def auroc(self, sources: Callable[[str], bool]) -> float:
        """Does a low expected IoU find the poor masks."""
        expected, real = np.array([pair for source, *pair in self.judged if sources(source)]).T
        return math.nan if np.isnan(expected).any() else float(calibration(expected, real)["auroc"])


def read_arms(folder: Path) -> dict[str, Arm]:
    """All arms that have scores."""
    files: dict[str, list[Path]] = defaultdict(list)
    for file in sorted(folder.glob("*.json")):
        files[json.loads(file.read_text())["arm"]].append(file)
    return {name: Arm(found) for name, found in files.items()}


def over_sets(
    arm: Arm,
    prompts: Sequence[str],
    sources: Callable[[str], bool],
    other: Arm | None = None,
) -> tuple[float, float, float]:
    """Mean over sets (and prompts) of Dice or clicks, or of their difference from another arm's, with a 95 % interval.

    Over all seeds that the arm has; a difference is that of the seeds which both have.
    """
    sets: dict[str, dict[tuple[int, str], list[float]]] = defaultdict(lambda: defaultdict(list))
    seeds = arm.seeds & other.seeds if other and other.trained else arm.seeds
    for case in arm.values:
        if case.prompt in prompts and sources(case.source):
            value = arm.mean(case, seeds) - (other.mean(case, seeds) if other else 0.0)
            sets[case.source][case.number, case.subject].append(value)
    parts = [
        ([float(np.mean(values)) for values in images.values()], [subject for _, subject in images])
        for images in sets.values()
    ]
    found = estimate_mean_of_sets(parts)
    return found.mean, found.low, found.high


def write_tables(folder: Path, names: Sequence[str], pairs: Iterable[tuple[str, str]], organ: str) -> None:
    """The table of means, that of differences of pairs of arms, and that of sizes, of what has scores."""
    arms = read_arms(folder)

    def own(source: str) -> bool:
        return source == organ

    def others(source: str) -> bool:
        return source != organ

    titles = (NOC, "other organs", "AUROC of the IoU head", "processor minutes")
    rows = []
    for arm in (arms[name] for name in names if name in arms):
        values = [over_sets(arm, [prompt], own)[0] for prompt in (*SHOWN, NOC)]
        values += [over_sets(arm, KEPT, others)[0], arm.auroc(own)]
        digits = [3] * len(SHOWN) + [1, 3, 3]
        cells = [f"{value:.{count}f}" for value, count in zip(values, digits, strict=True)]
        rows.append([arm.name, _seeds(arm.seeds), *cells, f"{arm.seconds / 60:.1f}"])
    columns = {title: [prompt] for prompt, title in SHOWN.items()}
    differences = []
    for name, base in pairs:
        if name in arms and base in arms:
            found = [over_sets(arms[name], prompts, own, arms[base]) for prompts in columns.values()]
            cells = [f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]" for mean, low, high in found]
            differences.append([f"{name} - {base}", _seeds(arms[name].seeds), *cells])
    write_result(
        "study",
        arms=table(["arm", "seeds", *SHOWN.values(), *titles], rows),
        differences=table(["difference", "seeds", *columns], differences),
    )


def _seeds(seeds: Set[int]) -> str:
    return ", ".join(map(str, sorted(seeds)))
