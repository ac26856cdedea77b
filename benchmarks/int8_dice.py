# SPDX-License-Identifier: Apache-2.0
"""What a lower precision costs in Dice, on the test split of each set that a bundle was trained with.

    python benchmarks/int8_dice.py --bundle BUNDLE --split BUNDLE/output/split.json --source kvasir=DATA/Kvasir-SEG ...
        [--format openvino] [--precision int8] [--most 100]

exports the bundle (8 bits are calibrated on pictures of the training split), segments the test pictures with the
PyTorch bundle and with the exported files under the same box, click and no prompt, and prints the mean Dice of both in
the size of the picture. 8 bits are good enough where no difference exceeds 0.005.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np

from monai_kdsam.data.decoding import decode
from monai_kdsam.data.picture import to_rgb
from monai_kdsam.export import export_bundle
from monai_kdsam.export.parity import draw_prompts
from monai_kdsam.inferers import BundlePredictor
from monai_kdsam.report.items import load_reference, read_split
from monai_kdsam.runtime import Predictor

KINDS = ("box", "center", "none")


def dice(mask: np.ndarray, truth: np.ndarray) -> float:
    return 2 * np.logical_and(mask, truth).sum() / (mask.sum() + truth.sum())


def export(arguments: argparse.Namespace, training: list, scratch: Path) -> Path:
    pictures = scratch / "pictures"
    pictures.mkdir()
    for index in range(0, len(training), max(len(training) // 100, 1)):
        path = Path(training[index]["image"]).resolve()
        os.symlink(path, pictures / f"{index:06d}{path.suffix}")
    folder, parity = export_bundle(
        arguments.bundle,
        arguments.format,
        precision=arguments.precision,
        calibration=pictures,
        output=scratch / "exported",
    )
    print(f"{arguments.format} {arguments.precision}: {parity}", flush=True)
    return folder


def compare(network: BundlePredictor, predictor: Predictor, items: list) -> dict[str, np.ndarray]:
    """Dice (N, 2) of the network and of the exported files, by kind of prompt."""
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    for seed, item in enumerate(items):
        truth = load_reference(item)
        if not truth.any():
            continue
        predictor.set_image(to_rgb(decode(item["image"])))
        for kind, xy, labels in zip(KINDS, *draw_prompts(truth, seed, KINDS), strict=True):
            click, box = xy[labels == 1], xy[labels >= 2].ravel()
            theirs = network(item["image"], foreground=click.tolist(), roi=box.tolist() or None)
            ours, _ = predictor.predict(click if len(click) else None, box=box if len(box) else None)
            found[kind].append((dice(theirs, truth), dice(ours, truth)))
    return {kind: np.array(values) for kind, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, help="folder, with models/model.pt")
    parser.add_argument("--split", type=Path, required=True, help="the split.json that training wrote")
    parser.add_argument("--source", nargs="+", required=True, metavar="LAYOUT=FOLDER")
    parser.add_argument("--format", default="openvino", choices=["onnx", "openvino", "torchscript"])
    parser.add_argument("--precision", default="int8", choices=["fp32", "fp16", "int8"])
    parser.add_argument("--most", type=int, default=100, help="test pictures of each set")
    arguments = parser.parse_args()
    sources = dict(text.split("=", 1) for text in arguments.source)
    training, test = (read_split(arguments.split, name, sources) for name in ("training", "test"))
    with tempfile.TemporaryDirectory() as scratch:
        predictor = Predictor(export(arguments, training, Path(scratch)))
    network = BundlePredictor(arguments.bundle, device="$torch.device('cpu')")
    print("\n| set | pictures | prompt | PyTorch | exported | difference |\n|---|---|---|---|---|---|")
    for name in sources:
        items = [item for item in test if item["source"] == name][: arguments.most]
        for kind, values in compare(network, predictor, items).items():
            ours, theirs = values[:, 1].mean(), values[:, 0].mean()
            row = f"{name} | {len(values)} | {kind} | {theirs:.4f} | {ours:.4f} | {ours - theirs:+.4f}"
            print(f"| {row} |", flush=True)


if __name__ == "__main__":
    main()
