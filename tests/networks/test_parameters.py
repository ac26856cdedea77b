# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch

from monai_kdsam.networks import build_student, frozen_parts, parameter_groups


def step(network, *, iou_weight):
    """One step of AdamW, whose decay is large enough to be seen."""
    groups = parameter_groups(network, learning_rate=0.1)
    optimizer = torch.optim.AdamW(groups, lr=0.1, weight_decay=0.5)
    points, labels = torch.rand(2, 1, 2) * 64, torch.ones(2, 1)
    logits, iou, _ = network.predict_all(network.encode(torch.randn(2, 3, 64, 64)), points, labels)
    (logits.mean() + iou_weight * iou.mean()).backward()
    optimizer.step()


def test_what_no_loss_reaches_keeps_its_weights():
    torch.manual_seed(0)
    network = build_student("resnet18", image_size=64).freeze("prompt_encoder", "iou_head")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    step(network, iou_weight=0)
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    reached = {"image_encoder", "mask_decoder.transformer", "mask_decoder.output_upscaling"}
    reached |= {"mask_decoder.output_hypernetworks_mlps.0", "mask_decoder.iou_token", "mask_decoder.mask_tokens"}
    assert {name for name in changed if not name.startswith(tuple(reached))} == set()
    assert all(any(name.startswith(part) for name in changed) for part in reached)


def test_rows_of_the_iou_head_for_masks_that_are_not_trained_stay():
    network = build_student("resnet18", image_size=64)
    last = network.mask_decoder.iou_prediction_head.layers[-1]
    before = last.weight.clone()
    step(network, iou_weight=1)
    assert not torch.equal(last.weight[0], before[0])
    assert torch.equal(last.weight[1:], before[1:])


def test_the_trunk_has_its_own_rate_and_norms_do_not_decay():
    network = build_student("resnet18", image_size=64, fine_features=True).freeze("prompt_encoder")
    groups = parameter_groups(network, learning_rate=1.0, trunk_rate=0.5)
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    decays = {id(p): "weight_decay" not in group for group in groups for p in group["params"]}
    encoder = network.image_encoder
    assert rate[id(encoder.stem[0].weight)] == 0.5
    assert rate[id(encoder.neck.project.weight)] == rate[id(encoder.fine.quarter.weight)] == 1.0
    assert decays[id(encoder.stem[0].weight)]
    assert not decays[id(encoder.stem[1].weight)]
    assert len(rate) == sum(p.requires_grad for p in network.parameters())


def test_what_a_training_on_masks_leaves_as_it_is():
    assert frozen_parts(False, False, 0.0) == ["prompt_encoder", "image_encoder", "iou_head"]
    assert frozen_parts(True, False, 1.0) == ["image_encoder"]
    assert frozen_parts(False, True, 0.5) == ["prompt_encoder"]
