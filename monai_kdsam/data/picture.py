# SPDX-License-Identifier: Apache-2.0
"""One decoded 2-D picture, and its conversion into what SAM expects or into a mask."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce

import numpy as np

from monai_kdsam.pixels import rgb_from_pixels

__all__ = ["Picture", "no_geometry", "to_mask", "to_rgb"]


def no_geometry(spacing: tuple[float, float] = (1.0, 1.0)) -> np.ndarray:
    """Affine (3, 3) in RAS of a picture whose x runs to the patient's left and y to the back: identity in LPS."""
    return np.diag([-spacing[0], -spacing[1], 1.0])


@dataclass(frozen=True)
class Picture:
    """Decoded pixels, rows first.

    Args:
        pixels: (H, W) or (H, W, C) values as stored; C is 2 or 4 where there is an alpha channel.
        affine: (3, 3) in RAS, maps pixel (x, y, 1) to millimetres.
        window: the file's own display range (low, high), in the units of `pixels`.
        inverted: low values are bright (DICOM MONOCHROME1).
    """

    pixels: np.ndarray
    affine: np.ndarray = field(default_factory=no_geometry)
    window: tuple[float, float] | None = None
    inverted: bool = False


def to_rgb(picture: Picture) -> np.ndarray:
    """Turn a picture into (H, W, 3) uint8 RGB in [0, 255]; the rules are those of :class:`Image2DReader`.

    >>> to_rgb(Picture(np.array([[0, 500, 1000]], dtype=np.uint16), window=(0, 1000)))[0, :, 0].tolist()
    [0, 128, 255]
    """
    pixels = rgb_from_pixels(picture.pixels, picture.window)
    if picture.inverted:
        pixels = 255 - pixels
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def to_mask(picture: Picture) -> np.ndarray:
    """Turn a picture into (H, W) values as stored: the maximum over the colours, alpha ignored.

    >>> to_mask(Picture(np.array([[[0, 0, 0, 255], [255, 0, 0, 255]]], dtype=np.uint8))).tolist()
    [[0, 255]]
    """
    pixels = picture.pixels.reshape(*picture.pixels.shape[:2], -1)
    colors = pixels.shape[2] - (pixels.shape[2] in (2, 4))
    # Channel by channel: ten times as fast as the maximum over the last axis.
    return reduce(np.maximum, (pixels[..., channel] for channel in range(colors)))
