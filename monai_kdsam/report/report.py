# SPDX-License-Identifier: Apache-2.0
"""`python -m monai_kdsam report`: models on one split, to a table, a summary and a page."""

from __future__ import annotations

import contextlib
import datetime
import importlib.util
import json
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import monai_kdsam
from monai_kdsam.data.layouts import Item
from monai_kdsam.errors import UserError
from monai_kdsam.files import check_writable, write_texts
from monai_kdsam.report.intervals import few_subjects_note
from monai_kdsam.report.items import SplitName, read_split, with_units
from monai_kdsam.report.models import BundleModel, CommandModel, EllipseModel, ExportModel, Model
from monai_kdsam.report.scoring import Score, Tolerances, cases_csv, score_images
from monai_kdsam.report.sheets import draw_cases, notable_cases
from monai_kdsam.report.summary import summarize
from monai_kdsam.runtime.manifest import MANIFEST

__all__ = ["write_report"]

logger = logging.getLogger(__name__)


def write_report(
    bundle: str,
    data_list: str | Path,
    output: str | Path,
    *,
    sources: Mapping[str, str | Path] | None = None,
    split: SplitName = "test",
    others: Sequence[str] = (),
    teacher: str | None = None,
    commands: Sequence[str] = (),
    tolerance: float = 1.0,
    seed: int = 0,
    go_on: bool = True,
    device: str | None = None,
    progress: bool = True,
) -> tuple[Path, dict[str, Any]]:
    """Evaluate a bundle, and compare it with the filled ellipse and other models.

    Each model may be given as NAME=MODEL; without, it is named by what was given.

    Args:
        bundle: folder of the bundle, with `models/model.pt`.
        data_list: a MONAI datalist, or the `split.json` that training wrote.
        output: folder for `cases.csv`, `summary.json`, `report.html` and the pictures; files of a report there before
            are replaced.
        sources: for a `split.json`, the folder of each of its sets.
        split: which list to evaluate on.
        others: other bundles, folders of exports, or checkpoints of the first one's network.
        teacher: KIND=FILE, a checkpoint of SAM's layout; vit_b, for example, is a kind.
        commands: of other models, see `CommandModel`.
        tolerance: of the surface Dice, in mm, for sets whose spacing is known.
        seed: of prompts and intervals.
        go_on: see `score_images`.
        device: of bundles, as in "cpu" or "cuda:1"; by default the first GPU, or the CPU. Exports run on the CPU.
        progress: show a bar.

    Returns:
        The page's path, and what `summary.json` holds.

    Raises:
        ValueError: on two models of one name, masks of another size, or a setting that does not fit.
        FileNotFoundError: when bundle, weights, data list or images are missing.
        OSError: when a command cannot be started, or the output cannot be written.
        RuntimeError: when a command fails.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("`report` draws its plots with matplotlib: pip install 'monai_kdsam[report]'")
    if not tolerance > 0:
        raise UserError(f"Expected `tolerance` in mm above 0, got {tolerance}.")
    items, units = with_units(read_split(data_list, split, sources))
    folder, tolerances = Path(output), Tolerances(millimetres=tolerance)
    check_writable(folder, "output")
    with _models(bundle, others, teacher, commands, device) as models:
        names = [model.name for model in models]
        scores = score_images(models, items, units, seed=seed, tolerances=tolerances, go_on=go_on, progress=progress)
        if all(score.empty_reference for score in scores):
            raise UserError(
                f"Expected foreground in a mask of the list {split!r} of {data_list}, got empty masks only."
            )
        summary: dict[str, Any] = {
            "version": monai_kdsam.__version__,
            "models": names,
            "weights": {model.name: about for model in models if (about := getattr(model, "about", ""))},
            "split": split,
            "seed": seed,
            "go_on": go_on,
            "tolerance_mm": tolerance,
            "tolerance_diagonal_share": tolerances.diagonal_share,
            **summarize(scores, names, seed=seed),
        }
        pictures = _draw(folder, scores, items, models, seed=seed)
    if note := few_subjects_note({name: row["subjects"] for name, row in summary["sets"].items()}):
        logger.warning(note)
    return _write(folder, summary, scores, pictures), summary


def _draw(
    folder: Path, scores: Sequence[Score], items: Sequence[Item], models: Sequence[Model], *, seed: int
) -> dict[str, Path]:
    """The sheet of the first model's worst and best cases of each set that has some."""
    pictures = {}
    for source in dict.fromkeys(score.source for score in scores):
        if cases := notable_cases(scores, models[0].name, source):
            sheet = folder / re.sub(r"[^\w.-]", "_", f"cases_{source}.jpg")
            pictures[source] = draw_cases(sheet, cases, items, models, seed=seed)
    return pictures


def _write(folder: Path, summary: Mapping[str, Any], scores: Sequence[Score], pictures: Mapping[str, Path]) -> Path:
    """Table, summary and page, all of them or none; returns the page."""
    from monai_kdsam.report.page import render_page  # needs matplotlib

    title, date = f"Segmentation report: {summary['models'][0]}", datetime.date.today().isoformat()
    page = folder / "report.html"
    texts = {
        folder / "cases.csv": cases_csv(scores),
        folder / "summary.json": json.dumps(_plain(summary), indent=1) + "\n",
        page: render_page(summary, scores, pictures, title=title, date=date),
    }
    write_texts(texts)
    return page


@contextlib.contextmanager
def _models(
    bundle: str, others: Sequence[str], teacher: str | None, commands: Sequence[str], device: str | None
) -> Iterator[list[Model]]:
    """All models, the reported one first; commands end with the block."""
    name, folder = _named(bundle)
    own = {"device": device} if device else {}
    with contextlib.ExitStack() as stack:
        models: list[Model] = [BundleModel(name, folder, **own)]
        for spec in others:
            other, path = _named(spec)
            if (Path(path) / MANIFEST).is_file():
                models.append(ExportModel(other, path))
            elif Path(path).is_dir():
                models.append(BundleModel(other, path, **own))
            else:
                models.append(BundleModel(other, folder, checkpoint=path, **own))
        if teacher is not None:
            models.append(_teacher(teacher, folder, **own))
        for spec in commands:
            model = CommandModel(*_named(spec))
            stack.callback(model.close)
            models.append(model)
        models.append(EllipseModel())
        names = [model.name for model in models]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"Two models are named {name!r}. Name one, as in `--other earlier={name}`.")
        yield models


def _teacher(spec: str, folder: str, **own: str) -> BundleModel:
    kind, path = _named(spec)
    if kind == path:
        raise UserError(
            f"Expected `teacher` as KIND=FILE, for example vit_b=models/sam_vit_b_01ec64.pth, got {spec!r}."
        )
    network = {"_target_": "monai_kdsam.networks.build_teacher", "kind": kind, "image_size": "@image_size"}
    return BundleModel(f"teacher {kind}", folder, checkpoint=path, network_def=network, **own)


def _named(spec: str) -> tuple[str, str]:
    """Split NAME=WHAT; what has no name is its own.

    >>> _named("earlier=models/distilled.pt"), _named("python model.py --size=64")[0]
    (('earlier', 'models/distilled.pt'), 'python model.py --size=64')
    """
    match = re.fullmatch(r"([\w.-]+)=(.+)", spec)
    return (match[1], match[2]) if match else (spec, spec)


def _plain(value: Any) -> Any:
    """JSON has no nan."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
