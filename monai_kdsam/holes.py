# SPDX-License-Identifier: Apache-2.0
"""Holes of masks, with NumPy alone, which is all that the runtime has."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["fill_holes"]


def fill_holes(mask: NDArray[np.uint8], background: ArrayLike = ()) -> NDArray[np.uint8]:
    """Fill what a mask encloses, as MONAI's `FillHoles(connectivity=1)` does, but no hole that was clicked.

    Args:
        mask: (H, W) of 0 and 1.
        background: clicks (N, 2), XY pixels, that say where the structure is not; a hole with one of them stays.

    Example:
        >>> ring = np.ones((3, 5), np.uint8); ring[1, 1] = ring[1, 3] = 0
        >>> fill_holes(ring).tolist(), fill_holes(ring, [[3, 1]])[1].tolist()
        ([[1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]], [1, 1, 1, 0, 1])
    """
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        return mask
    part = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)  # beyond it there is nothing to fill
    open_ = np.zeros(mask.shape, dtype=bool)
    x, y = np.rint(np.reshape(background, (-1, 2))).astype(np.int64).T
    open_[y, x] = True
    reached, free = open_[part], mask[part] == 0
    reached[[0, -1]], reached[:, [0, -1]] = True, True
    reached &= free
    along = [(free, _starts(free)), (free.T, _starts(free.T))]
    before = -1
    while (count := int(reached.sum())) > before:
        before = count
        for gaps, starts in along:  # a run of background that was reached anywhere is reached; its columns next
            whole = np.repeat(np.logical_or.reduceat(reached.ravel(), starts), np.diff(starts, append=gaps.size))
            reached = (whole.reshape(gaps.shape) & gaps).T
    filled = mask.copy()
    filled[part] = ~reached
    return filled


def _starts(gaps: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Where runs of equal values begin in an array's rows, one row after the other."""
    begins = np.ones(gaps.shape, dtype=bool)
    begins[:, 1:] = gaps[:, 1:] != gaps[:, :-1]
    return np.flatnonzero(begins)
