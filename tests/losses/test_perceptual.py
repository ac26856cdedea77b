# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import vgg16

from monai_kdsam.losses import ChannelProjection, PerceptualLoss, build_vgg16

FIRST_BLOCK = 4  # modules up to relu1_2


@pytest.fixture(scope="module")
def features() -> nn.Sequential:
    return build_vgg16(None, "relu1_2")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A file of torchvision's layout, with the classifier cut short."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        network = vgg16(weights=None).features
    generator = torch.Generator().manual_seed(7)
    state = {
        f"features.{name}": 0.05 * torch.randn(value.shape, generator=generator)
        for name, value in network.state_dict().items()
    }
    path = tmp_path_factory.mktemp("weights") / "site_vgg16.pth"
    torch.save(state | {"classifier.6.bias": torch.zeros(1000)}, path)
    return path


def pair(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 2, 256, 8, 8, generator=generator)
    return student, teacher


def target(teacher: Tensor) -> dict[str, Tensor]:
    """The first image fills the upper half of its square, the second all of it."""
    valid = torch.ones(2, 1, 128, 128)
    valid[0, :, 64:] = 0
    return {"embedding": teacher, "valid": valid}


def test_a_student_equal_to_its_teacher_has_no_loss(features) -> None:
    student, _ = pair()
    assert PerceptualLoss(features)(student, target(student.clone())).item() == 0


def test_the_loss_grows_with_the_distance_from_the_teacher(features) -> None:
    student, teacher = pair()
    loss = PerceptualLoss(features)
    near, far = (loss(torch.lerp(teacher, student, step), target(teacher)).item() for step in (0.1, 1.0))
    assert 0 < near < far


def test_what_happens_under_the_padding_changes_nothing(features) -> None:
    student, teacher = pair()
    loss = PerceptualLoss(features)
    expected = loss(student, target(teacher))
    student[0, :, 4:] = 1e3
    teacher[0, :, 4:] = -1e3
    assert torch.equal(loss(student, target(teacher)), expected)


def test_the_student_gets_a_gradient_and_the_frozen_features_get_none() -> None:
    features = build_vgg16(None, "relu2_2")
    before = {name: value.clone() for name, value in features.state_dict().items()}
    student, teacher = (x.requires_grad_() for x in pair())
    PerceptualLoss(features)(student, target(teacher)).backward()
    assert student.grad.abs().sum() > 0
    assert student.grad[0, :, 4:].abs().sum() == 0
    assert all(parameter.grad is None for parameter in features.parameters())
    assert all(torch.equal(value, before[name]) for name, value in features.state_dict().items())


def test_the_features_stay_in_eval_mode_when_the_loss_is_told_to_train() -> None:
    loss = PerceptualLoss(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Dropout(0.9))).train()
    assert loss.training
    assert not any(module.training for module in loss.features.modules())
    student, teacher = pair()
    assert torch.equal(loss(student, target(teacher)), loss(student, target(teacher)))


def test_features_of_several_layers_are_averaged(features) -> None:
    student, teacher = pair()
    one, other = (PerceptualLoss(features, layers=[layer])(student, target(teacher)) for layer in (1, 3))
    torch.testing.assert_close(PerceptualLoss(features, layers=[1, 3])(student, target(teacher)), (one + other) / 2)


def test_features_before_a_relu_can_be_compared_and_trained_on(features) -> None:
    student, teacher = pair()
    student.requires_grad_()
    before, after = (PerceptualLoss(features, layers=[layer])(student, target(teacher)) for layer in (0, 1))
    assert before.item() > after.item()  # a ReLU brings any two values nearer to each other
    before.backward()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("layers", [[], [4], [-1]])
def test_layers_that_the_features_do_not_have_are_refused(features, layers) -> None:
    with pytest.raises(ValueError, match=r"Expected `layers` to be indices from 0 to 3"):
        PerceptualLoss(features, layers=layers)


def test_weights_in_the_layout_of_torchvision_are_used(checkpoint) -> None:
    loaded, random = build_vgg16(checkpoint, "relu1_2"), build_vgg16(None, "relu1_2")
    state = torch.load(checkpoint, weights_only=True)
    assert torch.equal(loaded[2].weight, state["features.2.weight"])
    picture = torch.rand(1, 3, 16, 16)
    assert not torch.allclose(loaded(picture), random(picture))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert not loaded.training


@pytest.mark.parametrize(
    ("layer", "channels", "stride"),
    [("relu1_2", 64, 1), ("relu2_2", 128, 2), ("relu3_3", 256, 4), ("relu5_3", 512, 16)],
)
def test_a_network_ends_with_the_relu_that_it_is_asked_for(layer, channels, stride, checkpoint) -> None:
    network = build_vgg16(checkpoint, layer)
    assert isinstance(network[-1], nn.ReLU)
    output = network(torch.rand(1, 3, 64, 64))
    assert output.shape == (1, channels, 64 // stride, 64 // stride)
    assert (output >= 0).all()


def test_missing_weights_name_the_command_that_fetches_them(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"Run: python -m monai_kdsam download vgg16 --dir"):
        build_vgg16(tmp_path / "vgg16-397923af.pth")


def test_weights_of_another_network_are_refused_by_name(tmp_path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"features.0.weight": torch.zeros(8, 3, 3, 3)}, path)
    with pytest.raises(ValueError, match=r"Expected the VGG16 weights of torchvision in .*other\.pth: "):
        build_vgg16(path)
    torch.save({"conv1.weight": torch.zeros(8, 3, 3, 3)}, path)
    with pytest.raises(ValueError, match=r"Expected the VGG16 weights of torchvision in .*other\.pth: "):
        build_vgg16(path)


def test_an_unknown_layer_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"`last_layer` to be one of relu1_2, .*, relu5_3, got 'relu6_1'"):
        build_vgg16(None, "relu6_1")


def test_random_features_are_the_same_every_time_and_leave_the_runs_generator_alone(features, caplog) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = build_vgg16(None, "relu1_2")
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first[2].weight, features[2].weight)
    assert "VGG16 with random weights" in caplog.text


def test_the_mapping_can_be_replaced_by_any_module_of_the_same_call(features) -> None:
    class FirstThreeChannels(nn.Module):
        def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
            return student[:, :3], teacher[:, :3]

    student, teacher = pair()
    loss = PerceptualLoss(features, FirstThreeChannels())
    teacher[:, :3] = student[:, :3]
    assert loss(student, target(teacher)).item() == 0
    assert PerceptualLoss(features)(student, target(teacher)).item() > 0


def test_the_mapping_standardizes_the_teacher_and_treats_the_student_alike() -> None:
    student, teacher = pair()
    mapping = ChannelProjection()
    ours, theirs = mapping(student, 5 * teacher + 3)
    torch.testing.assert_close(theirs.mean(dim=(2, 3)), torch.zeros(2, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(theirs.std(dim=(2, 3)), torch.ones(2, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(mapping(5 * teacher + 3, 5 * teacher + 3)[0], theirs)
    assert ours.shape == theirs.shape == (2, 3, 8, 8)


def test_the_mappings_directions_are_orthonormal_and_always_the_same() -> None:
    directions = ChannelProjection().directions[:, :, 0, 0]
    torch.testing.assert_close(directions @ directions.t(), torch.eye(3))
    assert torch.equal(directions, ChannelProjection().directions[:, :, 0, 0])
    assert not torch.equal(directions, ChannelProjection(seed=1).directions[:, :, 0, 0])


def test_another_shape_than_the_teachers_is_refused(features) -> None:
    student, teacher = pair()
    with pytest.raises(ValueError, match=r"the teacher's shape \(2, 256, 8, 8\), got \(2, 256, 4, 8\)"):
        PerceptualLoss(features)(student[:, :, :4], target(teacher))
