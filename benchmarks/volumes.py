# SPDX-License-Identifier: Apache-2.0
"""What one prompt on the middle slice of a volume is worth, with and without propagation: the hippocampus.

Trains a small student with the 2-D bundle on the slices of the training volumes, then prompts each held-out volume
once and compares masks of whole volumes:

    python benchmarks/volumes.py Task04_Hippocampus OUT [--epochs 15] [--split test]

A training that is cut off goes on where it was. Of the volumes in the folder, sorted by name, each third is for the
test, each fourth of the rest for validation. The reference is the whole hippocampus, labels 1 and 2.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import nibabel
import numpy as np
from machine import table, write_result
from numpy.typing import NDArray

from monai_kdsam.bundles import bundle_path, copy_bundle
from monai_kdsam.data import write_slices
from monai_kdsam.inferers import BundlePredictor
from monai_kdsam.phases import run_phase
from monai_kdsam.transforms import box_from_mask, center_click

WEIGHTS = "without_distillation.pt"
STUDENT = {"backbone": "resnet18", "image_size": 128, "prompt_map": False, "fine_features": False}


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


def train(datalist: Path, output: Path, epochs: int) -> None:
    """Train the 2-D bundle's student, all of it, from random weights."""
    settings = {
        "dataset_dir": datalist,
        "output_dir": output,
        "ckpt_dir": output / "models",
        **STUDENT,
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
    run_phase(bundle_path(), "train", "datasets/datalist", "without_distillation", **settings)


def serve(folder: Path, weights: Path, **overrides: float) -> BundlePredictor:
    """The 3-D bundle with the student's weights."""
    bundle = folder / "kdsam_deepgrow_3d"
    if not bundle.exists():
        copy_bundle(folder, bundle.name, settings=STUDENT)
    shutil.copyfile(weights, bundle / "models" / "model.pt")
    return BundlePredictor(bundle, **overrides)


def prompts_on_the_middle_slice(reference: NDArray[np.bool_]) -> dict[str, dict[str, list]]:
    """One prompt each: none; a click at the deepest point, and the tight box, on the middle one of the structure."""
    present = np.flatnonzero(reference.any(axis=(0, 1)))
    k = int(present[len(present) // 2])
    mask = reference[..., k]
    (j, i), ((j1, i1), (j2, i2)) = (
        found.astype(int).tolist() for found in (center_click(mask)[0], box_from_mask(mask))
    )
    return {
        "a click": {"foreground": [[i, j, k]]},
        "a box": {"roi": [i1, i2, j1, j2, k, k]},
    }


def dice(found: NDArray[np.bool_], reference: NDArray[np.bool_]) -> float:
    return float(2 * (found & reference).sum() / (found.sum() + reference.sum()))


def measure(pairs: list[dict[str, str]], segment: BundlePredictor) -> dict[str, list[float]]:
    """Dice of whole volumes by way of prompting."""
    found: dict[str, list[float]] = {}
    for pair in pairs:
        reference = np.asarray(nibabel.load(pair["label"]).dataobj) > 0
        rows = {"no prompt, each slice on its own": segment(pair["image"])}
        for name, prompt in prompts_on_the_middle_slice(reference).items():
            rows[f"{name}, not propagated"] = segment(pair["image"], **prompt, propagate=False)
            rows[f"{name}, propagated"] = segment(pair["image"], **prompt, propagate=True)
        for name, mask in rows.items():
            found.setdefault(name, []).append(dice(mask > 0, reference))
    return found


def main() -> None:
    """Train, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="the folder Task04_Hippocampus")
    parser.add_argument("out", type=Path, help="folder for slices, weights and the bundle")
    parser.add_argument("--epochs", type=int, default=15, help="0: measure the weights that are there")
    parser.add_argument("--split", default="test", choices=["validation", "test"])
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="of the 3-D bundle, such as margin=0.2"
    )
    arguments = parser.parse_args()
    volumes, out = split(arguments.data), arguments.out.resolve()
    student = out / "student"
    if arguments.epochs:
        train(write_slices(volumes, out / "slices"), student, arguments.epochs)
    overrides = {key: float(value) for key, value in (text.split("=") for text in arguments.set)}
    segment = serve(out, student / "models" / WEIGHTS, **overrides)
    found = measure(volumes[arguments.split], segment)
    columns = [f"{len(volumes[arguments.split])} volumes, {arguments.split}", "mean Dice", "least", "most"]
    rows = [[name, *(f"{of(values):.3f}" for of in (np.mean, min, max))] for name, values in found.items()]
    write_result("volumes", propagation=table(columns, rows))


if __name__ == "__main__":
    main()
