# SPDX-License-Identifier: Apache-2.0
"""The split file: a MONAI datalist with relative paths and the settings that it was made with."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.utils import ensure_tuple

from monai_kdsam.data.layouts import Item
from monai_kdsam.data.paths import split_frame
from monai_kdsam.data.splits import counts
from monai_kdsam.errors import MissingFileError, UserError
from monai_kdsam.files import write_text

__all__ = ["check_files", "load_split_file", "relative_to", "with_paths", "write_split_file"]


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


def write_split_file(
    split_file: Path,
    settings: dict[str, Any],
    roots: Mapping[str, Path],
    splits: Mapping[str, list[Item]],
    skipped: Sequence[Item],
) -> None:
    """Write the lists of items, and those in none of them with the reason `why`, paths relative to their `roots`."""

    def relative(item: Item) -> Item:
        return with_paths(item, lambda path: relative_to(path, roots[item["source"]]))

    content = {
        "description": "Split written by monai_kdsam; paths are relative to the root of each source.",
        "sources": sorted(roots),
        "settings": settings,
        "counts": counts(splits),
        **{name: [relative(item) for item in items] for name, items in splits.items()},
        "skipped": [{name: relative(item)[name] for name in ("image", "source", "why")} for item in skipped],
    }
    write_text(split_file, json.dumps(content, indent=1))


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


def with_paths(item: Item, change: Callable[[str], str | Path]) -> Item:
    """The item with the paths of its image and masks changed."""
    changed = {**item, "image": str(change(item["image"]))}
    if "label" in item:
        label = item["label"]
        changed["label"] = str(change(label)) if isinstance(label, str) else [str(change(path)) for path in label]
    return changed
