# SPDX-License-Identifier: Apache-2.0
"""What each part of the recipes is worth: every arm with the same images, the same budget and several seeds.

    python benchmarks/study.py DATA OUT                     # all arms and seeds that OUT does not have yet
    python benchmarks/study.py DATA OUT --arms mse plus --seeds 0 1
    python benchmarks/study.py DATA OUT --tables            # docs/log/results.md's tables of what is there
    python benchmarks/study.py DATA OUT --tables --split validation

DATA holds Kvasir-SEG, ISIC 2017, HC18 and BUSI as `configs/datasets/pooled.yaml` wants them. Their images are reduced
to `SIDE` pixels once, so that a CPU spends its time on networks. A small ViT is adapted on all training images and
embeds them; every arm then distills, refines and fine-tunes a student through the bundle's own configs, with `PASSES`
images in all, and is scored on the test images, which no choice has seen, and on the validation images, which are
there to choose by. One JSON file an arm and seed, and its weights; an interrupted study goes on where it was.
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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import load_decathlon_datalist
from PIL import Image
from study_tables import write_tables

from monai_kdsam.bundles import bundle_path
from monai_kdsam.data import prepare_datalist
from monai_kdsam.phases import run_phase
from monai_kdsam.report.corrective_clicks import correct
from monai_kdsam.report.items import load_reference
from monai_kdsam.report.metrics import overlap_scores
from monai_kdsam.report.models import BundleModel, EllipseModel, Model
from monai_kdsam.report.prompts import named_prompts

SIDE = 160  # of the stored images, longer side
SIZE = 96  # of the networks' input
SIZES = (64, 128)  # of two arms
LABELED = 100  # images of each set whose labels most students may see
SCORED = 40  # images of each set and split, at most
TEACHER_EPOCHS = 16
PASSES = 4000  # images that an arm's training sees, in all phases together
SHARES = {"distill": 0.4, "refine": 0.15, "train": 0.45}
STUDENT = {"backbone": "resnet18", "prompt_map": False, "fine_features": False}
CHECKPOINTS = {"distill": "distilled.pt", "refine": "refined.pt", "train": "model.pt"}  # phases in their order
RATES = {"distill": 1e-3, "refine": 3e-4, "train": 5e-4}
BATCH = 16
# Folders of scores. The test images last: when theirs are there, an arm is done.
SPLITS = {"validation": "scores_validation", "test": "scores"}
Settings = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """What is different about one arm.

    Args:
        phases: of training; what a phase that is left out would have seen goes to the one before it, or else after it.
            The student is that of the last one; without `train` it has the teacher's decoder.
        settings: for all phases.
        labels: labeled images of all sets together, or "all".
        size: of the networks' input, in pixels; the teacher's too, which is adapted at this size.
        shares: of each phase in the images that training sees.
        rates: of learning, of each phase.
    """

    phases: tuple[str, ...] = ("distill", "train")
    settings: Settings = field(default_factory=dict)
    labels: int | str = 4 * LABELED
    size: int = SIZE
    shares: dict[str, float] = field(default_factory=lambda: dict(SHARES))
    rates: dict[str, float] = field(default_factory=lambda: dict(RATES))


MSE = {"perceptual_weight": 0.0}
PLUS_TRAIN = {
    "train_encoder": True,
    "bce_weight": 1.0,
    "correction_rounds": 1,
    "box_size_jitter": 0.15,
    "box_jitter": [0.0, 0.0],
    "iou_weight": 1.0,
}


def plus(phases: tuple[str, ...] = ("distill", "refine", "train"), **changes: Any) -> Arm:
    """The recipe `plus` but for some settings."""
    return Arm(phases, MSE | PLUS_TRAIN | {"refined": "refine" in phases} | changes)


PAPER = {"prompts": ["box"], "augment": False}
ARMS = {
    # what distillation is worth, and which loss: phase 2 as the bundle's defaults have it, the encoder frozen
    "mse": Arm(settings=MSE),
    "mse, no labels": Arm(("distill",), MSE),
    "mse + perceptual": Arm(),
    "mse + ms-ssim": Arm(settings=MSE | {"ms_ssim_weight": 1.0}),
    "no distillation": Arm(("train",), {"train_encoder": True, "initial_checkpoint": None}),
    "paper": Arm(settings=PAPER),
    # the recipe plus, and without each of its parts
    "plus": plus(),
    "plus, no prompt-in-the-loop phase": plus(("distill", "train")),
    "plus, no distillation": plus(("train",), initial_checkpoint=None),
    "plus, no correction loop": plus(correction_rounds=0),
    "plus, no jitter of the box's size": plus(box_size_jitter=0.0, box_jitter=[0.0, 0.02]),
    "plus, twice the jitter": plus(box_size_jitter=0.3),
    "plus, no automatic mode": plus(prompts=["box", "clicks", "box+clicks"]),
    "plus, encoder frozen": plus(train_encoder=False),
    "plus, Dice alone": plus(bce_weight=0.0),
    "plus, IoU head not trained": plus(iou_weight=0.0),
    # and otherwise
    "plus, a fifth of the rate in train": replace(plus(), rates=RATES | {"train": RATES["train"] / 5}),
    "plus, more prompt-in-the-loop": replace(plus(), shares={"distill": 0.2, "refine": 0.4, "train": 0.4}),
}
# Other numbers of labels.
for count in (10, 50, "all"):
    for suffix in ("", ", no distillation", ", encoder frozen"):
        ARMS[f"plus, {count} labels{suffix}"] = replace(ARMS[f"plus{suffix}"], labels=count)
# `mse` is ResNet-18; these are the same with other trunks, the peers' among them.
TRUNKS = ("resnet50", "hgnetv2_b0", "hgnetv2_b1", "mobilenetv4_conv_medium", "repvit_m1", "tiny_vit_5m_224")
for trunk in TRUNKS:
    backbone = {"backbone": trunk} if trunk.startswith("resnet") else {"backbone": f"timm/{trunk}", "neck": "sam"}
    ARMS[f"mse, {trunk}"] = Arm(settings=MSE | backbone)
for pixels in SIZES:
    ARMS[f"mse, {pixels} px"] = Arm(settings=MSE, size=pixels)


def comparisons() -> Iterator[tuple[str, str]]:
    """Pairs of arms, the first to be compared with the second."""
    slower = "plus, a fifth of the rate in train"
    for name in ("plus", "plus, no jitter of the box's size", "plus, twice the jitter", slower):
        yield name, "paper"
    for name in ("paper", "plus", slower, "plus, 10 labels, encoder frozen", "plus, 50 labels, encoder frozen"):
        yield name, "mse, no labels"
    for name in ARMS:
        if name in ("no distillation", "plus") or name.startswith(("mse ", "mse, ")):
            yield name, "mse"
        elif name.startswith("plus, "):
            same_labels = name.removesuffix(", no distillation").removesuffix(", encoder frozen")
            yield name, same_labels if same_labels != name else "plus"


class Study:
    """The images, the teachers (one for each size of input) and the runs of a study, all in one folder."""

    def __init__(self, data: Path, folder: Path) -> None:
        self.data, self.folder = data.resolve(), folder.resolve()
        self.images = self.folder / "images"

    def teacher(self, size: int) -> Path:
        """Folder of the teacher with inputs of so many pixels."""
        return self.folder / f"teacher_{size}px"

    def prepare(self, size: int) -> None:
        """Reduced images; an adapted teacher of this size, its embeddings and its scores."""
        if not (self.folder / "all.json").exists():
            self._reduce()
        folder = self.teacher(size)
        if (folder / "done").exists():
            return
        self.run("adapt", folder, labels="all", size=size, epochs=TEACHER_EPOCHS, learning_rate=5e-4, bce_weight=1.0)
        self.run("embed", folder, labels="all", size=size, embedding_precision="float32")
        network = {"_target_": "monai_kdsam.networks.build_teacher", "kind": "vit_tiny", "image_size": size}
        settings = {"network_def": network, "image_size": size, "checkpoint": str(folder / "models" / "teacher.pt")}
        name = "teacher" if size == SIZE else f"teacher, {size} px"
        self.score(BundleModel(name, bundle_path(), close_up=0, fill_holes=False, **settings), name, 0)
        (folder / "done").touch()

    def _reduce(self) -> None:
        sets = {"kvasir": "Kvasir-SEG", "isic2017": ".", "hc18": "HC18", "busi": "Dataset_BUSI_with_GT"}
        lists = prepare_datalist({name: self.data / place for name, place in sets.items()}, self.folder / "split.json")
        self.images.mkdir(parents=True, exist_ok=True)
        reduced: dict[str, list[dict[str, str]]] = {name: [] for name in lists}
        for split, items in lists.items():
            for number, item in enumerate(items):
                stem = f"{item['source']}_{split}_{number:04d}"
                mask = Image.fromarray(load_reference(item).astype(np.uint8) * 255)
                image = Image.open(item["image"]).convert("RGB")
                size = [max(1, round(side * SIDE / max(image.size))) for side in image.size]
                image.resize(size, Image.Resampling.LANCZOS).save(self.images / f"{stem}.png")
                mask.resize(size, Image.Resampling.NEAREST).save(self.images / f"{stem}_mask.png")
                names = {"image": f"images/{stem}.png", "label": f"images/{stem}_mask.png"}
                reduced[split].append(names | {"subject": str(item["subject"])})
        self._write_list("all", reduced, training=reduced["training"])
        for count in (10, 50, 4 * LABELED):
            self._write_list(str(count), reduced, training=_evenly(reduced["training"], count))

    def _write_list(self, name: str, lists: dict[str, list[dict[str, str]]], *, training: list[dict[str, str]]) -> None:
        (self.folder / f"{name}.json").write_text(json.dumps(lists | {"training": training}, indent=1))

    def run(self, phase: str, output: Path, *, labels: str, size: int, **settings: Any) -> None:
        """One phase of the bundle."""
        epochs = settings.pop("epochs", 1)
        common = {
            "dataset_dir": self.folder / f"{labels}.json",
            "split_file": self.folder / f"{labels}_split.json",
            "output_dir": output,
            "ckpt_dir": output / "models",
            "teacher_checkpoint": self.teacher(size) / "models" / "teacher.pt",
            "embedding_dir": self.teacher(size) / "embeddings",
            "overwrite": True,
            "embedding_variants": 3,
            **STUDENT,
            "image_size": size,
            "batch_size": BATCH,
            "num_workers": 0,
            "cache_rate": 1.0,
            "progress": False,
            "epochs": epochs,
            "val_interval": epochs,
            "logging_file": False,
        }
        run_phase(bundle_path(), phase, "datasets/datalist", "offline", **common | settings)

    def train(self, arm: Arm, output: Path, seed: int) -> None:
        """All phases of an arm."""
        shares, heir = dict.fromkeys(arm.phases, 0.0), arm.phases[0]
        for phase in CHECKPOINTS:
            heir = phase if phase in arm.phases else heir
            shares[heir] += arm.shares[phase]
        for phase in arm.phases:
            # The prompts of `refine` are drawn from labels, too.
            labels = "all" if phase == "distill" else str(arm.labels)
            count = len(load_decathlon_datalist(str(self.folder / f"{labels}.json"), data_list_key="training"))
            settings = dict(arm.settings)
            if phase != "train":
                settings["cached_embeddings"] = settings.get("augment", True)  # the cache is of augmented images
                settings.pop("initial_checkpoint", None)
            # Small lists are passed over more often; a batch is never larger than the list.
            settings["batch_size"] = min(BATCH, count)
            epochs = max(1, round(shares[phase] * PASSES / (count // settings["batch_size"] * settings["batch_size"])))
            settings |= {"seed": seed, "epochs": epochs, "learning_rate": arm.rates[phase]}
            self.run(phase, output, labels=labels, size=arm.size, **settings)

    def score(self, model: Model, name: str, seed: int, **known: Any) -> None:
        """Dice of a model under every named prompt and after corrective clicks, to a JSON file for each split."""
        for split in SPLITS:
            rows = [row for item in self.scored(split) for row in self._score_image(model, item)]
            target = self.scores(name, seed, split)
            target.parent.mkdir(exist_ok=True)
            target.write_text(json.dumps({"arm": name, "seed": seed, "rows": rows} | known))

    def _score_image(self, model: Model, item: dict[str, str]) -> Iterator[list[Any]]:
        reference = load_reference(item | {"label": str(self.folder / item["label"])})
        prompts = named_prompts(reference)
        model.set_image(str(self.folder / item["image"]))
        found = dict(zip(prompts, model.predict(list(prompts.values())), strict=True))
        if reference.any():
            ten = itertools.islice(
                correct(
                    reference,
                    prompts["center_click"],
                    found["center_click"][0],
                    lambda prompt: model.predict([prompt])[0][0],
                ),
                10,
            )
            found |= {f"clicks_{count}": (mask, math.nan) for count, mask in enumerate(ten, start=1)}
        source = Path(item["image"]).name.partition("_")[0]
        for prompt, (mask, expected) in found.items():
            dice, iou = overlap_scores(mask, reference)[:2] if reference.any() else (math.nan, math.nan)
            yield [source, item["subject"], prompt, dice, iou, expected, float(mask.mean())]

    def scores(self, name: str, seed: int, split: str) -> Path:
        """File of an arm's scores."""
        return self.folder / SPLITS[split] / f"{name}_{seed}.json"

    def scored(self, split: str) -> list[dict[str, str]]:
        """At most `SCORED` images of each set."""
        lists = json.loads((self.folder / "all.json").read_text())
        return _evenly(lists[split], 4 * SCORED)


def _evenly(items: list[dict[str, str]], count: int) -> list[dict[str, str]]:
    """The first `count` items, taken from the four sets in turns."""
    by_set: dict[str, list[dict[str, str]]] = {}
    for item in items:
        by_set.setdefault(Path(item["image"]).name.partition("_")[0], []).append(item)
    most = -(-count // len(by_set))
    turns = [part[index] for index in range(most) for part in by_set.values() if index < len(part)]
    return turns[:count]


def run_arm(study: Study, name: str, seed: int) -> None:
    """Train and score one arm."""
    if study.scores(name, seed, "test").exists():
        return
    arm, output = ARMS[name], study.folder / "runs" / f"{name}_{seed}"
    study.prepare(arm.size)
    shutil.rmtree(output, ignore_errors=True)
    began = time.process_time()
    study.train(arm, output, seed)
    seconds = time.process_time() - began
    keys = {key: arm.settings[key] for key in ("backbone", "neck") if key in arm.settings}
    keys = STUDENT | {"image_size": arm.size} | keys
    trained = output / "models" / CHECKPOINTS[arm.phases[-1]]
    model = BundleModel(name, bundle_path(), checkpoint=str(trained), close_up=0, fill_holes=False, **keys)
    study.score(model, name, seed, seconds=seconds)
    weights = study.folder / "weights"
    weights.mkdir(exist_ok=True)
    trained.rename(weights / f"{name}_{seed}.pt")  # to look at, as with `report`
    shutil.rmtree(output)
    print(f"{name}, seed {seed}: {seconds:.0f} s of processor time", flush=True)


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--arms", nargs="+", choices=[*ARMS], default=[*ARMS], metavar="ARM")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--tables", action="store_true", help="print the tables of what is there")
    parser.add_argument("--split", choices=[*SPLITS], default="test", help="of the tables; test")
    arguments = parser.parse_args()
    if arguments.tables:
        teachers = ["teacher", *(f"teacher, {pixels} px" for pixels in SIZES)]
        names = ["filled ellipse", *teachers, *ARMS]
        write_tables(arguments.out / SPLITS[arguments.split], names, comparisons())
        return
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    study = Study(arguments.data, arguments.out)
    study.prepare(SIZE)
    if not study.scores("filled ellipse", 0, "test").exists():
        study.score(EllipseModel(), "filled ellipse", 0)
    for seed in arguments.seeds:
        for name in arguments.arms:
            run_arm(study, name, seed)


if __name__ == "__main__":
    main()
