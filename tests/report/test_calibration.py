# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest

from monai_kdsam.report.calibration import POOR_IOU, calibration

REAL = np.random.default_rng(0).uniform(0, 1, 500)


def test_a_model_that_knows():
    found = calibration(REAL, REAL)
    assert found["expected_error"] == pytest.approx(0, abs=1e-9)
    assert found["spearman"] == pytest.approx(1)
    assert found["auroc"] == 1
    assert found["poor"] == pytest.approx((REAL < POOR_IOU).mean())
    assert sum(masks for *_, masks in found["curve"]) == 500


def test_a_model_that_is_always_sure():
    found = calibration(np.full(500, 0.95), REAL)
    assert found["expected_error"] == pytest.approx(0.95 - REAL.mean())
    assert math.isnan(found["spearman"])
    assert found["auroc"] == 0.5


def test_a_model_that_has_it_backwards():
    found = calibration(1 - REAL, REAL)
    assert found["spearman"] == pytest.approx(-1)
    assert found["auroc"] == 0


def test_predictions_outside_of_what_an_iou_can_be_are_clipped():
    assert calibration([-0.2, 1.3], [0.0, 1.0])["curve"] == [[0, 0, 1], [1, 1, 1]]


def test_there_is_no_auroc_without_a_poor_mask():
    assert math.isnan(calibration([0.8, 0.9], [0.9, 0.95])["auroc"])
