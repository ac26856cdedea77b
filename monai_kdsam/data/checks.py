# SPDX-License-Identifier: Apache-2.0
"""Look at every image and mask once, before a run of hours, and report all that is wrong together."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

import nibabel
import numpy as np
from monai.utils import ensure_tuple
from PIL import Image
from tqdm import tqdm

from monai_kdsam.data.layouts import UNLABELED, Item
from monai_kdsam.data.paths import check_names
from monai_kdsam.data.picture_file import decode
from monai_kdsam.errors import UserError
from monai_kdsam.picture import Picture, to_rgb
from monai_kdsam.transforms.masks import clean_mask, threshold_mask

__all__ = ["THUMBNAIL_SIZE", "Inspection", "Problem", "check_images", "inspect_items", "thumbnail"]

logger = logging.getLogger(__name__)
THUMBNAIL_SIZE = 32


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with one item.

    Args:
        image: path of the item's image.
        label: path of its mask, or of several masks, separated by "; ".
        kind: "unreadable" (missing, damaged, a volume, NaN), "constant" (an image of one color), "size", "axes" or
            "orientation" (mask and image differ), "mask" (there is none), "values" (the mask is not of its kind) or
            "empty" (no foreground, which may be meant).
        message: what is wrong and what to do.
    """

    image: str
    label: str
    kind: str
    message: str


@dataclass(frozen=True)
class Inspection:
    """What one pass over the items found.

    Args:
        problems: everything wrong, in the order of the items.
        thumbnails: (N, 32, 32) float32 gray pictures in [0, 255], for `duplicate_groups`; zero where unreadable.
    """

    problems: list[Problem]
    thumbnails: np.ndarray


def check_images(
    items: Sequence[Item],
    bad_images: Literal["raise", "skip", "report"] = "raise",
    failed: dict[str, str] | None = None,
) -> list[Item]:
    """Look at images without masks before they are segmented, so that a bad one does not end a run of hours.

    Images whose masks would be written to one file are refused whatever `bad_images` is.

    Args:
        items: dictionaries with `image`.
        bad_images: "raise" stops at images that cannot be segmented, after all were looked at; "skip" leaves them out;
            "report" does too, for `failed` to be told at the end.
        failed: takes what is wrong, by the image's path.

    Returns:
        The items whose images can be segmented.

    Raises:
        ValueError: listing the bad images, or those of one name.
    """
    if bad_images not in ("raise", "skip", "report"):
        raise UserError(f"Expected `bad_images` to be one of raise, skip, report, got {bad_images!r}.")
    check_names(items)
    problems, turned = {}, []
    for item in tqdm(items, desc="checking images", unit="image", disable=None if len(items) >= 20 else True):
        picture, _, found = _look_at_image(item["image"])
        if found:
            problems[item["image"]] = found[0][1]
        if picture is not None and picture.orientation != 1:
            turned.append(item["image"])
    if turned:
        logger.warning(
            f"EXIF has viewers turn {len(turned)} of {len(items)} images, as {turned[0]}. Masks lie on the pixels as "
            "they are stored, so that viewers show them beside such an image, not on it."
        )
    listed = "\n".join(list(problems.values())[:20])
    if problems and bad_images == "raise":
        raise UserError(
            f"{len(problems)} of {len(items)} images cannot be segmented. Mend or remove them, or leave them out with "
            f"`--bad_images skip`:\n{listed}"
        )
    if failed is not None and bad_images == "report":
        failed.update(problems)
    if problems:
        logger.warning("%d of %d images are left out (`bad_images`):\n%s", len(problems), len(items), listed)
    return [item for item in items if item["image"] not in problems]


def inspect_items(items: Sequence[Item], *, foreground_values: Collection[float] | None = None) -> Inspection:
    """Decode every file once, for the problems and for the thumbnails that show duplicates.

    Args:
        items: dictionaries with `image`, `label` (path or paths; none if unlabeled) and optionally `mask_kind`.
        foreground_values: as in :func:`monai_kdsam.transforms.masks.clean_mask`.

    >>> [found.kind for found in inspect_items([{"image": "nowhere.png", "label": "nowhere_mask.png"}]).problems]
    ['unreadable', 'unreadable']
    """
    problems: list[Problem] = []
    found_values = _MaskValues()
    thumbnails = np.zeros((len(items), THUMBNAIL_SIZE, THUMBNAIL_SIZE), dtype=np.float32)
    for number, item in enumerate(tqdm(items, desc="checking images and masks", unit="image", disable=len(items) < 20)):
        label = "; ".join(ensure_tuple(item.get("label", ())))
        picture, image, found = _look_at_image(item["image"])
        if not item.get("label", True):
            remedy = f"Add it; in the layouts folder and datalist move the image to `{UNLABELED}` else."
            told = (f"{item['image']} has no mask.", item.get("hint"), remedy)
            found.append(("mask", " ".join(filter(None, told))))
        elif "label" in item:
            found += _look_at_mask(item, picture, foreground_values, found_values)
        problems += [Problem(item["image"], label, kind, message) for kind, message in found]
        if image is not None:
            thumbnails[number] = thumbnail(image)
    found_values.log(foreground_values)
    return Inspection(problems, thumbnails)


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Shrink an image (H, W, 3) uint8 to (32, 32) float32 gray in [0, 255], its aspect ratio given up.

    >>> thumbnail(np.full((50, 70, 3), 9, dtype=np.uint8)).max().item()
    9.0
    """
    gray = Image.fromarray(image).convert("L")
    small = gray.resize((THUMBNAIL_SIZE, THUMBNAIL_SIZE), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32)


def _look_at_image(path: str) -> tuple[Picture | None, np.ndarray | None, list[tuple[str, str]]]:
    try:
        picture = decode(path)
    except (OSError, ValueError) as error:
        return None, None, [("unreadable", str(error))]
    image = to_rgb(picture)
    if (image == image[0, 0]).all():
        return picture, image, [("constant", f"{path} has one color only. Replace the file or leave it out.")]
    return picture, image, []


@dataclass
class _MaskValues:
    """What the masks of all items hold, which only together is worth a word in the log."""

    labels: dict[str, dict[float, list[str]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    specks: dict[str, int] = field(default_factory=dict)
    without_labels: int = 0

    def add(self, item: Item, path: str, pixels: np.ndarray, cleaned: np.ndarray) -> None:
        """Note a mask: (H, W) as stored, and cleaned."""
        kind = item.get("mask_kind", "binary")
        if kind == "binary":
            for value in np.unique(pixels[pixels != 0]).tolist():
                self.labels[item.get("source", "")][value].append(path)
            return
        self.without_labels += 1
        if kind == "lossy" and (removed := int(threshold_mask(pixels).sum() - cleaned.sum())):
            self.specks[path] = removed

    def log(self, foreground_values: Collection[float] | None) -> None:
        """Tell what may not have been meant."""
        if self.specks:
            worst = max(self.specks, key=self.specks.__getitem__)
            logger.info(
                f"{sum(self.specks.values())} stray pixels are removed from {len(self.specks)} JPEG masks, most of "
                f"them ({self.specks[worst]}) from {worst}."
            )
        if foreground_values is None:
            for source, files in self.labels.items():
                if len(files) > 1:
                    listed = ", ".join(
                        f"{value:g} in {len(f)} (first {f[0]})" for value, f in sorted(files.items())[:8]
                    )
                    logger.warning(
                        f"The masks of {source} hold different values: {listed}. All of them are foreground; if they "
                        "are different structures, choose with `foreground_values`."
                    )
            return
        known = sorted({value for files in self.labels.values() for value in files})
        if missing := sorted(set(foreground_values) - set(known)):
            lacking, there = (", ".join(f"{value:g}" for value in values[:20]) for values in (missing, known))
            logger.warning(f"No mask holds {lacking} of `foreground_values`; they hold {there or 'none'} beside 0.")
        if self.without_labels:
            logger.warning(f"`foreground_values` says nothing about {self.without_labels} masks of JPEG or outlines.")


def _look_at_mask(
    item: Item, image: Picture | None, foreground_values: Collection[float] | None, found_values: _MaskValues
) -> list[tuple[str, str]]:
    masks, found = [], []
    first = image
    for path in ensure_tuple(item["label"]):
        try:
            picture = decode(path, mask=True)
        except (OSError, ValueError) as error:
            found.append(("unreadable", str(error)))
            continue
        first = first or picture
        found += _look_at_place(path, picture, first)
        try:
            cleaned = clean_mask(
                picture.pixels[None], item.get("mask_kind", "binary"), foreground_values=foreground_values
            )
            masks.append(cleaned)
            found_values.add(item, path, picture.pixels, cleaned)
        except ValueError as error:
            found.append(("values", f"{path}: {error}"))
    if not found and not any(mask.any() for mask in masks):
        found.append(("empty", f"{item['label']} has no foreground."))
    return found


def _look_at_place(path: str, mask: Picture, image: Picture) -> list[tuple[str, str]]:
    turns = (
        f"EXIF has viewers turn its image (orientation {image.orientation}) and not {path} ({mask.orientation}), and "
        "pixels are taken as stored. Save the image turned, or without that tag if the mask was drawn on stored pixels."
    )
    is_turned = mask.orientation != image.orientation
    if mask.pixels.shape[:2] != image.pixels.shape[:2]:
        got = f"{path} is {_width_by_height(mask)} pixels, its image {_width_by_height(image)}"
        return [("size", f"{got}. Mask and image must be of one size.{' ' + turns if is_turned else ''}")]
    if is_turned:
        return [("orientation", turns)]
    if _axes(mask) != _axes(image):
        got = f"The axes of {path} run to {_axes(mask)}, those of its image to {_axes(image)}"
        return [("axes", f"{got}. Save mask and image in one format, with one orientation.")]
    return []


def _width_by_height(picture: Picture) -> str:
    return f"{picture.pixels.shape[1]} x {picture.pixels.shape[0]}"


def _axes(picture: Picture) -> str:
    """Where columns and rows run in the patient: "LP" in a picture without geometry of its own."""
    return "".join(nibabel.aff2axcodes(picture.affine))
