# SPDX-License-Identifier: Apache-2.0
"""What labels submitted to MONAI Label's server are worth: Dice on other images, before and after its own training.

benchmarks/four_sets.sh DATA OUT isic2017
python benchmarks/label_learning.py DATA OUT/isic2017/models/model.pt [--set kvasir] [--labels 5 10 20 40]

DATA holds the sets under the names of their official downloads. The weights are a student's (ResNet-18, 128 pixels) of
another set; labels of the chosen set are submitted over HTTP, a few more each time, and the server trains on those
that it has. The Dice is that of 80 images that are never submitted, at their own size.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import requests
from PIL import Image
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.label_server import MODEL, LabelServer, running_server
from monai_kdsam.bundles import copy_bundle
from monai_kdsam.data import read_dataset
from monai_kdsam.inferers import BundlePredictor
from monai_kdsam.label.active_learning import score_file
from monai_kdsam.report.items import load_reference
from monai_kdsam.transforms.simulated_prompts import box_from_mask, center_click

FOLDERS = {"kvasir": "Kvasir-SEG", "isic2017": ".", "hc18": "HC18", "busi": "Dataset_BUSI_with_GT"}
TEST = 80


def measure(bundle: Path, items: list[dict]) -> list[float]:
    """Mean Dice with a box, one click and no prompt; rank correlation of the uncertainty with the last one."""
    predict, found, scores = BundlePredictor(bundle), [], []
    for item in items:
        truth = load_reference(item)
        box = box_from_mask(truth)
        box[1] += box[1] == box[0]
        prompts = [{"roi": box.ravel().tolist()}, {"foreground": center_click(truth).tolist()}, {}]
        masks = [predict(item["image"], **prompt) > 0 for prompt in prompts]
        found.append([2 * (mask & truth).sum() / (mask.sum() + truth.sum()) for mask in masks])
        scores.append(score_file(predict, item["image"]).score)
    dice = np.array(found)
    return [*dice.mean(axis=0), spearmanr(scores, dice[:, 2]).statistic]


def submit(server: LabelServer, item: dict, folder: Path) -> None:
    name = Path(item["image"]).stem
    Image.fromarray(load_reference(item).astype(np.uint8) * 255).save(folder / f"{name}.png")
    with open(folder / f"{name}.png", "rb") as label:
        address, query = f"{server.address}/datastore/label", {"image": name, "tag": "final"}
        requests.put(address, params=query, files={"label": label}, timeout=60).raise_for_status()


def train(server: LabelServer, params: dict) -> str:
    """Train in the server; its decision."""
    address = f"{server.address}/train/{MODEL}"
    answer = requests.post(address, params={"run_sync": True}, json=params, timeout=3600)
    answer.raise_for_status()
    report = answer.json()
    verb = "replaced" if report["replaced"] else "kept"
    return f"{report['before']['mean']:.3f} to {report['after']['mean']:.3f}, {verb}"


def row(labels: int, figures: list[float], decision: str = "") -> None:
    print(f"| {labels} | {' | '.join(f'{figure:.3f}' for figure in figures)} | {decision} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--labels", type=int, nargs="+", default=[5, 10, 20, 40])
    parser.add_argument("--set", default="kvasir", choices=sorted(FOLDERS))
    parser.add_argument("--params", type=json.loads, default={}, help="of the request for a training, as JSON")
    given = parser.parse_args()
    items = [item for item in read_dataset(given.set, given.data / FOLDERS[given.set]) if load_reference(item).any()]
    chosen = [items[number] for number in np.random.default_rng(0).permutation(len(items))]
    test, rest = chosen[:TEST], chosen[TEST:]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = copy_bundle(folder, MODEL, settings={"backbone": "resnet18", "image_size": 128})
        shutil.copy(given.weights, bundle / "models" / "model.pt")
        (folder / "studies").mkdir()
        for item in rest[: max(given.labels)]:
            shutil.copy(item["image"], folder / "studies")
        print(f"{given.set}, {TEST} images that are never submitted; {given.params or 'the default parameters'}")
        print("| labels | box | click | none | uncertainty and Dice | the server's comparison |")
        print("|---|---|---|---|---|---|")
        row(0, measure(bundle, test))
        with running_server(bundle, folder / "studies", folder / "server") as server:
            for before, count in itertools.pairwise([0, *given.labels]):
                for item in rest[before:count]:
                    submit(server, item, folder)
                decision = train(server, given.params)
                row(count, measure(bundle, test), decision)


if __name__ == "__main__":
    main()
