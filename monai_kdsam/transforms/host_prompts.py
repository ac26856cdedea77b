# SPDX-License-Identifier: Apache-2.0
"""Prompts as MONAI Label's clients send them, on pictures and on volumes, to the network's points and labels.

Coordinates are pixels [x, y] or voxels [i, j, k] of the file. D is 2 or 3.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from numpy.typing import NDArray

from monai_kdsam.close_up import close_up
from monai_kdsam.errors import UserError

__all__ = ["HostPromptsd", "VolumePromptsd", "close_up_of", "points_from_request", "to_network_frame"]

MAX_POINTS = 64
CLICK_FORMS = {2: "[x, y]", 3: "[i, j, k]"}
BOX_FORMS = {
    2: "[x1, y1, x2, y2] or [x1, x2, y1, y2, z1, z2]",
    3: "[i1, i2, j1, j2, k1, k2], or [i1, j1, i2, j2] and `slice`",
}


def points_from_request(data: Mapping[Hashable, Any], shape: Sequence[int]) -> tuple[NDArray[Any], NDArray[Any]]:
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
            area or is not on it, or there are more than 64 points.

    Example:
        >>> points_from_request({"foreground": [[3, 4]], "roi": [9, 8, 1, 2]}, (10, 10))[0].tolist()
        [[3.0, 4.0], [1.0, 2.0], [9.0, 8.0]]
    """
    points, labels = _clicks(data, shape[:2])
    box = _box(data, dimensions=2)
    if box is not None:
        points = np.concatenate([points, _cut(box, shape[:2], data["roi"], _size(shape[:2]))])
        labels = np.concatenate([labels, [2, 3]])
    return _at_most(points, labels)


def close_up_of(data: Mapping[Hashable, Any], margin: float) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """First and last pixels [x, y] of the part that a request's box asks for, see `close_up`; None: all the picture.

    Args:
        data: see `points_from_request`; whether prompts are on the image is not looked at.
        margin: see `close_up`; 0 is all the picture always.

    Raises:
        ValueError: naming the key, when prompts are of another form.
    """
    box = _box(data, dimensions=2) if margin else None
    if box is None:
        return None
    (left, top), (right, bottom) = close_up(box, _read_clicks(data, 2)[0], margin).tolist()
    return (left, top), (right, bottom)


def _clicks(data: Mapping[Hashable, Any], shape: Sequence[int]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Clicks (N, D) of a request on a file of this shape (D,), and their labels, 1 and 0."""
    points, labels = _read_clicks(data, len(shape))
    limit = np.array(shape)
    for place, label in zip(points, labels, strict=True):
        if (place < 0).any() or (place > limit).any():
            key = "foreground" if label else "background"
            raise UserError(f"Expected `{key}` within the {_size(shape)}, got {place.tolist()}.")
    return np.minimum(points, limit - 1), labels


def _read_clicks(data: Mapping[Hashable, Any], dimensions: int) -> tuple[NDArray[Any], NDArray[Any]]:
    points, labels = [], []
    for key, label in (("foreground", 1), ("background", 0)):
        clicks = [] if data.get(key) is None else data[key]
        if not isinstance(clicks, (list, tuple, np.ndarray)):
            raise UserError(f"Expected `{key}` to be a list of clicks, got {clicks!r}.")
        for click in clicks:
            numbers = _numbers(key, click)
            if numbers.size not in (dimensions, 3):
                raise UserError(f"Expected clicks {CLICK_FORMS[dimensions]} in `{key}`, got {click}.")
            points.append(numbers[:dimensions])
            labels.append(label)
    return np.array(points, dtype=np.float64).reshape(-1, dimensions), np.array(labels, dtype=np.int64)


def _box(data: Mapping[Hashable, Any], dimensions: int) -> NDArray[Any] | None:
    """The lowest and the highest corner (2, D) of a request's `roi`; None without one."""
    roi = [] if data.get("roi") is None else data["roi"]
    numbers = _numbers("roi", roi)
    if not numbers.size:
        return None
    if numbers.size == 6:
        corners = numbers.reshape(3, 2).T[:, :dimensions]
    elif numbers.size == 4:
        corners = numbers.reshape(2, 2)
    else:
        raise UserError(f"Expected `roi` to be {BOX_FORMS[dimensions]}, got {roi}.")
    if corners.shape[1] < dimensions:
        number = _numbers("slice", [] if data.get("slice") is None else data["slice"])
        if number.size != 1:
            raise UserError(f"Expected `slice` with a `roi` of four numbers, to say where it is, got roi {roi} alone.")
        corners = np.column_stack([corners, np.repeat(number, 2)])
    return np.sort(corners, axis=0)


def _cut(box: NDArray[Any], shape: Sequence[int], roi: Any, size: str) -> NDArray[Any]:
    """The corners (2, D) of a box, moved to the outermost pixels where they lie beyond; the third axis is of slices."""
    if (box[0, :2] == box[1, :2]).any():
        raise UserError(f"Expected `roi` to be a box with an area, got {roi}.")
    reach = np.array([0, 0, 0.5])[: len(shape)]  # a whole number is a slice's center
    last = np.array(shape) - 1
    if (box[1] < -reach).any() or (box[0] > last + reach).any():
        raise UserError(f"Expected `roi` to cover some of the {size}, got {roi}.")
    return np.clip(box, 0, last)


def _at_most(points: NDArray[Any], labels: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    if len(labels) > MAX_POINTS:
        raise UserError(f"Expected at most {MAX_POINTS} points in a prompt, got {len(labels)}.")
    return points, labels


def _numbers(key: str, value: Any) -> NDArray[Any]:
    """A request's finite numbers as one row."""
    try:
        numbers = np.asarray(value, dtype=np.float64).ravel()
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"Expected numbers in `{key}`, got {repr(value)[:200]}.") from error
    if not np.isfinite(numbers).all():
        raise UserError(f"Expected finite numbers in `{key}`, got {repr(value)[:200]}.")
    return numbers


def _size(shape: Sequence[int]) -> str:
    kind, unit = ("image", "pixels") if len(shape) == 2 else ("volume", "voxels")
    return f"{kind} of {' x '.join(map(str, shape))} {unit}"


def to_network_frame(points: NDArray[Any], image: MetaTensor) -> NDArray[np.float64]:
    """Move points with the image through every spatial transform it went through, by its affine.

    Args:
        points: (N, D) of the file.
        image: (C, rows, columns) or (C, rows, columns, slices), loaded by a reader of ours and transformed.

    Returns:
        (N, D): column, row and slice of `image`.
    """
    original, now = _affines(image, points.shape[1])
    return _move(points, np.linalg.inv(now) @ original)[:, [1, 0, 2][: points.shape[1]]]


def to_file_frame(points: NDArray[Any], image: MetaTensor) -> NDArray[np.float64]:
    """The inverse of `to_network_frame`."""
    original, now = _affines(image, points.shape[1])
    return _move(points[:, [1, 0, 2][: points.shape[1]]], np.linalg.inv(original) @ now)


def _affines(image: MetaTensor, dimensions: int) -> list[NDArray[np.float64]]:
    kept = np.ix_([*range(dimensions), -1], [*range(dimensions), -1])
    return [np.asarray(each, dtype=np.float64)[kept] for each in (image.meta["original_affine"], image.affine)]


def _move(points: NDArray[Any], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    return (np.column_stack([points, np.ones(len(points))]) @ affine.T)[:, :-1]


def _padded(points: NDArray[Any], labels: NDArray[Any]) -> dict[str, torch.Tensor]:
    """As metadata of one length: `points` (64, D), `labels` (64,), -1 where padded."""
    padded, kinds = torch.zeros(MAX_POINTS, points.shape[1]), torch.full((MAX_POINTS,), -1)
    padded[: len(labels)], kinds[: len(labels)] = torch.from_numpy(points), torch.from_numpy(labels)
    return {"points": padded, "labels": kinds}


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
            points, labels = points_from_request(data, [int(side) for side in image.meta["spatial_shape"]])
            image.meta.update(_padded(to_network_frame(points, image), labels))
        return result


class VolumePromptsd(MapTransform):
    """Puts a request's prompts into a volume's metadata, for `VolumeInferer`.

    The last preprocessing step. Written are `points` (64, 3), [column, row, slice] of the volume as it is now,
    `labels` (64,), -1 where padded, `propagate` (a bool tensor), and `bounds` (2,), first and last slice that may be
    segmented.

    A box (`roi`: [i1, i2, j1, j2, k1, k2] as 3D Slicer sends it, or [i1, j1, i2, j2], corners on the slice that `slice`
    numbers) belongs to the slices within it that have a foreground click, without such to its middle slice; a box that
    is more than a slice thick bounds the propagation.

    Args:
        keys: of the volume, a MetaTensor (C, rows, columns, slices) that VolumeReader loaded.
        propagate: what a request means that does not say `propagate`.

    Raises:
        ValueError: see `points_from_request`; also on a `propagate` that is neither true nor false.
    """

    def __init__(self, keys: KeysCollection = "image", *, propagate: bool = False) -> None:
        super().__init__(keys)
        self.propagate = _truth(propagate)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add prompts to the volumes' metadata."""
        result = dict(data)
        given = result.get("propagate")
        propagate = torch.tensor(self.propagate if given is None else _truth(given))
        for key in self.key_iterator(result):
            volume: MetaTensor = result[key]
            points, labels, bounds = _in_stack(data, volume)
            volume.meta.update(_padded(*_at_most(points, labels)), propagate=propagate, bounds=torch.tensor(bounds))
        return result


def _in_stack(data: Mapping[Hashable, Any], volume: MetaTensor) -> tuple[NDArray[Any], NDArray[Any], list[int]]:
    """Points [column, row, slice], their labels and the bounds, in the axes of the volume as it is now."""
    stored = [int(side) for side in volume.meta["spatial_shape"]]
    height, width, depth = volume.shape[1:]
    points, labels = _clicks(data, stored)
    points = to_network_frame(points, volume)
    corners = _box(data, dimensions=3)
    if corners is None:
        return points, labels, [0, depth - 1]
    box = np.sort(to_network_frame(corners, volume), axis=0)
    box = _cut(box, (width, height, depth), data["roi"], _size(stored))
    first, last = (int(number) for number in box[:, 2].round())
    clicked = {int(number) for number in points[labels == 1, 2].round() if first <= number <= last}
    for number in sorted(clicked) or [(first + last) // 2]:
        points = np.concatenate([points, [[*box[0, :2], number], [*box[1, :2], number]]])
        labels = np.concatenate([labels, [2, 3]])
    return points, labels, [first, last] if last > first else [0, depth - 1]


def _truth(value: Any) -> bool:
    """True or false, also as the text that clients make of it."""
    known = {"true": True, "false": False, "1": True, "0": False}
    text = str(value).lower()
    if text not in known:
        raise UserError(f"Expected `propagate` to be true or false, got {value!r}.")
    return known[text]
