# SPDX-License-Identifier: Apache-2.0
"""Masks back to the picture's size as the bundle's inverse brings them, in NumPy, as one matrix an axis."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["resampled", "resampling_matrix", "resize"]

Matrix = NDArray[np.float32]
_BLOCK = 64  # rows of a matrix that are multiplied at once: it is zero but for a band, and most of it is left out


def resampling_matrix(source: int, target: int) -> Matrix:
    """(target, source) matrix that resizes one axis bilinearly, pixel centers at halves, without averaging.

    Args:
        source: length before.
        target: length after.

    Example:
        >>> resampling_matrix(2, 4).tolist()
        [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]
    """
    return resampled(np.eye(source, dtype=np.float32), target)


def resampled(matrix: Matrix, target: int) -> Matrix:
    """`resampling_matrix(N, target)` @ `matrix` (N, M), of which each row is between two of the matrix's.

    BLAS would share so small a product among threads, which costs fifty times as much where another program has a core.
    """
    position = np.maximum((np.arange(target) + 0.5) * (len(matrix) / target) - 0.5, 0.0)
    low = position.astype(np.int64)
    high = np.minimum(low + 1, len(matrix) - 1)
    share = (position - low)[:, None]
    return ((1 - share) * matrix[low] + share * matrix[high]).astype(np.float32)


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
