# SPDX-License-Identifier: Apache-2.0
"""A bundle's masks of some images beside the reference, on one sheet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from monai_kdsam.data.decoding import decode
from monai_kdsam.data.layouts import Item
from monai_kdsam.data.picture import to_rgb
from monai_kdsam.inferers import BundlePredictor
from monai_kdsam.picture_sheet import draw_contour, draw_prompt, save_picture_sheet
from monai_kdsam.report.items import load_reference
from monai_kdsam.transforms import box_from_mask

__all__ = ["save_predicted_sheet"]

COLUMNS = ("image and box", "reference", "predicted, box", "predicted, no prompt")
BOX = np.array([2, 3])  # labels of its corners
GREEN, YELLOW = (0, 255, 0), (255, 255, 0)


def save_predicted_sheet(bundle: str | Path, items: Sequence[Item], path: str | Path, *, most: int = 8) -> Path:
    """Draw each image with its box, with the reference's outline, and with those of the bundle's masks.

    Args:
        bundle: a trained one.
        items: with labels; of many, some from the whole list are drawn. A reference without foreground has no box, and
            is passed over.
        path: of the sheet.
        most: rows.

    Returns:
        `path` as a path.
    """
    predictor = BundlePredictor(bundle)
    found = [(item, reference) for item in items if (reference := load_reference(item)).any()]
    rows, captions = [], []
    for item, reference in found[:: -(-len(found) // most) or 1]:
        image, box = to_rgb(decode(item["image"])), box_from_mask(reference)
        masks = [predictor(item["image"], roi=box.ravel().tolist()), predictor(item["image"])]
        drawn = [draw_contour(image, reference, GREEN), *(draw_contour(image, mask > 0, YELLOW) for mask in masks)]
        rows.append([draw_prompt(image, box, BOX), *drawn])
        captions.append(Path(item["image"]).name.encode("ascii", "replace").decode())
    return save_picture_sheet(path, rows, columns=COLUMNS, captions=captions)
