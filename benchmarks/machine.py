# SPDX-License-Identifier: Apache-2.0
"""The machine that a benchmark runs on: what it is, what a process took of it, and the file of its figures."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from docs_tables import RESULTS, ROOT, render

PACKAGES = ("torch", "monai", "onnxruntime", "openvino", "monailabel")
Table = dict[str, list]


def peak_mib() -> float:
    """Peak memory of this process in MiB, on Linux.

    Not `getrusage`: its peak survives exec, so a child would report that of the process which started it.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**10


def describe() -> str:
    """Processor, cores, and versions of what computes."""
    names = re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    cores = f"{len(os.sched_getaffinity(0))} cores of {names[0] if names else platform.machine()}"
    return f"{cores}; Python {platform.python_version()}, {', '.join(found)}"


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """A table of `write_result`; numbers are written as the benchmark rounds them."""
    return {"columns": [*columns], "rows": [[str(cell) for cell in row] for row in rows]}


def write_result(name: str, **tables: Table) -> None:
    """Print tables in markdown, and write them to `results/NAME.json` with machine, date, commit and command."""
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    content = {
        "command": f"python benchmarks/{Path(sys.argv[0]).name} {shlex.join(sys.argv[1:])}",
        "date": date.today().isoformat(),
        "machine": describe(),
        "commit": commit.stdout.strip(),
        "tables": tables,
    }
    text = json.dumps(content, indent=2)
    # A row of a table is a line.
    text = re.sub(r'\[\s+("[^\[\]{}]*")\s+\]', lambda row: "[" + re.sub(r"\n\s+", " ", row[1]) + "]", text)
    (RESULTS / f"{name}.json").write_text(f"{text}\n", encoding="utf-8")
    print("\n".join(render(one) for one in tables.values()))
