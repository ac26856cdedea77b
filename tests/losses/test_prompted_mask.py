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
