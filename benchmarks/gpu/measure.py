# SPDX-License-Identifier: Apache-2.0
"""Images a second and peak memory of the bundle's phases on this machine's GPU, through its own engines and loaders.

    python measure.py DATALIST OUT [--mini] [--cases NAME ...]

Called by run.sh. Each case is a process of its own with a limit of time; its line is appended to OUT/speed.jsonl when
it is done, and OUT/gpu_CARD.json, in the form of benchmarks/results, is written anew from all of its lines. Teachers
have random weights, which cost what SAM's do. What counts is from one batch to the next, loading included; `waiting` is
the share of it spent on waiting for images.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import TimeLimit as IgniteTimeLimit

HERE = Path(__file__).resolve()
SECONDS = 20  # of a case's steps, after its start
LIMIT = 110.0  # of a case in all: all pictures are checked before the first step
RESNET = {"backbone": "resnet50", "prompt_map": False, "fine_features": False, "image_size": 1024}
# phase and settings; the first ones matter most, since the time may run out
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "train, lite0, 512 px": ("train", {"image_size": 512, "train_encoder": True, "batch_size": 32}),
    "train, lite0, 256 px": ("train", {"image_size": 256, "train_encoder": True, "batch_size": 64}),
    "embed, vit_b": ("embed", RESNET | {"teacher": "vit_b", "batch_size": 8}),
    "distill, cached, vit_b": ("distill", RESNET | {"teacher": "vit_b", "batch_size": 8, "cached_embeddings": True}),
    "distill, live, vit_b": ("distill", RESNET | {"teacher": "vit_b", "batch_size": 8}),
    "embed, vit_h": ("embed", RESNET | {"teacher": "vit_h", "batch_size": 4}),
    "distill, live, vit_h": ("distill", RESNET | {"teacher": "vit_h", "batch_size": 4}),
    "train, resnet50": ("train", RESNET | {"batch_size": 16}),
    "train, resnet50, encoder learns": ("train", RESNET | {"batch_size": 8, "train_encoder": True}),
    "embed, vit_b, compiled": (
        "embed",
        RESNET | {"teacher": "vit_b", "batch_size": 8, "embed#evaluator#compile": True},
    ),
}


class TimeLimit(IgniteTimeLimit):
    """Ignite's, which MONAI's lists of handlers can attach."""

    def attach(self, engine: Engine) -> None:
        """Look at the clock after each step."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)


class StepTimes:
    """Handler that notes when each batch was asked for, when it came and when its step was done."""

    last: StepTimes | None = None  # the config makes it, `run_case` reads it

    def __init__(self) -> None:
        self.steps: list[tuple[int, float, float]] = []  # images, seconds waited, seconds in all
        StepTimes.last = self

    def attach(self, engine: Engine) -> None:
        """Register with a trainer or evaluator."""
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._begin)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self._loaded)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._done)

    def _begin(self, engine: Engine) -> None:
        self.began = time.perf_counter()

    def _loaded(self, engine: Engine) -> None:
        self.waited = time.perf_counter() - self.began

    def _done(self, engine: Engine) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        batch = engine.state.batch  # MONAI's engines have made a list of images of it where they decollate
        self.steps.append(
            (len(batch if isinstance(batch, list) else batch["image"]), self.waited, time.perf_counter() - self.began)
        )


def run_case(name: str, datalist: Path, folder: Path, mini: bool) -> dict[str, Any]:
    """What one case measured."""
    from measure import StepTimes  # this file as the config imports it

    from monai_kdsam.bundles import bundle_path
    from monai_kdsam.phases import run_phase

    phase, changes = CASES[name]
    where = "embed#evaluator#val_handlers" if phase == "embed" else "train#trainer#train_handlers"
    handlers = "@embed#handlers" if phase == "embed" else "@train#handlers"
    settings = {
        "dataset_dir": datalist,
        "split_file": folder / "split.json",
        "output_dir": folder / changes.get("teacher", "none"),
        "ckpt_dir": folder / "models",
        "initial_checkpoint": None,
        "teacher_checkpoint": folder / f"{changes['teacher']}.pt" if "teacher" in changes else None,
        "num_workers": max(0, len(os.sched_getaffinity(0)) - 2),
        "embedding_variants": 1,
        "epochs": 1000,
        "val_interval": 1000,
        "overwrite": True,
        "progress": False,
        "step_times": {"_target_": "measure.StepTimes"},
        "time_limit": {"_target_": "measure.TimeLimit", "limit_sec": SECONDS},
        where: f"${handlers} + [@step_times, @time_limit]",
        **changes,
    }
    if mini:
        tiny = {"image_size": 64, "batch_size": 2, "num_workers": 0, "epochs": 1, "val_interval": 1}
        settings |= tiny | ({"teacher": "vit_micro", "backbone": "resnet18"} if "teacher" in changes else {})
        settings["embed#evaluator#compile"] = False
    if phase != "embed":
        settings.pop("embed#evaluator#compile", None)
    if phase in ("train",):
        for key in ("teacher_checkpoint", "embedding_variants"):
            settings.pop(key)
    elif not settings["teacher_checkpoint"].exists():
        from monai_kdsam.networks import build_teacher

        network = build_teacher(settings["teacher"], image_size=settings["image_size"])
        torch.save(network.state_dict(), settings["teacher_checkpoint"])
    run_phase(bundle_path(), phase, "datasets/datalist", "offline", **settings)
    assert StepTimes.last is not None
    steps = StepTimes.last.steps
    steps = steps[min(3, len(steps) - 1) :]  # the first ones compile, allocate and wait for workers
    images, waited, seconds = (sum(column) for column in zip(*steps, strict=True))
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    found = {"images_per_s": images / seconds, "waiting": waited / seconds, "steps": len(steps), "peak_gib": peak}
    return {"case": name, "batch_size": settings["batch_size"], **found}


def write_table(out: Path, rows: list[dict[str, Any]]) -> None:
    """The file for benchmarks/results."""
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    columns = ["phase", "batch", "images/s", "waiting for images", "peak GPU memory"]
    cells = [
        [
            row["case"],
            str(row["batch_size"]),
            f"{row['images_per_s']:.1f}" if "images_per_s" in row else row["failed"],
            f"{row['waiting']:.0%}" if "waiting" in row else "-",
            f"{row['peak_gib']:.1f} GiB" if row.get("peak_gib") else "-",
        ]
        for row in rows
    ]
    content = {
        "command": "benchmarks/gpu/run.sh PACK OUT speed",
        "date": date.today().isoformat(),
        "machine": f"{card}, {len(os.sched_getaffinity(0))} CPU cores; torch {torch.__version__}",
        "commit": os.environ.get("KDSAM_COMMIT", ""),
        "tables": {"gpu": {"columns": columns, "rows": cells}},
    }
    name = re.sub(r"[^a-z0-9]+", "_", card.lower()).strip("_")
    (out / f"gpu_{name}.json").write_text(json.dumps(content, indent=2) + "\n")


def main() -> None:
    """Run the cases one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("datalist", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--mini", action="store_true")
    parser.add_argument("--cases", nargs="+", default=[*CASES], choices=[*CASES])
    parser.add_argument("--one", nargs=2, metavar=("CASE", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(run_case(given.one[0], given.datalist, Path(given.one[1]), given.mini)))
        return
    folder = given.out / "speed"
    folder.mkdir(parents=True, exist_ok=True)
    lines = given.out / "speed.jsonl"
    rows = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    for name in given.cases:
        command = [
            sys.executable,
            "-W",
            "ignore",
            str(HERE),
            str(given.datalist),
            str(given.out),
            "--one",
            name,
            str(folder),
        ]
        row = {"case": name, "batch_size": CASES[name][1]["batch_size"], "failed": "over the limit of time"}
        try:
            words, limit = [*command, *["--mini"] * given.mini], LIMIT * (4 if given.mini else 1)
            done = subprocess.run(words, capture_output=True, text=True, timeout=limit, check=False)
            row = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else row | {"failed": "failed"}
            if done.returncode:
                print(done.stderr[-3000:], file=sys.stderr, flush=True)
        except subprocess.TimeoutExpired:
            pass
        rows.append(row)
        with lines.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
        write_table(given.out, rows)
    if any("failed" in row for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
