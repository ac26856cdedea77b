# SPDX-License-Identifier: Apache-2.0
"""The prompts that a mask gives, with NumPy and SciPy alone: its box, and the click deepest inside.

Masks are (H, W), rows from the top; coordinates are XY pixels of that array, whole numbers being pixel centers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from monai_kdsam.errors import UserError

__all__ = ["EIGHT_NEIGHBORS", "Mask", "Points", "box_from_mask", "center_click", "jitter_box"]

Mask = NDArray[np.bool_]
Points = NDArray[np.float32]

EIGHT_NEIGHBORS = np.ones((3, 3), dtype=bool)


def box_from_mask(mask: Mask) -> Points:
    """The smallest box around the mask: [[left, top], [right, bottom]], the outermost foreground pixels.

    What is one pixel wide or high has the edges of that pixel, half a pixel from its center: hosts refuse a box without
    an area, so that none is drawn in training and reports either.

    Raises:
        ValueError: when the mask is empty.

    Example:
        >>> mask = np.zeros((8, 8), bool); mask[2:4, 1:6] = True
        >>> box_from_mask(mask).tolist()
        [[1.0, 2.0], [5.0, 3.0]]
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        raise UserError("Expected a `mask` with foreground, got an empty one.")
    return _with_area(np.array([[columns[0], rows[0]], [columns[-1], rows[-1]]], dtype=np.float32), mask.shape)


def _with_area(box: Points, shape: tuple[int, ...]) -> Points:
    """Half a pixel more on each side, as far as the image (H, W) goes, where two edges coincide."""
    half = 0.5 * (box[0] == box[1])
    return np.clip(np.stack([box[0] - half, box[1] + half]), 0, (shape[1] - 1, shape[0] - 1)).astype(np.float32)


def jitter_box(box: Points, offsets: Sequence[float], shape: tuple[int, int]) -> Points:
    """Move a box's edges.

    Args:
        box: [[left, top], [right, bottom]].
        offsets: pixels outward for left, top, right, bottom; negative is inward.
        shape: (H, W) of the image, where the box is cut off.

    Returns:
        The moved box; an edge that would pass the opposite one stays at the box's center, and where both would, half
        a pixel from it.
    """
    left, top, right, bottom = offsets
    center = box.mean(axis=0)
    upper = np.minimum(box[0] - (left, top), center)
    lower = np.maximum(box[1] + (right, bottom), center)
    limit = (shape[1] - 1, shape[0] - 1)
    return _with_area(np.clip(np.stack([upper, lower]), 0, limit), shape)


def center_click(mask: Mask) -> Points:
    """(1, 2): the foreground pixel farthest from any background, the image's border counting as background.

    Example:
        >>> center_click(np.ones((5, 7), bool)).tolist()
        [[2.0, 2.0]]
    """
    # Beyond the mask's own box there is nothing but background.
    rows, columns = next(iter(ndimage.find_objects(mask.astype(np.uint8))), np.s_[:1, :1])
    depth = ndimage.distance_transform_edt(np.pad(mask[rows, columns], 1))[1:-1, 1:-1]
    row, column = np.unravel_index(np.argmax(depth), depth.shape)
    return np.array([[column + (columns.start or 0), row + (rows.start or 0)]], dtype=np.float32)
