# SPDX-License-Identifier: Apache-2.0
"""Pixels of any kind as RGB of any size, with NumPy and Pillow alone: for the bundle and prediction without torch."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from monai_kdsam.errors import MissingFileError, UserError

__all__ = [
    "TooLargeError",
    "check_size",
    "fit_longest",
    "open_picture",
    "pillow_pixels",
    "read_picture",
    "resize_pixels",
    "rgb_from_array",
    "rgb_from_pixels",
]

FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
MAX_PIXELS = 2**27
ROWS = 256  # that are copied or scaled at once


class TooLargeError(UserError):
    """A file claims more pixels than are read."""


def check_size(file: str | Path, shape: Sequence[int], itemsize: int = 4, *, pictures: int = 1) -> None:
    """Refuse what would fill the memory by what the file claims to be, before anything is decoded.

    Args:
        file: for the message.
        shape: width, height, and more for a volume.
        itemsize: bytes of each pixel, all its colors together; less than 4 counts as 4.
        pictures: how many pictures' worth of pixels it may have.

    Raises:
        TooLargeError: when there are more pixels than 2^27 (134 megapixels), or the environment variable
            `KDSAM_MAX_PIXELS`, allows.
    """
    limit = _max_pixels() * pictures
    if math.prod(shape) * max(itemsize, 4) > limit * 4:
        raise TooLargeError(
            f"{file} claims {' x '.join(map(str, shape))} pixels of {itemsize} bytes, more than the {limit} of 4 bytes "
            "that are read. Reduce it, or allow more by KDSAM_MAX_PIXELS in the environment."
        )


def _max_pixels() -> int:
    setting = os.environ.get("KDSAM_MAX_PIXELS", str(MAX_PIXELS))
    if not setting.isdecimal():
        raise UserError(f"Expected KDSAM_MAX_PIXELS in the environment to be a number of pixels, got {setting!r}.")
    return int(setting)


def open_picture(path: str | Path, frame: int = 0) -> Image.Image:
    """Open a PNG, JPEG, BMP or TIFF file, told by its content alone, at one of its frames; nothing is decoded yet.

    Raises:
        TooLargeError: see `check_size`.
    """
    if Image.MAX_IMAGE_PIXELS is not None:  # Pillow warns from its own limit on, and raises from twice that on
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, _max_pixels())
    try:
        image = Image.open(path, formats=FORMATS)
        image.seek(frame)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLargeError(f"{path} is too large: {error} KDSAM_MAX_PIXELS in the environment allows more.") from error
    try:
        check_size(path, image.size)
    except TooLargeError:
        image.close()
        raise
    return image


def pillow_pixels(image: Image.Image) -> NDArray[Any]:
    """(H, W) or (H, W, C) values of a loaded picture: palettes and CMYK expanded, 1-bit as 0 and 255, alpha kept."""
    if image.mode == "PA" or (image.mode == "P" and "transparency" in image.info):
        return np.asarray(image.convert("RGBA"))
    if image.mode == "1":
        return np.asarray(image.convert("L"))
    if image.mode in ("L", "LA", "RGB", "RGBA", "I", "F") or image.mode.startswith("I;16"):
        return _in_strips(image)
    return _in_strips(image.convert("RGB"))


def _in_strips(image: Image.Image) -> NDArray[Any]:
    """What `np.asarray` gives, which holds a large picture twice more on the way; and it can be written to."""
    strips = [(0, top, image.width, min(top + ROWS, image.height)) for top in range(0, image.height, ROWS)]
    first = np.asarray(image.crop(strips[0]))
    result = np.empty((image.height, *first.shape[1:]), dtype=first.dtype)
    for box in strips:
        result[box[1] : box[3]] = image.crop(box)
    return result


def rgb_from_pixels(pixels: NDArray[Any], window: tuple[float, float] | None = None) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB, or (H, W, 1) gray, of finite values.

    Args:
        pixels: (H, W) or (H, W, C) with C from 1 to 4; an even number of channels ends with alpha, which is composited
            over black.
        window: low and high of the values that become 0 and 255, by default the 0.5 and 99.5 percentiles; 8-bit values
            stay as they are.
    """
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    if pixels.shape[2] in (2, 4):
        full = np.iinfo(pixels.dtype).max if pixels.dtype.kind == "u" else 1
        pixels = (pixels[..., :-1] * (pixels[..., -1:] / full)).round().astype(pixels.dtype)
    if pixels.dtype != np.uint8:
        low, high = window or np.percentile(pixels, [0.5, 99.5])
        factor = 255.0 / max(high - low, np.finfo(np.float32).tiny)
        result = np.empty(pixels.shape, dtype=np.uint8)
        for first in range(0, len(pixels), ROWS):  # float64 of a large picture would be eight times its size
            scaled = (pixels[first : first + ROWS].astype(np.float64) - low) * factor
            # Halves go up: NumPy's rounding to even would depend on the neighbor.
            result[first : first + ROWS] = np.floor(scaled.clip(0, 255) + 0.5)
        return result
    return pixels


def read_picture(path: str | Path) -> NDArray[np.uint8]:
    """Read a PNG, JPEG, BMP or TIFF file as (H, W, 3) RGB in [0, 255]; an EXIF orientation is not applied.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is damaged, has several frames, is of a format that Pillow does not decode in full, or has
            more pixels than `check_size` allows.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"Expected `image` to be an image file or an array, but there is no file {path}.")
    try:
        with open_picture(path) as image:
            if getattr(image, "n_frames", 1) > 1:
                raise UserError(f"it has {getattr(image, 'n_frames', 1)} frames; give one of them as an array")
            if image.tile and ";16" in str(image.tile[0][3]) and image.mode in ("RGB", "RGBA", "LA"):
                raise UserError("it has 16-bit colors, of which Pillow drops half; give it as an array")
            image.load()
            return rgb_from_array(pillow_pixels(image))
    except TooLargeError:
        raise
    except Exception as error:  # what a decoder raises depends on the damage
        raise UserError(f"Cannot read {path} as a picture: {str(error) or type(error).__name__}.") from error


def rgb_from_array(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Turn an array into (H, W, 3) uint8.

    Gray is repeated, transparent pixels are composited over black, and what is not 8-bit is mapped from its 0.5 to
    99.5 percentiles to 0..255.

    Args:
        pixels: (H, W) or (H, W, C) with C from 1 to 4; an even number of channels ends with alpha.

    Raises:
        ValueError: when the shape is another one, or there are NaN or infinite values.

    Example:
        >>> rgb_from_array(np.array([[0, 255]], dtype=np.uint8)).shape
        (1, 2, 3)
    """
    if pixels.dtype.kind not in "uif" or pixels.ndim not in (2, 3) or 0 in pixels.shape or pixels.shape[2:] > (4,):
        raise UserError(f"Expected `image` of shape (H, W) or (H, W, 1 to 4), got {pixels.dtype} {pixels.shape}.")
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise UserError("Expected `image` of finite values, got NaN or infinity among them.")
    return np.broadcast_to(rgb_from_pixels(pixels), (*pixels.shape[:2], 3))


def fit_longest(height: int, width: int, longest: int) -> tuple[int, int]:
    """Size (height, width) of an image whose longest side is brought to `longest`, halves up as in SAM; 1 at the least.

    >>> fit_longest(300, 400, 1024), fit_longest(5, 2000, 96)
    ((768, 1024), (1, 96))
    """
    scale = longest / max(height, width)
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def resize_pixels(channels: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """Resize (C, H, W) bilinearly to (C, height, width), averaging where it shrinks; flat pictures stay flat.

    Args:
        channels: uint8, which is rounded as SAM's own preparation is, or anything else, which becomes float32.
        height: of the result.
        width: of the result.
    """
    kind = np.uint8 if channels.dtype == np.uint8 else np.float32
    result = np.empty((len(channels), height, width), dtype=kind)
    for plane, resized in zip(channels, result, strict=True):
        picture = Image.fromarray(np.ascontiguousarray(plane, dtype=kind))
        resized[:] = picture.resize((width, height), Image.Resampling.BILINEAR)
    return result
