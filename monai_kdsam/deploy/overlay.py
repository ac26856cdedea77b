# SPDX-License-Identifier: Apache-2.0
"""What was segmented, as a picture to look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from monai_kdsam.data.picture_file import decode
from monai_kdsam.deploy.sources import Source
from monai_kdsam.drawing import draw_contour, draw_prompt, save_picture_sheet
from monai_kdsam.picture import to_rgb
from monai_kdsam.transforms.host_prompts import points_from_request

__all__ = ["save_overlay"]

COLOR = (0, 255, 255)
COLUMNS, MOST = 4, 16
CELL, SINGLE = 256, 768  # pixels at which they are looked at


def save_overlay(path: Path, source: Source, masks: NDArray[np.uint8]) -> None:
    """Write a PNG: a single image in its own size, of several frames a sheet of at most 16 that have foreground.

    Args:
        path: of the file; its folder exists.
        source: the images.
        masks: (frames, H, W) of 0 and 1.
    """
    frames = source.frames
    if len(frames) == 1:
        Image.fromarray(_draw(source, 0, masks[0], SINGLE)).save(path)
        return
    found = np.flatnonzero(masks.any(axis=(1, 2))).tolist() or sorted(source.requests)
    shown = [found[index * len(found) // MOST] for index in range(MOST)] if len(found) > MOST else found
    rows = [shown[start : start + COLUMNS] for start in range(0, len(shown), COLUMNS)]
    blank = np.zeros((1, 1, 3), dtype=np.uint8)
    cells = [[_draw(source, place, masks[place], CELL) for place in row] for row in rows]
    cells = [row + [blank] * (COLUMNS - len(row)) for row in cells]
    what = "frames" if len(source.instances) == 1 else "slices"
    captions = [f"{what} {', '.join(str(place + 1) for place in row)} of {len(frames)}" for row in rows]
    save_picture_sheet(path, cells, columns=[""] * COLUMNS, captions=captions, cell=CELL)


def _draw(source: Source, place: int, mask: NDArray[np.uint8], viewed_at: int) -> NDArray[np.uint8]:
    image = draw_contour(to_rgb(decode(source.frames[place].path)), mask, COLOR, viewed_at=viewed_at)
    points, labels = points_from_request(source.requests.get(place, {}), image.shape[1::-1])
    return draw_prompt(image, points, labels, viewed_at=viewed_at)
