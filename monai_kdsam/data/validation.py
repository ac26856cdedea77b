# SPDX-License-Identifier: Apache-2.0
"""Look at every image and mask once, before a run of hours, and report all that is wrong together."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from monai.utils import ensure_tuple
from PIL import Image
from tqdm import tqdm

from monai_kdsam.data.datasets import Item
from monai_kdsam.data.decoding import decode
from monai_kdsam.data.picture import to_mask, to_rgb
from monai_kdsam.transforms.masks import clean_mask

__all__ = ["THUMBNAIL_SIZE", "Inspection", "Problem", "check_images", "inspect_items", "thumbnail", "validate_items"]

logger = logging.getLogger(__name__)
THUMBNAIL_SIZE = 32


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with one item.

    Args:
        image: path of the item's image.
        label: path of its mask, or of several masks, separated by "; ".
        kind: "unreadable" (missing, damaged, a volume, NaN), "constant" (an image of one color), "size" (mask and
            image differ), "values" (the mask is not of its kind) or "empty" (no foreground, which may be meant).
        message: what is wrong and what to do.
    """

    image: str
    label: str
    kind: str
    message: str

    def as_dict(self) -> dict[str, str]:
        """The fields as a dictionary, in order."""
        return asdict(self)


@dataclass(frozen=True)
class Inspection:
    """What one pass over the items found.

    Args:
        problems: everything wrong, in the order of the items.
        thumbnails: (N, 32, 32) float32 gray pictures in [0, 255], for `duplicate_groups`; zero where unreadable.
    """

    problems: list[Problem]
    thumbnails: np.ndarray


def validate_items(items: Sequence[Item], *, foreground_values: Collection[float] | None = None) -> list[Problem]:
    """List every problem of the items; nothing is raised for a bad file.

    Args:
        items: dictionaries with `image`, `label` (path or paths) and optionally `mask_kind`.
        foreground_values: as in :func:`monai_kdsam.transforms.masks.clean_mask`.

    >>> [problem.kind for problem in validate_items([{"image": "nowhere.png", "label": "nowhere_mask.png"}])]
    ['unreadable', 'unreadable']
    """
    return inspect_items(items, foreground_values=foreground_values).problems


def check_images(items: Sequence[Item], bad_images: Literal["raise", "skip"] = "raise") -> list[Item]:
    """Look at images without masks before they are segmented, so that a bad one does not end a run of hours.

    Args:
        items: dictionaries with `image`.
        bad_images: "raise" stops at images that cannot be segmented, after all were looked at; "skip" leaves them out.

    Returns:
        The items whose images can be segmented.

    Raises:
        ValueError: listing the bad images.
    """
    problems = {}
    for item in tqdm(items, desc="checking images", unit="image", disable=len(items) < 20):
        _, found = _look_at_image(item["image"])
        if found:
            problems[item["image"]] = found[0][1]
    listed = "\n".join(list(problems.values())[:20])
    if problems and bad_images != "skip":
        raise ValueError(
            f"{len(problems)} of {len(items)} images cannot be segmented. Mend or remove them, or leave them out with "
            f"`--bad_images skip`:\n{listed}"
        )
    if problems:
        logger.warning("%d of %d images are left out (`bad_images`):\n%s", len(problems), len(items), listed)
    return [item for item in items if item["image"] not in problems]


def inspect_items(items: Sequence[Item], *, foreground_values: Collection[float] | None = None) -> Inspection:
    """Decode every file once, for the problems and for the thumbnails that show duplicates."""
    problems: list[Problem] = []
    thumbnails = np.zeros((len(items), THUMBNAIL_SIZE, THUMBNAIL_SIZE), dtype=np.float32)
    for number, item in enumerate(tqdm(items, desc="checking images and masks", unit="image", disable=len(items) < 20)):
        label = "; ".join(ensure_tuple(item["label"]))
        image, found = _look_at_image(item["image"])
        found += _look_at_mask(item, None if image is None else image.shape[:2], foreground_values)
        problems += [Problem(item["image"], label, kind, message) for kind, message in found]
        if image is not None:
            thumbnails[number] = thumbnail(image)
    return Inspection(problems, thumbnails)


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Shrink an image (H, W, 3) uint8 to (32, 32) float32 gray in [0, 255], its aspect ratio given up.

    >>> thumbnail(np.full((50, 70, 3), 9, dtype=np.uint8)).max().item()
    9.0
    """
    gray = Image.fromarray(image).convert("L")
    small = gray.resize((THUMBNAIL_SIZE, THUMBNAIL_SIZE), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32)


def _look_at_image(path: str) -> tuple[np.ndarray | None, list[tuple[str, str]]]:
    try:
        image = to_rgb(decode(path))
    except (OSError, ValueError) as error:
        return None, [("unreadable", str(error))]
    if (image == image[0, 0]).all():
        return image, [("constant", f"{path} has one color only. Replace the file or leave it out.")]
    return image, []


def _look_at_mask(
    item: Item, size: tuple[int, ...] | None, foreground_values: Collection[float] | None
) -> list[tuple[str, str]]:
    masks, found = [], []
    for path in ensure_tuple(item["label"]):
        try:
            masks.append(to_mask(decode(path, mask=True)))
        except (OSError, ValueError) as error:
            found.append(("unreadable", str(error)))
            continue
        expected = size or masks[0].shape
        if masks[-1].shape != expected:
            got = f"{path} is {_width_by_height(masks[-1].shape)} pixels, its image {_width_by_height(expected)}"
            found.append(("size", f"{got}. Mask and image must be of one size."))
        try:
            masks[-1] = clean_mask(
                masks[-1][None], item.get("mask_kind", "binary"), foreground_values=foreground_values
            )
        except ValueError as error:
            found.append(("values", f"{path}: {error}"))
    if not found and not any(mask.any() for mask in masks):
        found.append(("empty", f"{item['label']} has no foreground."))
    return found


def _width_by_height(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"
