# SPDX-License-Identifier: Apache-2.0
"""What is kept of a picture for the prompts on it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from monai_kdsam.mask_input import CELL
from monai_kdsam.runtime.manifest import Manifest

__all__ = ["EncodedImage", "View", "seen_by"]


@dataclass(frozen=True, eq=False)
class View:
    """A picture, or a close-up of it, as the models see it."""

    part: tuple[slice, slice]  # rows and columns of the picture
    scale: NDArray[np.float64]  # (2,), x and y, from the picture to the models' input
    embedding: NDArray[np.float32]  # (1, C, S / 16, S / 16)
    rows: NDArray[np.float32]  # (h, S / 4), from the decoder's masks to the part's rows
    columns: NDArray[np.float32]  # (w, S / 4)

    @property
    def corner(self) -> NDArray[np.float64]:
        """(2,) first column and row."""
        return np.array([self.part[1].start, self.part[0].start], dtype=np.float64)


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """What is kept of an image for the clicks on it; `Predictor.encode` makes it."""

    manifest: Manifest  # of the models
    pixels: NDArray[np.uint8]  # (H, W, 3)
    views: dict[str, View] = field(default_factory=dict)  # the picture's own, and those of the last few close-ups

    @property
    def part(self) -> tuple[slice, slice]:
        """Rows and columns of all of it."""
        return slice(0, self.height), slice(0, self.width)

    @property
    def height(self) -> int:
        """H."""
        return self.pixels.shape[0]

    @property
    def width(self) -> int:
        """W."""
        return self.pixels.shape[1]


def seen_by(view: View, logits: NDArray[np.float32], cells: int) -> NDArray[np.float32]:
    """(K, S/4, S/4): logits (K, H, W) of a picture at the centers of the cells of a view, by bilinear interpolation."""
    center = np.arange(cells) * CELL + CELL / 2
    sides = zip(logits.shape[1:], view.scale[::-1], view.corner[::-1], strict=True)
    for axis, (side, scale, corner) in enumerate(sides, start=1):
        place = (center / scale - 0.5 + corner).clip(0, side - 1)  # padding sees the picture's edge
        low = place.astype(np.int64)
        share = (place - low).astype(np.float32).reshape(-1, *([1] * (2 - axis)))
        first, second = (logits.take(index, axis=axis) for index in (low, np.minimum(low + 1, side - 1)))
        logits = first * (1 - share) + second * share
    return logits
