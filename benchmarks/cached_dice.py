# SPDX-License-Identifier: Apache-2.0
"""What the precision of the embedding cache does to the distilled student.

Distills the demonstration's student at its teacher, live and from caches of each precision, from the same seed over
the same pictures, and once more live from another seed, to have something to compare the differences with. Each student
is evaluated, with the teacher's decoder as it is, on pictures that none of them has seen:

    python -m monai_kdsam demo
    python benchmarks/cached_dice.py kdsam_demo [--epochs 20] [--pictures 400]

Printed are the mean Dice for each prompt and its difference from the first live student's.
"""

from __future__ import annotations

import argparse
import csv
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import monai.bundle

from monai_kdsam.data.phantoms import write_phantoms
from monai_kdsam.demo import CLUTTER

PROMPTS = ("box", "center", "none")
ARMS: dict[str, dict[str, Any]] = {
    "live": {},
    "float32": {"cached_embeddings": True, "embedding_precision": "float32"},
    "float16": {"cached_embeddings": True, "embedding_precision": "float16"},
    "int8": {"cached_embeddings": True, "embedding_precision": "int8"},
    "live, other seed": {"seed": 1},
}


class Study:
    """Runs of the demonstration's bundle, each with a folder of its own."""

    def __init__(self, demo: Path, folder: Path, epochs: int) -> None:
        self.demo = demo.resolve()
        self.folder = folder
        self.epochs = epochs

    def run(self, arm: str, *phases: str, **settings: Any) -> None:
        """One phase for one arm."""
        bundle = self.demo / "kdsam_deepgrow_2d"
        files = [bundle / "configs" / f"{name}.json" for name in ("train", *phases)]
        files += [self.demo / "configs" / f"{name}.yaml" for name in ("offline", "demo")]
        output = self.folder / arm.replace(" ", "_").replace(",", "")
        common = {
            "bundle_root": str(bundle),
            "dataset_dir": str(self.demo / "phantoms"),
            "output_dir": str(output),
            "logging_file": False,
            "best_checkpoint": str(output / "distilled.pt"),
            "embedding_variants": 1,
            "epochs": self.epochs,
            "val_interval": self.epochs,
            "learning_rate": 2e-3,
        }
        monai.bundle.run(config_file=[str(file) for file in files], **(common | settings))

    def dice(self, arm: str) -> list[float]:
        """Distill a student and evaluate it."""
        settings = ARMS[arm]
        if settings.get("cached_embeddings"):
            self.run(arm, "distill", "embed", **settings)
        self.run(arm, "distill", **settings)
        output = self.folder / arm.replace(" ", "_").replace(",", "")
        self.run(
            arm,
            "evaluate",
            dataset_dir=str(self.folder / "unseen"),
            split_file=str(self.folder / "unseen.json"),
            split_fractions=[0.0, 0.0, 1.0],
            checkpoint=str(output / "distilled.pt"),
            report_dir=str(output),
            val_prompts=PROMPTS,
        )
        with open(output / "summary.csv", newline="", encoding="utf-8") as file:
            last = list(csv.DictReader(file))[-1]
        return [float(last[prompt]) for prompt in PROMPTS]


def main() -> None:
    """Distill, evaluate, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("demo", type=Path, help="folder of a finished demonstration")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--pictures", type=int, default=400)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        write_phantoms(Path(name) / "unseen", per_kind=arguments.pictures // 4, clutter=CLUTTER, seed=12345)
        study = Study(arguments.demo, Path(name), arguments.epochs)
        found = {arm: study.dice(arm) for arm in ARMS}
    print(f"| teacher's embeddings | {' | '.join(f'{prompt} | difference' for prompt in PROMPTS)} |")
    print("|---" * (1 + 2 * len(PROMPTS)) + "|")
    for arm, values in found.items():
        cells = [f"{value:.4f} | {value - live:+.4f}" for value, live in zip(values, found["live"], strict=True)]
        print(f"| {arm} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
