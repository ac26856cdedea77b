# SPDX-License-Identifier: Apache-2.0
"""Does a model do what its prompt says? Images on which only the prompt tells which structure is meant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy import ndimage

from monai_kdsam.data.layouts import Item
from monai_kdsam.data.picture_file import decode
from monai_kdsam.mask_prompts import EIGHT_NEIGHBORS
from monai_kdsam.picture import to_rgb

__all__ = ["MEASURES", "Mosaic", "make_mosaic", "structures"]

Mask = NDArray[np.bool_]
# By name: the prompt, a value of its `Score`, and the prompt whose Dice on the same image is subtracted.
MEASURES: dict[str, tuple[str, str, str | None]] = {
    "box": ("box", "dice", None),
    "click": ("center_click", "dice", None),
    "none": ("automatic", "dice", None),
    "five_clicks": ("clicks_5", "dice", None),
    "box_minus_none": ("box", "dice", "automatic"),
    "click_minus_none": ("center_click", "dice", "automatic"),
    "mosaic_box_share": ("mosaic_box", "inside", None),
    "mosaic_box_dice": ("mosaic_box", "dice", None),
    "mosaic_box_minus_single": ("mosaic_box", "dice", "box"),
    "mosaic_click_share": ("mosaic_click", "inside", None),
    "mosaic_click_dice": ("mosaic_click", "dice", None),
    "mosaic_click_minus_single": ("mosaic_click", "dice", "center_click"),
    "structure_box_dice": ("structure_box", "dice", None),
    "structure_click_dice": ("structure_click", "dice", None),
}
_TILE = 512  # most pixels of a tile's longer side: networks see a mosaic of two by two at 1024 pixels or fewer
_SPECK = 0.02  # of the foreground: what is smaller is no structure that anybody asks for


class Mosaic(NamedTuple):
    """A PNG of several images, of which one is asked for: its mask (H, W), elsewhere empty, and its tile."""

    path: Path
    reference: Mask
    tile: tuple[slice, slice]


def make_mosaic(path: Path, items: Sequence[Item], number: int, reference: Mask) -> Mosaic | None:
    """Write a mosaic of an image and one or three others of its set, side by side or two by two.

    Args:
        path: of the PNG.
        items: all of them; the next of the same set come along.
        number: of the image that is asked for; odd ones get one neighbor, even ones three where the set has as many.
        reference: (H, W), its mask.

    Returns:
        None where the set has no other image.
    """
    own = [index for index, item in enumerate(items) if item["source"] == items[number]["source"]]
    rows, columns = (1, 2) if number % 2 or len(own) < 4 else (2, 2)
    if len(own) < 2:
        return None
    height, width = (round(side * min(1, _TILE / max(reference.shape))) or 1 for side in reference.shape)
    canvas = Image.new("RGB", (columns * width, rows * height))
    asked = Image.fromarray(reference).resize((width, height), Image.Resampling.NEAREST)
    whole = np.zeros((rows * height, columns * width), dtype=bool)
    at = own.index(number)
    for step in range(rows * columns):
        place = (at + step) % (rows * columns)  # not always the first
        top, left = place // columns * height, place % columns * width
        picture = Image.fromarray(to_rgb(decode(items[own[(at + step) % len(own)]]["image"])))
        canvas.paste(ImageOps.pad(picture, (width, height)), (left, top))
        if step == 0:
            tile = slice(top, top + height), slice(left, left + width)
            whole[tile] = asked
    canvas.save(path)
    return Mosaic(path, whole, tile)


def structures(reference: Mask) -> list[Mask]:
    """The connected components (8-neighborhood) of a mask that has several, without specks; none where it has one.

    Example:
        >>> mask = np.zeros((9, 9), bool); mask[1:4, 1:4] = mask[6:8, 6:8] = True
        >>> [int(one.sum()) for one in structures(mask)], structures(mask[:5])
        ([9, 4], [])
    """
    components, count = ndimage.label(reference, structure=EIGHT_NEIGHBORS)
    found = [components == number for number in range(1, count + 1)]
    found = [one for one in found if one.sum() >= _SPECK * reference.sum()]
    return found if len(found) > 1 else []
