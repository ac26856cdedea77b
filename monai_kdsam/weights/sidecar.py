# SPDX-License-Identifier: Apache-2.0
"""The JSON file beside a weight file: which bytes the weights are, and what their network was built and trained with.

Hosts want a raw state_dict, which has no place for either. `model.pt` has `model.json`. That of the student that ships
has a card as well: its name, what it was trained on, and more for people.
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

__all__ = [
    "copy_with_sidecar",
    "describe_weights",
    "is_shipped",
    "origin_of",
    "read_sidecar",
    "sidecar_path",
    "write_sidecar",
]


SHIPPED_REMEDY = (
    "They came with monai_kdsam: `pip install --force-reinstall monai_kdsam` restores them (in a clone, `git checkout` "
    "of both files), and `python -m monai_kdsam bundle DIR` copies them out."
)


def sidecar_path(weights: str | Path) -> Path:
    """Where the sidecar of a weight file lies."""
    return Path(weights).with_suffix(".json")


def write_sidecar(
    weights: str | Path, settings: Mapping[str, Any], *, remedy: str, about: Mapping[str, Any] | None = None
) -> None:
    """Describe a weight file that was just written.

    Args:
        weights: the file.
        settings: what the network was built and trained with, as JSON has it.
        remedy: see `replacing`.
        about: what `describe_weights` tells of: `card`, or `phase`, `prompts` and `began_from` of a training.

    Raises:
        OSError: when the disk is full or the folder is not writable.
    """
    weights = Path(weights)
    content = {"sha256": file_sha256(weights), "monai_kdsam": monai_kdsam.__version__, "settings": dict(settings)}
    content |= about or {}
    with replacing(sidecar_path(weights), remedy) as unfinished:
        unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_sidecar(weights: str | Path) -> dict[str, Any] | None:
    """What the network of a weight file was built and trained with; None where nobody wrote it down.

    Official checkpoints have no sidecar, nor do files that were written by earlier versions or by hand.

    Raises:
        ValueError: when the sidecar is damaged, or the weight file is not the one that it was written for.
    """
    content = _read(weights)
    if content is None:
        return None
    path = sidecar_path(weights)
    # Published weights lie there as safetensors too.
    expected = content.get("safetensors") if Path(weights).suffix == ".safetensors" else None
    if file_sha256(weights) != (expected or content["sha256"]):
        came_with_us = "card" in content and "safetensors" not in content
        remedy = SHIPPED_REMEDY if came_with_us else "Restore the weights, or copy both files anew."
        raise UserError(
            f"{weights} is damaged or another file than {path.name} beside it was written for: their SHA-256 differ. "
            f"{remedy} If the weights were exchanged on purpose, delete {path}."
        )
    return dict(content["settings"])


def _read(weights: str | Path) -> dict[str, Any] | None:
    """What a sidecar says, unchecked but for its form."""
    path = sidecar_path(weights)
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        str(content["sha256"]), dict(content["settings"]), dict(content.get("card") or {})
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged, or does not describe the weights in {Path(weights).name}. Restore it; if the weights "
            "are known to be good, delete it."
        ) from error
    return content


def is_shipped(weights: str | Path) -> bool:
    """Whether these are weights that came with this package, every byte of them, which a training may replace."""
    content = _read(weights)
    return content is not None and "card" in content and file_sha256(weights) == content["sha256"]


def origin_of(weights: str | Path) -> str:
    """Where weights come from, for those that begin from them: the card's name, through however many trainings."""
    content = _read(weights) or {}
    if card := content.get("card"):
        return f"{card['name']} ({content['sha256'][:12]})"
    return str(content.get("began_from") or Path(weights).name)


def describe_weights(weights: str | Path) -> str:
    """What people should know of weights, in a line: what their card says, or what their training wrote down.

    Raises:
        ValueError: when the sidecar is damaged.
    """
    content = _read(weights) or {}
    if card := content.get("card"):
        return f"{card['name']}, trained on {', '.join(card['trained_on'])}; {card['use']}."
    start = f", begun from {content['began_from']}" if content.get("began_from") else ""
    if "prompts" not in content:
        return f"{Path(weights).name} has no card: what it was trained on is not known{start}."
    if not set(content["prompts"]) - {"none"}:
        return f"{Path(weights).name} of the phase {content['phase']}, NEVER TRAINED WITH PROMPTS{start}."
    prompts = ", ".join(content["prompts"])
    return f"{Path(weights).name} of your phase {content['phase']}, trained with the prompts {prompts}{start}."


def copy_with_sidecar(source: str | Path, target: str | Path, *, remedy: str) -> None:
    """Copy a weight file, and its sidecar if it has one; what is at `target` is replaced."""
    source, target = Path(source), Path(target)
    with replacing(target, remedy) as unfinished:
        shutil.copyfile(source, unfinished)
        sidecar_path(target).unlink(missing_ok=True)  # at no time one beside weights that it does not describe
    if sidecar_path(source).is_file():
        with replacing(sidecar_path(target), remedy) as unfinished:
            shutil.copyfile(sidecar_path(source), unfinished)
