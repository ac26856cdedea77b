# SPDX-License-Identifier: Apache-2.0
"""Parts of an HTML page: tables, notes, plots and photographs inside the page, numbers with their intervals."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

__all__ = [
    "render_estimate",
    "render_folded",
    "render_interval",
    "render_note",
    "render_number",
    "render_p",
    "render_photo",
    "render_plot",
    "render_table",
]


class _Html(str):
    """Text that is HTML already."""


def render_table(header: Sequence[str], rows: Iterable[Sequence[object]], texts: int = 1) -> str:
    """A table whose first `texts` columns are aligned to the left."""

    def line(cells: Sequence[object], tag: str) -> str:
        kinds = [' class="text"' if number < texts else "" for number in range(len(cells))]
        return "".join(f"<{tag}{kind}>{_cell(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{line(header, "th")}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(cell: object) -> str:
    return cell if isinstance(cell, _Html) else html.escape(str(cell))


def render_note(text: str) -> str:
    """A paragraph in small print."""
    return f'<p class="note">{html.escape(text)}</p>'


def render_folded(title: str, body: str) -> str:
    """HTML that is shown when its title is clicked."""
    return f"<details><summary>{html.escape(title)}</summary>{body}</details>"


def render_plot(svg: str, alternative: str) -> str:
    """A plot, with the text for readers who do not see it."""
    return _embed("image/svg+xml", svg.encode(), alternative)


def render_photo(path: Path, alternative: str) -> str:
    """A JPEG file, with the text for readers who do not see it."""
    return _embed("image/jpeg", path.read_bytes(), alternative)


def _embed(kind: str, content: bytes, alternative: str) -> str:
    data = base64.b64encode(content).decode()
    return f'<img alt="{html.escape(alternative)}" src="data:{kind};base64,{data}">'


def render_estimate(row: dict[str, Any], *, signed: bool = False) -> str:
    """`mean`, `low` and `high` of a row; distances (metric `hd95`) with two digits, all else with three."""
    distance = row.get("metric") == "hd95"
    return render_interval([row["mean"], row["low"], row["high"]], 2 if distance else 3, signed=signed)


def render_interval(values: Sequence[float], digits: int, *, signed: bool = False) -> str:
    """Mean and the two ends of its interval, which are NaN when there is one subject."""
    sign = "+" if signed else ""
    mean, low, high = (f"{value:{sign}.{digits}f}" for value in values)
    known = not math.isnan(values[1])
    return _Html(f"{mean} <small>[{low}, {high}]</small>" if known else f"{mean} <small>[one subject]</small>")


def render_number(value: float) -> str:
    """Three digits, or a dash for NaN."""
    return "-" if math.isnan(value) else f"{value:.3f}"


def render_p(value: float) -> str:
    """A p-value; none is smaller than `< 0.001`."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
