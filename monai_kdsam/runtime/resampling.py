# SPDX-License-Identifier: Apache-2.0
"""The bundle's resizing in NumPy: MONAI's `Resized` with anti-aliasing, and its inverse, as one matrix an axis."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["fit_longest", "resampling_matrix", "resize"]

Matrix = NDArray[np.float32]
_BLOCK = 64  # rows of a matrix that are multiplied at once: it is zero but for a band, and most of it is left out


def fit_longest(height: int, width: int, longest: int) -> tuple[int, int]:
    """Size (height, width) of an image whose longest side is brought to `longest`.

    >>> fit_longest(300, 400, 1024)
    (768, 1024)
    """
    scale = longest / max(height, width)
    return max(round(height * scale), 1), max(round(width * scale), 1)


def resampling_matrix(source: int, target: int, *, smooth: bool) -> Matrix:
    """(target, source) matrix that resizes one axis bilinearly, pixel centers at halves.

    Args:
        source: length before.
        target: length after.
        smooth: before making it shorter, blur by a Gaussian of MONAI's width, zeros beyond the border.

    Example:
        >>> resampling_matrix(2, 4, smooth=True).tolist()
        [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]
    """
    position = np.maximum((np.arange(target) + 0.5) * (source / target) - 0.5, 0.0)
    low = position.astype(np.int64)
    fraction = position - low
    kernel = _gaussian((source / target - 1) / 2) if smooth and target < source else np.ones(1)
    offsets = np.arange(len(kernel)) - len(kernel) // 2
    matrix = np.zeros((target, source))
    for base, weight in ((low, 1 - fraction), (np.minimum(low + 1, source - 1), fraction)):
        taps = base[:, None] + offsets
        rows = np.broadcast_to(np.arange(target)[:, None], taps.shape)
        inside = (taps >= 0) & (taps < source)
        np.add.at(matrix, (rows[inside], taps[inside]), (weight[:, None] * kernel)[inside])
    return matrix.astype(np.float32)


def _gaussian(sigma: float) -> NDArray[np.float64]:
    """The integral of a Gaussian over each pixel, cut off at four sigma."""
    tail = int(max(4 * sigma, 0.5) + 0.5)
    edges = [math.erf(math.sqrt(0.5) / sigma * (x - 0.5)) for x in range(-tail, tail + 2)]
    return np.diff(edges) / 2


def resize(image: NDArray[np.float32], rows: Matrix, columns: Matrix) -> NDArray[np.float32]:
    """`rows` (h, H) @ `image` (C, H, W) @ `columns`.T (W, w), without the parts of banded matrices that are zero."""
    channels, _, width = image.shape
    tall = np.empty((channels, len(rows), width), dtype=np.float32)
    for block, used in _blocks(rows):
        np.matmul(rows[block, used], image[:, used], out=tall[:, block])
    result = np.empty((channels, len(rows), len(columns)), dtype=np.float32)
    for block, used in _blocks(columns):
        np.matmul(tall[..., used], columns[block, used].T, out=result[..., block])
    return result


def _blocks(matrix: Matrix) -> Iterator[tuple[slice, slice]]:
    """Blocks of rows, each with the columns in which it is not zero."""
    for first in range(0, len(matrix), _BLOCK):
        used = np.flatnonzero(matrix[first : first + _BLOCK].any(axis=0))
        yield slice(first, first + _BLOCK), slice(used[0], used[-1] + 1)
