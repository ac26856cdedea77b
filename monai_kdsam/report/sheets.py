# SPDX-License-Identifier: Apache-2.0
"""Sheets of images with their prompts, the reference and the masks of models, to be looked at."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from monai_kdsam.data.layouts import Item
from monai_kdsam.data.picture_file import decode
from monai_kdsam.drawing import draw_contour, draw_prompt, save_picture_sheet
from monai_kdsam.inferers import BundlePredictor
from monai_kdsam.picture import to_rgb
from monai_kdsam.report.items import load_reference
from monai_kdsam.report.models import Model
from monai_kdsam.report.obedience import make_mosaic
from monai_kdsam.report.prompts import PROMPT_TITLES, named_prompts
from monai_kdsam.report.scoring import Score, predict_checked
from monai_kdsam.transforms import box_from_mask

__all__ = ["draw_cases", "notable_cases", "save_predicted_sheet"]

SHOWN_PROMPTS = ("box", "center_click", "automatic")
MOSAIC_PROMPTS = {"mosaic_box": ("box", "box in a mosaic"), "mosaic_click": ("center_click", "click in a mosaic")}
_WORST, _BEST = 2, 1
_REFERENCE, _PREDICTED = (0, 220, 0), (255, 220, 0)
_COLUMNS = ("image and box", "reference", "predicted, box", "predicted, no prompt")


def notable_cases(scores: Sequence[Score], model: str, source: str) -> list[tuple[str, Score]]:
    """The model's worst and best images of a set by Dice under each prompt: ("worst" or "best", score)."""
    cases = []
    for prompt in (*SHOWN_PROMPTS, *MOSAIC_PROMPTS):
        own = [s for s in scores if (s.model, s.source, s.prompt) == (model, source, prompt) and not s.empty_reference]
        ranked = sorted(own, key=lambda score: (score.dice, score.case))
        best = ranked[_WORST:][-_BEST:]
        cases += [("worst", score) for score in ranked[:_WORST]] + [("best", score) for score in best]
    return cases


def draw_cases(
    path: Path, cases: Sequence[tuple[str, Score]], items: Sequence[Item], models: Sequence[Model], *, seed: int = 0
) -> Path:
    """Draw a sheet: image and prompt, the reference in green, each model's mask in yellow.

    Args:
        path: of the sheet.
        cases: from `notable_cases`.
        items: all of them.
        models: to draw.
        seed: of the prompts, as when they were scored.
    """
    rows, captions = [], []
    with tempfile.TemporaryDirectory(prefix="kdsam_report") as scratch:
        for number, (kind, case) in enumerate(cases):
            item, source, reference = items[case.case], case.image, load_reference(items[case.case])
            if case.prompt in MOSAIC_PROMPTS and (
                mosaic := make_mosaic(Path(scratch, f"{number}.png"), items, case.case, reference)
            ):
                source, reference = str(mosaic.path), mosaic.reference
            image = to_rgb(decode(source))
            name, title = MOSAIC_PROMPTS.get(case.prompt, (case.prompt, PROMPT_TITLES.get(case.prompt)))
            prompt = named_prompts(reference, seed)[name]
            row = [draw_prompt(image, prompt.points, prompt.labels), draw_contour(image, reference, _REFERENCE)]
            for model in models:
                model.set_image(source)
                ((mask, _),) = predict_checked(model, [prompt], reference, item)
                row.append(draw_contour(image, mask, _PREDICTED))
            rows.append(row)
            caption = f"{kind}, {title}: Dice {case.dice:.3f}, {Path(case.image).name}"
            captions.append(caption.encode("ascii", "replace").decode())
    columns = ["image and prompt", "reference", *(model.name for model in models)]
    return save_picture_sheet(path, rows, columns=columns, captions=captions, cell=208)


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
        outlines = [(reference, _REFERENCE), *((mask > 0, _PREDICTED) for mask in masks)]
        drawn = [draw_contour(image, mask, color) for mask, color in outlines]
        rows.append([draw_prompt(image, box, np.array([2, 3])), *drawn])
        captions.append(Path(item["image"]).name.encode("ascii", "replace").decode())
    return save_picture_sheet(path, rows, columns=_COLUMNS, captions=captions)
