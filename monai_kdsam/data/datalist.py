# SPDX-License-Identifier: Apache-2.0
"""From folders of images to a checked, split and remembered MONAI datalist."""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import ignite.distributed as idist
import numpy as np
import torch
from monai.utils import ensure_tuple

from monai_kdsam.data.checks import Problem, inspect_items
from monai_kdsam.data.layouts import SPLITS, UNLABELED, Item, read_dataset
from monai_kdsam.data.picture_file import decode
from monai_kdsam.data.shared_images import warn_of_shared_images
from monai_kdsam.data.split_file import check_files, load_split_file, relative_to, with_paths, write_split_file
from monai_kdsam.data.splits import check_fractions, counts, duplicate_groups, split_all
from monai_kdsam.errors import UserError
from monai_kdsam.files import check_writable, write_text
from monai_kdsam.transforms.longest_side import ResizeLongestSide
from monai_kdsam.transforms.masks import clean_mask

__all__ = ["distillation_items", "prepare_datalist", "require_items"]

Datalist = dict[str, list[Item]]

logger = logging.getLogger(__name__)
RELATED = "of a subject, or a near duplicate, of a validation or test image"


def prepare_datalist(
    sources: Mapping[str, str | Path],
    split_file: str | Path,
    *,
    fractions: Sequence[float] = (0.7, 0.1, 0.2),
    seed: int = 0,
    use_official_split: bool = False,
    empty_masks: Literal["keep", "skip"] = "keep",
    bad_images: Literal["raise", "skip"] = "raise",
    foreground_values: Sequence[float] | None = None,
    subject_pattern: str | None = None,
) -> Datalist:
    """Read, check and split data sets the first time, and give the same lists from `split_file` ever after.

    The split file is a MONAI datalist with paths relative to each source's root, so it may move to another machine.
    Of a pooled split file, some of the sources may be asked for alone. Items carry only the keys that all of them have
    (`spacing` is left out where one source lacks it), as MONAI's collate function requires.

    Unlabeled images are a list of their own. Those of a subject, or near duplicates, of a validation or test image are
    left out, as a student that has seen them could not be judged by that image.

    Args:
        sources: root folder (for "datalist": the file) by name of the layout, a key of `layouts.LAYOUTS`.
        split_file: JSON file to write, or to read if it exists.
        fractions: of training, validation and test, adding up to 1.
        seed: another seed, another split.
        use_official_split: leave the items of a source that has an official split where that split has them.
        empty_masks: whether images without foreground stay.
        bad_images: "raise" stops at images with problems, after all were looked at; "skip" leaves them out.
        foreground_values: values that are foreground in masks of several labels.
        subject_pattern: regular expression that finds the subject in each image's path below its root: its first group,
            or all that it matches. By default the layout says which images are of one subject.

    Returns:
        the lists "training", "validation" and "test" of items with absolute paths; and "unlabeled", of items without
        label, where a source has such images.

    Raises:
        FileNotFoundError: a source has another layout, or a file of the split is gone.
        ValueError: images have problems (all of them also in ``<split file>_problems.csv``), a setting is unknown, or
            the split file was made with other settings.
        OSError: the split file cannot be written.

    Example:
        >>> prepare_datalist({"busi": "Dataset_BUSI_with_GT"}, "runs/busi_split.json")  # doctest: +SKIP
    """
    check_fractions(fractions)
    _check_choice("empty_masks", empty_masks, ("keep", "skip"))
    _check_choice("bad_images", bad_images, ("raise", "skip"))
    if not sources:
        raise UserError("Expected `sources` to name at least one data set, as in {'busi': 'Dataset_BUSI_with_GT'}.")
    settings = {
        "fractions": [float(fraction) for fraction in fractions],
        "seed": seed,
        "use_official_split": use_official_split,
        "empty_masks": empty_masks,
        "bad_images": bad_images,
        "foreground_values": None if foreground_values is None else [float(value) for value in foreground_values],
        "subject_pattern": subject_pattern,
    }
    split_file, roots = Path(split_file), {name: _folder_of(root) for name, root in sources.items()}
    with idist.one_rank_first():  # of several processes the first one checks the images, the others read what it wrote
        if not split_file.exists():
            check_writable(split_file.parent, "split_file")
            _create(sources, split_file, settings, roots)
    return _load(sources, split_file, settings, roots)


def _load(
    sources: Mapping[str, str | Path], split_file: Path, settings: dict[str, Any], roots: dict[str, Path]
) -> Datalist:
    """The lists of a split file that is there, of these sources alone, with absolute paths."""
    stored = load_split_file(split_file, settings, sources)
    datalist = {
        name: [with_paths(item, roots[item["source"]].joinpath) for item in stored[name] if item["source"] in sources]
        for name in (*SPLITS, UNLABELED)
        if name in stored
    }
    check_files(datalist, split_file)
    _warn_of_new_images(sources, stored, roots)
    logger.info(f"{split_file}: {counts(datalist)}")
    return _with_equal_keys(datalist)


def require_items(
    datalist: Datalist,
    split: str,
    image_size: int | None = None,
    foreground_values: Sequence[float] | None = None,
) -> list[Item]:
    """The items of a list whose masks a phase cannot do without.

    Args:
        datalist: of `prepare_datalist`.
        split: name of the list.
        image_size: longer side of what the network sees, None if masks are used at their own size.
        foreground_values: as of `prepare_datalist`.

    Raises:
        ValueError: the list is empty, or there is none of this name, or none of its masks has foreground, be it that
            `image_size` leaves none: nothing can be learned from it, and Dice is not defined on it.
    """
    items = _required(datalist, split)
    if all(item.get("empty_mask", False) for item in items):
        raise UserError(
            f"Expected foreground in a mask of the list {split!r}, got {len(items)} empty masks. Check how the masks "
            "are stored (`foreground_values`, `mask_kind`), or split otherwise, and delete the split file."
        )
    full = [item for item in items if not item.get("empty_mask", False)]
    if image_size and not any(_is_seen(item, image_size, foreground_values) for item in full):
        raise UserError(
            f"Expected foreground at `image_size` {image_size} in a mask of the list {split!r}, got {len(full)} masks "
            "whose few pixels are lost when they are resized. Take a larger `image_size`."
        )
    return items


def _is_seen(item: Item, image_size: int, foreground_values: Sequence[float] | None) -> bool:
    """Whether some of a mask's foreground is left at the network's size."""
    stored = np.stack([decode(path, mask=True).pixels for path in ensure_tuple(item["label"])])
    mask = clean_mask(stored, item.get("mask_kind", "binary"), foreground_values=foreground_values)
    return bool(ResizeLongestSide(image_size, "nearest-exact")(torch.from_numpy(mask)).any())


def _required(datalist: Datalist, split: str) -> list[Item]:
    if not datalist.get(split):
        found = ", ".join(f"{len(items)} in {name!r}" for name, items in datalist.items())
        raise UserError(
            f"Expected images in the list {split!r}, got {found}. "
            "List some, or give it a share in `split_fractions`, and delete the split file."
        )
    return datalist[split]


def distillation_items(datalist: Datalist) -> list[Item]:
    """The images that a teacher shows to a student: those of "training" and "unlabeled", without their labels.

    Raises:
        ValueError: the list "training" is empty.
    """
    items = _required(datalist, "training") + datalist.get(UNLABELED, [])
    return [{"image": item["image"]} for item in items]


def _create(
    sources: Mapping[str, str | Path], split_file: Path, settings: dict[str, Any], roots: dict[str, Path]
) -> None:
    items = [item for layout, root in sorted(sources.items()) for item in read_dataset(layout, root)]
    if settings["subject_pattern"] is not None:
        items = [{**item, "subject": _subject(item, settings["subject_pattern"], roots)} for item in items]
    inspection = inspect_items(items, foreground_values=settings["foreground_values"])
    bad = [problem for problem in inspection.problems if problem.kind != "empty"]
    empty = [problem for problem in inspection.problems if problem.kind == "empty"]
    if bad:
        _report(bad, split_file, settings["bad_images"])
    if empty:
        what = "left out" if settings["empty_masks"] == "skip" else "kept"
        labeled = sum("label" in item for item in items)
        logger.info(f"{len(empty)} of {labeled} masks have no foreground; these images are {what} (`empty_masks`).")
    reasons = {p.image: p.message for p in bad + (empty if settings["empty_masks"] == "skip" else [])}
    kept = [number for number, item in enumerate(items) if item["image"] not in reasons]
    if not any("label" in items[number] for number in kept):
        raise UserError(f"All {len(items)} images have problems or empty masks, so that none is left to split.")
    groups = duplicate_groups(inspection.thumbnails[kept])
    no_foreground = {problem.image for problem in empty}
    items = [item | {"empty_mask": item["image"] in no_foreground} if "label" in item else item for item in items]
    chosen = [items[number] for number in kept]
    how = {name: settings[name] for name in ("use_official_split", "fractions", "seed")}
    splits, relatives = split_all(chosen, groups, **how)
    if settings["use_official_split"]:
        warn_of_shared_images(chosen, groups, splits, split_file)
    if relatives:
        logger.info(f"{len(relatives)} unlabeled images are left out: {RELATED}.")
    reasons |= {item["image"]: RELATED for item in relatives}
    skipped = [item | {"why": reasons[item["image"]]} for item in items if item["image"] in reasons]
    write_split_file(split_file, settings, roots, splits, skipped)


def _subject(item: Item, pattern: str, roots: Mapping[str, Path]) -> str:
    path = relative_to(item["image"], roots[item["source"]])
    try:
        found = re.search(pattern, path)
    except re.error as error:
        raise UserError(f"Expected `subject_pattern` to be a regular expression, got {pattern!r}: {error}.") from error
    if found is None:
        raise UserError(f"Expected `subject_pattern` {pattern!r} to find the subject of each image, not so in {path}.")
    return str(found[1] if found.re.groups else found[0])


def _report(bad: list[Problem], split_file: Path, bad_images: str) -> None:
    table = split_file.with_name(f"{split_file.stem}_problems.csv")
    rows = io.StringIO()
    writer = csv.DictWriter(rows, fieldnames=list(asdict(bad[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(problem) for problem in bad)
    write_text(table, rows.getvalue())
    images = len({problem.image for problem in bad})
    if bad_images == "skip":
        logger.warning(f"{images} images with problems are left out (`bad_images`); they are listed in {table}.")
        return
    listed = "\n".join(f"- {problem.message}" for problem in bad[:20])
    raise UserError(
        f"{images} images have problems, listed in {table}. Mend them, or leave them out with --bad_images skip. "
        f"The first {min(len(bad), 20)} of {len(bad)} problems:\n{listed}"
    )


def _warn_of_new_images(sources: Mapping[str, str | Path], stored: dict[str, Any], roots: dict[str, Path]) -> None:
    known = {
        (item["source"], item["image"]) for name in (*SPLITS, UNLABELED, "skipped") for item in stored.get(name, ())
    }
    for layout, root in sources.items():
        try:
            items = read_dataset(layout, root)
        except (OSError, ValueError) as error:
            logger.warning(f"The split of {layout} is used as it is, but its folder has changed: {error}")
            continue
        new = [item for item in items if (layout, relative_to(item["image"], roots[layout])) not in known]
        if new:
            logger.warning(
                f"{len(new)} images in {root} are in no list of the split file, the first is {new[0]['image']}. "
                "Delete the split file to split anew."
            )


def _with_equal_keys(datalist: Datalist) -> Datalist:
    items = [item for split in SPLITS for item in datalist[split]]
    common = set.intersection(*(set(item) for item in items)) if items else set()
    return {
        name: [{k: v for k, v in item.items() if k in common or name == UNLABELED} for item in items]
        for name, items in datalist.items()
    }


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"Expected `{name}` to be one of {', '.join(choices)}, got {value!r}.")


def _folder_of(root: str | Path) -> Path:
    path = Path(root).absolute()
    return path.parent if path.is_file() else path
