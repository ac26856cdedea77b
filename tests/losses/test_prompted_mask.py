# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from monai.losses import DiceLoss

from monai_kdsam.losses import PromptedMaskLoss, WeightedSumLoss

TERMS = {"dice": DiceLoss(sigmoid=True), "bce": torch.nn.BCEWithLogitsLoss()}


def answer(**changes):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 8, 8, generator=generator)
    return {"logits": logits, "reference": (torch.rand(2, 3, 8, 8, generator=generator) > 0.5).float()} | changes


def test_it_is_the_weighted_sum_on_what_was_asked_for():
    pred = answer()
    expected = WeightedSumLoss(TERMS, {"bce": 0.5})(pred["logits"], pred["reference"])
    assert torch.equal(PromptedMaskLoss(TERMS, {"bce": 0.5})(pred, None), expected)


def test_the_iou_head_is_judged_by_its_squared_error_and_reported():
    expected, real = torch.full((2, 3, 1), 0.5), torch.full((2, 3, 1), 0.9)
    pred = answer(iou=expected, real_iou=real)
    plain = PromptedMaskLoss(TERMS)(pred, None)
    loss = PromptedMaskLoss(TERMS, iou_weight=2.0)
    assert loss(pred, None).item() == pytest.approx(plain.item() + 2 * 0.16)
    assert loss.values["iou"].item() == pytest.approx(0.16)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_padding_is_no_part_of_any_term(reduction):
    """As if the picture had been cut to what is no padding."""
    terms = {"dice": DiceLoss(sigmoid=True), "bce": torch.nn.BCEWithLogitsLoss(reduction=reduction)}
    pred, valid = answer(), torch.zeros(2, 1, 8, 8)
    valid[..., :6, :5] = 1
    reference = pred["reference"] * valid
    loss = PromptedMaskLoss(terms)
    loss({"logits": pred["logits"].masked_fill(valid == 0, 3.0), "reference": reference, "valid": valid}, None)
    cut = {name: pred[name][..., :6, :5] for name in ("logits", "reference")}
    assert loss.values["dice"].item() == pytest.approx(terms["dice"](cut["logits"], cut["reference"]).item(), abs=1e-6)
    inside = torch.nn.functional.binary_cross_entropy_with_logits(cut["logits"], cut["reference"])
    expected = inside if reduction == "none" else inside * 30 / 64
    assert loss.values["bce"].item() == pytest.approx(expected.item(), abs=1e-6)


def test_a_map_is_averaged_image_by_image():
    pred, valid = answer(), torch.ones(2, 1, 8, 8)
    valid[0, :, 4:] = 0
    loss = PromptedMaskLoss({"bce": torch.nn.BCEWithLogitsLoss(reduction="none")})
    value = loss(pred | {"reference": pred["reference"] * valid, "valid": valid}, None)
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    halves = [bce(pred["logits"][0, :, :4], pred["reference"][0, :, :4]), bce(pred["logits"][1], pred["reference"][1])]
    assert value.item() == pytest.approx(sum(halves).item() / 2, abs=1e-6)
