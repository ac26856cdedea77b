# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy

import pytest
import torch

from monai_kdsam.networks import add_lora, build_student, build_teacher, load_weights, parameter_groups, save_weights

NETWORKS = {
    "teacher": lambda: build_teacher("vit_micro", image_size=64),
    "timm": lambda: build_student("timm/vit_tiny_patch16_224", neck="sam", image_size=64),
    "hybrid": lambda: build_student("timm/tiny_vit_5m_224", image_size=64),
}


def train(network, steps=2):
    optimizer = torch.optim.AdamW(parameter_groups(network, learning_rate=0.01), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        (network.train()(torch.randn(2, 3, 64, 64)) - 1).square().mean().backward()
        optimizer.step()
    return network.eval()


@pytest.mark.parametrize("kind", NETWORKS)
def test_attention_learns_by_its_rank_alone_and_is_saved_as_the_network_that_it_amounts_to(kind, tmp_path):
    torch.manual_seed(0)
    start = NETWORKS[kind]()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = start.eval()(image)
        network = add_lora(copy.deepcopy(start), 2)
        torch.testing.assert_close(network.eval()(image), expected)  # it begins as nothing
    train(network)
    save_weights(network, tmp_path / "model.pt")
    plain = load_weights(NETWORKS[kind](), tmp_path / "model.pt").eval()
    with torch.no_grad():
        torch.testing.assert_close(plain(image), network(image), atol=1e-5, rtol=1e-5)
        assert not torch.allclose(plain.encode(image), start.encode(image), atol=1e-3)
    before = start.image_encoder.state_dict()
    updates = {name: value - before[name] for name, value in plain.image_encoder.state_dict().items()}
    changed = {name for name, update in updates.items() if update.any()}
    assert changed == {name for name in before if name.endswith(("attn.qkv.weight", "attn.proj.weight"))} != set()
    for name in changed:
        assert torch.linalg.svdvals(updates[name])[2:].max() < 1e-5, "more than two directions"


def test_a_copy_learns_for_itself_as_the_moving_average_does():
    network = add_lora(build_teacher("vit_micro", image_size=64), 2)
    average = copy.deepcopy(network)
    assert average.state_dict().keys() == train(network).state_dict().keys()
    first = "image_encoder.blocks.0.attn.qkv.parametrizations.weight.0.up"
    assert network.state_dict()[first].any()
    assert not average.state_dict()[first].any()


def test_rank_0_is_the_network_as_it_was():
    network = build_teacher("vit_micro", image_size=64)
    names = network.state_dict().keys()
    assert add_lora(network, 0).state_dict().keys() == names
    assert all(parameter.requires_grad for parameter in network.image_encoder.parameters())


@pytest.mark.parametrize(
    ("network", "rank", "message"),
    [
        (build_teacher("vit_micro", image_size=64), 65, "`lora_rank` to be a whole number from 0 to 64, got 65"),
        (build_teacher("vit_micro", image_size=64), 1.5, "`lora_rank` to be a whole number from 0 to 64, got 1.5"),
        (build_teacher("vit_micro", image_size=64), -1, "`lora_rank` to be a whole number from 0 to 64, got -1"),
        (build_student("resnet18", image_size=64), 4, "attention .* for `lora_rank` 4, got ResNetEncoder without"),
        (build_teacher("vit_micro", image_size=64).freeze("image_encoder"), 4, "`frozen` without image_encoder"),
    ],
)
def test_what_cannot_be_adapted_so_is_told(network, rank, message):
    with pytest.raises(ValueError, match=message):
        add_lora(network, rank)


def test_the_phase_goes_on_and_its_teacher_has_sams_names(workspace):
    start = build_teacher("vit_micro", image_size=64)
    workspace.models.mkdir(exist_ok=True)
    torch.save(start.state_dict(), workspace.models / "sam.pth")
    settings = {"lora_rank": 1, "learning_rate": 0.01, "ema_decay": 0.5, "sam_checkpoint": workspace.models / "sam.pth"}
    workspace.run("adapt", **settings)
    workspace.run("adapt", **settings, resume=True, epochs=2)
    adapted = torch.load(workspace.models / "teacher.pt", weights_only=True)
    before = start.state_dict()
    assert adapted.keys() == before.keys()
    update = adapted["image_encoder.blocks.0.attn.qkv.weight"] - before["image_encoder.blocks.0.attn.qkv.weight"]
    assert torch.linalg.svdvals(update)[0] > 1e-4
    assert torch.linalg.svdvals(update)[1] < 1e-5
    assert torch.equal(adapted["image_encoder.neck.0.weight"], before["image_encoder.neck.0.weight"])
