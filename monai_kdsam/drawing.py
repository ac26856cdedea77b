# SPDX-License-Identifier: Apache-2.0
"""Picture sheets: rows of images with their prompts and outlines, to be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps
from scipy import ndimage

from monai_kdsam.errors import UserError
from monai_kdsam.files import ROOM, replacing

__all__ = ["draw_contour", "draw_prompt", "save_picture_sheet"]

_CELL = 192  # side of a cell, in pixels
_GAP = 4  # pixels between cells
_LINE = 18  # height of a line of text
_PAPER, _INK = (24, 24, 24), (235, 235, 235)
_BOX, _FOREGROUND, _BACKGROUND = (255, 220, 0), (0, 220, 0), (230, 0, 0)

Color = tuple[int, int, int]


def save_picture_sheet(
    path: str | Path,
    rows: Sequence[Sequence[np.ndarray]],
    *,
    columns: Sequence[str],
    captions: Sequence[str] | None = None,
    cell: int = _CELL,
) -> Path:
    """Save images as a table with a title over each column and, where given, a line of text under each row.

    In pixels the sheet is 4 + columns (cell + 4) wide and 22 + rows (cell + 4) high, plus 18 per row with captions.

    Args:
        path: the file; its suffix chooses the format. Its folder is created if missing.
        rows: images, uint8 (H, W, 3), RGB, of any size and as many as ``columns``; each is scaled to fit its cell.
        columns: titles.
        captions: one per row.
        cell: side of a cell, in pixels.

    Returns:
        ``path`` as a path.

    Raises:
        TypeError: if an image is not a uint8 array.
        ValueError: if an image is not (H, W, 3), or a row or ``captions`` has the wrong length.
        OSError: if the file cannot be written.
    """
    captions = _checked_captions(rows, columns, captions)
    line = _LINE if captions else 0
    size = (_GAP + len(columns) * (cell + _GAP), _LINE + _GAP + len(rows) * (cell + _GAP + line))
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    lefts = [_GAP + column * (cell + _GAP) for column in range(len(columns))]
    for left, title in zip(lefts, columns, strict=True):
        draw.text((left, _GAP), title, fill=_INK)
    for number, row in enumerate(rows):
        top = _LINE + _GAP + number * (cell + _GAP + line)
        for left, image in zip(lefts, row, strict=True):
            sheet.paste(ImageOps.pad(Image.fromarray(_checked(image)), (cell, cell)), (left, top))
        if captions:
            draw.text((_GAP, top + cell + 2), captions[number], fill=_INK)
    return _save(sheet, Path(path))


def _save(sheet: Image.Image, path: Path) -> Path:
    with replacing(path, ROOM) as unfinished:
        sheet.save(unfinished, format=Image.registered_extensions()[path.suffix.lower()])
    return path


def _checked_captions(
    rows: Sequence[Sequence[np.ndarray]], columns: Sequence[str], captions: Sequence[str] | None
) -> Sequence[str]:
    for number, row in enumerate(rows):
        if len(row) != len(columns):
            raise UserError(f"Expected row {number} of `rows` to hold {len(columns)} images, got {len(row)}.")
    if captions and len(captions) != len(rows):
        raise UserError(f"Expected `captions` to hold one text for each of {len(rows)} rows, got {len(captions)}.")
    return captions or []


def _checked(image: np.ndarray) -> np.ndarray:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        raise TypeError(f"Expected `image` to be a uint8 array, got {getattr(image, 'dtype', type(image).__name__)}.")
    if image.ndim != 3 or image.shape[2] != 3:
        raise UserError(f"Expected `image` of shape (H, W, 3), got {image.shape}.")
    return image


def draw_prompt(image: np.ndarray, points: np.ndarray, labels: np.ndarray, *, viewed_at: int = _CELL) -> np.ndarray:
    """Draw a prompt: boxes in yellow, foreground clicks in green, background clicks in red.

    Args:
        image: uint8 (H, W, 3), RGB; it is not changed.
        points: (N, 2), XY pixels of ``image``; an array or a CPU tensor.
        labels: (N,); 1 foreground click, 0 background click, 2 and 3 a box's corners (the first 2 with the first 3, and
            so on), -1 padding.
        viewed_at: longer side, in pixels, with which the image will be looked at, for the width of lines.

    Returns:
        A new image, uint8 (H, W, 3).

    Raises:
        TypeError: if the image is not a uint8 array.
        ValueError: if the shapes are wrong or a box lacks a corner.

    Example:
        >>> import numpy as np
        >>> image = np.zeros((32, 32, 3), np.uint8)
        >>> drawn = draw_prompt(image, np.array([[4, 6], [20, 24]]), np.array([2, 3]))
        >>> drawn[6, 4].tolist(), drawn[15, 12].tolist()
        ([255, 220, 0], [0, 0, 0])
    """
    points, labels = np.asarray(points, dtype=float), np.asarray(labels)
    if labels.ndim != 1 or points.shape != (len(labels), 2):
        raise UserError(f"Expected `points` (N, 2) and `labels` (N,), got {points.shape} and {labels.shape}.")
    starts, ends = points[labels == 2], points[labels == 3]
    if len(starts) != len(ends):
        raise UserError(f"Expected as many labels 2 as 3 (a box's corners), got {len(starts)} and {len(ends)}.")
    picture = Image.fromarray(_checked(image))
    draw, line = ImageDraw.Draw(picture), _line_width(image, viewed_at)
    for corners in np.rint(np.concatenate([starts, ends], axis=1)).astype(int):
        low, high = np.minimum(corners[:2], corners[2:]), np.maximum(corners[:2], corners[2:])
        draw.rectangle((*low.tolist(), *high.tolist()), outline=_BOX, width=line)
    for label, color in ((1, _FOREGROUND), (0, _BACKGROUND)):
        for x, y in points[labels == label]:
            radius = 2 * line + 1
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color, outline=(0, 0, 0))
    return np.array(picture)


def draw_contour(image: np.ndarray, mask: np.ndarray, color: Color, *, viewed_at: int = _CELL) -> np.ndarray:
    """Draw a mask's outline, on its inside; one pixel wide, more on an image that a sheet would shrink.

    Args:
        image: uint8 (H, W, 3), RGB; it is not changed.
        mask: (H, W), or with leading dimensions of 1; above 0 is foreground. An array or a CPU tensor.
        color: RGB, each 0 to 255.
        viewed_at: as of `draw_prompt`.

    Returns:
        A new image, uint8 (H, W, 3).

    Raises:
        TypeError: if the image is not a uint8 array.
        ValueError: if the mask is of another size than the image.

    Example:
        >>> import numpy as np
        >>> mask = np.zeros((5, 5)); mask[1:4, 1:4] = 1
        >>> (draw_contour(np.zeros((5, 5, 3), np.uint8), mask, (9, 0, 0))[..., 0] > 0).sum().item()  # 9 less the middle
        8
    """
    foreground = np.asarray(mask) > 0
    if foreground.ndim > 2 and set(foreground.shape[:-2]) == {1}:
        foreground = foreground.reshape(foreground.shape[-2:])
    if foreground.shape != _checked(image).shape[:2]:
        raise UserError(f"Expected `mask` of the image's size {image.shape[:2]}, got {np.shape(mask)}.")
    drawn = image.copy()
    drawn[foreground & ~ndimage.binary_erosion(foreground, iterations=_line_width(image, viewed_at))] = color
    return drawn


def _line_width(image: np.ndarray, viewed_at: int) -> int:
    """Pixels that are about one and a half where the image is shown with a longer side of `viewed_at`."""
    return max(1, round(1.5 * max(image.shape[:2]) / viewed_at))
