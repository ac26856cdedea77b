# SPDX-License-Identifier: Apache-2.0
"""Writes the tables of the documentation from figures and configs: python benchmarks/docs_tables.py.

A page has `<!-- table study headline -->` before a table and `<!-- end -->` after it. The table is `headline` among the
`tables` of `results/study.json`: `{"columns": [...], "rows": [[...], ...]}`, all of it text. Below it stand the
command, the date and the machine. `<!-- knobs train -->` is before the table of the knobs in the bundle's train.yaml,
with the comments there.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
CONFIGS = ROOT / "bundles" / "kdsam_deepgrow_2d" / "configs"
MARKED = re.compile(r"(<!-- (?:table (\w+) (\w+)|knobs (\w+)) -->\n).*?(<!-- end -->)", re.DOTALL)
# A heading, a comment of the next key, a key with its value and comment.
KNOB = re.compile(r"# --- (?P<heading>.+)|# (?P<above>.+)|(?P<key>\w+): (?P<value>\S.*?)(?: +# (?P<comment>.+))?")


def read_knobs(file: Path) -> dict[str, list[tuple[str, str, str]]]:
    """Name, value and comment of each knob of a config, by the heading above it."""
    knobs: dict[str, list[tuple[str, str, str]]] = {}
    heading, above = "", ""
    text, _, _ = file.read_text(encoding="utf-8").partition("# --- parts")
    for line in text.splitlines():
        found = KNOB.fullmatch(line)
        part = found.groupdict("") if found else dict.fromkeys(KNOB.groupindex, "")
        heading = part["heading"] or heading
        comment = f"{above} {part['comment']}".strip() if part["key"] else ""
        if comment:
            knobs.setdefault(heading, []).append((part["key"], part["value"], comment))
        above = f"{above} {part['above']}".strip() if part["above"] else ""
    return knobs


def knob_table(file: Path) -> dict[str, list]:
    """Table of the knobs of a config."""
    rows = []
    for heading, knobs in read_knobs(file).items():
        rows += [[f"**{heading}**", "", ""]] if heading else []
        rows += [[f"`{key}`", f"`{value.strip(chr(34))}`", comment] for key, value, comment in knobs]
    return {"columns": ["knob", "default", "meaning"], "rows": rows}


def render(table: dict[str, list]) -> str:
    """Markdown of a table."""
    lines = [table["columns"], ["---"] * len(table["columns"]), *table["rows"]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def fill(page: str) -> str:
    """A page with its tables."""

    def replace(match: re.Match[str]) -> str:
        if match[4]:
            return f"{match[1]}\n{render(knob_table(CONFIGS / f'{match[4]}.yaml'))}\n{match[5]}"
        result = json.loads((RESULTS / f"{match[2]}.json").read_text(encoding="utf-8"))
        origin = f"*`{result['command']}`, {result['date']}, {result['machine']}*"
        return f"{match[1]}\n{render(result['tables'][match[3]])}\n{origin}\n\n{match[5]}"

    return MARKED.sub(replace, page)


def main() -> None:
    for path in sorted((ROOT / "docs").rglob("*.md")):
        page = path.read_text(encoding="utf-8")
        if fill(page) != page:
            path.write_text(fill(page), encoding="utf-8")
            print(path)


if __name__ == "__main__":
    main()
