# SPDX-License-Identifier: Apache-2.0
"""A caller's points, labels and boxes, checked, as the decoder takes them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_kdsam.errors import UserError

__all__ = ["read_prompts"]


def read_prompts(
    points: ArrayLike | None, labels: ArrayLike | None, box: ArrayLike | None, width: int, height: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], bool]:
    """Points (K, N, 2) and labels (K, N) of all prompts, and whether they were given as one."""
    if labels is not None and points is None:
        raise UserError("Expected `points` with `labels`, got labels alone.")
    clicks = None if points is None else _numbers("points", points, (2, 3), 2)
    boxes = None if box is None else _numbers("box", box, (1, 2), 4)
    ranks = {array.ndim - least for array, least in ((clicks, 2), (boxes, 1)) if array is not None}
    counts = {len(array) for array, least in ((clicks, 3), (boxes, 2)) if array is not None and array.ndim == least}
    if len(ranks) > 1 or len(counts) > 1:
        raise UserError("Expected `points` and `box` of equally many prompts, got different numbers.")
    single = ranks != {1}
    xy = np.zeros((1 if single else counts.pop(), int(clicks is None and boxes is None), 2))
    kinds = np.full(xy.shape[:2], -1, dtype=np.int64)  # without a prompt, one point of padding
    if clicks is not None:
        xy = clicks[None] if single else clicks
        kinds = _labels(labels, xy.shape[:2], single)
    if boxes is not None:
        xy = np.concatenate([xy, _corners(boxes, width, height)], axis=1)
        kinds = np.concatenate([kinds, np.tile([2, 3], (len(xy), 1))], axis=1)
    used = xy[kinds >= 0]
    if (used < 0).any() or (used > (width, height)).any():
        raise UserError(f"Expected `points` within the image of {width} x {height} pixels, got {used.tolist()}.")
    return np.minimum(xy, (width - 1, height - 1)), kinds, single  # a click may be on the far edge of the last pixel


def _corners(boxes: NDArray[np.float64], width: int, height: int) -> NDArray[np.float64]:
    """(K, 2, 2), top-left and bottom-right; what reaches beyond the image is cut off at its edges."""
    corners = np.sort(boxes.reshape(-1, 2, 2), axis=1)
    if (corners[:, 0] == corners[:, 1]).any():
        raise UserError(f"Expected `box` to have an area, got {boxes.tolist()}.")
    limit = (width - 1, height - 1)
    if (corners[:, 1] < 0).any() or (corners[:, 0] > limit).any():
        raise UserError(
            f"Expected `box` to cover some of the image of {width} x {height} pixels, got {boxes.tolist()}."
        )
    return np.clip(corners, 0, limit)


def _numbers(name: str, value: ArrayLike, ranks: tuple[int, int], last: int) -> NDArray[np.float64]:
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"Expected numbers in `{name}`, got {value!r}.") from error
    if array.ndim not in ranks or array.shape[-1] != last or 0 in array.shape:
        shape = "(N, 2) or (K, N, 2)" if last == 2 else "(4,) or (K, 4)"
        raise UserError(f"Expected `{name}` of shape {shape}, got {array.shape}.")
    if not np.isfinite(array).all():
        raise UserError(f"Expected finite numbers in `{name}`, got {array.tolist()}.")
    return array


def _labels(labels: ArrayLike | None, shape: tuple[int, ...], single: bool) -> NDArray[np.int64]:
    if labels is None:
        return np.ones(shape, dtype=np.int64)
    array = np.asarray(labels)
    if array.shape != (shape[1:] if single else shape):
        raise UserError(f"Expected `labels` of shape {shape[1:] if single else shape}, got {array.shape}.")
    if not np.isin(array, (-1, 0, 1)).all():
        raise UserError(f"Expected `labels` among 1, 0 and -1, got {array.tolist()}; a box goes into `box`.")
    return array.astype(np.int64).reshape(shape)
