# SPDX-License-Identifier: Apache-2.0
"""Odd JSON through all that reads requests, seeded: one sentence for the client, or what the network can take."""

from __future__ import annotations

import importlib.util
import math
import random

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_kdsam.errors import UserError
from monai_kdsam.label.dicom_series import _clicked_slice, _move_into_plane, _on_slice
from monai_kdsam.transforms import HostPromptsd, VolumePromptsd

CASES = 400
ODD = (None, True, 0, -1, 7, 0.5, 1e308, -1e308, 10**400, math.nan, -math.inf, "", "x", "5", "\0", "\ud800", 2**63)
KEYS = ("foreground", "background", "roi", "slice", "propagate")
OTHERS = (
    *("model", "device", "result_extension", "result_dtype", "logging", "model_filename", "client_id", "label_tag"),
    *("max_epochs", "batch_size", "learning_rate", "val_split", "train_encoder", "latencies", "nonsense", ""),
)


def odd_value(draw: random.Random, depth: int = 0):
    kind = draw.random()
    if kind < 0.3 or depth > 3:
        return draw.choice(ODD)
    if kind < 0.5:
        return [
            draw.choice([draw.randint(-3, 60), draw.choice(ODD)]) for _ in range(draw.choice([0, 1, 2, 3, 4, 6, 70]))
        ]
    if kind < 0.8:
        click = [[draw.randint(0, 9) for _ in range(draw.choice([2, 3, 3]))] for _ in range(draw.choice([1, 2, 70]))]
        return click if draw.random() < 0.7 else [*click, draw.choice(ODD)]
    if kind < 0.9:
        return {draw.choice(KEYS): odd_value(draw, depth + 1)}
    return [odd_value(draw, depth + 1) for _ in range(draw.randint(0, 3))]


def odd_requests():
    draw = random.Random(15)
    for _ in range(CASES):
        own = {draw.choice(KEYS): odd_value(draw) for _ in range(draw.choice([1, 1, 2, 3]))}
        yield own | ({draw.choice(OTHERS): odd_value(draw)} if draw.random() < 0.5 else {})


def image(*shape: int) -> MetaTensor:
    affine = np.eye(4)
    meta = {"spatial_shape": shape[::-1] if len(shape) == 2 else shape, "original_affine": affine}
    return MetaTensor(torch.zeros(1, *shape), affine=torch.eye(4), meta=meta)


def in_a_picture(request, path):
    _move_into_plane(request, path)
    return HostPromptsd()({**request, "image": image(10, 12)})["image"].meta


def on_a_slice(request, path):
    index = _clicked_slice(request, 5)
    on_slice = {name: _on_slice(request[name], index) for name in ("foreground", "background") if name in request}
    return HostPromptsd()({**request, **on_slice, "image": image(10, 12)})["image"].meta


def in_a_volume(request, path):
    return VolumePromptsd()({**request, "image": image(12, 10, 6)})["image"].meta


def as_an_inference(request, path):
    from monai_kdsam.label import app, gate

    gate.check_params(request)
    app._check_request(request, "image.png")


def as_a_training(request, path):
    from monai_kdsam.label import gate, learn_task

    request = {key: value for key, value in request.items() if key not in KEYS}
    gate.check_params(request)
    learn_task._check_parameters(request)


@pytest.mark.parametrize("reader", [in_a_picture, on_a_slice, in_a_volume, as_an_inference, as_a_training])
def test_odd_requests_are_told_or_taken(reader, tmp_path):
    if reader in (as_an_inference, as_a_training) and importlib.util.find_spec("monailabel") is None:
        pytest.skip("MONAI Label is not installed")
    path = str(tmp_path / "plane.nii")
    nibabel.Nifti1Image(np.zeros((1, 12, 10), np.uint8), np.eye(4)).to_filename(path)
    taken = 0
    for request in odd_requests():
        try:
            meta = reader(dict(request), path)
        except UserError:
            continue
        taken += 1
        if meta is not None:
            assert meta["points"].isfinite().all()
            assert set(meta["labels"].tolist()) <= {-1, 0, 1, 2, 3}
    assert 0 < taken < CASES
