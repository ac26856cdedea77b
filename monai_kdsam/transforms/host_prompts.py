# SPDX-License-Identifier: Apache-2.0
"""Prompts as MONAI Label's clients send them, to the network's points and labels."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from numpy.typing import NDArray

from monai_kdsam.errors import UserError

__all__ = ["HostPromptsd", "points_from_request", "to_network_frame"]

MAX_POINTS = 64


def points_from_request(data: Mapping[Hashable, Any], shape: tuple[int, ...]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Read the prompts of a request for a 2-D image.

    Args:
        data: may hold `foreground` and `background`, lists of [x, y] pixels of the image file (a third coordinate is
            ignored), and `roi`: [x1, y1, x2, y2] (corners) or [x1, x2, y1, y2, z1, z2] (3D Slicer's), in either order.
            A box that reaches beyond the image is cut off at its edges, as one is easily drawn too far.
        shape: (width, height) of the image file.

    Returns:
        points (N, 2) float64, labels (N,) int64; N is 0 without a prompt.

    Raises:
        ValueError: naming the key, when coordinates are no finite numbers, a click is outside the image, a box has no
            area on it, or there are more than 64 points.

    Example:
        >>> points_from_request({"foreground": [[3, 4]], "roi": [9, 8, 1, 2]}, (10, 10))[0].tolist()
        [[3.0, 4.0], [1.0, 2.0], [9.0, 8.0]]
    """
    points, labels = [], []
    for key, label, xy in labelled_clicks(data, (2, 3), "[x, y]"):
        points.append(_inside(key, xy[:2], shape))
        labels.append(label)
    roi = [] if data.get("roi") is None else data["roi"]
    numbers = finite_numbers("roi", roi)
    if numbers.size:
        if numbers.size not in (4, 6):
            raise UserError(f"Expected `roi` to be [x1, y1, x2, y2] or [x1, x2, y1, y2, z1, z2], got {roi}.")
        corners = numbers.reshape(2, 2) if numbers.size == 4 else numbers[:4].reshape(2, 2).T
        low, high = corners.min(axis=0), corners.max(axis=0)
        if (low == high).any():
            raise UserError(f"Expected `roi` to be a box with an area, got {roi}.")
        points += _cut("roi", low, high, shape)
        labels += [2, 3]
    if len(points) > MAX_POINTS:
        raise UserError(f"Expected at most {MAX_POINTS} points in a prompt, got {len(points)}.")
    return np.array(points, dtype=np.float64).reshape(-1, 2), np.array(labels, dtype=np.int64)


def labelled_clicks(
    data: Mapping[Hashable, Any], sizes: Collection[int], form: str
) -> Iterator[tuple[str, int, NDArray[Any]]]:
    """The clicks of a request, each with its key and its label, 1 foreground and 0 background.

    Args:
        data: may hold `foreground` and `background`, lists of clicks.
        sizes: how many coordinates a click may have.
        form: a click of that size, for the message.

    Raises:
        ValueError: naming the key, when it holds something else.
    """
    for key, label in (("foreground", 1), ("background", 0)):
        clicks = [] if data.get(key) is None else data[key]
        if not isinstance(clicks, (list, tuple, np.ndarray)):
            raise UserError(f"Expected `{key}` to be a list of clicks, got {clicks!r}.")
        for click in clicks:
            numbers = finite_numbers(key, click)
            if numbers.size not in sizes:
                raise UserError(f"Expected clicks {form} in `{key}`, got {click}.")
            yield key, label, numbers


def finite_numbers(key: str, value: Any) -> NDArray[Any]:
    """Read a request's numbers as one row, else raise a ValueError that names their key."""
    try:
        numbers = np.asarray(value, dtype=np.float64).ravel()
    except (TypeError, ValueError) as error:
        raise UserError(f"Expected numbers in `{key}`, got {value!r}.") from error
    if not np.isfinite(numbers).all():
        raise UserError(f"Expected finite numbers in `{key}`, got {value!r}.")
    return numbers


def _inside(key: str, xy: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if (xy < 0).any() or (xy > np.array(shape[:2])).any():
        raise UserError(f"Expected `{key}` within the image of {shape[0]} x {shape[1]} pixels, got {xy.tolist()}.")
    return np.minimum(xy, np.array(shape[:2]) - 1)  # a box may end on the far edge of the last pixel


def _cut(key: str, low: NDArray[Any], high: NDArray[Any], shape: tuple[int, ...]) -> list[NDArray[Any]]:
    """The corners of a box, moved to the image's outermost pixels where they lie beyond."""
    size = np.array(shape[:2])
    if (high < 0).any() or (low > size - 1).any():
        box = [*low.tolist(), *high.tolist()]
        raise UserError(f"Expected `{key}` to cover some of the image of {shape[0]} x {shape[1]} pixels, got {box}.")
    return [np.clip(corner, 0, size - 1) for corner in (low, high)]


def to_network_frame(points: NDArray[Any], image: MetaTensor) -> NDArray[np.float64]:
    """Move points with the image through every spatial transform it went through, by its affine.

    Args:
        points: (N, 2), XY pixels of the image file.
        image: (C, rows, columns), loaded by Image2DReader and transformed.

    Returns:
        (N, 2), XY pixels of `image`.
    """
    original = np.asarray(image.meta["original_affine"], dtype=np.float64)[:3, :3]
    now = np.asarray(image.affine, dtype=np.float64)
    now = now if now.shape == (3, 3) else now[np.ix_([0, 1, -1], [0, 1, -1])]
    homogeneous = np.column_stack([points, np.ones(len(points))])
    row_column = (np.linalg.inv(now) @ original @ homogeneous.T)[:2].T
    return row_column[:, ::-1].copy()


class HostPromptsd(MapTransform):
    """Puts a request's prompts into the image's metadata, as `points` (64, 2) and `labels` (64,).

    The last preprocessing step: coordinates of the file follow the image through every spatial transform by its
    affine. MONAI Label hands an inferer the image and nothing else, so they travel with it. Without a prompt all
    labels are -1, padding.

    Args:
        keys: of the image, a MetaTensor (C, rows, columns) that Image2DReader loaded.

    Raises:
        ValueError: see `points_from_request`.
    """

    def __init__(self, keys: KeysCollection = "image") -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add prompts to the images' metadata."""
        result = dict(data)
        for key in self.key_iterator(result):
            image: MetaTensor = result[key]
            shape = tuple(int(side) for side in image.meta["spatial_shape"])
            found, kinds = points_from_request(data, shape)
            points, labels = torch.zeros(MAX_POINTS, 2), torch.full((MAX_POINTS,), -1)
            if len(kinds):
                points[: len(kinds)] = torch.from_numpy(to_network_frame(found, image))
                labels[: len(kinds)] = torch.from_numpy(kinds)
            image.meta["points"], image.meta["labels"] = points, labels
        return result
