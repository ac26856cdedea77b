# SPDX-License-Identifier: Apache-2.0
"""The student that ships, set by set: in 8 bits, without its second look at a box, and by the size of the structure.

    python benchmarks/shipped.py LIST.json KVASIR WORK [--most 60]

LIST.json is the datalist that the student was trained with: its first validation images of each set are scored, and its
first training images calibrate 8 bits. KVASIR is the folder of Kvasir-SEG, which the student has not seen. All is the
report's (`python -m monai_kdsam report`), whose page is left in WORK beside the exports.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from machine import table, write_result
from trunks import first_of_each_set

from monai_kdsam.bundles import copy_bundle, shipped_bundle
from monai_kdsam.data import read_dataset
from monai_kdsam.export import export_bundle
from monai_kdsam.report import write_report
from monai_kdsam.report.summary import MEAN_OF_SETS, SIZES

CALIBRATED = 24  # pictures of each set
OTHERS = {"openvino": "in 8 bits, OpenVINO", "onnx": "in 8 bits, ONNX Runtime", "one_look": "without a second look"}
PROMPTS = {
    "box": "exact box",
    "box_20px": "box, up to 2 % too wide",
    "box_20pct": "box, 20 % off",
    "center_click": "one click",
    "automatic": "none",
}


def prepare(source: Path, kvasir: Path, work: Path, most: int) -> Path:
    """The list of what is scored, and pictures to calibrate with; returns the list."""
    content = json.loads(source.read_text(encoding="utf-8"))
    shutil.rmtree(work / "calibration", ignore_errors=True)
    (work / "calibration").mkdir(parents=True)
    for item in first_of_each_set(content["training"], CALIBRATED):
        shutil.copy(source.parent / item["image"], work / "calibration")
    known = [
        item | {key: str((source.parent / item[key]).resolve()) for key in ("image", "label")}
        for item in content["validation"]
    ]
    scored = work / "scored.json"
    chosen = first_of_each_set([*known, *read_dataset("kvasir", kvasir)], most)
    scored.write_text(json.dumps({"test": chosen}), encoding="utf-8")
    return scored


def rows_of_sets(summary: dict[str, Any]) -> list[list[str]]:
    """Dice of the student, and what the others' is more or less, with 95 % intervals."""
    first, *others = summary["models"]
    own = {(row["set"], row["prompt"]): row for row in summary["scores"]
           if row["model"] == first and row["metric"] == "dice"}  # fmt: skip
    less = {(row["other"], row["set"], row["prompt"]): row for row in summary["comparisons"] if row["metric"] == "dice"}
    rows = []
    for name in [*summary["sets"], MEAN_OF_SETS]:
        for prompt, title in PROMPTS.items():
            found = own[name, prompt]
            pairs = [less[other, name, prompt] for other in others if other in OTHERS]
            cells = [f"{-pair['mean']:+.3f} [{-pair['high']:+.3f}, {-pair['low']:+.3f}]" for pair in pairs]
            rows.append([name, title, str(found["images"]), f"{found['mean']:.3f}", *cells])
    return rows


def rows_of_sizes(summary: dict[str, Any]) -> list[list[str]]:
    """Dice of the student by the share of the image that the structure covers."""
    by_size = {(row["set"], row["size"], row["prompt"]): row for row in summary["sizes"]
               if row["model"] == summary["models"][0]}  # fmt: skip
    return [
        [name, size, str(by_size[name, size, "automatic"]["images"]),
         *(f"{by_size[name, size, prompt]['mean']:.3f}" for prompt in PROMPTS)]
        for name in summary["sets"] for size in SIZES if (name, size, "automatic") in by_size
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("list", type=Path)
    parser.add_argument("kvasir", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--most", type=int, default=60, help="images of each set")
    given = parser.parse_args()
    scored = prepare(given.list, given.kvasir, given.work, given.most)
    for form in ("openvino", "onnx"):
        if not (given.work / form).exists():
            calibration = given.work / "calibration"
            export_bundle(shipped_bundle(), form, precision="int8", calibration=calibration, output=given.work / form)
    shutil.rmtree(given.work / "one", ignore_errors=True)
    one_look = copy_bundle(given.work / "one", settings={"close_up": 0})
    others = [f"openvino={given.work / 'openvino'}", f"onnx={given.work / 'onnx'}", f"one_look={one_look}"]
    _, summary = write_report(f"shipped={shipped_bundle()}", scored, given.work / "report", others=others)
    sets = table(["set", "prompt", "images", "Dice", *OTHERS.values()], rows_of_sets(summary))
    sizes = table(["set", "share of the image", "images", *PROMPTS.values()], rows_of_sizes(summary))
    write_result("shipped", sets=sets, sizes=sizes)


if __name__ == "__main__":
    main()
