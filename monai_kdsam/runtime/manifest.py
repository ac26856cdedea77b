# SPDX-License-Identifier: Apache-2.0
"""The JSON file beside exported models: what they are, and what an image must look like for them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from monai_kdsam.errors import MissingFileError, UserError
from monai_kdsam.files import file_sha256, write_text

__all__ = ["LAYOUT", "MANIFEST", "SAM_LAYOUT", "Manifest"]

MANIFEST = "kdsam.json"
LAYOUT = 4  # of the files, their inputs and their outputs; raised when an older runtime could not use them
SAM_LAYOUT = "sam"  # of files for other programs, which this runtime does not read


@dataclass(frozen=True)
class Manifest:
    """A folder of exported models.

    Args:
        format: onnx, openvino or torchscript; sam for other programs.
        precision: of the image encoder: fp32, fp16 or int8.
        image_size: side S of the models' square input in pixels.
        pixel_mean: of each channel, subtracted from values in [0, 255].
        pixel_std: of each channel; the difference is divided by it.
        close_up: how much of a picture is seen with a box, see `monai_kdsam.close_up.close_up`; 0: all of it.
        fill_holes: whether masks have none, but for those with a background click, see `monai_kdsam.holes.fill_holes`.
        go_on: whether the network is worth going on from an earlier answer with, as it learned it.
        mask_input: whether the decoder takes an earlier answer, too.
        files: part to file name: encoder (image -> embedding), decoder (embedding, points, labels and, with
            `mask_input`, mask_input and has_mask_input -> masks, iou) and model (image -> pred).
        sha256: of every file in the folder, by name.
        weights_sha256: of the checkpoint that was exported.
        versions: of the packages that took part.
        parity: what the comparison with PyTorch gave.
        weights: what people should know of the checkpoint, in a line.
        layout: of the files; another one cannot be read.
    """

    format: str
    precision: str
    image_size: int
    pixel_mean: list[float]
    pixel_std: list[float]
    close_up: float
    fill_holes: bool
    go_on: bool
    mask_input: bool
    files: dict[str, str]
    sha256: dict[str, str]
    weights_sha256: str
    versions: dict[str, str]
    parity: dict[str, Any] = field(default_factory=dict)
    weights: str = ""
    layout: int | str = LAYOUT

    @classmethod
    def read(cls, folder: str | Path) -> Manifest:
        """Read the manifest of a folder, and check that it and the files beside it belong together.

        Raises:
            FileNotFoundError: when the folder holds no manifest, or a file that it names is missing.
            ValueError: when it is damaged or of another version, or a file has other content.
        """
        path = Path(folder) / MANIFEST
        if not path.is_file():
            raise MissingFileError(f"Expected `folder` with {MANIFEST}, as `python -m monai_kdsam export` writes it.")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            layout = content["layout"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged or no manifest of exported models. Export again.") from error
        if layout == SAM_LAYOUT:
            raise UserError(
                f"{path} is of files for programs that know SAM (`export --layout sam`), which this runtime does not "
                "read: it wants an export without `--layout`."
            )
        if layout != LAYOUT:
            writer = content.get("versions", {}).get("monai_kdsam", "of another version")
            raise UserError(
                f"Expected exported files of layout {LAYOUT}, got {layout!r} in {path}: they were written by "
                f"monai_kdsam {writer}. Export again, or install that version."
            )
        content = {"weights": "", "fill_holes": False, "go_on": False} | content  # of an earlier version
        missing = sorted({each.name for each in fields(cls)} - content.keys())
        if missing:
            raise UserError(f"{path} is damaged: it has no {', '.join(missing)}. Export again.")
        manifest = cls(**{each.name: content[each.name] for each in fields(cls)})
        manifest.check_files(path.parent)
        return manifest

    def check_files(self, folder: Path) -> None:
        """Raise unless every file has the content that it was exported with; see `read`."""
        for name, expected in self.sha256.items():
            file = folder / name
            if not file.is_file():
                raise MissingFileError(f"Expected {name} beside {MANIFEST} in {folder}. Copy the whole folder.")
            if file_sha256(file) != expected:
                raise UserError(f"{file} is damaged or of another export than {MANIFEST} beside it. Copy it again.")

    def write(self, folder: Path) -> None:
        """Write the manifest into the folder of its files."""
        write_text(folder / MANIFEST, json.dumps(asdict(self), indent=4) + "\n")
