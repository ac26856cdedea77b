# SPDX-License-Identifier: Apache-2.0
"""Any picture as the RGB that the models expect, by the rules of the bundle's own reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_kdsam.errors import MissingFileError, UserError
from monai_kdsam.pixels import TooLargeError, open_picture, pillow_pixels, rgb_from_pixels

__all__ = ["read_picture", "to_rgb"]


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
            return to_rgb(pillow_pixels(image))
    except TooLargeError:
        raise
    except Exception as error:  # what a decoder raises depends on the damage
        raise UserError(f"Cannot read {path} as a picture: {str(error) or type(error).__name__}.") from error


def to_rgb(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Turn an array into (H, W, 3) uint8.

    Gray is repeated, transparent pixels are composited over black, and what is not 8-bit is mapped from its 0.5 to
    99.5 percentiles to 0..255.

    Args:
        pixels: (H, W) or (H, W, C) with C from 1 to 4; an even number of channels ends with alpha.

    Raises:
        ValueError: when the shape is another one, or there are NaN or infinite values.

    Example:
        >>> to_rgb(np.array([[0, 255]], dtype=np.uint8)).shape
        (1, 2, 3)
    """
    if pixels.dtype.kind not in "uif" or pixels.ndim not in (2, 3) or 0 in pixels.shape or pixels.shape[2:] > (4,):
        raise UserError(f"Expected `image` of shape (H, W) or (H, W, 1 to 4), got {pixels.dtype} {pixels.shape}.")
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise UserError("Expected `image` of finite values, got NaN or infinity among them.")
    return np.broadcast_to(rgb_from_pixels(pixels), (*pixels.shape[:2], 3))
