# SPDX-License-Identifier: Apache-2.0
"""What the shipped student does on generated pictures at once, and after it has learned from few labels of them."""

from __future__ import annotations

import contextlib
import csv
import json
import logging
import os
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from monai_kdsam.bundles import copy_bundle, shipped_bundle
from monai_kdsam.data.phantoms import PHANTOM_KINDS, write_phantoms
from monai_kdsam.drawing import draw_contour, draw_prompt, save_picture_sheet
from monai_kdsam.errors import UserError
from monai_kdsam.files import write_text
from monai_kdsam.inferers import BundlePredictor
from monai_kdsam.mask_prompts import box_from_mask, center_click
from monai_kdsam.phases import run_phase
from monai_kdsam.report.obedience import make_mosaic

__all__ = ["run_demo"]

# Pictures of each kind: with a label to learn from, to choose the best weights by, and to test with.
COUNTS = {"training": 14, "validation": 4, "test": 12}
EPOCHS = 30
# Fewer false friends in the pictures than `write_phantoms` can draw: ninety steps must do.
CLUTTER = 0.4
PROMPTS = {"box": "box", "center": "click", "none": "none"}
SETS = {"phantoms": "one structure", "several": "one of several"}  # folders of the test pictures
PARTS = {"image": "images", "label": "masks"}  # and of their parts
GREEN, YELLOW = (0, 255, 0), (255, 255, 0)

Pair = dict[str, str]  # paths of an image and its label
Scores = list[float]


def run_demo(
    folder: str | Path = "kdsam_demo",
    *,
    counts: Mapping[str, int] = COUNTS,
    image_size: int = 256,
    epochs: int = EPOCHS,
    device: str | None = None,
) -> str:
    """Run the demonstration.

    Args:
        folder: of everything that it writes; must not hold a demonstration yet.
        counts: pictures of each of the two kinds by split.
        image_size: side of the network's input in pixels while it learns.
        epochs: passes over the labeled pictures.
        device: as in "cpu" or "cuda:1"; by default the first GPU, or the CPU.

    Returns:
        The table of results.

    Raises:
        FileExistsError: when the folder holds a demonstration already.
        FileNotFoundError: when the shipped student's weights are missing.
    """
    folder, started = Path(folder).resolve(), time.monotonic()
    shipped, own = shipped_bundle(), {"device": device} if device else {}
    bundle = copy_bundle(folder, settings={"image_size": image_size})
    datalist = _write_pictures(folder, counts)
    polyps = datalist["test"][: 2 * counts["test"]][-4:]
    # One picture of each kind, and a mosaic of four that is asked for one tile, then for another.
    shown = [datalist["test"][0], polyps[0], *(_mosaic(folder / "shown" / str(n), polyps, n) for n in (0, 2))]
    settings = {"dataset_dir": folder / "datalist.json", "logging_file": False, "num_workers": 0} | own
    with _quiet():
        sheet = _draw(BundlePredictor(shipped, **own), shown, folder / "shipped.png")
        sys.stdout.write(f"{time.monotonic() - started:.0f} seconds: {os.path.relpath(sheet)} shows what it does.\n")
        sys.stdout.flush()
        rows = _evaluate_all(shipped, folder / "output", **settings)
        training = {"epochs": epochs, "val_interval": epochs, "initial_checkpoint": shipped / "models" / "model.pt"}
        run_phase(bundle, "train", "datasets/datalist", "demo", **settings, **training)
        labels = len(datalist["training"])
        rows[f"student, after {labels} labels"] = _evaluate(bundle, folder / "output" / "fine_tuned", **settings)
        sheet = _draw(BundlePredictor(bundle, **own), shown, folder / "pictures.png")
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


def _write_pictures(folder: Path, counts: Mapping[str, int]) -> dict[str, list[Pair]]:
    """Write the pictures, and a MONAI datalist of them; half of the test pictures are mosaics, with one tile's mask.

    Returns:
        The datalist's lists.
    """
    write_phantoms(folder / "phantoms", per_kind=sum(counts.values()), size=256, clutter=CLUTTER)
    lists: dict[str, list[Pair]] = {}
    first = 0
    for name, count in counts.items():
        files = [f"{kind}_{number:03d}.png" for kind in PHANTOM_KINDS for number in range(first, first + count)]
        lists[name] = [_pair(folder / "phantoms", file) for file in files]
        first += count
    singles = lists["test"]
    lists["test"] = [*singles, *(_mosaic(folder / "several", singles, number) for number in range(len(singles)))]
    write_text(folder / "datalist.json", json.dumps(lists, indent=1))
    return lists


def _pair(folder: Path, file: str) -> Pair:
    return {part: str(folder / name / file) for part, name in PARTS.items()}


def _mosaic(folder: Path, pictures: Sequence[Pair], asked: int) -> Pair:
    """Write a mosaic of pictures of one kind, with the mask of the one that is asked for."""
    kinds = [Path(picture["image"]).name.rpartition("_")[0] for picture in pictures]
    pair = _pair(folder, Path(pictures[asked]["image"]).name)
    for path in pair.values():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    items = [{**picture, "source": kind} for picture, kind in zip(pictures, kinds, strict=True)]
    mosaic = make_mosaic(Path(pair["image"]), items, asked, _mask_of(pictures[asked]))
    if mosaic is None:
        raise UserError(f"Expected at least two test pictures of each kind, got {kinds.count(kinds[asked])}.")
    Image.fromarray(mosaic.reference.astype(np.uint8) * 255).save(pair["label"])
    return pair


def _mask_of(pair: Pair) -> NDArray[np.bool_]:
    return np.asarray(Image.open(pair["label"])) > 0


def _evaluate_all(shipped: Path, output: Path, **settings: Any) -> dict[str, Scores]:
    """What the filled box, the filled ellipse and the shipped student reach."""
    fill = "monai_kdsam.report.FillBox"
    rows = {
        f"filled {shape}": _evaluate(shipped, output / shape, network={"_target_": fill, "shape": shape}, **settings)
        for shape in ("box", "ellipse")
    }
    return rows | {"student, as it comes": _evaluate(shipped, output / "shipped", **settings)}


def _evaluate(bundle: Path, output: Path, **settings: Any) -> Scores:
    """Evaluate on the test pictures.

    Returns:
        Mean Dice of each prompt on each set, in the order of `SETS`.
    """
    given = {"split_file": output / "split.json", "output_dir": output, "val_prompts": [*PROMPTS], "overlays": 0}
    report = run_phase(bundle, "evaluate", "datasets/datalist", **settings, **given)
    dice: dict[tuple[str, str], list[float]] = defaultdict(list)
    with open(report / "cases.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for prompt in PROMPTS:
                dice[Path(row["image"]).parent.parent.name, prompt].append(float(row[prompt]))
    return [float(np.mean(dice[name, prompt])) for name in SETS for prompt in PROMPTS]


def _draw(predictor: BundlePredictor, shown: Sequence[Pair], path: Path) -> Path:
    """A sheet of pictures: the reference in green, each mask in yellow with its prompt."""
    rows, captions = [], []
    for pair in shown:
        image, reference = np.asarray(Image.open(pair["image"])), _mask_of(pair)
        box, click = box_from_mask(reference), center_click(reference)
        row, caption = [draw_contour(image, reference, GREEN)], []
        for name, points, labels, prompt in (
            ("box", box, [2, 3], {"roi": box.ravel()}),
            ("click", click, [1], {"foreground": click}),
            ("no prompt", np.zeros((0, 2)), [], dict[str, Any]()),
        ):
            mask, _, iou, _ = predictor.predict(image, **prompt)
            row.append(draw_prompt(draw_contour(image, mask, YELLOW), points, np.array(labels)))
            dice = 2 * (mask & reference).sum() / (mask.sum() + reference.sum())
            caption.append(f"{name}: Dice {dice:.2f}, estimated IoU {iou:.2f}")
        rows.append(row)
        captions.append("; ".join(caption))
    columns = ("what is asked for", "mask of a box", "mask of a click", "mask without a prompt")
    return save_picture_sheet(path, rows, columns=columns, captions=captions, cell=224)


def _report(rows: Mapping[str, Scores], folder: Path, bundle: Path, sheet: Path, seconds: float) -> str:
    """The table of results, which is written beside the pictures too."""
    lines = [
        f"{'':26}" + "".join(f"{title:>24}" for title in SETS.values()),
        f"{'mean Dice':26}" + "".join(f"{name:>8}" for name in PROMPTS.values()) * len(SETS),
    ]
    for name, scores in rows.items():
        is_baseline = name.startswith("filled")
        cells = ["-" if is_baseline and n % len(PROMPTS) else f"{score:.3f}" for n, score in enumerate(scores)]
        lines.append(f"{name:26}" + "".join(f"{cell:>8}" for cell in cells))
    here = os.path.relpath
    lines += [
        "",
        f"{seconds:.0f} seconds. The student that has learned is in {here(bundle)}, pictures of it in {here(sheet)}.",
        "",
        "With a picture of your own, and with your own masks in DIR/masks of the images in DIR/images:",
        "  python -m monai_kdsam segment PICTURE --box X1 Y1 X2 Y2",
        "  python -m monai_kdsam fit DIR",
    ]
    text = "\n".join(lines)
    write_text(folder / "results.txt", text + "\n")
    return text
