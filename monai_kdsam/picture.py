# SPDX-License-Identifier: Apache-2.0
"""One decoded 2-D picture, and its conversion into what SAM expects or into a mask."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_kdsam.errors import UserError
from monai_kdsam.rgb import rgb_from_pixels

__all__ = ["Picture", "label_values", "no_geometry", "to_mask", "to_rgb"]


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
        orientation: EXIF's, how viewers turn the picture; not applied here. 1 is as it is.
        spacing: (x, y) of a pixel in mm, where the file says it; None where it does not, and the affine has 1 mm.
    """

    pixels: np.ndarray
    affine: np.ndarray = field(default_factory=no_geometry)
    window: tuple[float, float] | None = None
    inverted: bool = False
    orientation: int = 1
    spacing: tuple[float, float] | None = None


def to_rgb(picture: Picture) -> np.ndarray:
    """Turn a picture into (H, W, 3) uint8 RGB in [0, 255]; the rules are those of :class:`Image2DReader`.

    >>> to_rgb(Picture(np.array([[0, 500, 1000]], dtype=np.uint16), window=(0, 1000)))[0, :, 0].tolist()
    [0, 128, 255]
    """
    pixels = rgb_from_pixels(picture.pixels, picture.window)
    if picture.inverted:
        pixels = 255 - pixels
    return pixels if pixels.shape[2] == 3 else np.repeat(pixels, 3, axis=2)


def to_mask(picture: Picture) -> np.ndarray:
    """Turn a picture into (H, W) labels: the maximum over the colours, which must be one, as whole numbers.

    Raises:
        ValueError: there are several colours, alpha says something else than they do, or values are no whole numbers.

    >>> to_mask(Picture(np.array([[[0, 0, 0, 255], [255, 0, 0, 255]]], dtype=np.uint8))).tolist()
    [[0, 255]]
    """
    pixels = picture.pixels.reshape(*picture.pixels.shape[:2], -1)
    channels = [pixels[..., number] for number in range(pixels.shape[2])]
    alpha = channels.pop() if len(channels) in (2, 4) else None
    # Channel by channel: ten times as fast as the maximum over the last axis.
    mask = reduce(np.maximum, channels)
    if alpha is not None and (alpha != alpha.flat[0]).any():
        _check_alpha(alpha, mask)
    if len(channels) == 3:
        _check_colours(channels, mask)
    return label_values(mask)


def label_values(values: np.ndarray) -> np.ndarray:
    """Labels as whole numbers, whatever scale factor a file keeps them with: 0.996 and 1.00000002 are 1.

    Args:
        values: any shape, any type of number.

    Returns:
        same shape; integers as they came, others as float32.

    Raises:
        ValueError: a value is farther than 0.01 from a whole number, or would become 0 without being it.

    >>> label_values(np.array([0, 0.996, 2.00000004])).tolist()
    [0.0, 1.0, 2.0]
    """
    if values.dtype.kind in "bui":
        return values
    labels = np.rint(values)
    is_label = np.abs(values - labels) <= np.where(labels == 0, 1e-4, 0.01)
    if not is_label.all():
        others = np.unique(values[~is_label])
        listed = ", ".join(f"{value:.4g}" for value in others[:5]) + (", ..." if len(others) > 5 else "")
        raise UserError(f"Expected labels, which are whole numbers, got {listed}. Save the mask with whole numbers.")
    return labels.astype(np.float32)


def _check_alpha(alpha: np.ndarray, mask: np.ndarray) -> None:
    """Raise unless what is opaque is what has a colour."""
    is_opaque = alpha > 0
    if not mask.any():
        raise UserError("Its colours are all 0: what it shows is in its alpha, which is not read. Save that as gray.")
    if (alpha[is_opaque] != alpha.max()).any():
        raise UserError(
            "Its alpha has values between transparent and opaque, as edges that are smoothed (anti-aliased) have. Save "
            "the mask as gray, without smoothing."
        )
    if (is_opaque != (mask > 0)).any():
        raise UserError("Its alpha and its colours are two different masks. Save the one that is meant as gray.")


def _check_colours(channels: list[np.ndarray], brightest: np.ndarray) -> None:
    """Raise if a mask has foreground of several colours, which the maximum over them would merge."""
    top = float(brightest.max())
    if float((brightest - reduce(np.minimum, channels)).max()) <= 0.1 * top:
        return  # gray, but for the noise of a JPEG
    coded: NDArray[Any] = reduce(lambda code, channel: code * 65536 + channel.astype(np.int64), channels, np.int64(0))
    colours, counts = np.unique(coded, return_counts=True)
    if len(colours) > 16:  # noise, or edges that are anti-aliased: is there more than one bright colour?
        coded = reduce(lambda code, channel: code * 65536 + 255 * (channel > top / 2), channels, np.int64(0))
        colours, counts = np.unique(coded, return_counts=True)
        colours = colours[counts > 0.01 * counts[colours > 0].sum()]
    shown = [tuple(int(code >> shift & 65535) for shift in (32, 16, 0)) for code in colours if code]
    if len(shown) > 1:
        raise UserError(
            f"Expected a mask of one colour, got {', '.join(map(str, shown[:5]))}: labels are told by gray value. "
            "Save it in gray, and say which values are foreground with `foreground_values`."
        )
