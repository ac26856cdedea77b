# SPDX-License-Identifier: Apache-2.0
"""Prompts on volumes as MONAI Label's clients send them, to points in the stack of slices."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from numpy.typing import NDArray

from monai_kdsam.errors import UserError
from monai_kdsam.transforms.host_prompts import MAX_POINTS, finite_numbers, labelled_clicks

__all__ = ["VolumePromptsd", "box_from_request", "clicks_from_request"]


def clicks_from_request(data: Mapping[Hashable, Any], shape: tuple[int, ...]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Read the clicks of a request for a volume.

    Args:
        data: may hold `foreground` and `background`, lists of [i, j, k] voxels of the file.
        shape: of the file's array.

    Returns:
        points (N, 3) float64, labels (N,) of 1 and 0.

    Raises:
        ValueError: naming the key, when coordinates are no finite numbers, not three, or outside the volume.

    Example:
        >>> clicks_from_request({"foreground": [[3, 4, 5]], "background": [[1, 1, 5]]}, (9, 9, 9))[1].tolist()
        [1, 0]
    """
    points, labels = [], []
    for key, label, voxel in labelled_clicks(data, (3,), "[i, j, k]"):
        points.append(_inside(key, voxel, shape))
        labels.append(label)
    return np.array(points, dtype=np.float64).reshape(-1, 3), np.array(labels, dtype=np.int64)


def box_from_request(data: Mapping[Hashable, Any]) -> NDArray[Any] | None:
    """Read a request's `roi`: [[low i, j, k], [high i, j, k]], None without one.

    Args:
        data: may hold `roi`, [i1, i2, j1, j2, k1, k2] as 3D Slicer sends it, in either order; or [i1, j1, i2, j2],
            corners on the slice that `slice` numbers.

    Raises:
        ValueError: when it is neither.

    Example:
        >>> box_from_request({"roi": [1, 2, 9, 8], "slice": 5}).tolist()
        [[1.0, 2.0, 5.0], [9.0, 8.0, 5.0]]
    """
    roi = [] if data.get("roi") is None else data["roi"]
    numbers = finite_numbers("roi", roi)
    if not numbers.size:
        return None
    if numbers.size == 4:
        number = finite_numbers("slice", [] if data.get("slice") is None else data["slice"])
        if number.size != 1:
            raise UserError(f"Expected `slice` with a `roi` of four numbers, to say where it is, got roi {roi} alone.")
        corners = np.column_stack([numbers.reshape(2, 2), np.repeat(number, 2)])
    elif numbers.size == 6:
        corners = numbers.reshape(3, 2).T
    else:
        raise UserError(f"Expected `roi` to be [i1, i2, j1, j2, k1, k2], or [i1, j1, i2, j2] and `slice`, got {roi}.")
    return np.sort(corners, axis=0)


def _inside(key: str, voxel: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if (voxel < 0).any() or (voxel > np.array(shape)).any():
        size = " x ".join(map(str, shape))
        raise UserError(f"Expected `{key}` within the volume of {size} voxels, got {voxel.tolist()}.")
    return np.minimum(voxel, np.array(shape) - 1)


class VolumePromptsd(MapTransform):
    """Puts a request's prompts into a volume's metadata, for `VolumeInferer`.

    The last preprocessing step. Written are `points` (64, 3), [column, row, slice] of the volume as it is now,
    `labels` (64,), -1 where padded, `propagate` (a bool tensor), and `bounds` (2,), first and last slice that may be
    segmented.

    A box belongs to the slices within it that have a foreground click, without such to its middle slice; a box that
    is more than a slice thick bounds the propagation.

    Args:
        keys: of the volume, a MetaTensor (C, rows, columns, slices) that VolumeReader loaded.
        propagate: what a request means that does not say `propagate`.

    Raises:
        ValueError: see `clicks_from_request` and `box_from_request`; also a box outside the volume or without an area,
            more than 64 points, or a `propagate` that is neither true nor false.
    """

    def __init__(self, keys: KeysCollection = "image", *, propagate: bool = False) -> None:
        super().__init__(keys)
        self.propagate = _truth(propagate)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add prompts to the volumes' metadata."""
        result = dict(data)
        given = result.get("propagate")
        for key in self.key_iterator(result):
            volume: MetaTensor = result[key]
            points, labels, bounds = self._in_stack(data, volume)
            if len(labels) > MAX_POINTS:
                raise UserError(f"Expected at most {MAX_POINTS} points in a prompt, got {len(labels)}.")
            padded, kinds = torch.zeros(MAX_POINTS, 3), torch.full((MAX_POINTS,), -1)
            padded[: len(labels)] = torch.from_numpy(points)
            kinds[: len(labels)] = torch.from_numpy(labels)
            truth = self.propagate if given is None else _truth(given)
            volume.meta.update(
                points=padded, labels=kinds, propagate=torch.tensor(truth), bounds=torch.from_numpy(bounds)
            )
        return result

    @staticmethod
    def _in_stack(
        data: Mapping[Hashable, Any], volume: MetaTensor
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.int64]]:
        """Points [column, row, slice], their labels and the bounds, in the axes of the volume as it is now."""
        stored = tuple(int(side) for side in volume.meta["spatial_shape"])
        original = np.asarray(volume.meta["original_affine"], dtype=np.float64)
        to_stack = np.linalg.inv(np.asarray(volume.affine, dtype=np.float64)) @ original

        def mapped(points: NDArray[Any]) -> NDArray[Any]:
            return (np.column_stack([points, np.ones(len(points))]) @ to_stack.T)[:, [1, 0, 2]]

        height, width, depth = volume.shape[1:]
        points, labels = clicks_from_request(data, stored)
        points = mapped(points)
        corners = box_from_request(data)
        if corners is None:
            return points, labels, np.array([0, depth - 1])
        box = np.sort(mapped(corners), axis=0)
        # A whole number is a voxel's center. What reaches beyond the volume is cut off, as in a 2-D image.
        size = np.array([width, height, depth])
        if (box[1] < [0, 0, -0.5]).any() or (box[0] > size - [1, 1, 0.5]).any():
            limits = " x ".join(map(str, stored))
            raise UserError(f"Expected `roi` to cover some of the volume of {limits} voxels, got {data['roi']}.")
        box = np.clip(box, 0, size - 1)
        if (box[0, :2] >= box[1, :2]).any():
            raise UserError(f"Expected `roi` to be a box with an area on a slice, got {data['roi']}.")
        first, last = box[:, 2].round().astype(int)
        clicked = {int(number) for number in points[labels == 1, 2].round() if first <= number <= last}
        for number in sorted(clicked) or [(first + last) // 2]:
            points = np.concatenate([points, [[*box[0, :2], number], [*box[1, :2], number]]])
            labels = np.concatenate([labels, [2, 3]])
        return points, labels, np.array([first, last] if last > first else [0, depth - 1])


def _truth(value: Any) -> bool:
    """True or false, also as the text that clients make of it."""
    known = {"true": True, "false": False, "1": True, "0": False}
    text = str(value).lower()
    if text not in known:
        raise UserError(f"Expected `propagate` to be true or false, got {value!r}.")
    return known[text]
