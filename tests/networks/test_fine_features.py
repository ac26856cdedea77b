# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from monai_kdsam.losses import EmbeddingMSELoss
from monai_kdsam.networks import build_student, load_weights
from monai_kdsam.networks.decoder_algebra import arrange, pack

BACKBONES = ["resnet18", "timm/tf_efficientnet_lite0"]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_they_begin_as_nothing_also_in_a_student_that_was_trained_without(backbone, tmp_path):
    plain = build_student(backbone, image_size=64).eval()
    torch.save(plain.state_dict(), tmp_path / "model.pt")
    fine = load_weights(build_student(backbone, image_size=64, fine_features=True), tmp_path / "model.pt").eval()
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert fine.encode(image).shape == (2, 256 + 768, 4, 4)
        torch.testing.assert_close(fine(image), plain(image))


@torch.no_grad()
def test_they_are_added_within_the_upscaling_as_plain_convolutions_would():
    """The oracle: SAM's layers one after the other on maps, the features added between them.

    Two images with two prompts each: what is an image's own goes to its prompts.
    """
    torch.manual_seed(0)
    network = build_student("resnet18", image_size=64, fine_features=True).eval()
    for parameter in network.image_encoder.fine.parameters():
        torch.nn.init.normal_(parameter)
    encoder, decoder = network.image_encoder, network.mask_decoder
    image = torch.randn(2, 3, 64, 64)
    quarter = encoder.layer1(encoder.stem(image))
    fine = encoder.fine.quarter(quarter), encoder.fine.eighth(encoder.layer2(quarter))
    seen = {}
    decoder.transformer.register_forward_hook(lambda _, __, output: seen.update(tokens=output[0], image=output[1]))
    fine = [features.repeat_interleave(2, dim=0) for features in fine]
    masks, _ = network.decode(network.encode(image), torch.rand(4, 1, 2) * 64, torch.ones(4, 1))
    first, norm, activate, second, activate_again = decoder.output_upscaling
    x = first(seen["image"].mT.unflatten(2, (4, 4))) + fine[1]
    x = activate_again(second(activate(norm(x))) + fine[0])
    weights = decoder.output_hypernetworks_mlps[0](seen["tokens"][:, 1])
    torch.testing.assert_close(masks, torch.einsum("bc,bchw->bhw", weights, x)[:, None], atol=1e-4, rtol=1e-4)
    assert network.encode(image)[:, 256:].abs().max() > 0.1


def test_packing_is_the_order_that_masks_are_arranged_from():
    maps = torch.rand(2, 3, 16, 8)
    packed = pack(maps, 2)
    assert packed.shape == (2, 48, 4, 2)
    pixels = packed.flatten(2).mT.unflatten(2, (16, 3)).flatten(1, 2)  # (B, 8 tokens * 16 pixels, 3)
    assert torch.equal(arrange(pixels.mT, 4, 2), maps)


def test_distillation_compares_what_the_teacher_has():
    student, teacher = torch.rand(1, 1024, 4, 4), torch.rand(1, 256, 4, 4)
    target = {"embedding": teacher, "valid": torch.ones(1, 1, 64, 64)}
    assert EmbeddingMSELoss()(student, target).item() == pytest.approx(F.mse_loss(student[:, :256], teacher).item())


def test_a_trunk_without_fine_stages_is_refused():
    with pytest.raises(ValueError, match="no stage of stride 4, which `fine_features` need; its strides: 16"):
        build_student("timm/vit_tiny_patch16_224", neck="sam", image_size=64, fine_features=True)
