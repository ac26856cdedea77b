# SPDX-License-Identifier: Apache-2.0
"""What a hospital does on day one: an organ that no network has seen, few labels, several starts and several seeds.

    python benchmarks/study.py DATA OUT                     # all arms and seeds that OUT does not have yet
    python benchmarks/study.py DATA OUT --arms "shipped, 10 labels" --seeds 0 1
    python benchmarks/study.py DATA OUT --tables            # the tables of docs/explanation/results.md

DATA holds Kvasir-SEG, ISIC 2017, HC18 and BUSI as `configs/datasets/pooled.yaml` wants them. The organ is the bowel of
Kvasir-SEG, which the shipped student has not seen; the other sets are there to see what is forgotten. Images are
reduced to `SIDE` pixels once. Every arm trains with the recipe `promptable`, `PASSES` images in all, through
the bundle's own configs, and is scored on the test images, which no choice has seen. Where an arm distills, the shipped
student is the teacher, in SAM's place: it has learned to follow prompts, and never saw the organ. One JSON file an arm
and seed; an interrupted study goes on where it was.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import shutil
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from study_tables import write_tables

from monai_kdsam.bundles import bundle_path, shipped_bundle
from monai_kdsam.data import prepare_datalist
from monai_kdsam.phases import run_phase
from monai_kdsam.report.corrective_clicks import correct
from monai_kdsam.report.items import load_reference
from monai_kdsam.report.metrics import overlap_scores
from monai_kdsam.report.models import BundleModel, EllipseModel, Model
from monai_kdsam.report.prompts import named_prompts

SIDE = 384  # of the stored images, longer side
ORGAN = "kvasir"
OTHERS = 40  # test images of each other set
PASSES = 1280  # images that an arm's batches hold, in all phases together
BATCH = 8
LABELS = (10, 50, 350)
RATES = {"shipped": 3e-4, "imagenet": 1e-3, "random": 1e-3}
STUDENT = {"correction_rounds": 1, "ema_decay": 0.98}
PROMPTS = ("box", "box_20px", "box_20pct", "automatic", "center_click")
CLICKS = 10
Settings = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """What is different about one arm.

    Args:
        start: of the student's weights.
        labels: of the organ's images to learn from; 0 for none.
        phases: of training, which share the budget evenly.
        settings: for all phases.
    """

    start: Literal["shipped", "imagenet", "random"]
    labels: int
    phases: tuple[str, ...] = ("train",)
    settings: Settings = field(default_factory=dict)


DISTILLED = ("distill", "train")
MSE = {"perceptual_weight": 0.0}
ARMS = {"shipped, no labels": Arm("shipped", 0, ())}
for count in LABELS:
    ARMS |= {
        f"shipped, {count} labels": Arm("shipped", count),
        f"shipped, {count} labels, encoder frozen": Arm("shipped", count, settings={"train_encoder": False}),
        f"imagenet, {count} labels": Arm("imagenet", count),
        f"random, {count} labels": Arm("random", count),
        f"imagenet, distilled, {count} labels": Arm("imagenet", count, DISTILLED, MSE),
        f"random, distilled, {count} labels": Arm("random", count, DISTILLED, MSE),
    }
ARMS |= {
    "imagenet, distilled, no labels": Arm("imagenet", 0, ("distill",), MSE),
    "imagenet, distilled with the perceptual loss, 50 labels": Arm("imagenet", 50, DISTILLED),
    "imagenet, distilled and refined, 50 labels": Arm(
        "imagenet", 50, ("distill", "refine", "train"), MSE | {"refined": True}
    ),
    "imagenet, 350 labels, tokens alone": Arm("imagenet", 350, settings={"prompt_map": False}),
    "imagenet, 350 labels, no regions": Arm("imagenet", 350, settings={"region_share": 0.0}),
    "imagenet, 350 labels, no mosaics": Arm("imagenet", 350, settings={"mosaic_share": 0.0}),
}


def comparisons() -> Iterator[tuple[str, str]]:
    """Pairs of arms, the first to be compared with the second."""
    for count in LABELS:
        yield f"shipped, {count} labels", "shipped, no labels"
        yield f"shipped, {count} labels, encoder frozen", f"shipped, {count} labels"
        for name in ("shipped", "random", "imagenet, distilled"):
            yield f"{name}, {count} labels", f"imagenet, {count} labels"
        yield f"random, distilled, {count} labels", f"random, {count} labels"
    for name in ("distilled with the perceptual loss", "distilled and refined"):
        yield f"imagenet, {name}, 50 labels", "imagenet, distilled, 50 labels"
    for name in ("tokens alone", "no regions", "no mosaics"):
        yield f"imagenet, 350 labels, {name}", "imagenet, 350 labels"


class Study:
    """The images and the runs of a study, all in one folder."""

    def __init__(self, data: Path, folder: Path, imagenet_weights: Path) -> None:
        self.data, self.folder, self.imagenet_weights = data.resolve(), folder.resolve(), imagenet_weights.resolve()

    def prepare(self) -> None:
        """Write the reduced images and a datalist for each number of labels; all of the organ's images are in each."""
        if (self.folder / "test.json").exists():
            return
        sets = {"kvasir": "Kvasir-SEG", "isic2017": ".", "hc18": "HC18", "busi": "Dataset_BUSI_with_GT"}
        lists = prepare_datalist({name: self.data / place for name, place in sets.items()}, self.folder / "split.json")
        own = {split: [item for item in items if item["source"] == ORGAN] for split, items in lists.items()}
        others: dict[str, list[Any]] = {name: [] for name in sets if name != ORGAN}
        for item in lists["test"]:
            if item["source"] != ORGAN and load_reference(item).any():
                others[item["source"]].append(item)
        own["test"] += [item for items in others.values() for item in items[:OTHERS]]
        (self.folder / "images").mkdir(parents=True, exist_ok=True)
        reduced = {split: [self._reduce(item, split, number) for number, item in enumerate(items)]
                   for split, items in own.items()}  # fmt: skip
        for count in (0, *LABELS):
            labeled, rest = reduced["training"][:count], reduced["training"][count:]
            unlabeled = [{"image": item["image"], "subject": item["subject"]} for item in rest]
            content = {"training": labeled, "validation": reduced["validation"], "test": reduced["test"]}
            content |= {"unlabeled": unlabeled} if unlabeled else {}
            (self.folder / f"{count}.json").write_text(json.dumps(content, indent=1))
        (self.folder / "test.json").write_text(json.dumps(reduced["test"], indent=1))

    def _reduce(self, item: dict[str, Any], split: str, number: int) -> dict[str, str]:
        stem = f"{item['source']}_{split}_{number:04d}"
        mask = Image.fromarray(load_reference(item).astype(np.uint8) * 255)
        image = Image.open(item["image"]).convert("RGB")
        size = [max(1, round(side * SIDE / max(image.size))) for side in image.size]
        image.resize(size, Image.Resampling.LANCZOS).save(self.folder / "images" / f"{stem}.png")
        mask.resize(size, Image.Resampling.NEAREST).save(self.folder / "images" / f"{stem}_mask.png")
        names = {"image": f"images/{stem}.png", "label": f"images/{stem}_mask.png"}
        return names | {"subject": str(item["subject"]), "source": str(item["source"])}

    def train(self, arm: Arm, output: Path, seed: int) -> Path:
        """All phases of an arm.

        Returns:
            The weights.
        """
        weights = shipped_bundle() / "models" / "model.pt"
        shipped = {"_target_": "monai_kdsam.networks.build_student", "backbone": "@backbone", "neck": "@neck",
                   "image_size": "@image_size", "prompt_map": True, "fine_features": True}  # fmt: skip
        teacher = {"_target_": "monai_kdsam.networks.load_weights", "network": shipped, "path": str(weights)}
        # A list has labels, though a distillation has no use for them: all of the organ's images are in each.
        for phase in arm.phases:
            count = max(arm.labels, min(LABELS))
            seen = max(LABELS) if phase == "distill" else count
            batch = min(BATCH, seen)
            settings: Settings = {
                "dataset_dir": self.folder / f"{count}.json",
                "split_file": self.folder / f"{count}_split.json",
                "output_dir": output,
                "ckpt_dir": output / "models",
                "seed": seed,
                "overwrite": True,
                "batch_size": batch,
                "epochs": max(1, round(PASSES / len(arm.phases) / (seen // batch * batch))),
                "learning_rate": RATES[arm.start],
                "num_workers": 0,
                "cache_rate": 1.0,
                "progress": False,
                "logging_file": False,
                "imagenet_weights": self.imagenet_weights if arm.start == "imagenet" else None,
                **STUDENT,
            }
            settings["val_interval"] = settings["epochs"]
            if arm.start == "shipped":
                settings["student_weights"] = str(weights)
            elif arm.phases[0] == phase == "train":
                settings["initial_checkpoint"] = None
            if phase != arm.phases[0]:
                settings["imagenet_weights"] = None
            if phase in ("distill", "refine"):
                settings |= {"teacher_network": teacher, "vgg_weights": None, "cached_embeddings": False}
            weights_file = run_phase(
                bundle_path(), phase, "datasets/datalist", "recipes/promptable", "recipes/any_looks",
                **settings | arm.settings,
            )  # fmt: skip
        return weights_file

    def score(self, model: Model, name: str, seed: int, **known: Any) -> None:
        """Dice of a model under every prompt and after corrective clicks, to a JSON file."""
        items = json.loads((self.folder / "test.json").read_text())
        rows = [row for item in items for row in self._score_image(model, item)]
        target = self.scores(name, seed)
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps({"arm": name, "seed": seed, "rows": rows} | known))

    def _score_image(self, model: Model, item: dict[str, str]) -> Iterator[list[Any]]:
        reference = load_reference(item | {"label": str(self.folder / item["label"])})
        every = named_prompts(reference)
        # The click comes last, so that corrections go on from its answer.
        prompts = {name: every[name] for name in PROMPTS}
        model.set_image(str(self.folder / item["image"]))
        found = dict(zip(prompts, model.predict(list(prompts.values())), strict=True))
        if item["source"] == ORGAN:
            first = prompts["center_click"]
            masks = correct(reference, first, found["center_click"][0], lambda prompt: model.correct(prompt)[0])
            several = enumerate(itertools.islice(masks, CLICKS), start=1)
            found |= {f"clicks_{count}": (mask, math.nan) for count, mask in several}
        for prompt, (mask, expected) in found.items():
            dice, iou = overlap_scores(mask, reference)[:2]
            yield [item["source"], item["subject"], prompt, dice, iou, expected, float(reference.mean())]

    def scores(self, name: str, seed: int) -> Path:
        """File of an arm's scores."""
        return self.folder / "scores" / f"{name}_{seed}.json"


def run_arm(study: Study, name: str, seed: int) -> None:
    """Train and score one arm; without phases, the shipped student as it comes, which has one seed."""
    arm, output = ARMS[name], study.folder / "runs" / f"{name}_{seed}"
    if study.scores(name, seed).exists() or (not arm.phases and seed):
        return
    shutil.rmtree(output, ignore_errors=True)
    began = time.process_time()
    keys = {key: arm.settings[key] for key in ("prompt_map",) if key in arm.settings}
    if arm.phases:
        keys["checkpoint"] = str(study.train(arm, output, seed))
    seconds = time.process_time() - began
    study.score(BundleModel(name, shipped_bundle(), **keys), name, seed, seconds=seconds)
    shutil.rmtree(output, ignore_errors=True)
    print(f"{name}, seed {seed}: {seconds:.0f} s of processor time", flush=True)


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--imagenet", type=Path, help="EfficientNet-Lite0's weights; python -m monai_kdsam download")
    parser.add_argument("--arms", nargs="+", choices=[*ARMS], default=[*ARMS], metavar="ARM")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--tables", action="store_true", help="print the tables of what is there")
    arguments = parser.parse_args()
    if arguments.tables:
        write_tables(arguments.out / "scores", ["filled ellipse", *ARMS], comparisons(), ORGAN)
        return
    if arguments.imagenet is None:
        parser.error("--imagenet is needed to train")
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    study = Study(arguments.data, arguments.out, arguments.imagenet)
    study.prepare()
    if not study.scores("filled ellipse", 0).exists():
        study.score(EllipseModel(), "filled ellipse", 0)
    for seed in arguments.seeds:
        for name in arguments.arms:
            run_arm(study, name, seed)


if __name__ == "__main__":
    main()
