# SPDX-License-Identifier: Apache-2.0
"""The report's plots, as SVG."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from monai_kdsam.report.corrective_clicks import GOALS
from monai_kdsam.report.prompts import PROMPT_TITLES
from monai_kdsam.report.scoring import Score
from monai_kdsam.report.summary import MEAN_OF_SETS

__all__ = ["plot_calibration", "plot_circumference", "plot_clicks", "plot_dice", "plot_differences"]

# Okabe and Ito's palette, which the color-blind tell apart.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_PANEL = (4.4, 3.2)  # inches


def plot_dice(summary: dict[str, Any], models: Sequence[str]) -> str:
    """Mean Dice of each model under each prompt with its interval, a panel for each set."""
    sets = _sets_of(summary["scores"])
    figure, panels = _panels(len(sets), (_PANEL[0], 3.6))
    for axes, source in zip(panels, sets, strict=True):
        for number, model in enumerate(models):
            rows = {
                row["prompt"]: row
                for row in summary["scores"]
                if (row["model"], row["set"], row["metric"]) == (model, source, "dice")
            }
            at = [place + 0.11 * (number - (len(models) - 1) / 2) for place in range(len(PROMPT_TITLES))]
            _points(axes, at, [rows[prompt] for prompt in PROMPT_TITLES], number, label=model)
        axes.set_yticks(range(len(PROMPT_TITLES)), list(PROMPT_TITLES.values()))
        axes.invert_yaxis()
        axes.set(title=source, xlabel="mean Dice", xlim=(0, 1))
    return _svg(figure, panels)


def plot_clicks(summary: dict[str, Any], models: Sequence[str]) -> str:
    """Mean IoU after each corrective click with its interval, a panel for each set."""
    sets = _sets_of(summary["clicks"])
    figure, panels = _panels(len(sets), _PANEL)
    for axes, source in zip(panels, sets, strict=True):
        for goal in GOALS.values():
            axes.axhline(goal, color="0.75", linewidth=0.8, linestyle="--")
        for number, model in enumerate(models):
            (row,) = (row for row in summary["clicks"] if (row["model"], row["set"]) == (model, source))
            mean, low, high = np.array(row["iou"]).T
            clicks, color = np.arange(1, len(mean) + 1), _COLORS[number % len(_COLORS)]
            axes.plot(clicks, mean, color=color, marker="o", markersize=3, label=model)
            axes.fill_between(clicks, low, high, color=color, alpha=0.15, linewidth=0)
        axes.set(title=source, xlabel="clicks", ylabel="mean IoU", ylim=(0, 1))
    return _svg(figure, panels)


def plot_calibration(calibrations: dict[str, Any], models: Sequence[str]) -> str:
    """Mean real IoU over the predicted one, bin by bin; larger points hold more masks."""
    figure, (axes,) = _panels(1, (4.4, 4.0))
    axes.plot([0, 1], [0, 1], color="0.75", linewidth=0.8, linestyle="--")
    for number, model in enumerate(models):
        if model not in calibrations:
            continue
        predicted, actual, masks = np.array(calibrations[model]["curve"]).T
        color = _COLORS[number % len(_COLORS)]
        axes.plot(predicted, actual, color=color, linewidth=1, label=model)
        axes.scatter(predicted, actual, s=6 + 120 * masks / masks.sum(), color=color)
    axes.set(xlabel="predicted IoU", ylabel="real IoU, mean", xlim=(0, 1.02), ylim=(0, 1.02))
    return _svg(figure, [axes])


def plot_differences(comparisons: Sequence[dict[str, Any]], other: str, first: str) -> str:
    """Paired differences in Dice with their intervals, a panel for each set."""
    rows = [row for row in comparisons if row["other"] == other and row["metric"] == "dice"]
    sets = _sets_of(rows)
    figure, panels = _panels(len(sets), (_PANEL[0], 2.8))
    for axes, source in zip(panels, sets, strict=True):
        own = {row["prompt"]: row for row in rows if row["set"] == source}
        axes.axvline(0, color="0.75", linewidth=0.8, linestyle="--")
        _points(axes, list(range(len(PROMPT_TITLES))), [own[prompt] for prompt in PROMPT_TITLES], 0)
        axes.set_yticks(range(len(PROMPT_TITLES)), list(PROMPT_TITLES.values()))
        axes.invert_yaxis()
        axes.set(title=source, xlabel=f"Dice of {first} - {other}")
        axes.locator_params(axis="x", nbins=5)
    return _svg(figure, panels, legend=False)


def plot_circumference(scores: Sequence[Score], models: Sequence[str], prompt: str) -> str:
    """Bland and Altman's plot: the error of each head circumference over the official value."""
    figure, (axes,) = _panels(1, (6.0, 3.6))
    axes.axhline(0, color="0.75", linewidth=0.8, linestyle="--")
    for number, model in enumerate(models):
        own = [s for s in scores if s.model == model and s.prompt == prompt and math.isfinite(s.head_circumference)]
        official = np.array([score.official_circumference for score in own])
        errors = np.array([score.head_circumference for score in own]) - official
        axes.scatter(official, errors, s=9, alpha=0.7, color=_COLORS[number % len(_COLORS)], label=model)
    axes.set(xlabel="official head circumference, mm", ylabel="error, mm", title=PROMPT_TITLES[prompt])
    return _svg(figure, [axes])


def _sets_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Their mean first, if there is one."""
    return sorted(dict.fromkeys(row["set"] for row in rows), key=lambda source: source != MEAN_OF_SETS)


def _panels(count: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    columns = min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(size[0] * columns + 1.8, size[1] * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes in grid[count:]:
        axes.set_visible(False)
    for axes in grid[:count]:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.93")
        axes.set_axisbelow(True)
    return figure, list(grid[:count])


def _points(
    axes: Axes, at: Sequence[float], rows: Sequence[dict[str, Any]], number: int, label: str | None = None
) -> None:
    mean, low, high = (np.array([row[key] for row in rows], dtype=float) for key in ("mean", "low", "high"))
    # Without an interval, with a single subject, there is a point alone.
    errors = np.nan_to_num([np.maximum(mean - low, 0), np.maximum(high - mean, 0)])
    color = _COLORS[number % len(_COLORS)]
    axes.errorbar(mean, at, xerr=errors, fmt="o", markersize=4, linewidth=1.4, color=color, label=label)


def _svg(figure: Figure, panels: Sequence[Axes], *, legend: bool = True) -> str:
    if legend:
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4), frameon=False)
    text = io.StringIO()
    with rc_context({"svg.hashsalt": "monai_kdsam"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
