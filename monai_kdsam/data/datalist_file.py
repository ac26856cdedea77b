# SPDX-License-Identifier: Apache-2.0
"""Datalists: which image has which mask, subject and split, in JSON or CSV."""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from monai_kdsam.data.paths import split_frame, suffix_of
from monai_kdsam.errors import MissingFileError, UserError

__all__ = ["LOSSY_SUFFIXES", "SPLITS", "UNLABELED", "Item", "listed_images", "read_list"]

logger = logging.getLogger(__name__)
Item = dict[str, Any]

SPLITS = ("training", "validation", "test")
UNLABELED = "unlabeled"
COLUMNS = ("image", "label", "split", "subject", "source", "mask_kind")
LOSSY_SUFFIXES = (".jpg", ".jpeg")


def read_list(path: Path) -> list[Item]:
    """Read a datalist.

    JSON, as MONAI has it: an object with lists "training", "validation", "test" of items with image and label. CSV: a
    row for each image with the columns `image` and `label`, and where they are known `split`, `subject`,
    `source` and `mask_kind`; without `split` the images are divided as those of a folder.

    Paths are relative to the file, or absolute. An item may bring its own `subject`, `mask_kind` and `spacing`, and as
    `source` the name of its set, which becomes its `origin`. Items of a list (or split) "unlabeled" need an image only,
    and their `subject` if others have it.

    Raises:
        FileNotFoundError: there is no such file, or images or masks it names do not exist.
        ValueError: it is no datalist, has none of the lists, or items without image or label.
    """
    if not path.is_file():
        raise MissingFileError(f"Expected the path of a datalist, JSON or CSV, but there is no file {path}.")
    lists = _csv_lists(path) if path.suffix.lower() == ".csv" else _json_lists(path)
    items = []
    for split, entries in lists.items():
        if not isinstance(entries, list):
            raise UserError(f'Expected "{split}" in {path} to be a list, got {entries!r}.')
        for number, entry in enumerate(entries):
            if not (_is_unlabeled(entry) if split == UNLABELED else _is_listed(entry)):
                wanted = '"image", a path' + (', and "label", a path or several' if split != UNLABELED else "")
                raise UserError(f'Expected {wanted}, in item {number} of "{split}" in {path}, got {entry}.')
            item = _item(entry, path.absolute().parent, is_labeled=split != UNLABELED)
            items.append(item | {"official_split": split} if split in SPLITS else item)
    files = [file for item in items for file in (item["image"], *_paths(item.get("label", ())))]
    missing = [file for file in files if not split_frame(file)[0].is_file()]
    if missing:
        listed = ", ".join(missing[:20]) + (f", and {len(missing) - 20} more" if len(missing) > 20 else "")
        raise MissingFileError(f"{len(missing)} files listed in {path} do not exist: {listed}.")
    return items


def listed_images(path: Path) -> list[Path]:
    """The images of a datalist's lists, sorted, each once; errors as of `read_list`."""
    return sorted({Path(os.path.normpath(item["image"])) for item in read_list(path)})


def _json_lists(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"Expected JSON in {path}, got something else: {error}.") from error
    lists = content if isinstance(content, dict) else {}
    others = [name for name, entries in lists.items() if isinstance(entries, list) and name not in (*SPLITS, UNLABELED)]
    named = f" (it has {', '.join(others)})" if others else ""
    if not set(SPLITS) & set(lists):
        raise UserError(f"Expected a JSON object with lists {', '.join(SPLITS)} in {path}, got none of them{named}.")
    if others:
        logger.warning(f"{path} has lists that are not read: {', '.join(others)}. Read are {', '.join(SPLITS)}.")
    return {name: lists[name] for name in (*SPLITS, UNLABELED) if name in lists}


def _csv_lists(path: Path) -> dict[str, list[dict[str, str]]]:
    """Items by split; those of a table without `split` under a name that is none."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = [{key: row[key] for key in COLUMNS if row.get(key)} for row in csv.DictReader(file)]
    lists: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        lists.setdefault(row.pop("split", ""), []).append(row)
    unknown = sorted(set(lists) - {*SPLITS, UNLABELED, ""})
    if not rows or "image" not in rows[0] or unknown:
        raise UserError(
            f"Expected rows with the columns image, label and, where known, split ({', '.join((*SPLITS, UNLABELED))}) "
            f"and subject in {path}, got " + (f"the splits {', '.join(unknown)}." if unknown else "none.")
        )
    return lists


def _is_unlabeled(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("image"), str)


def _is_listed(entry: Any) -> bool:
    if not _is_unlabeled(entry) or "label" not in entry:
        return False
    label = entry["label"]
    return all(isinstance(path, str) for path in (label if isinstance(label, list) and label else [label]))


def _item(entry: Item, folder: Path, *, is_labeled: bool) -> Item:
    subject = str(entry.get("subject", entry["image"]))
    own: Item = {"image": str(folder / entry["image"]), "source": "datalist", "subject": subject}
    if "source" in entry:
        own["origin"] = str(entry["source"])
    if not is_labeled:
        return own
    label = [str(folder / path) for path in _paths(entry["label"])]
    kind = "lossy" if any(suffix_of(path) in LOSSY_SUFFIXES for path in label) else "binary"
    return {"mask_kind": kind, **entry, **own, "label": label if isinstance(entry["label"], list) else label[0]}


def _paths(label: str | Iterable[str]) -> list[str]:
    return [label] if isinstance(label, str) else list(label)
