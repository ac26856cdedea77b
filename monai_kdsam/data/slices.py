# SPDX-License-Identifier: Apache-2.0
"""Volumes with masks cut into pictures with masks, for training with the 2-D bundle."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged
from PIL import Image

from monai_kdsam.data.paths import stem_of
from monai_kdsam.data.volume_reader import VolumeReader
from monai_kdsam.errors import UserError
from monai_kdsam.files import write_text
from monai_kdsam.picture import label_values
from monai_kdsam.transforms.slicing import GrayValuesd, SlicesLastd

__all__ = ["write_slices"]


def write_slices(
    volumes: Mapping[str, Sequence[Mapping[str, str | Path]]],
    folder: str | Path,
    *,
    axis: str = "acquisition",
    **intensity: Any,
) -> Path:
    """Cut volumes into the pictures that the 3-D bundle would show its network, and list them.

    Args:
        volumes: lists "training", "validation" and "test" of {"image": path, "label": path}; a label's values other
            than 0 are foreground.
        folder: to write `images/`, `masks/` and `datalist.json` to; PNG, slices of one volume being one subject.
        axis: see `SlicesLastd`; the same as in the 3-D bundle.
        **intensity: see `GrayValuesd`; the same as in the 3-D bundle.

    Returns:
        The datalist's path: `dataset_dir` for training with the overlay `datasets/datalist.yaml`.

    Raises:
        ValueError: when a volume cannot be read, image and label have not one shape, or two volumes have one name.
    """
    folder = Path(folder)
    names = Counter(stem_of(pair["image"]) for pairs in volumes.values() for pair in pairs)
    if repeated := [name for name, count in names.items() if count > 1]:
        raise UserError(f"Expected volumes of different names, got several named {', '.join(repeated)}. Rename them.")
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    keys = ["image", "label"]
    prepare = Compose(
        [
            LoadImaged(keys=keys, reader=VolumeReader),
            EnsureChannelFirstd(keys=keys),
            SlicesLastd(keys=keys, axis=axis),  # type: ignore[arg-type]
            GrayValuesd(keys="image", **intensity),
        ]
    )
    datalist: dict[str, list[dict[str, str]]] = {}
    for split, pairs in volumes.items():
        datalist[split] = []
        for pair in pairs:
            data = prepare({key: str(pair[key]) for key in keys})
            datalist[split] += _write_volume(data, stem_of(pair["image"]), folder)
    return write_text(folder / "datalist.json", json.dumps(datalist, indent=1))


def _write_volume(data: Mapping[str, Any], name: str, folder: Path) -> list[dict[str, str]]:
    images = np.asarray(data["image"])
    try:
        masks = label_values(np.asarray(data["label"]))
    except ValueError as error:
        raise UserError(f"The label of {name}: {error}") from error
    if images.shape[1:] != masks.shape[1:]:
        raise UserError(f"Expected {name} and its label of one shape, got {images.shape[1:]} and {masks.shape[1:]}.")
    items = []
    for number in range(images.shape[-1]):
        item = {"image": f"images/{name}_{number:04}.png", "label": f"masks/{name}_{number:04}.png", "subject": name}
        pixels = np.moveaxis(images[..., number], 0, -1)
        Image.fromarray(np.ascontiguousarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)).save(
            folder / item["image"]
        )
        Image.fromarray((masks[..., number].any(axis=0) * 255).astype(np.uint8)).save(folder / item["label"])
        items.append(item)
    return items
