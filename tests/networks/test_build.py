# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging

import pytest
import torch
import torchvision

from monai_kdsam.networks import build_student


def test_a_trunk_begins_with_imagenets_weights_and_the_log_says_so(tmp_path, caplog) -> None:
    whole = torchvision.models.resnet18(weights=None)
    torch.save(whole.state_dict(), tmp_path / "resnet18.pth")
    with caplog.at_level(logging.INFO, logger="monai_kdsam"):
        network = build_student("resnet18", image_size=64, imagenet_weights=tmp_path / "resnet18.pth")
    trunk = network.image_encoder.state_dict()
    stages = {name: value for name, value in whole.state_dict().items() if name.startswith("layer")}
    assert all(torch.equal(trunk[name], value) for name, value in stages.items())
    assert "The trunk resnet18 begins with ImageNet's weights in" in caplog.text


def test_weights_of_another_trunk_are_refused_in_one_line(tmp_path) -> None:
    torch.save(torchvision.models.resnet34(weights=None).state_dict(), tmp_path / "resnet34.pth")
    with pytest.raises(ValueError, match=r"do not fit resnet18: 96 unexpected \(layer1\.2\.conv1\.weight, ") as error:
        build_student("resnet18", image_size=64, imagenet_weights=tmp_path / "resnet34.pth")
    assert "\n" not in str(error.value)
