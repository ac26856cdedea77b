# SPDX-License-Identifier: Apache-2.0
"""Dice of every image under every prompt, to a table and to the log."""

from __future__ import annotations

import csv
import io
import logging
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events

from monai_kdsam.files import write_texts

__all__ = ["CaseReport", "read_mean_dice"]

logger = logging.getLogger(__name__)


class CaseReport:
    """Writes `cases.csv` (a row for each image) and `summary.csv` (a row for each source), and logs the latter.

    MONAI's MetricsSaver writes the first with unnamed columns and knows no sources. Images whose reference is empty
    have no Dice (it would be 0 or 1 by definition); they are counted apart.

    Args:
        folder: where the tables go.
        prompts: names of the channels of the metric.
        metric: name of a MeanDice attached to the same evaluator.
    """

    def __init__(self, folder: str | Path, prompts: Sequence[str], *, metric: str = "val_mean_dice") -> None:
        self.folder = Path(folder)
        self.prompts = tuple(prompts)
        self.metric = metric
        self._cases: list[tuple[str, str]] = []

    def attach(self, engine: Engine) -> None:
        """Collect names in each iteration, write at the end."""
        engine.add_event_handler(Events.EPOCH_STARTED, lambda _: self._cases.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def _collect(self, engine: Engine) -> None:
        batch: Any = engine.state.batch
        items = batch if isinstance(batch, list) else [batch]
        for item in items:
            names = item["image"].meta["filename_or_obj"]
            sources = item.get("source", "")
            single = isinstance(names, str)
            self._cases.extend([(names, sources)] if single else zip(names, sources, strict=True))

    def __call__(self, engine: Engine) -> None:
        """Write both tables, in the first process."""
        state: Any = engine.state
        # Metrics are gathered from all processes in the order of their ranks, and so are the names.
        gathered: Any = idist.all_gather(self._cases)
        if idist.get_rank() > 0:
            return
        cases = [case for share in gathered for case in share]
        scores = state.metric_details[self.metric].tolist()
        rows = [(name, source, *row) for (name, source), row in zip(cases, scores, strict=True)]
        table = [("image", "source", *self.prompts), *rows]

        groups: dict[str, list[list[float]]] = defaultdict(list)
        for (_, source), row in zip(cases, scores, strict=True):
            groups[source].append(row)
        summary = [(source, *_summarize(group)) for source, group in sorted(groups.items())]
        if len(groups) > 1:
            images, empty, *columns = zip(*(row[1:] for row in summary), strict=True)
            summary.append(("mean of sources", sum(images), sum(empty), *map(_mean, columns)))
        header = ("source", "images", "empty references", *self.prompts)
        tables = {"cases.csv": table, "summary.csv": [header, *summary]}
        write_texts({self.folder / name: _csv(rows) for name, rows in tables.items()})
        for line in _format([header, *summary]):
            logger.info(line)


def read_mean_dice(folder: str | Path) -> dict[str, float]:
    """Mean Dice by prompt, from the summary that a `CaseReport` wrote to a folder; the mean of several sources."""
    with open(Path(folder) / "summary.csv", newline="", encoding="utf-8") as file:
        *_, last = csv.DictReader(file)
    return {name: float(last[name]) for name in [*last][3:]}


def _csv(rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue()


def _summarize(rows: list[list[float]]) -> list[float]:
    """Number of rows, of rows without a Dice, and each column's mean over the others."""
    empty = sum(all(math.isnan(value) for value in row) for row in rows)
    return [len(rows), empty, *(_mean(column) for column in zip(*rows, strict=True))]


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _format(rows: Sequence[Sequence[object]]) -> list[str]:
    cells = [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[k]) for row in cells) for k in range(len(cells[0]))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
