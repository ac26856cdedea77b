# SPDX-License-Identifier: Apache-2.0
"""The report as one HTML page that needs no other file; page.html.j2 is how it looks."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from monai_kdsam.report.corrective_clicks import MOST_CLICKS
from monai_kdsam.report.intervals import few_subjects_note
from monai_kdsam.report.metrics import POOR_IOU
from monai_kdsam.report.models import EllipseModel
from monai_kdsam.report.plots import plot_calibration, plot_circumference, plot_clicks, plot_dice, plot_differences
from monai_kdsam.report.prompts import PROMPT_TITLES
from monai_kdsam.report.scoring import REFERENCE, Score
from monai_kdsam.report.summary import MEAN_OF_SETS, SIZES

__all__ = ["render_page"]

GLANCE = ("box", "box_20pct", "center_click", "automatic")
_METRIC_TITLES = {"dice": "Dice", "iou": "IoU", "surface_dice": "surface Dice", "hd95": "95 % Hausdorff distance"}


def render_page(
    summary: Mapping[str, Any], scores: Sequence[Score], pictures: Mapping[str, Path], *, title: str, date: str
) -> str:
    """The page.

    Args:
        summary: what `summary.json` holds.
        scores: all of them.
        pictures: a sheet of cases by set.
        title: of the page.
        date: of the report.

    Returns:
        HTML; plots are SVG and pictures JPEG, both in the page itself.
    """
    rows = summary["scores"]
    sets = sorted({row["set"]: None for row in rows}, key=lambda name: name != MEAN_OF_SETS)  # the mean first
    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    plots = (plot_calibration, plot_circumference, plot_clicks, plot_dice, plot_differences)
    environment.globals.update({plot.__name__: plot for plot in plots})
    environment.filters["svg"] = lambda plot: _address("image/svg+xml", plot.encode())
    environment.filters["jpeg"] = lambda path: _address("image/jpeg", path.read_bytes())
    return environment.get_template("page.html.j2").render(
        summary=summary,
        title=title,
        date=date,
        sets=sets,
        scores={(row["set"], row["prompt"], row["model"], row["metric"]): row for row in rows},
        clicks={(row["set"], row["model"]): row for row in summary["clicks"]},
        by_size={(row["set"], row["size"], row["model"], row["prompt"]): row for row in summary["sizes"]},
        sizes=SIZES,
        obeyed=_by_set_and_model(summary["obedience"]),
        prompts=PROMPT_TITLES,
        glance={prompt: PROMPT_TITLES[prompt] for prompt in GLANCE},
        metrics={source: _metrics(summary, source) for source in sets},
        all_scores=scores,
        pictures=pictures,
        few_subjects=few_subjects_note({name: row["subjects"] for name, row in summary["sets"].items()}),
        most_clicks=MOST_CLICKS,
        poor_iou=POOR_IOU,
        reference=REFERENCE,
        ellipse=EllipseModel.name,  # it needs a box
        is_nan=math.isnan,
    )


def _metrics(summary: Mapping[str, Any], source: str) -> dict[str, str]:
    """Titles of what is known of a set; distances have no mean over sets."""
    known = {row["metric"] for row in summary["scores"] if row["set"] == source}
    unit = summary["sets"].get(source, {}).get("unit", "")
    titles = _METRIC_TITLES | {"hd95": f"{_METRIC_TITLES['hd95']}, {unit}"}
    return {metric: title for metric, title in titles.items() if metric in known}


def _by_set_and_model(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, str], dict[str, dict[str, Any]]]:
    """Rows by measure, the mean of sets first."""
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (row["set"] != MEAN_OF_SETS, row["set"])):
        found.setdefault((row["set"], row["model"]), {})[row["measure"]] = row
    return found


def _address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
