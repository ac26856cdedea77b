# SPDX-License-Identifier: Apache-2.0
"""Pixels of any kind as RGB, with NumPy and Pillow alone, for the bundle's reader and the prediction without torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["pillow_pixels", "rgb_from_pixels"]


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
