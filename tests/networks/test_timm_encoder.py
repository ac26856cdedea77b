# SPDX-License-Identifier: Apache-2.0
"""The oracles are timm's own classifiers, and torchvision's ResNet with the same weights."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from monai_kdsam.networks import build_student
from monai_kdsam.networks.timm_encoder import fused

STUDENTS = ["repvit_m1", "tiny_vit_5m_224", "mobilenetv4_conv_small", "hgnetv2_b0", "mobileone_s0"]
STUDENTS += ["resnet18", "levit_128s"]


def student(name, **settings):
    torch.manual_seed(0)
    return build_student(f"timm/{name}", **{"image_size": 64, "neck": "sam"} | settings)


def spread(network):
    """Give batch norms statistics and scales that matter: fresh ones do nothing, and some scales are zero."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
    return network.eval()


@pytest.mark.parametrize("name", [*STUDENTS, "swin_tiny_patch4_window7_224"])
@pytest.mark.parametrize("neck", ["fpn", "sam", "deconv"])
def test_every_student_ends_in_sams_embedding(name, neck):
    network = student(name, neck=neck).eval()
    with torch.no_grad():
        assert network.encode(torch.zeros(1, 3, 64, 64)).shape == (1, 256, 4, 4)


@pytest.mark.parametrize("size", [64, 96, 224, 512])
def test_windows_fit_every_size_of_input(size):
    with torch.no_grad():
        embedding = student("tiny_vit_5m_224", image_size=size).eval().encode(torch.zeros(1, 3, size, size))
    assert embedding.shape == (1, 256, size // 16, size // 16)


@pytest.mark.parametrize("name", ["repvit_m1", "tiny_vit_5m_224", "mobilenetv4_conv_small", "resnet18"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_last_stage_is_the_one_of_the_classifier_whose_file_was_loaded(tmp_path, name, suffix):
    whole, file = spread(timm.create_model(name, num_classes=7)), tmp_path / f"weights{suffix}"
    save_file(whole.state_dict(), file) if suffix == ".safetensors" else torch.save(whole.state_dict(), file)
    encoder = student(name, imagenet_weights=file).eval().image_encoder
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(encoder.trunk(image)[-1], whole.forward_features(image))


def test_timms_resnet_is_torchvisions(tmp_path):
    whole = spread(timm.create_model("resnet18"))
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    one, other = (
        build_student(name, image_size=64, imagenet_weights=tmp_path / "weights.pth").eval()
        for name in ("resnet18", "timm/resnet18")
    )
    other.image_encoder.neck.load_state_dict(one.image_encoder.neck.state_dict())
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(other.encode(image), one.encode(image))


def test_a_plain_vit_has_stride_16_alone_and_its_positions_fit_the_size_of_the_input(tmp_path):
    whole = timm.create_model("vit_tiny_patch16_224")
    nn.init.constant_(whole.pos_embed, 2.0)
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    network = student("vit_tiny_patch16_224", image_size=128, imagenet_weights=tmp_path / "weights.pth").eval()
    table = network.image_encoder.trunk.model.pos_embed
    assert table.shape[1] in (64, 65)
    torch.testing.assert_close(table, torch.full_like(table, 2.0))
    with torch.no_grad():
        assert network.encode(torch.zeros(1, 3, 128, 128)).shape == (1, 256, 8, 8)


@pytest.mark.parametrize(
    ("file_of", "text"),
    [
        ("resnet34", r"do not fit timm's resnet18: 96 unexpected \(layer1\.2\.conv1\.weight"),
        ("resnet10t", r"do not fit timm's resnet18: \d+ missing"),
        ("repvit_m1", r"do not fit timm's resnet18: \d+ missing"),
    ],
)
def test_weights_of_another_model_are_refused_by_what_does_not_fit(tmp_path, file_of, text):
    torch.save(timm.create_model(file_of).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=text):
        student("resnet18", imagenet_weights=tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("repvit_m11", r"has no model 'repvit_m11'\. Did you mean timm/repvit_m1"),
        ("nothing_like_it", r"has no model 'nothing_like_it'\.$"),
        ("resnet18.no_such_tag", "resnet18.no_such_tag cannot be built for 64 pixels: Invalid pretrained tag"),
        ("efficientformer_l1", "efficientformer_l1 cannot be built for 64 pixels: .*dimension"),  # of 224 alone
        ("vit_small_patch14_dinov2", "has no stage of stride 16, which the embedding needs; its strides: 14"),
    ],
)
def test_a_model_that_cannot_be_a_student_is_refused(name, text):
    with pytest.raises(ValueError, match=text):
        student(name)


@pytest.mark.parametrize("neck", ["fpn", "deconv"])
def test_a_neck_that_doubles_needs_stride_32(neck):
    with pytest.raises(ValueError, match=f"no stage of stride 32 for the neck {neck} to double: choose the neck sam"):
        student("vit_tiny_patch16_224", neck=neck)


@pytest.mark.parametrize("name", ["repvit_m1", "mobilenetv4_conv_small", "tiny_vit_5m_224"])
def test_a_frozen_encoder_keeps_its_batch_norm_and_gets_no_gradient(name):
    network = student(name).freeze("image_encoder", "prompt_encoder").train()
    before = {key: value.clone() for key, value in network.image_encoder.state_dict().items()}
    network(torch.rand(2, 3, 64, 64)).mean().backward()
    assert all(torch.equal(value, before[key]) for key, value in network.image_encoder.state_dict().items())
    assert all(parameter.grad is None for parameter in network.image_encoder.parameters())


@pytest.mark.parametrize("name", STUDENTS)
def test_every_parameter_learns(name):
    """None is left without a gradient, which would stop a training of several processes."""
    network = student(name, neck="fpn").train()
    network.encode(torch.rand(2, 3, 64, 64)).square().mean().backward()
    assert [key for key, value in network.image_encoder.named_parameters() if value.grad is None] == []


@pytest.mark.parametrize(("name", "branches"), [("repvit_m1", True), ("mobileone_s0", True), ("resnet18", False)])
def test_parallel_branches_are_fused_into_one_that_computes_the_same(name, branches):
    encoder = spread(student(name)).image_encoder
    single, image = fused(encoder), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(single(image), encoder(image), atol=1e-4, rtol=1e-4)
    count, fewer = (sum(1 for _ in network.modules()) for network in (encoder, single))
    assert (fewer < count) == branches


def test_scripted_network_equals_eager():
    network = spread(student("tiny_vit_5m_224"))
    image = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(network)(image), network(image), atol=1e-4, rtol=1e-4)
