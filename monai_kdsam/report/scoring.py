# SPDX-License-Identifier: Apache-2.0
"""Every image under every prompt by every model: the rows of `cases.csv`."""

from __future__ import annotations

import csv
import io
import math
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from monai_kdsam.data.layouts import Item
from monai_kdsam.errors import UserError
from monai_kdsam.report.corrective_clicks import GOALS, MOST_CLICKS, correct
from monai_kdsam.report.fill_box import FillBox
from monai_kdsam.report.items import load_reference
from monai_kdsam.report.metrics import MaskScores, head_circumference, mask_scores, overlap_scores
from monai_kdsam.report.models import Model, Prediction
from monai_kdsam.report.obedience import Mosaic, make_mosaic, structures
from monai_kdsam.report.prompts import Prompt, box_and_click, named_prompts

__all__ = [
    "CLICKS",
    "FILLED_BOX",
    "REFERENCE",
    "SHOWN_CLICKS",
    "Score",
    "Tolerances",
    "cases_csv",
    "predict_checked",
    "score_images",
]

Mask = NDArray[np.bool_]
CLICKS = "clicks"
SHOWN_CLICKS = 10  # more are made only until the last of the `GOALS` is reached
REFERENCE = "reference mask"
FILLED_BOX = "filled box"


@dataclass(frozen=True)
class Score:
    """One mask of one model, against its reference.

    Args:
        model: its name; `REFERENCE` for what the reference itself measures, `FILLED_BOX` for the exact box, filled.
        source: the set.
        subject: of the image.
        case: number of the item in the list; one image may be there with several references.
        image: path.
        prompt: a key of `PROMPT_TITLES`; `CLICKS`; `mosaic_box` and `mosaic_click`, whose Dice and IoU are of the
            asked tile; `structure_box` and `structure_click`, a row for each of several structures.
        clicks: number of corrective clicks, 0 for the named prompts.
        empty_reference: there is nothing to find; then the scores are nan.
        foreground: share of the image that the mask covers.
        structure: share of the image that the reference covers.
        dice, iou, surface_dice: in [0, 1].
        hd95: in `unit`. This and the surface Dice are known for named prompts alone.
        unit: mm or px.
        expected_iou: of the model; nan if it has none.
        head_circumference, official_circumference: mm; nan where there is no official one.
        inside: share of a mosaic's mask that lies in the asked tile; 0 for an empty mask.
    """

    model: str
    source: str
    subject: str
    case: int
    image: str
    prompt: str
    clicks: int
    empty_reference: bool
    foreground: float
    structure: float
    dice: float = math.nan
    iou: float = math.nan
    hd95: float = math.nan
    surface_dice: float = math.nan
    unit: str = ""
    expected_iou: float = math.nan
    head_circumference: float = math.nan
    official_circumference: float = math.nan
    inside: float = math.nan


@dataclass(frozen=True)
class Tolerances:
    """Of the surface Dice: mm in sets measured in mm, else a share of the image's diagonal."""

    millimetres: float = 1.0
    diagonal_share: float = 0.01

    def of(self, unit: str, shape: tuple[int, ...]) -> float:
        """The tolerance for one image, in its unit."""
        return self.millimetres if unit == "mm" else self.diagonal_share * math.hypot(*shape)


def score_images(
    models: Sequence[Model],
    items: Sequence[Item],
    units: dict[str, str],
    *,
    seed: int = 0,
    tolerances: Tolerances | None = None,
    go_on: bool = True,
    progress: bool = True,
) -> list[Score]:
    """Score all models on all images, image by image.

    Args:
        models: of different names.
        items: from `with_units`.
        units: by set, from `with_units`.
        seed: of the prompts.
        tolerances: of the surface Dice.
        go_on: corrective clicks go on from the last answer, with models that do so; False: nothing but the clicks.
        progress: show a bar.

    Raises:
        ValueError: when a model gives a mask of another size than the reference.
    """
    scores = []
    with tempfile.TemporaryDirectory(prefix="kdsam_report") as folder:
        for number, item in enumerate(tqdm(items, desc="report", unit="image", disable=not progress)):
            case = _Case(number, item, units[item["source"]], tolerances or Tolerances(), seed)
            scores += case.scores_of_shapes()
            mosaic = None if case.empty else make_mosaic(Path(folder, f"{number}.png"), items, number, case.reference)
            for model in models:
                model.set_image(item["image"])
                scores += case.scores_of(model, go_on)
                if mosaic:
                    model.set_image(str(mosaic.path))
                    scores += case.scores_of_mosaic(model, mosaic)
            if mosaic:
                mosaic.path.unlink()
    return scores


def predict_checked(model: Model, prompts: Sequence[Prompt], reference: Mask, item: Item) -> list[Prediction]:
    """The model's masks, which must be of the reference's size.

    Raises:
        ValueError: naming the model, the image, and both sizes.
    """
    return [_checked(prediction, model, reference, item) for prediction in model.predict(prompts)]


def _checked(prediction: Prediction, model: Model, reference: Mask, item: Item) -> Prediction:
    mask, _ = prediction
    if mask.shape != reference.shape:
        raise UserError(
            f"Expected {model.name} to give a mask of {item['image']} of (H, W) {reference.shape} as the reference "
            f"{item['label']}, got {mask.shape}."
        )
    return prediction


class _Case:
    """One image, its reference and its prompts."""

    def __init__(self, number: int, item: Item, unit: str, tolerances: Tolerances, seed: int) -> None:
        self.number = number
        self.item = item
        self.unit = unit
        self.reference = load_reference(item)
        self.empty = not self.reference.any()
        self.spacing = (item["spacing"][1], item["spacing"][0])
        self.tolerance = tolerances.of(unit, self.reference.shape)
        self.official = float(item.get("head_circumference", math.nan))
        self.prompts = named_prompts(self.reference, seed)

    def scores_of_shapes(self) -> list[Score]:
        """What the reference itself and its box, filled, are worth."""
        scores = []
        if math.isfinite(self.official):
            scores.append(self.score(REFERENCE, "", (self.reference, math.nan)))
        if not self.empty:
            points, labels = (torch.from_numpy(part)[None] for part in self.prompts["box"])
            filled = FillBox()(torch.zeros(1, 1, *self.reference.shape), points, labels)[0, 0].numpy() > 0
            scores.append(self.row(FILLED_BOX, "box", filled, overlap_scores(filled, self.reference)))
        return scores

    def scores_of(self, model: Model, go_on: bool) -> list[Score]:
        """On the image itself, which the model was given."""
        predictions = predict_checked(model, list(self.prompts.values()), self.reference, self.item)
        by_name = dict(zip(self.prompts, predictions, strict=True))
        scores = [self.score(model.name, name, prediction) for name, prediction in by_name.items()]
        if self.empty:
            return scores

        def predict(prompt: Prompt) -> Mask:
            answer = model.correct(prompt) if go_on else model.predict([prompt])[0]
            return _checked(answer, model, self.reference, self.item)[0]

        first = self.prompts["center_click"]
        mask = by_name["center_click"][0]
        masks: Iterable[Mask] = [mask] * MOST_CLICKS
        if model.takes_clicks:
            model.predict([first])  # the last answer is that of the first click
            masks = correct(self.reference, first, mask, predict)
        for count, mask in enumerate(masks, start=1):
            scores.append(self.row(model.name, CLICKS, mask, overlap_scores(mask, self.reference), clicks=count))
            if count >= SHOWN_CLICKS and scores[-1].iou >= max(GOALS.values()):
                break
        for structure in structures(self.reference):
            prompts = box_and_click(structure)
            predictions = predict_checked(model, prompts, self.reference, self.item)
            for name, (mask, _) in zip(("structure_box", "structure_click"), predictions, strict=True):
                scores.append(self.row(model.name, name, mask, overlap_scores(mask, structure)))
        return scores

    def scores_of_mosaic(self, model: Model, mosaic: Mosaic) -> list[Score]:
        """On a mosaic, which the model was given."""
        scores = []
        masks = predict_checked(model, box_and_click(mosaic.reference), mosaic.reference, self.item)
        for name, (mask, _) in zip(("mosaic_box", "mosaic_click"), masks, strict=True):
            agreement = overlap_scores(mask[mosaic.tile], mosaic.reference[mosaic.tile])
            inside = float(mask[mosaic.tile].sum() / max(mask.sum(), 1))
            scores.append(self.row(model.name, name, mask, agreement, inside=inside))
        return scores

    def score(self, model: str, prompt: str, prediction: Prediction) -> Score:
        """All that is measured under the named prompts."""
        mask, expected_iou = prediction
        agreement = MaskScores(math.nan, math.nan)
        if not self.empty:
            agreement = mask_scores(mask, self.reference, spacing=self.spacing, tolerance=self.tolerance)
        circumference = head_circumference(mask, self.spacing) if math.isfinite(self.official) else math.nan
        return self.row(model, prompt, mask, agreement, expected_iou=expected_iou, head_circumference=circumference)

    def row(
        self, model: str, prompt: str, mask: Mask, agreement: MaskScores, *, clicks: int = 0, **known: float
    ) -> Score:
        """A row of the table."""
        return Score(
            model,
            self.item["source"],
            str(self.item["subject"]),
            self.number,
            self.item["image"],
            prompt,
            clicks,
            self.empty,
            float(mask.mean()),
            float(self.reference.mean()),
            *agreement,
            unit=self.unit,
            official_circumference=self.official,
            **known,
        )


def cases_csv(scores: Sequence[Score]) -> str:
    """The table of all scores; what is not known is left empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Score)], lineterminator="\n")
    writer.writeheader()
    for score in scores:
        writer.writerow({key: _cell(value) for key, value in asdict(score).items()})
    return text.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value
