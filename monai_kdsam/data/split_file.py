# SPDX-License-Identifier: Apache-2.0
"""The split file: a MONAI datalist with relative paths and the settings that it was made with."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from monai.utils import ensure_tuple

from monai_kdsam.data.layouts import Item
from monai_kdsam.data.paths import split_frame
from monai_kdsam.errors import MissingFileError, UserError

__all__ = ["check_files", "load_split_file", "relative_to", "with_absolute_paths", "with_relative_paths"]


def load_split_file(split_file: Path, settings: dict[str, Any], sources: Collection[str]) -> dict[str, Any]:
    """Read a split file that was made with these settings and has these sources, else raise a ValueError."""
    remedy = f"Delete {split_file} to split anew, or give another `split_file`."
    try:
        stored = json.loads(split_file.read_text(encoding="utf-8"))
        known, theirs = stored["sources"], stored["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{split_file} is not a split file of monai_kdsam. {remedy}") from error
    differing = [
        f"{name} {theirs.get(name)} (now {value})" for name, value in settings.items() if theirs.get(name) != value
    ]
    if differing:
        raise UserError(f"{split_file} was made with other settings: {', '.join(differing)}. {remedy}")
    unknown = sorted(set(sources) - set(known))
    if unknown:
        raise UserError(f"{split_file} holds {', '.join(known)}, but not {', '.join(unknown)}. {remedy}")
    return stored


def check_files(datalist: dict[str, list[Item]], split_file: Path) -> None:
    """Raise a FileNotFoundError that names the files which are gone."""
    gone = [
        path
        for items in datalist.values()
        for item in items
        for path in (item["image"], *ensure_tuple(item.get("label", ())))
        if not split_frame(path)[0].is_file()
    ]
    if gone:
        listed = ", ".join(gone[:20]) + (", ..." if len(gone) > 20 else "")
        raise MissingFileError(
            f"{len(gone)} files listed in {split_file} do not exist. Bring them back, correct the root in "
            f"`sources`, or delete the split file to split anew: {listed}."
        )


def relative_to(path: str, root: Path) -> str:
    """Path relative to a root, or as it is if it lies elsewhere."""
    return Path(path).relative_to(root).as_posix() if Path(path).is_relative_to(root) else path


def with_relative_paths(item: Item, root: Path) -> Item:
    """The item with the paths that the split file holds."""
    return _with_paths(item, lambda path: relative_to(path, root))


def with_absolute_paths(item: Item, root: Path) -> Item:
    """The item with paths that can be opened."""
    return _with_paths(item, lambda path: str(root / path))


def _with_paths(item: Item, change: Callable[[str], str]) -> Item:
    changed = {**item, "image": change(item["image"])}
    if "label" in item:
        label = item["label"]
        changed["label"] = change(label) if isinstance(label, str) else [change(path) for path in label]
    return changed
