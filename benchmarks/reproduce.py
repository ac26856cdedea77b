# SPDX-License-Identifier: Apache-2.0
"""One row of docs/reference/reproduction.md: from SAM's weights and a whole data set to the Dice of the test images.

    python -m monai_kdsam download sam_vit_b --dir WEIGHTS     (sam_vit_h, vgg16)
    python benchmarks/reproduce.py kvasir_sam_decoder Kvasir-SEG WEIGHTS OUT [NAME=VALUE ...]

NAME=VALUE are knobs of its configs, as seed=1, batch_size=4 or resume=True. Weights, split and reports are written
to OUT/ROW, and the Dice is printed.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from machine import table, write_result

from monai_kdsam.bundles import bundle_path
from monai_kdsam.config_files import parse_value
from monai_kdsam.handlers.case_report import read_mean_dice
from monai_kdsam.phases import run_phase

CHECKPOINTS = {"vit_b": "sam_vit_b_01ec64.pth", "vit_h": "sam_vit_h_4b8939.pth"}
# A phase and the overlay behind it.
SAM = (("evaluate", "evaluate_teacher"),)
SAM_DECODER = (("adapt", "reproductions/sam_decoder"), ("evaluate", "evaluate_teacher"))
KDSAM = (("distill", "recipes/paper"), ("train", "recipes/paper"), ("evaluate", "recipes/paper"))
# Row: data set, size of SAM, phases.
ROWS = {
    "kvasir_sam": ("kvasir", "vit_b", SAM),
    "kvasir_sam_decoder": ("kvasir", "vit_b", SAM_DECODER),
    "kvasir_kdsam_vit_b": ("kvasir", "vit_b", KDSAM),
    "kvasir_kdsam_vit_h": ("kvasir", "vit_h", KDSAM),
    "busi_sam": ("busi", "vit_b", SAM),
    "busi_sam_decoder": ("busi", "vit_b", SAM_DECODER),
    "busi_kdsam_vit_b": ("busi", "vit_b", KDSAM),
    "busi_kdsam_vit_h": ("busi", "vit_h", KDSAM),
    "isic2017_kdsam_vit_b": ("isic2017", "vit_b", KDSAM),
    "isic2017_kdsam_vit_h": ("isic2017", "vit_h", KDSAM),
}


def reproduce(
    row: str, data: Path, weights: Path, out: Path, settings: Mapping[str, Any], *, overlays: Sequence[Path] = ()
) -> dict[str, float]:
    """Run the phases of a row.

    Args:
        row: a key of `ROWS`.
        data: the data set, in the layout of its official download.
        weights: folder of SAM's and VGG16's weights, under the names of their official downloads.
        out: where a folder of the row's name is written.
        settings: knobs whose values replace the row's.
        overlays: config files that do the same.

    Returns:
        mean Dice on the test images by kind of prompt.
    """
    name, size, phases = ROWS[row]
    folder = out.resolve() / row
    common = {
        "dataset_dir": data.resolve(),
        "output_dir": folder,
        "ckpt_dir": folder / "models",
        "report_dir": folder,
        "sam_checkpoint": weights.resolve() / CHECKPOINTS[size],
        "vgg_weights": weights.resolve() / "vgg16-397923af.pth",
    }
    if phases == SAM:
        common["checkpoint"] = "@sam_checkpoint"
    for phase, overlay in phases:
        behind = (overlay, f"teachers/{size}", f"reproductions/{name}", *overlays)
        run_phase(bundle_path(), phase, *behind, **common | dict(settings))
    return read_mean_dice(folder)


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    return name, parse_value(value)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a row and print its Dice."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("row", choices=ROWS)
    parser.add_argument("data", type=Path, help="the data set, in the layout of its official download")
    parser.add_argument("weights", type=Path, help="folder of SAM's and VGG16's weights")
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument(
        "settings", nargs="*", type=_setting, metavar="NAME=VALUE", help="knobs, such as seed=1 batch_size=4"
    )
    parser.add_argument("--overlays", nargs="*", type=Path, default=[], help="config files behind the row's")
    given = parser.parse_args(arguments)
    found = reproduce(given.row, given.data, given.weights, given.out, dict(given.settings), overlays=given.overlays)
    values = [[given.row, prompt, f"{value:.4f}"] for prompt, value in found.items()]
    write_result(f"reproduce_{given.row}", dice=table(["row", "prompt", "Dice"], values))


if __name__ == "__main__":
    main()
