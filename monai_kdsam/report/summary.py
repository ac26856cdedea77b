# SPDX-License-Identifier: Apache-2.0
"""From scores to the numbers of `summary.json`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any

import numpy as np

from monai_kdsam.report.corrective_clicks import GOALS, MOST_CLICKS, clicks_needed
from monai_kdsam.report.intervals import Estimate, estimate, estimate_mean_of_sets, holm, signed_rank_test
from monai_kdsam.report.metrics import calibration
from monai_kdsam.report.obedience import MEASURES
from monai_kdsam.report.prompts import PROMPT_TITLES
from monai_kdsam.report.scoring import CLICKS, FILLED_BOX, REFERENCE, SHOWN_CLICKS, Score

__all__ = ["MEAN_OF_SETS", "METRICS", "SIZES", "summarize"]

METRICS = ("dice", "iou", "surface_dice", "hd95")
MEAN_OF_SETS = "mean of sets"
SIZES = {"below 1 %": 0.01, "1 to 5 %": 0.05, "5 to 20 %": 0.2, "20 % and more": math.inf}  # of the image; upper ends
Values = dict[str, tuple[list[float], list[str]]]  # by set: values and subjects
Curves = dict[tuple[str, str, int], list[float]]


def summarize(scores: Sequence[Score], models: Sequence[str], *, seed: int = 0) -> dict[str, Any]:
    """Everything that the page shows, for models of which the first is compared with each other one.

    Args:
        scores: of all models on the same images.
        models: names.
        seed: of the resampling.

    Returns:
        `sets`, `scores`, `sizes`, `obedience`, `clicks`, `calibration`, `head_circumference`, `empty_references` and
        `comparisons`, of plain lists, dictionaries and numbers.
    """
    found = [score for score in scores if not score.empty_reference]
    return {
        "sets": _sets(scores, models[0]),
        "scores": [row for model in models for row in _mean_scores(found, model, seed)],
        "sizes": [row for model in models for row in _sizes(found, model, seed)],
        "obedience": [row for model in [*models, FILLED_BOX] for row in _obedience(found, model, seed)],
        "clicks": [row for model in models for row in _click_rows(found, model, seed)],
        "calibration": {model: result for model in models if (result := _calibration(found, model))},
        "head_circumference": _circumference_rows(scores, [REFERENCE, *models], seed),
        "empty_references": _false_alarms(scores, models),
        "comparisons": [row for other in models[1:] for row in _compare(found, models[0], other, seed)],
    }


def _sets(scores: Sequence[Score], model: str) -> dict[str, dict[str, Any]]:
    rows = [score for score in scores if score.model == model and score.prompt == "automatic"]
    result = {}
    for source in sorted({row.source for row in rows}):
        own = [row for row in rows if row.source == source]
        result[source] = {
            "images": len(own),
            "subjects": len({row.subject for row in own}),
            "empty_references": sum(row.empty_reference for row in own),
            "unit": own[0].unit,
        }
    return result


def _values(scores: Iterable[Score], value: Callable[[Score], float]) -> Values:
    result: Values = {}
    for score in scores:
        values, subjects = result.setdefault(score.source, ([], []))
        values.append(value(score))
        subjects.append(score.subject)
    return dict(sorted(result.items()))


def _estimates(values: Values, seed: int, *, pooled: bool = True) -> list[tuple[str, Estimate]]:
    """For each set, and the mean of the sets where there are several."""
    rows = [(source, estimate(*pair, seed=seed)) for source, pair in values.items()]
    if pooled and len(rows) > 1:
        rows.append((MEAN_OF_SETS, estimate_mean_of_sets(list(values.values()), seed=seed)))
    return rows


def _row(result: Estimate, **keys: Any) -> dict[str, Any]:
    return keys | result._asdict()


def _mean_scores(scores: Sequence[Score], model: str, seed: int) -> list[dict[str, Any]]:
    rows = []
    for prompt in PROMPT_TITLES:
        own = [score for score in scores if score.model == model and score.prompt == prompt]
        for metric in METRICS:
            # Millimetres and the pixels of images of different sizes have no mean.
            estimates = _estimates(_values(own, attrgetter(metric)), seed, pooled=metric != "hd95")
            rows += [
                _row(result, model=model, set=source, prompt=prompt, metric=metric) for source, result in estimates
            ]
    return rows


def _sizes(scores: Sequence[Score], model: str, seed: int) -> list[dict[str, Any]]:
    """Mean Dice of structures that cover about as much of their images, set by set: the mean would mix organs."""
    own: dict[tuple[str, str], list[Score]] = {}
    for score in scores:
        if score.model == model and score.prompt in PROMPT_TITLES:
            size = next(name for name, end in SIZES.items() if score.structure < end)
            own.setdefault((size, score.prompt), []).append(score)
    return [
        _row(result, model=model, set=source, size=size, prompt=prompt)
        for (size, prompt), chosen in own.items()
        for source, result in _estimates(_values(chosen, attrgetter("dice")), seed, pooled=False)
    ]


def _obedience(scores: Sequence[Score], model: str, seed: int) -> list[dict[str, Any]]:
    own: dict[str | None, list[Score]] = {}
    for score in scores:
        if score.model == model:
            prompt = f"{CLICKS}_{score.clicks}" if score.clicks else score.prompt
            own.setdefault(prompt, []).append(score)
    rows = []
    for measure, (prompt, value, compared) in MEASURES.items():
        less = {score.case: score.dice for score in own.get(compared, ())}
        chosen = [
            replace(score, dice=getattr(score, value) - (less[score.case] if compared else 0))
            for score in own.get(prompt, ())
            if compared is None or score.case in less
        ]
        values = _values(chosen, attrgetter("dice"))
        rows += [_row(result, model=model, set=source, measure=measure) for source, result in _estimates(values, seed)]
    return rows


def _curves(scores: Iterable[Score], model: str) -> Curves:
    """IoU after 1 to at most `MOST_CLICKS` clicks, by set, subject and case."""
    curves: Curves = {}
    for score in scores:  # of a case in their order
        if score.model == model and score.prompt == CLICKS:
            curves.setdefault((score.source, score.subject, score.case), []).append(score.iou)
    return curves


def _of_curves(curves: Curves, value: Callable[[list[float]], float]) -> Values:
    result: Values = {}
    for (source, subject, _), curve in curves.items():
        values, subjects = result.setdefault(source, ([], []))
        values.append(value(curve))
        subjects.append(subject)
    return dict(sorted(result.items()))


def _number_of_clicks(goal: float) -> Callable[[list[float]], float]:
    return lambda curve: float(clicks_needed(curve, goal) or MOST_CLICKS)


def _click_rows(scores: Sequence[Score], model: str, seed: int) -> list[dict[str, Any]]:
    curves = _curves(scores, model)
    rows: dict[str, dict[str, Any]] = {}
    for name, goal in GOALS.items():
        for source, result in _estimates(_of_curves(curves, _number_of_clicks(goal)), seed):
            row = rows.setdefault(source, {"model": model, "set": source, "images": result.images})
            row[f"noc{name}"] = [result.mean, result.low, result.high]
            own = [curve for (owner, *_), curve in curves.items() if source in (owner, MEAN_OF_SETS)]
            row[f"failures{name}"] = sum(clicks_needed(curve, goal) is None for curve in own)
    for count in range(SHOWN_CLICKS):
        for source, result in _estimates(_of_curves(curves, lambda curve, at=count: curve[at]), seed):  # type: ignore[misc]
            rows[source].setdefault("iou", []).append([result.mean, result.low, result.high])
    return list(rows.values())


def _calibration(scores: Sequence[Score], model: str) -> dict[str, Any] | None:
    own = [score for score in scores if score.model == model and math.isfinite(score.expected_iou)]
    return calibration([s.expected_iou for s in own], [s.iou for s in own]) if own else None


def _circumference_rows(scores: Sequence[Score], models: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """Error in mm of head circumferences: bias (mean error) and mean absolute error; empty masks counted apart."""
    rows = []
    for model in models:
        for prompt in ("",) if model == REFERENCE else PROMPT_TITLES:
            own = [
                score
                for score in scores
                if score.model == model and score.prompt == prompt and math.isfinite(score.official_circumference)
            ]
            measured = [score for score in own if math.isfinite(score.head_circumference)]
            if not measured:
                continue
            errors = np.array([score.head_circumference - score.official_circumference for score in measured])
            subjects = [score.subject for score in measured]
            bias, absolute = estimate(errors, subjects, seed=seed), estimate(abs(errors), subjects, seed=seed)
            rows.append(
                {
                    "model": model,
                    "prompt": prompt,
                    "images": len(measured),
                    "no_head_found": len(own) - len(measured),
                    "bias": list(bias[:3]),
                    "absolute": list(absolute[:3]),
                    "limits": [
                        float(errors.mean() + side * 1.96 * errors.std(ddof=int(len(errors) > 1))) for side in (-1, 1)
                    ],
                }
            )
    return rows


def _false_alarms(scores: Sequence[Score], models: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for model in models:
        own = [score for score in scores if score.model == model and score.empty_reference]
        if own:
            alarms = sum(score.foreground > 0 for score in own)
            rows.append({"model": model, "images": len(own), "with_foreground": alarms})
    return rows


def _compare(scores: Sequence[Score], first: str, second: str, seed: int) -> list[dict[str, Any]]:
    """First minus second on the same images: Dice under each prompt, and numbers of clicks."""
    pairs: dict[tuple[str, str], Values] = {}
    for prompt in PROMPT_TITLES:
        one, two = (
            _values((s for s in scores if s.model == model and s.prompt == prompt), attrgetter("dice"))
            for model in (first, second)
        )
        pairs[prompt, "dice"] = _differences(one, two)
    for name, goal in GOALS.items():
        one, two = (_of_curves(_curves(scores, model), _number_of_clicks(goal)) for model in (first, second))
        pairs[CLICKS, f"noc{name}"] = _differences(one, two)
    rows = []
    for (prompt, metric), values in pairs.items():
        for source, result in _estimates(values, seed):
            keys = {"other": second, "set": source, "prompt": prompt, "metric": metric}
            rows.append(_row(result, **keys) | {"p": _p_value(values, source)})
    for row, adjusted in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = adjusted
    return rows


def _differences(one: Values, two: Values) -> Values:
    return {
        source: ([a - b for a, b in zip(values, two[source][0], strict=True)], subjects)
        for source, (values, subjects) in one.items()
    }


def _p_value(values: Values, source: str) -> float:
    chosen = [(name, pair) for name, pair in values.items() if source in (name, MEAN_OF_SETS)]
    differences = [difference for _, (own, _) in chosen for difference in own]
    subjects = [f"{name}/{subject}" for name, (_, own) in chosen for subject in own]
    return signed_rank_test(differences, subjects)
