# SPDX-License-Identifier: Apache-2.0
"""LoRA beside full fine-tuning of a small ViT with few labels: python benchmarks/lora.py DATA OUT [--seeds 0 1]

DATA holds Kvasir-SEG, HC18 and BUSI as `configs/datasets` want them. A `vit_tiny` learns polyps and fetal heads from
its random weights, and is then adapted to breast ultrasound, which it has not seen, through the bundle's `adapt`; each
arm sees equally many images, and is scored after its last step, on the images that no arm sees. OUT keeps what is done.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from machine import table, write_result
from PIL import Image

from monai_kdsam.bundles import bundle_path
from monai_kdsam.data.layouts import read_dataset
from monai_kdsam.handlers.case_report import read_mean_dice
from monai_kdsam.phases import run_phase
from monai_kdsam.report.items import load_reference

SETS = {"kvasir": "Kvasir-SEG", "hc18": "HC18", "busi": "Dataset_BUSI_with_GT"}
SIZE, BATCH = 96, 8
KNOWN, FIRST_PASSES = 100, 2400  # images of each known set, and how many the first training sees
LABELS, PASSES, SCORED = (10, 50), 480, 60
ARMS: dict[str, dict[str, Any]] = {
    "all of it, rate 1e-5 (the default)": {"learning_rate": 1e-5},
    "all of it, rate 1e-4": {"learning_rate": 1e-4},
    "all of it, rate 5e-4": {"learning_rate": 5e-4},
    "`lora_rank` 4, rate 5e-4": {"lora_rank": 4, "learning_rate": 5e-4},
    "`lora_rank` 4, rate 2e-3": {"lora_rank": 4, "learning_rate": 2e-3},
    "`lora_rank` 16, rate 2e-3": {"lora_rank": 16, "learning_rate": 2e-3},
}


def reduce_images(data: Path, out: Path) -> None:
    """Images of `SIZE` pixels, and the lists: `known`, and one for each number of labels."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    lists: dict[str, list[dict[str, str]]] = {"known": []}
    for name, place in SETS.items():
        items = [
            item for item in read_dataset(name, data / place) if item.get("label") and "normal" not in item["image"]
        ]
        np.random.RandomState(0).shuffle(items)
        if name != "busi":
            lists["known"] += [_reduce(item, out) for item in items[:KNOWN]]
            continue
        reduced = [_reduce(item, out) for item in items[: 2 + SCORED + max(LABELS)]]
        others = {"validation": reduced[:2], "test": reduced[2 : 2 + SCORED]}  # nothing is chosen by the first two
        lists |= {str(count): reduced[2 + SCORED :][:count] for count in LABELS}
    for name, training in lists.items():
        (out / f"{name}.json").write_text(json.dumps({"training": training} | others), encoding="utf-8")


def _reduce(item: dict[str, Any], out: Path) -> dict[str, str]:
    stem = f"{item['source']}_{Path(item['image']).stem}"
    picture, mask = Image.open(item["image"]).convert("RGB"), Image.fromarray(load_reference(item).astype(np.uint8))
    size = [max(1, round(side * SIZE / max(picture.size))) for side in picture.size]
    picture.resize(size, Image.Resampling.LANCZOS).save(out / "images" / f"{stem}.png")
    mask.point(lambda value: 255 * value).resize(size, Image.Resampling.NEAREST).save(out / "images" / f"{stem}_m.png")
    return {"image": f"images/{stem}.png", "label": f"images/{stem}_m.png", "subject": stem}


def adapt(out: Path, folder: Path, labels: str, passes: int, **settings: Any) -> None:
    """One run of `adapt`, validated after its last epoch alone."""
    count = len(json.loads((out / f"{labels}.json").read_text(encoding="utf-8"))["training"])
    epochs = max(1, round(passes / (count // BATCH * BATCH)))
    run("adapt", out, folder, labels, bce_weight=1.0, overwrite=True, epochs=epochs, val_interval=epochs, **settings)


def run(phase: str, out: Path, folder: Path, labels: str, *overlays: str, **settings: Any) -> None:
    common = {"dataset_dir": out / f"{labels}.json", "split_file": folder / "split.json", "output_dir": folder}
    common |= {"ckpt_dir": folder, "image_size": SIZE, "batch_size": BATCH, "num_workers": 0, "cache_rate": 1.0}
    common |= {"progress": False, "logging_file": False, "teacher": "vit_tiny"}
    run_phase(bundle_path(), phase, "datasets/datalist", "offline", *overlays, **common | settings)


def score(out: Path, folder: Path) -> float:
    """Mean Dice of box, click and no prompt on BUSI's test images."""
    report = folder / "evaluate_teacher"
    if not (report / "summary.csv").exists():
        run("evaluate", out, folder, str(LABELS[0]), "evaluate_teacher")
    return statistics.mean(read_mean_dice(report).values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    out = arguments.out.resolve()
    if not (out / f"{max(LABELS)}.json").exists():
        reduce_images(arguments.data.resolve(), out)
    known = out / "known"
    if not (known / "teacher.pt").exists():
        adapt(out, known, "known", FIRST_PASSES, learning_rate=5e-4)
    rows = [["not adapted", *[f"{score(out, known):.3f}"] * len(LABELS)]]
    for name, settings in ARMS.items():
        cells = []
        for count in LABELS:
            folders = [out / f"{name}_{count}_{seed}" for seed in arguments.seeds]
            for seed, folder in zip(arguments.seeds, folders, strict=True):
                if not (folder / "teacher.pt").exists():
                    adapt(out, folder, str(count), PASSES, seed=seed, sam_checkpoint=known / "teacher.pt", **settings)
            values = [score(out, folder) for folder in folders]
            spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}")
            print(name, count, cells[-1], flush=True)
        rows.append([name, *cells])
    write_result("lora", dice=table(["what learns of the image encoder", *(f"{n} labels" for n in LABELS)], rows))


if __name__ == "__main__":
    main()
