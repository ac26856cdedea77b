# SPDX-License-Identifier: Apache-2.0
"""What a process takes until it answers: with exported files, with PyTorch, and of that what imports take.

    python -m monai_kdsam export --bundle bundles/kdsam_deepgrow_2d --output EXPORT
    python benchmarks/startup.py EXPORT [--rounds 5]

Each row is a process of its own, the median of several in turn; files are read once before, so that the disk does not
count. The second table sums `python -X importtime` by package, for the command `segment`: the time is that of a
package's own modules, whoever imports them.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from challenge import LAUNCH
from machine import table, write_result

from monai_kdsam.data.phantoms import make_phantom

IMPORTED = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\w+)")
SHOWN = 8


def commands(export: str, folder: Path) -> dict[str, list[str]]:
    """Arguments of Python."""
    from PIL import Image

    image, mask = make_phantom("polyp", size=512, seed=0)
    rows, columns = np.nonzero(mask)
    box = [int(edge) for edge in (columns.min(), rows.min(), columns.max(), rows.max())]
    Image.fromarray(image).save(folder / "picture.png")
    np.savez_compressed(folder / "case.npz", imgs=image, boxes=[box])
    answer = (
        "from monai_kdsam.runtime import Predictor; "
        f"p = Predictor({export!r}); p.set_image({str(folder / 'picture.png')!r}); p.predict(box={box})"
    )
    words = [str(word) for word in box]
    segment = [str(folder / "picture.png"), "--out", str(folder / "out"), "--overwrite", "--box", *words]
    own = ["-m", "monai_kdsam"]
    return {
        "import numpy": ["-c", "import numpy"],
        "import monai_kdsam.runtime": ["-c", "import monai_kdsam.runtime"],
        "monai_kdsam.runtime, from nothing to a mask": ["-c", answer],
        "predict-npz, a picture": [
            *own,
            "predict-npz",
            str(folder / "case.npz"),
            str(folder / "out"),
            "--model",
            export,
        ],
        "import torch": ["-c", "import torch"],
        "import monai": ["-c", "import monai"],
        "import monai_kdsam.segment": ["-c", "import monai_kdsam.segment"],
        "segment, a picture": [*own, "segment", *segment],
    }


def start(arguments: list[str]) -> list[float]:
    """Seconds, processor seconds, MiB."""
    launched = [sys.executable, "-S", "-c", LAUNCH.replace("resource.setrlimit", "(lambda *_: 0)"), sys.executable]
    done = subprocess.run([*launched, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def imports(arguments: list[str]) -> Counter[str]:
    """Seconds by package."""
    done = subprocess.run([sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, check=True)
    found: Counter[str] = Counter()
    for microseconds, package in IMPORTED.findall(done.stderr):
        found[package] += int(microseconds) / 1e6
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("export", help="folder that `export` wrote")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        asked = commands(arguments.export, Path(name))
        taken: dict[str, list[list[float]]] = {what: [] for what in asked}
        for number in range(arguments.rounds + 1):
            for what, words in asked.items():
                figures = start(words)
                taken[what] += [figures] if number else []
        by_package = imports(asked["segment, a picture"])
    rows = []
    for what, figures in taken.items():
        seconds, processor, mebibytes = np.median(figures, axis=0)
        rows.append([what, f"{seconds:.2f}", f"{processor:.2f}", f"{mebibytes:.0f}"])
    total = sum(by_package.values())
    shares = [[name, f"{time:.2f}", f"{time / total:.0%}"] for name, time in by_package.most_common(SHOWN)]
    processes = table(["process", "seconds", "processor seconds", "MiB"], rows)
    write_result("startup", processes=processes, imports=table(["package", "seconds", "of all imports"], shares))


if __name__ == "__main__":
    main()
