# SPDX-License-Identifier: Apache-2.0
"""Which part of a picture the network sees when a box says where to look."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from monai_kdsam.errors import UserError

__all__ = ["check_close_up", "close_up", "part_of"]

LEAST = 32  # pixels of a side: closer, there is nothing more to see
BEYOND = 2**31  # no picture reaches as far
WORTH_IT = 1.5  # times larger than in the whole picture, or the whole picture is what is seen


def check_close_up(margin: float) -> float:
    """The margin, if it is one.

    Raises:
        UserError: when it is neither 0 nor at least 1.
    """
    if isinstance(margin, bool) or not (margin == 0 or 1 <= margin < np.inf):
        raise UserError(f"Expected `close_up` to be 0, or a number from 1 on, got {margin!r}.")
    return margin


def close_up(box: NDArray[np.float64], clicks: NDArray[np.float64], margin: float) -> NDArray[np.int64]:
    """A square around a box; around box and clicks where one of these lies beyond it.

    It depends on nothing else, and not on clicks within it, so that a correction finds the picture's part encoded.

    Args:
        box: (2, 2), its lowest and its highest corner, XY pixels.
        clicks: (N, 2), XY pixels.
        margin: the square's side is the box's longer side times this.

    Returns:
        (2, 2) first and last pixels; they may lie beyond the picture.

    Example:
        >>> box = np.array([[40.0, 40.0], [79.0, 59.0]])
        >>> close_up(box, np.array([[50.0, 30.0]]), 1.5).tolist(), close_up(box, np.array([[99.0, 50.0]]), 1.5).tolist()
        ([[30, 20], [89, 79]], [[25, 5], [114, 94]])
    """
    half = max(margin * (np.ptp(box, axis=0) + 1).max(), LEAST) / 2 - 0.5  # from center to center of the last pixels
    middle = box.mean(axis=0)
    window = np.stack([np.floor(middle - half), np.ceil(middle + half)]).clip(-BEYOND, BEYOND).astype(np.int64)
    if ((clicks < window[0]) | (clicks > window[1])).any():
        everything = np.concatenate([box, clicks])
        return close_up(np.stack([everything.min(axis=0), everything.max(axis=0)]), clicks[:0], margin)
    return window


def part_of(window: NDArray[np.int64], width: int, height: int) -> NDArray[np.int64]:
    """What is seen of a picture.

    Args:
        window: of `close_up`.
        width: of the picture.
        height: of the picture.

    Returns:
        (2, 2) first and last pixels of the picture; all of it where the window shows little less.

    Example:
        >>> part_of(np.array([[-8, 30], [31, 69]]), 100, 80).tolist()
        [[0, 30], [31, 69]]
        >>> part_of(np.array([[-8, 10], [61, 79]]), 100, 80).tolist()
        [[0, 0], [99, 79]]
    """
    last = np.array([width - 1, height - 1])
    part = window.clip(0, last)
    is_larger = (np.ptp(part, axis=0) + 1).max() * WORTH_IT <= max(width, height)
    return part if is_larger else np.stack([np.zeros_like(last), last])
