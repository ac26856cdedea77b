# SPDX-License-Identifier: Apache-2.0
"""The whole way on generated pictures: adapt, distill, train, evaluate, infer, through the bundle's own configs."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from monai_kdsam.bundles import copy_bundle
from monai_kdsam.data import prepare_datalist
from monai_kdsam.data.datalist import Datalist
from monai_kdsam.data.phantoms import write_phantoms
from monai_kdsam.files import write_text
from monai_kdsam.handlers.case_report import read_mean_dice
from monai_kdsam.phases import run_phase
from monai_kdsam.report.sheets import save_predicted_sheet

__all__ = ["run_demo"]

# Passes over all training pictures, or over the labeled ones for as many steps.
EPOCHS = {"adapt": 16, "distill": 8, "train": 3, "without_distillation": 6}
# Students see the mask of every sixth training picture only, as where labels are dear and pictures are not.
LABEL_EVERY = 6
# Fewer false friends in the pictures than `write_phantoms` can draw: a few hundred steps must do.
CLUTTER = 0.4
PROMPTS = ("box", "center", "none")
# As small as can be, with SAM's prompts alone.
PLAIN = {"backbone": "resnet18", "prompt_map": False, "fine_features": False}


class _Runner:
    """Runs phases of the demo's bundle with the same overlays."""

    def __init__(self, folder: Path, epochs_factor: float, settings: dict[str, Any]) -> None:
        self.folder = folder
        self.bundle = folder / "kdsam_deepgrow_2d"
        self.factor = epochs_factor
        self.settings = {"logging_file": False} | settings

    def run(self, phase: str, /, *overlays: str, **settings: Any) -> Path:
        """Run a phase."""
        own = self.settings | {"dataset_dir": self.folder / "phantoms"}
        behind = ("offline", "demo") if phase != "inference" else ()
        return run_phase(self.bundle, phase, *overlays, *behind, **own | settings)

    def train(self, phase: str, /, *overlays: str, epochs: int, **settings: Any) -> None:
        """Run a training phase, validating at its end."""
        epochs = max(1, round(epochs * self.factor))
        self.run(phase, *overlays, epochs=epochs, val_interval=epochs, **settings)

    def evaluate(self, name: str, *overlays: str, **settings: Any) -> list[str]:
        """Evaluate on the test split; returns the mean Dice for each prompt as text."""
        folder = self.folder / "reports" / name
        found = read_mean_dice(self.run("evaluate", *overlays, report_dir=folder, val_prompts=PROMPTS, **settings))
        return [f"{found[prompt]:.3f}" for prompt in PROMPTS]


def run_demo(
    folder: str | Path = "kdsam_demo",
    *,
    per_kind: int = 100,
    image_size: int = 96,
    factor: float = 1.0,
    device: str | None = None,
) -> str:
    """Run the demonstration.

    Args:
        folder: of everything that it writes; must not hold a demonstration yet.
        per_kind: number of pictures of each of the two kinds.
        image_size: side of the network's input in pixels.
        factor: scales the number of epochs.
        device: as in "cpu" or "cuda:1"; by default the first GPU, or the CPU.

    Returns:
        The table of results.

    Raises:
        FileExistsError: when the folder holds a demonstration already.
    """
    folder = Path(folder).resolve()
    started = time.monotonic()
    bundle = copy_bundle(folder, settings=PLAIN | {"image_size": image_size})
    write_phantoms(folder / "phantoms", per_kind=per_kind, clutter=CLUTTER)
    runner = _Runner(folder, factor, {"device": device} if device else {})
    rows: list[tuple[str, Sequence[str]]] = []
    listed = {
        "dataset_dir": _write_few_labels(folder, bundle),
        "split_file": folder / "few_labels_split.json",
    }
    datalist = "datasets/datalist"
    with _quiet():
        rows.append(("filled box", runner.evaluate("box", network={"_target_": "monai_kdsam.report.FillBox"})[:1]))
        runner.train("adapt", epochs=EPOCHS["adapt"], learning_rate=5e-4)
        rows.append(("teacher", runner.evaluate("teacher", "evaluate_teacher")))
        runner.train("distill", datalist, epochs=EPOCHS["distill"], learning_rate=2e-3, **listed)
        rows.append(("student, distilled", runner.evaluate("distilled", checkpoint="$@ckpt_dir + '/distilled.pt'")))
        runner.train("train", datalist, epochs=LABEL_EVERY * EPOCHS["train"], learning_rate=1e-3, **listed)
        rows.append(("student, fine-tuned", runner.evaluate("student")))
        phase, epochs = "without_distillation", LABEL_EVERY * EPOCHS["without_distillation"]
        runner.train("train", datalist, phase, epochs=epochs, phase=phase, learning_rate=1e-3, **listed)
        checkpoint = f"$@ckpt_dir + '/{phase}.pt'"
        rows.append(("student, not distilled", runner.evaluate(phase, checkpoint=checkpoint)))
        runner.run("inference", dataset_dir=folder / "phantoms" / "images")
    sheet = _picture_sheet(folder, bundle)
    return _report(rows, folder, bundle, sheet, time.monotonic() - started)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Progress bars instead of log lines, and no warnings of the libraries below."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def _write_few_labels(folder: Path, bundle: Path) -> Path:
    """A MONAI datalist of the same split, in which most training pictures are unlabeled."""
    splits = _split(folder, bundle)
    keys = ("image", "label", "subject")
    lists = {split: [{key: item[key] for key in keys} for item in items] for split, items in splits.items()}
    pictures = lists["training"]
    lists["training"] = pictures[::LABEL_EVERY]
    lists["unlabeled"] = [picture for number, picture in enumerate(pictures) if number % LABEL_EVERY]
    file = folder / "few_labels.json"
    write_text(file, json.dumps(lists, indent=1))
    return file


def _split(folder: Path, bundle: Path) -> Datalist:
    return prepare_datalist({"folder": folder / "phantoms"}, bundle / "output" / "split.json")


def _picture_sheet(folder: Path, bundle: Path) -> Path:
    """A test picture of each kind."""
    test = _split(folder, bundle)["test"]
    kinds = {Path(item["image"]).stem.rsplit("_", 1)[0]: item for item in reversed(test)}
    return save_predicted_sheet(bundle, [item for _, item in sorted(kinds.items())], folder / "pictures.png")


def _report(rows: Sequence[tuple[str, Sequence[str]]], folder: Path, bundle: Path, sheet: Path, seconds: float) -> str:
    lines = [f"{'mean Dice on the test pictures':32}{'box':>8}{'click':>8}{'none':>8}"]
    for name, scores in rows:
        lines.append(f"{name:32}" + "".join(f"{score:>8}" for score in [*scores, "-", "-"][:3]))
    here = os.path.relpath(bundle)
    lines += [
        "",
        f"{seconds:.0f} seconds. The trained bundle is in {here}, the pictures in {os.path.relpath(sheet)}.",
        "",
        "In SAM's place the teacher has seen the masks of all training pictures; the students see one in six.",
        "With your own images in DIR/images, masks of the same names in DIR/masks, and SAM's weights:",
        "  python -m monai_kdsam fit DIR",
    ]
    text = "\n".join(lines)
    write_text(folder / "results.txt", text + "\n")
    return text
