# SPDX-License-Identifier: Apache-2.0
"""The images that a report is about: one split of a data list, with what is known about their size in millimetres."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from monai.utils import ensure_tuple
from numpy.typing import NDArray

from monai_kdsam.data import Image2DReader
from monai_kdsam.data.layouts import SPLITS, Item, read_dataset, read_head_circumferences
from monai_kdsam.data.paths import PICTURE_SUFFIXES, split_frame, suffix_of
from monai_kdsam.data.picture_file import decode
from monai_kdsam.data.split_file import check_files, with_paths
from monai_kdsam.errors import UserError
from monai_kdsam.transforms.masks import clean_mask

__all__ = ["SplitName", "load_reference", "read_split", "with_units"]

logger = logging.getLogger(__name__)
SplitName = Literal["training", "validation", "test"]


def read_split(
    data_list: str | Path, split: SplitName = "test", roots: Mapping[str, str | Path] | None = None
) -> list[Item]:
    """Items of one split, with absolute paths.

    Args:
        data_list: a MONAI datalist, or the `split.json` that training wrote.
        split: which of its lists.
        roots: for a `split.json`, where the images of each of its sources lie; sources that are not named are left out.

    Returns:
        Items as `monai_kdsam.data.layouts` describes them, their `origin` as `source` where they have one,
        `foreground_values` among their keys where the split file has some, and for HC18 the official
        `head_circumference` in mm.

    Raises:
        FileNotFoundError: there is no such data list, or images that it names do not exist.
        ValueError: it is no data list, has nothing in this split, or the roots do not fit its sources.
    """
    path, roots = Path(data_list), dict(roots or {})
    stored = _stored_split(path)
    if stored is not None:
        counts = {name: sum(item["source"] in roots for item in stored[name]) for name in SPLITS}
        items = _from_split_file(path, stored, split, roots)
    elif roots and path.is_file():
        raise UserError(f"Expected `source` only with a split.json that training wrote; {path} has its own paths.")
    else:
        listed = [item for item in read_dataset("datalist", path) if "label" in item]
        counts = Counter(item["official_split"] for item in listed)
        items = [item for item in listed if item["official_split"] == split]
    if not items:
        found = ", ".join(f"{name} {counts.get(name, 0)}" for name in SPLITS)
        raise UserError(f"Expected images in the list {split!r} of {path}, got none ({found}). Name another `split`.")
    return [item | {"source": item.get("origin", item["source"])} for item in items]


def _stored_split(path: Path) -> dict[str, Any] | None:
    """What a split file of ours holds; None for other files, which `read_datalist` judges."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and {"sources", "settings", *SPLITS} <= set(content) else None


def _from_split_file(path: Path, stored: dict[str, Any], split: str, roots: Mapping[str, str | Path]) -> list[Item]:
    known = stored["sources"]
    if not roots or not set(roots) <= set(known):
        got = ", ".join(sorted(roots)) or "none"
        raise UserError(f"Expected `source` to name folders for some of {', '.join(known)} of {path}, got {got}.")
    folders = {name: Path(root).absolute() for name, root in roots.items()}
    items = [with_paths(item, folders[item["source"]].joinpath) for item in stored[split] if item["source"] in folders]
    check_files({name: items if name == split else [] for name in SPLITS}, path)
    values = stored["settings"].get("foreground_values")
    if values is not None:
        items = [{**item, "foreground_values": values} for item in items]
    if "hc18" in folders:
        official = read_head_circumferences(folders["hc18"])
        items = [
            {**item, "head_circumference": official[Path(item["image"]).name]} if item["source"] == "hc18" else item
            for item in items
        ]
    return items


def load_reference(item: Item) -> NDArray[np.bool_]:
    """(H, W), the item's mask, rows from the top as its file stores them.

    Raises:
        ValueError: with the name of the file, when it is damaged or not of its kind.
    """
    stored, _ = Image2DReader(mask=True).get_data(ensure_tuple(item["label"]))
    values: Collection[float] | None = item.get("foreground_values")
    try:
        mask = clean_mask(np.moveaxis(stored, -1, 0), item.get("mask_kind", "binary"), foreground_values=values)
    except ValueError as error:
        raise UserError(f"{item['label']}: {error}") from error
    return mask[0].T > 0


def with_units(items: list[Item]) -> tuple[list[Item], dict[str, str]]:
    """Give every item its `spacing` ([x, y]), and every set its unit.

    The spacing is the item's own, else what its NIfTI or DICOM file says, which may be 1 mm. A set is measured in
    "mm" if the spacing of all its images is known, else all of it in "px".

    Returns:
        The items, and the unit by name of the set.

    Raises:
        ValueError: when an image has a `head_circumference`, which is in mm, and its set is in pixels.
    """
    spacings = [item.get("spacing") or _file_spacing(item) for item in items]
    missing = Counter(item["source"] for item, spacing in zip(items, spacings, strict=True) if spacing is None)
    sizes = Counter(item["source"] for item in items)
    units = {source: "px" if missing[source] else "mm" for source in sizes}
    for source, count in missing.items():
        if count < sizes[source]:
            logger.warning(
                f"{count} of {sizes[source]} images of {source} have no spacing: all are measured in pixels."
            )
    for item in items:
        if "head_circumference" in item and units[item["source"]] == "px":
            raise UserError(
                f"Expected a `spacing` for every image of {item['source']}, because {item['image']} has a "
                f"`head_circumference` in mm; {missing[item['source']]} have none."
            )
    result = [
        {**item, "spacing": list(spacing) if spacing and units[item["source"]] == "mm" else [1.0, 1.0]}
        for item, spacing in zip(items, spacings, strict=True)
    ]
    return result, units


def _file_spacing(item: Item) -> tuple[float, float] | None:
    if suffix_of(split_frame(item["image"])[0]) in PICTURE_SUFFIXES:
        return None
    return decode(item["image"]).spacing
