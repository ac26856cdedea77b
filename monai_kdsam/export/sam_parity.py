# SPDX-License-Identifier: Apache-2.0
"""Whether files of segment_anything's layout compute what PyTorch does, asked as the programs that run them ask."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from monai_kdsam.data.picture_file import decode
from monai_kdsam.export.parity import LEAST_IOU, Parity, draw_prompts, mask_iou
from monai_kdsam.export.sam import CELLS, FRAME, INPUTS, SAM_MEAN, SAM_STD, Packed, SamDecoder, SamInput
from monai_kdsam.inferers import BundlePredictor
from monai_kdsam.picture import to_rgb
from monai_kdsam.rgb import fit_longest, resize_pixels
from monai_kdsam.runtime.manifest import MANIFEST
from monai_kdsam.runtime.sessions import open_part

__all__ = ["check_sam_parity", "host_picture"]


def host_picture(pixels: NDArray[np.uint8], form: str) -> NDArray[np.float32]:
    """An RGB picture (H, W, 3) as a host would give it, see `SamInput`."""
    height, width = fit_longest(pixels.shape[0], pixels.shape[1], FRAME)
    resized = resize_pixels(pixels.transpose(2, 0, 1), height, width).astype(np.float32)
    if form == "pixels":
        return resized.transpose(1, 2, 0)
    frame = np.zeros((1, 3, FRAME, FRAME), np.float32)
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (SAM_MEAN, SAM_STD))
    frame[0, :, :height, :width] = (resized - mean) / std if form == "normalized" else resized / 255
    return frame


def check_sam_parity(exported: str | Path, bundle: BundlePredictor, images: Sequence[str]) -> Parity:
    """Compare files of segment_anything's layout with what PyTorch makes of the same inputs, and with the bundle.

    Args:
        exported: folder of the exported models. A picture is encoded by one of the encoders, the next by the next.
        bundle: in float32 on the CPU, without close-ups, for which hosts have no means.
        images: paths, any format that the bundle reads.
    """
    folder = Path(exported)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    settings = (manifest["image_size"], manifest["pixel_mean"], manifest["pixel_std"])
    parts = {part: open_part(folder / file, "onnx") for part, file in manifest["files"].items()}
    least = LEAST_IOU[manifest["precision"]]
    prompted: list[float] = []
    by_host: list[float] = []
    for seed, path in enumerate(images):
        part, form = list(INPUTS.items())[seed % len(INPUTS)]
        pixels = to_rgb(decode(path))
        given = host_picture(pixels, form)
        (embedding,) = parts[part](given)
        with torch.no_grad():
            encoded = bundle.network.encode(SamInput(*settings, form)(torch.from_numpy(given)))
            expected = Packed()(encoded).numpy()
        decode_expected = SamDecoder(bundle.network, encoded.shape[1])
        for xy, kinds in zip(*draw_prompts(bundle(path), seed), strict=True):
            prompt = _prompt(xy, kinds, pixels.shape[:2])
            mask = parts["decoder"](embedding, *prompt)[0] > 0
            with torch.no_grad():
                masks, _, _ = decode_expected(*(torch.from_numpy(array) for array in (expected, *prompt)))
            prompted.append(mask_iou(mask, masks.numpy() > 0))
            clicks = {"foreground": xy[kinds == 1].tolist(), "background": xy[kinds == 0].tolist()}
            served = bundle(path, **clicks, roi=xy[kinds >= 2].ravel().tolist() or None)
            by_host.append(mask_iou(mask[0, 0], served))
    return Parity(prompted, [], least, by_host)


def _prompt(xy: NDArray[Any], kinds: NDArray[Any], size: tuple[int, ...]) -> tuple[NDArray[np.float32], ...]:
    """The decoder's inputs after the embedding; rubbish in the mask that is not meant."""
    points = (xy + 0.5) * (FRAME / max(size)) - 0.5
    mask = np.full((1, 1, CELLS, CELLS), np.nan, np.float32)
    none = np.zeros(1, np.float32)
    return points[None].astype(np.float32), kinds[None].astype(np.float32), mask, none, np.array(size, np.float32)
