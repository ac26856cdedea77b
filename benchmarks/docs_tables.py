# SPDX-License-Identifier: Apache-2.0
"""Writes the tables of the documentation from the files in `benchmarks/results`: python benchmarks/docs_tables.py.

A page has `<!-- table study headline -->` before a table and `<!-- end -->` after it. The table is `headline` among the
`tables` of `results/study.json`: `{"columns": [...], "rows": [[...], ...]}`, all of it text.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
MARKED = re.compile(r"(<!-- table (\w+) (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def render(table: dict[str, list]) -> str:
    """Markdown of a table."""
    lines = [table["columns"], ["---"] * len(table["columns"]), *table["rows"]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def fill(page: str) -> str:
    """A page with the tables of the results."""

    def replace(match: re.Match[str]) -> str:
        result = json.loads((RESULTS / f"{match[2]}.json").read_text(encoding="utf-8"))
        return f"{match[1]}\n{render(result['tables'][match[3]])}\n{match[4]}"

    return MARKED.sub(replace, page)


def main() -> None:
    for path in sorted((ROOT / "docs").rglob("*.md")):
        page = path.read_text(encoding="utf-8")
        if fill(page) != page:
            path.write_text(fill(page), encoding="utf-8")
            print(path)


if __name__ == "__main__":
    main()
