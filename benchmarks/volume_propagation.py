# SPDX-License-Identifier: Apache-2.0
"""What one prompt on the middle slice of a volume is worth, with and without propagation: the hippocampus.

Trains a small student with the 2-D bundle on the slices of the training volumes, then prompts each held-out volume
once and compares masks of whole volumes:

    python benchmarks/volume_propagation.py Task04_Hippocampus OUT [--epochs 15] [--split test]

A training that is cut off goes on where it was. Of the volumes in the folder, sorted by name, each third is for the
test, each fourth of the rest for validation. The reference is the whole hippocampus, labels 1 and 2.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from monai_kdsam.bundles import bundle_path, config_path
from monai_kdsam.data import write_slices

BACKBONE, SIZE = "resnet18", 128


def split(folder: Path) -> dict[str, list[dict[str, str]]]:
    """Volumes with labels by split."""
    images = sorted((folder / "imagesTr").glob("*.nii.gz"))
    pairs = [{"image": str(path), "label": str(folder / "labelsTr" / path.name)} for path in images]
    rest = [pair for number, pair in enumerate(pairs) if number % 3 != 2]
    return {
        "training": [pair for number, pair in enumerate(rest) if number % 4 != 3],
        "validation": rest[3::4],
        "test": pairs[2::3],
    }


def train(datalist: Path, output: Path, epochs: int) -> Path:
    """Train the 2-D bundle's student, all of it, from random weights; return its weights."""
    configs = [bundle_path() / "configs" / "train.json"]
    configs += [config_path(name) for name in ("datasets/datalist.yaml", "without_distillation.yaml")]
    options = {
        "bundle_root": bundle_path(),
        "dataset_dir": datalist,
        "output_dir": output,
        "ckpt_dir": output / "models",
        "backbone": BACKBONE,
        "image_size": SIZE,
        "epochs": epochs,
        "learning_rate": 0.0005,
        "bce_weight": 1.0,
        "batch_size": 16,
        "val_interval": 5,
        "num_workers": 0,
        "cache_rate": 1.0,
        "progress": False,
        "resume": (output / "train_state.pt").is_file(),
    }
    words = [str(word) for key, value in options.items() for word in (f"--{key}", value)]
    files = str([str(config) for config in configs])
    subprocess.run([sys.executable, "-m", "monai.bundle", "run", "--config_file", files, *words], check=True)
    return output / "models" / "without_distillation.pt"


def main() -> None:
    """Train, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="the folder Task04_Hippocampus")
    parser.add_argument("out", type=Path, help="folder for slices, weights and the bundle")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--split", default="test", choices=["validation", "test"])
    arguments = parser.parse_args()
    volumes = split(arguments.data)
    datalist = write_slices(volumes, arguments.out / "slices")
    train(datalist.resolve(), arguments.out.resolve() / "student", arguments.epochs)


if __name__ == "__main__":
    main()
