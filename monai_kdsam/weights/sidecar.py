# SPDX-License-Identifier: Apache-2.0
"""The JSON file beside a weight file: which bytes the weights are, and what their network was built and trained with.

Hosts want a raw state_dict, which has no place for either. `model.pt` has `model.json`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import monai_kdsam
from monai_kdsam.errors import UserError
from monai_kdsam.files import file_sha256, replacing

__all__ = ["copy_with_sidecar", "read_sidecar", "sidecar_path", "write_sidecar"]


def sidecar_path(weights: str | Path) -> Path:
    """Where the sidecar of a weight file lies."""
    return Path(weights).with_suffix(".json")


def write_sidecar(weights: str | Path, settings: Mapping[str, Any], *, remedy: str) -> None:
    """Describe a weight file that was just written.

    Args:
        weights: the file.
        settings: what the network was built and trained with, as JSON has it.
        remedy: see `replacing`.

    Raises:
        OSError: when the disk is full or the folder is not writable.
    """
    weights = Path(weights)
    content = {"sha256": file_sha256(weights), "monai_kdsam": monai_kdsam.__version__, "settings": dict(settings)}
    with replacing(sidecar_path(weights), remedy) as unfinished:
        unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_sidecar(weights: str | Path) -> dict[str, Any] | None:
    """What the network of a weight file was built and trained with; None where nobody wrote it down.

    Official checkpoints have no sidecar, nor do files that were written by earlier versions or by hand.

    Raises:
        ValueError: when the sidecar is damaged, or the weight file is not the one that it was written for.
    """
    path = sidecar_path(weights)
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        expected, settings = str(content["sha256"]), dict(content["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged, or does not describe the weights in {Path(weights).name}. Restore it; if the weights "
            "are known to be good, delete it."
        ) from error
    if file_sha256(weights) != expected:
        raise UserError(
            f"{weights} is damaged or another file than {path.name} beside it was written for: their SHA-256 differ. "
            f"Restore the weights, or copy both files anew. If the weights were exchanged on purpose, delete {path}."
        )
    return settings


def copy_with_sidecar(source: str | Path, target: str | Path, *, remedy: str) -> None:
    """Copy a weight file, and its sidecar if it has one; what is at `target` is replaced."""
    source, target = Path(source), Path(target)
    with replacing(target, remedy) as unfinished:
        shutil.copyfile(source, unfinished)
        sidecar_path(target).unlink(missing_ok=True)  # at no time one beside weights that it does not describe
    if sidecar_path(source).is_file():
        with replacing(sidecar_path(target), remedy) as unfinished:
            shutil.copyfile(sidecar_path(source), unfinished)
