# SPDX-License-Identifier: Apache-2.0
"""What the precision of the embedding cache does to the distilled student, over several seeds.

For each seed the demonstration's student is distilled at its teacher live, from caches of each precision, and live
with the last bit of every number of the teacher's embedding changed. Training is chaotic: the last of these says how
far two runs come apart that differ in nothing but rounding, which is the yardstick for "equal". Each student is
evaluated, with the teacher's decoder as it is, on pictures that none of them has seen:

    python -m monai_kdsam demo
    python benchmarks/cached_dice.py kdsam_demo --seeds 12

Printed is, for each prompt, the mean of the paired differences in Dice from the live student of the same seed with its
95 % interval (Student's t), and how far apart the two are, as the root of the mean square; last, how far apart live
students of two seeds are. Rows are kept in `--results` and not computed again, so
an interrupted study goes on, and several processes can share the seeds (`--first_seed`).
"""

from __future__ import annotations

import argparse
import csv
import logging
import math
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import monai.bundle
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import DataLoader
from monai.metrics import compute_dice
from scipy.stats import t as student_t
from torch import Tensor, nn

from monai_kdsam.data.phantoms import write_phantoms
from monai_kdsam.demo import CLUTTER
from monai_kdsam.networks import build_student, load_weights

SIZE = 64
PROMPTS = ("box", "center", "none")
CACHES = ("float32", "float16", "int8")
ARMS = ("live", "last bit", *CACHES)
Row = dict[str, Any]


class LastBit(nn.Module):
    """The teacher's encoder, with each number moved to the next one that float32 can hold."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, 256, S/16, S/16)."""
        embedding = self.encoder(image)
        return torch.nextafter(embedding, torch.full_like(embedding, math.inf))


class Study:
    """Distillations of the demonstration's student by its bundle, small, and pictures to compare the students on."""

    def __init__(self, demo: Path, folder: Path, epochs: int, pictures: int) -> None:
        self.bundle = demo.resolve() / "kdsam_deepgrow_2d"
        self.overlays = [demo.resolve() / "configs" / f"{name}.yaml" for name in ("offline", "demo")]
        self.folder = folder
        self.settings: Row = {
            "bundle_root": str(self.bundle),
            "dataset_dir": str(demo.resolve() / "phantoms"),
            "output_dir": str(folder),
            "logging_file": False,
            "progress": False,
            "image_size": SIZE,
            "vgg_layer": "relu1_2",
            "embedding_variants": 1,
            "epochs": epochs,
            "val_interval": epochs,
            "learning_rate": 2e-3,
            "best_checkpoint": str(folder / "distilled.pt"),
            "overwrite": True,
        }
        write_phantoms(folder / "unseen", per_kind=pictures // 2, clutter=CLUTTER, seed=12345)
        self.unseen = self.load_unseen()

    def files(self, *phases: str) -> list[str]:
        """The configs of a phase."""
        names = [self.bundle / "configs" / f"{name}.yaml" for name in ("train", *phases)]
        return [str(file) for file in (*names, *self.overlays)]

    def load_unseen(self) -> list[dict[str, Tensor]]:
        """Batches of the pictures that no student sees in training, prepared as for validation."""
        split = {"split_file": str(self.folder / "unseen.json"), "split_fractions": [0.0, 1.0, 0.0]}
        parser = ConfigParser()
        parser.read_config(self.files())
        parser.update(self.settings | split | {"dataset_dir": str(self.folder / "unseen"), "val_prompts": PROMPTS})
        return list(DataLoader(parser.get_parsed_content("validate#dataset"), batch_size=50))

    def distill(self, arm: str, seed: int) -> None:
        """One student, to `distilled.pt`."""
        settings: Row = {"seed": seed}
        if arm in CACHES:
            cache = {"embedding_precision": arm, "embedding_dir": str(self.folder / arm)}
            if not Path(cache["embedding_dir"]).exists():
                monai.bundle.run(config_file=self.files("distill", "embed"), **self.settings | cache)
            settings |= {"cached_embeddings": True, **cache}
        elif arm == "last bit":
            encoder = {"_target_": f"{__name__}.LastBit", "encoder": "$@teacher_encoder.to(@device)"}
            settings["prepare_batch#encoder"] = encoder
        monai.bundle.run(config_file=self.files("distill"), **self.settings | settings)

    def dice(self) -> list[float]:
        """Mean Dice of `distilled.pt` on the unseen pictures, for each prompt."""
        network = load_weights(build_student("resnet18", image_size=SIZE), self.folder / "distilled.pt").eval()
        with torch.no_grad():
            found = [
                compute_dice(network(batch["image"], batch["points"], batch["labels"]) > 0, batch["label"])
                for batch in self.unseen
            ]
        return torch.cat(found).nanmean(dim=0).tolist()


def read_rows(file: Path) -> list[Row]:
    """What has been computed: a row for each seed and arm."""
    if not file.exists():
        return []
    with open(file, newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


def add_row(file: Path, arm: str, seed: int, values: Sequence[float]) -> None:
    """Append a row, with a header if it is the first."""
    with open(file, "a", newline="", encoding="utf-8") as opened:
        if not file.stat().st_size:
            opened.write(",".join(("seed", "arm", *PROMPTS)) + "\n")
        opened.write(",".join(map(str, (seed, arm, *values))) + "\n")


def half_width(values: np.ndarray) -> float:
    """Half of the 95 % interval of the mean.

    >>> round(half_width(np.array([1.0, 2.0, 3.0])), 3)
    2.484
    """
    if len(values) < 2:
        return math.nan
    return float(student_t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))


def table(rows: Sequence[Row]) -> str:
    """For each arm and prompt: mean of the paired differences, its interval, and their root mean square."""
    found = {(row["arm"], int(row["seed"])): np.array([float(row[prompt]) for prompt in PROMPTS]) for row in rows}
    live = {seed: values for (arm, seed), values in found.items() if arm == "live"}
    columns = [text for prompt in PROMPTS for text in (prompt, "apart")]
    lines = [f"| against live, same seed | seeds | {' | '.join(columns)} |", "|---" * (2 + len(columns)) + "|"]
    for arm in ARMS[1:]:
        pairs = [values - live[seed] for (name, seed), values in found.items() if name == arm and seed in live]
        if pairs:
            cells = [f"{d.mean():+.4f} ± {half_width(d):.4f} | {np.sqrt((d**2).mean()):.4f}" for d in np.array(pairs).T]
            lines.append(f"| {arm} | {len(pairs)} | {' | '.join(cells)} |")
    if len(live) > 1:
        # Of two draws the difference has a mean square of twice the variance.
        cells = [
            f"Dice {values.mean():.4f} | {math.sqrt(2) * values.std(ddof=1):.4f}"
            for values in np.array([*live.values()]).T
        ]
        lines.append(f"| live, two seeds | {len(live)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Distill, evaluate, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("demo", type=Path, help="folder of a finished demonstration")
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--results", type=Path, default=Path("cached_dice.csv"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    done = {(int(row["seed"]), row["arm"]) for row in read_rows(arguments.results)}
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    missing = [(seed, arm) for seed in seeds for arm in arguments.arms if (seed, arm) not in done]
    if missing:
        with tempfile.TemporaryDirectory() as name:
            study = Study(arguments.demo, Path(name), arguments.epochs, arguments.pictures)
            for seed, arm in missing:
                study.distill(arm, seed)
                add_row(arguments.results, arm, seed, study.dice())
    print(table(read_rows(arguments.results)))


if __name__ == "__main__":
    main()
