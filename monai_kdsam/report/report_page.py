# SPDX-License-Identifier: Apache-2.0
"""The report as one HTML page that needs no other file."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai_kdsam.report.calibration import POOR_IOU
from monai_kdsam.report.corrective_clicks import MOST_CLICKS
from monai_kdsam.report.html_parts import (
    render_estimate,
    render_folded,
    render_interval,
    render_note,
    render_number,
    render_p,
    render_photo,
    render_plot,
    render_table,
)
from monai_kdsam.report.models import EllipseModel
from monai_kdsam.report.plots import (
    plot_calibration,
    plot_circumference,
    plot_clicks,
    plot_dice,
    plot_differences,
)
from monai_kdsam.report.prompts import PROMPT_TITLES
from monai_kdsam.report.scoring import CLICKS, REFERENCE, Score
from monai_kdsam.report.statistics import few_subjects_note
from monai_kdsam.report.summary import GOALS, MEAN_OF_SETS, METRICS

__all__ = ["render_page"]

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2430; background: #fff; max-width: 1180px; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.2rem; margin-top: 2.4rem; }
p { max-width: 75ch; } .note { color: #556; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .8rem 0; font-size: 13px; }
th, td { padding: .22rem .7rem; text-align: right; border-bottom: 1px solid #e3e6ea; white-space: nowrap; }
th { border-bottom: 2px solid #9aa3ad; } td.text, th.text { text-align: left; }
small { color: #667; } .scroll { overflow-x: auto; } img { max-width: 100%; }
summary { cursor: pointer; margin: .6rem 0; } nav a { margin-right: 1rem; }
"""
GLANCE = ("box", "box_20pct", "center_click", "automatic")
_METRIC_TITLES = {"dice": "Dice", "iou": "IoU", "surface_dice": "surface Dice", "hd95": "95 % Hausdorff distance"}


def render_page(
    summary: dict[str, Any], scores: Sequence[Score], pictures: dict[str, Path], *, title: str, date: str
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
    models = summary["models"]
    sections = [
        ("At a glance", _glance(summary)),
        ("Sets", _sets(summary)),
        ("Dice under every prompt", render_plot(plot_dice(summary, models), "Dice by prompt")),
        ("All metrics", _metrics(summary)),
        ("Corrective clicks", _clicks(summary)),
        (f"{models[0]} against the others", _comparisons(summary)),
        ("Does the model know when it is wrong?", _calibration(summary)),
        ("Head circumference", _circumference(summary, scores)),
        ("Worst and best cases", _pictures(pictures, models[0])),
    ]
    shown = [(name, body) for name, body in sections if body]
    links = "".join(f'<a href="#s{number}">{html.escape(name)}</a>' for number, (name, _) in enumerate(shown))
    body = "".join(
        f'<section><h2 id="s{number}">{html.escape(name)}</h2>{text}</section>'
        for number, (name, text) in enumerate(shown)
    )
    intro = html.escape(
        f"{', '.join(models)} on the {summary['split']} split. {date}, monai_kdsam {summary['version']}, "
        f"seed {summary['seed']}. Brackets are 95 % bootstrap intervals over subjects."
    )
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1><p>{intro}</p><nav>{links}</nav>"
        f"{body}</body></html>\n"
    )


def _glance(summary: dict[str, Any]) -> str:
    """One row for each model, of the mean over the sets or the only set."""
    shown = list(dict.fromkeys(row["set"] for row in summary["scores"]))
    source = MEAN_OF_SETS if MEAN_OF_SETS in shown else shown[0]
    dice = {(r["model"], r["prompt"]): r for r in summary["scores"] if (r["set"], r["metric"]) == (source, "dice")}
    clicks = {row["model"]: row for row in summary["clicks"] if row["set"] == source}
    rows = [
        (
            model,
            *(render_estimate(dice[model, prompt]) for prompt in GLANCE),
            render_interval(clicks[model]["noc85"], 2),
        )
        for model in summary["models"]
    ]
    header = ["mean Dice, " + source, *(PROMPT_TITLES[prompt] for prompt in GLANCE), "NoC@85"]
    return render_table(header, rows)


def _sets(summary: dict[str, Any]) -> str:
    rows = [
        (name, row["images"], row["subjects"], row["empty_references"], row["unit"])
        for name, row in summary["sets"].items()
    ]
    text = render_table(["set", "images", "subjects", "empty references", "unit of distances"], rows)
    if note := few_subjects_note({name: row["subjects"] for name, row in summary["sets"].items()}):
        text += render_note(note)
    alarms = [(row["model"], row["images"], row["with_foreground"]) for row in summary["empty_references"]]
    if alarms:
        text += render_note(
            "Images with an empty reference have no scores; without a prompt, a model should mark nothing there."
        )
        text += render_table(["model", "images with nothing to find", "marked something"], alarms)
    return text


def _metrics(summary: dict[str, Any]) -> str:
    parts = [
        render_note(
            f"Surface Dice within {summary['tolerance_mm']:g} mm, in sets in pixels within "
            f"{summary['tolerance_diagonal_share']:.0%} of the image's diagonal, which is also the distance of an "
            "empty mask."
        )
    ]
    for source in dict.fromkeys(row["set"] for row in summary["scores"]):
        own = [row for row in summary["scores"] if row["set"] == source]
        metrics = [metric for metric in METRICS if any(row["metric"] == metric for row in own)]
        cells = {(row["prompt"], row["model"], row["metric"]): row for row in own}
        rows = [
            (title, model, *(render_estimate(cells[prompt, model, metric]) for metric in metrics))
            for prompt, title in PROMPT_TITLES.items()
            for model in summary["models"]
        ]
        unit = summary["sets"].get(source, {}).get("unit", "")
        titles = [
            f"{_METRIC_TITLES[metric]}, {unit}" if metric == "hd95" else _METRIC_TITLES[metric] for metric in metrics
        ]
        parts.append(render_folded(source, render_table(["prompt", "model", *titles], rows, 2)))
    return "".join(parts)


def _clicks(summary: dict[str, Any]) -> str:
    rows = []
    for row in sorted(summary["clicks"], key=lambda row: row["set"]):
        cells = [cell for name in GOALS for cell in (render_interval(row[f"noc{name}"], 2), row[f"failures{name}"])]
        rows.append((row["set"], row["model"], row["images"], *cells))
    header = ["set", "model", "images", *(cell for name in GOALS for cell in (f"NoC@{name}", f"failures@{name}"))]
    note = render_note(
        "Each click goes to the deepest point of the worst error. NoC@85: mean number of clicks to an IoU of 0.85; "
        f"an image that fails to reach it in {MOST_CLICKS} counts as {MOST_CLICKS}."
    )
    plot = plot_clicks(summary, summary["models"])
    return note + render_plot(plot, "IoU by clicks") + render_table(header, rows, 2)


def _comparisons(summary: dict[str, Any]) -> str:
    first, *others = summary["models"]
    parts = [
        render_note(
            "Differences on the same images, first minus second: more Dice is better, more clicks are worse. "
            "p of Wilcoxon's signed-rank test over subjects, then adjusted by Holm for all rows of a table."
        )
    ]
    for other in others:
        own = [row for row in summary["comparisons"] if row["other"] == other]
        plot = render_plot(plot_differences(own, other, first), f"{first} against {other}")
        parts.append(f"<h3>{html.escape(first)} - {html.escape(other)}</h3>{plot}")
        parts.append(render_folded("all differences", _differences(own)))
    return "".join(parts)


def _differences(comparisons: Sequence[dict[str, Any]]) -> str:
    prompts = PROMPT_TITLES | {CLICKS: "corrective clicks"}
    metrics = {"dice": "Dice"} | {f"noc{name}": f"NoC@{name}" for name in GOALS}
    rows = [
        (
            row["set"],
            prompts[row["prompt"]],
            metrics[row["metric"]],
            render_estimate(row, signed=True),
            render_p(row["p"]),
            render_p(row["p_holm"]),
        )
        for row in comparisons
    ]
    return render_table(["set", "prompt", "metric", "difference", "p", "p, adjusted"], rows, 3)


def _calibration(summary: dict[str, Any]) -> str:
    found = summary["calibration"]
    if not found:
        return ""
    rows = [
        (
            model,
            row["masks"],
            f"{row['expected_error']:.3f}",
            render_number(row["spearman"]),
            f"{row['poor']:.1%}",
            render_number(row["auroc"]),
        )
        for model, row in found.items()
    ]
    bad = f"IoU < {POOR_IOU:g}"
    header = ["model", "masks", "expected calibration error", "Spearman", bad, f"AUROC for {bad}"]
    note = render_note(
        "The IoU that the model expects of its mask against the real one, over all images and prompts but corrective "
        "clicks. On the dashed line it knows; an AUROC of 0.5 is a coin."
    )
    plot = plot_calibration(found, summary["models"])
    return note + render_plot(plot, "calibration") + render_table(header, rows)


def _circumference(summary: dict[str, Any], scores: Sequence[Score]) -> str:
    found = summary["head_circumference"]
    if not found:
        return ""
    rows = [
        (
            row["model"],
            PROMPT_TITLES.get(row["prompt"], ""),
            row["images"],
            row["no_head_found"],
            render_interval(row["absolute"], 2),
            render_interval(row["bias"], 2, signed=True),
            "{:+.2f} to {:+.2f}".format(*row["limits"]),
        )
        for row in found
    ]
    header = [
        "model",
        "prompt",
        "images",
        "no head found",
        "mean absolute error, mm",
        "bias, mm",
        "limits of agreement, mm",
    ]
    note = render_note(
        "Of an ellipse with the area and the second moments of the mask, against the official values. The row "
        f"{REFERENCE} is what the same fit makes of the reference masks themselves: what no model can be blamed for."
    )
    without_ellipse = [model for model in summary["models"] if model != EllipseModel.name]  # it needs a box
    plots = "".join(
        render_plot(plot_circumference(scores, models, prompt), "head circumference")
        for prompt, models in (("box", summary["models"]), ("automatic", without_ellipse))
    )
    return note + plots + render_table(header, rows, 2)


def _pictures(pictures: dict[str, Path], model: str) -> str:
    note = render_note(
        f"By Dice of {model}. The prompt is drawn as a yellow box or a green click; reference green, masks yellow."
    )
    return note + "".join(
        f"<h3>{html.escape(source)}</h3>{render_photo(path, source)}" for source, path in pictures.items()
    )
