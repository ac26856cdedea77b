# SPDX-License-Identifier: Apache-2.0
"""Whether exported models give the masks that PyTorch gives, from file to mask and prompt by prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.random import RandomState
from numpy.typing import NDArray

from monai_kdsam.data.picture_file import decode
from monai_kdsam.inferers import BundlePredictor
from monai_kdsam.picture import to_rgb
from monai_kdsam.runtime import Predictor
from monai_kdsam.runtime.sessions import open_part
from monai_kdsam.transforms.simulated_prompts import PromptKind, simulate_prompts

__all__ = ["LEAST_IOU", "Parity", "check_parity", "draw_prompts", "mask_iou"]

# What the mean over all masks must reach; each single mask may be ten times as far from 1.
LEAST_IOU = {"fp32": 0.999, "fp16": 0.995, "int8": 0.98}
KINDS: tuple[PromptKind, ...] = get_args(PromptKind)


def mask_iou(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Intersection over union of two masks; 1 where both are empty.

    >>> mask_iou(np.array([1, 1, 0]), np.array([1, 0, 0]))
    0.5
    """
    union = np.logical_or(a, b).sum()
    return float(np.logical_and(a, b).sum() / union) if union else 1.0


def draw_prompts(
    mask: NDArray[Any], seed: int, kinds: Sequence[PromptKind] = KINDS
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Prompts of every kind for what the network finds by itself; see `simulate_prompts`.

    Args:
        mask: (H, W), the automatic mask; where it is empty, the middle of the image stands in.
        seed: of clicks and boxes.
        kinds: of prompt.

    Returns:
        points (K, N, 2), XY pixels of `mask`, and labels (K, N).
    """
    found = np.asarray(mask) > 0
    if not found.any():
        rows, columns = (slice(side // 4, side - side // 4) for side in found.shape)
        found = np.zeros_like(found)
        found[rows, columns] = True
    points, labels, _ = simulate_prompts(found, kinds, rng=RandomState(seed), box_jitter=(0.0, 0.05))
    return points, labels


@dataclass(frozen=True)
class Parity:
    """IoU of exported masks with PyTorch's.

    Args:
        prompted: of every image and prompt, from the picture to the mask in its size.
        automatic: of every image, from the image-only model, in the models' frame; empty where there is none.
        least: what the mean must reach.
        by_host: the prompted ones beside the bundle's, of files for hosts that resize pictures in their own way. It is
            told, and bounds nothing.
    """

    prompted: list[float]
    automatic: list[float]
    least: float
    by_host: list[float] = field(default_factory=list)

    @property
    def _judged(self) -> dict[str, list[float]]:
        return {"prompted": self.prompted} | ({"image_only": self.automatic} if self.automatic else {})

    def summary(self) -> dict[str, float | int]:
        """The numbers that are printed and kept in the manifest."""
        result: dict[str, float | int] = {"least_mean": self.least, "least_worst": round(1 - 10 * (1 - self.least), 6)}
        for name, values in (self._judged | ({"by_host": self.by_host} if self.by_host else {})).items():
            result[f"{name}_masks"] = len(values)
            result[f"{name}_mean"] = round(float(np.mean(values)), 6)
            result[f"{name}_worst"] = round(min(values), 6)
        return result

    @property
    def holds(self) -> bool:
        """Whether means and worst masks are near enough to 1."""
        groups = self._judged.values()
        return all(np.mean(v) >= self.least and min(v) >= 1 - 10 * (1 - self.least) for v in groups)

    def __str__(self) -> str:
        """One line for people."""
        values = self.summary()

        def told(name: str) -> str:
            mean, worst = values[name + "_mean"], values[name + "_worst"]
            return f"mean {mean:.4f}, worst {worst:.4f} of {values[name + '_masks']}"

        parts = [f"{name.replace('_', '-')} masks {told(name)}" for name in self._judged]
        line = f"IoU with PyTorch: {'; '.join(parts)} (at least {self.least} and {values['least_worst']:.3f})"
        return line + (f"; beside the bundle, which resizes by itself, {told('by_host')}" if self.by_host else "")


def check_parity(exported: str | Path, bundle: BundlePredictor, images: Sequence[str]) -> Parity:
    """Compare exported models with the bundle that they came from.

    Each picture is segmented under a prompt of every kind: by the bundle with its own preprocessing, network and
    postprocessing, and by the light runtime. The image-only model is compared on the network's input, two at a time.

    Args:
        exported: folder of the exported models.
        bundle: in float32 on the CPU.
        images: paths, any format that the bundle reads.
    """
    predictor = Predictor(exported)
    manifest = predictor.manifest
    prompted, tensors = [], []
    for seed, path in enumerate(images):
        predictor.set_image(to_rgb(decode(path)))
        points, labels = draw_prompts(bundle(path), seed)
        for xy, kinds in zip(points, labels, strict=True):
            clicks, corners = (kinds == 0) | (kinds == 1), xy[kinds >= 2]
            expected = bundle(
                path,
                foreground=xy[kinds == 1].tolist(),
                background=xy[kinds == 0].tolist(),
                roi=corners.ravel().tolist() or None,
            )
            prompt = {"points": xy[clicks], "labels": kinds[clicks]} if clicks.any() else {}
            mask, *_ = predictor.predict(**prompt, box=corners.ravel() if len(corners) else None)
            prompted.append(mask_iou(mask, expected))
        tensors.append(bundle.preprocessing({"image": path})["image"].as_tensor().numpy())
    model = open_part(Path(exported) / manifest.files["model"], manifest.format)
    automatic = []
    for first in range(0, len(tensors), 2):
        batch = np.stack(tensors[first : first + 2])
        with torch.no_grad():
            expected = bundle.network(torch.from_numpy(batch)).numpy() > 0
        automatic += [mask_iou(a, b) for a, b in zip(model(batch)[0] > 0, expected, strict=True)]
    return Parity(prompted, automatic, LEAST_IOU[manifest.precision])
