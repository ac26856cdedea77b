# SPDX-License-Identifier: Apache-2.0
"""Pixels of any kind as RGB of any size, with NumPy and Pillow alone: for the bundle and prediction without torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["fit_longest", "pillow_pixels", "resize_pixels", "rgb_from_pixels"]


def pillow_pixels(image: Image.Image) -> NDArray[Any]:
    """(H, W) or (H, W, C) values of a loaded picture: palettes and CMYK expanded, 1-bit as 0 and 255, alpha kept."""
    if image.mode == "PA" or (image.mode == "P" and "transparency" in image.info):
        return np.asarray(image.convert("RGBA"))
    if image.mode == "1":
        return np.asarray(image.convert("L"))
    if image.mode in ("L", "LA", "RGB", "RGBA", "I", "F") or image.mode.startswith("I;16"):
        return np.asarray(image)
    return np.asarray(image.convert("RGB"))


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
        scaled = (pixels.astype(np.float64) - low) * (255.0 / max(high - low, np.finfo(np.float32).tiny))
        # Halves go up: NumPy's rounding to even would depend on the neighbor.
        pixels = np.floor(scaled.clip(0, 255) + 0.5).astype(np.uint8)
    return pixels


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
