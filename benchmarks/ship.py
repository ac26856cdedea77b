# SPDX-License-Identifier: Apache-2.0
"""Make the file of weights that ships, with its card, of a trained student.

    python benchmarks/ship.py WEIGHTS --trained "python -m monai.bundle run ..." --commit HASH
        --figures "ISIC 2017, box=0.945" ... [--pictures FOLDER]

WEIGHTS is what a training of the bundle's own network wrote (its settings are compared), the command and the commit are
those that trained it, and figures are those of its validation. Kernels and matrices are stored in half precision, all
else, norms and SAM's position code among it, as it is. With --pictures masks of both are compared.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from monai.bundle import ConfigParser
from torch import Tensor

from monai_kdsam.bundles import bundle_path
from monai_kdsam.config_files import parse_value
from monai_kdsam.data import list_images
from monai_kdsam.errors import UserError
from monai_kdsam.files import file_sha256, replacing
from monai_kdsam.inferers import BundlePredictor
from monai_kdsam.networks import load_weights
from monai_kdsam.weights.sidecar import write_sidecar

CARD = Path(__file__).with_name("shipped_student.yaml")
MOST_BYTES = 20e6


def halved(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state with kernels and matrices in half precision."""

    def is_large(name: str, value: Tensor) -> bool:
        return value.is_floating_point() and value.ndim > 1 and not name.endswith("gaussian_matrix")

    return {name: value.half() if is_large(name, value) else value for name, value in state.items()}


def ship(weights: Path, bundle: Path, card: dict[str, Any]) -> Path:
    """Write a bundle's `models/model.pt` and `model.json`.

    Raises:
        UserError: when the weights are another network's than the bundle serves, not finite, or too large.
    """
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "inference.json")
    trained_with = parser.get_parsed_content("trained_with")
    network = load_weights(parser.get_parsed_content("network_def"), weights, trained_with)
    state = halved(network.state_dict())
    for name, value in state.items():
        if not value.isfinite().all():
            raise UserError(f"{name} of {weights} is not finite in half precision.")
    target = bundle / "models" / "model.pt"
    target.parent.mkdir(exist_ok=True)
    with replacing(target, "Free disk space.") as unfinished:
        torch.save(state, unfinished)
        if (size := unfinished.stat().st_size) > MOST_BYTES:
            raise UserError(f"{target} would have {size / 1e6:.1f} MB, and may have {MOST_BYTES / 1e6:.0f}.")
    settings = json.loads(json.dumps({"network": network.settings} | trained_with))
    write_sidecar(target, settings, remedy="", about={"card": card})
    return target


def agreement(weights: Path, bundle: Path, pictures: Path, most: int = 60) -> dict[str, float]:
    """IoU of the masks of both precisions, at a box over the middle half of each picture and without a prompt."""
    both = [BundlePredictor(bundle, checkpoint=str(file)) for file in (weights, bundle / "models" / "model.pt")]
    found = []
    items = list_images(pictures)
    for item in items[:: max(1, len(items) // most)]:
        height, width = both[0](item["image"]).shape
        for prompt in ({}, {"roi": [width // 4, height // 4, width * 3 // 4, height * 3 // 4]}):
            one, other = (predictor(item["image"], **prompt) > 0 for predictor in both)
            found.append((one & other).sum() / max(1, (one | other).sum()) if (one | other).any() else 1.0)
    return {"masks": len(found), "mean_iou": round(float(np.mean(found)), 5), "least_iou": round(float(min(found)), 5)}


def main() -> None:
    """Write the file, compare, and tell."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("--trained", required=True, metavar="COMMAND", help="that trained them")
    parser.add_argument("--commit", help="of the code that did (default: the present one)")
    parser.add_argument("--figures", nargs="+", default=[], metavar="NAME=VALUE", help="of the validation images")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="to compare masks of both precisions on")
    parser.add_argument("--bundle", type=Path, default=bundle_path(), help="default: the project's own")
    given = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, cwd=CARD.parent)
    card = yaml.safe_load(CARD.read_text(encoding="utf-8"))
    figures = dict(figure.rsplit("=", 1) for figure in given.figures)
    card |= {
        "trained": given.trained,
        "commit": given.commit or commit.stdout.strip(),
        "date": date.today().isoformat(),
        "of_sha256": file_sha256(given.weights),
        "validation": {name: parse_value(value) for name, value in figures.items()},
    }
    target = ship(given.weights, given.bundle, card)
    if given.pictures:
        card["half_precision"] = agreement(given.weights, given.bundle, given.pictures)
        target = ship(given.weights, given.bundle, card)
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB, SHA-256 {file_sha256(target)}")
    print(json.dumps(card, indent=1))


if __name__ == "__main__":
    main()
