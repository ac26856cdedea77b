# SPDX-License-Identifier: Apache-2.0
"""MONAI's own transform is the oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.transforms import Resize

from monai_kdsam.runtime.resampling import resampling_matrix, resize

SIZES = [((53, 62), (110, 128)), ((48, 64), (150, 200)), ((192, 256), (767, 1022)), ((1, 128), (5, 400))]


@pytest.mark.parametrize(("before", "after"), [*SIZES, *((after, before) for before, after in SIZES)])
def test_masks_come_back_as_from_the_bundle(before, after):
    logits = torch.randn(1, *before)
    expected = Resize(after, mode="bilinear")(logits).numpy()
    matrices = (resampling_matrix(*lengths) for lengths in zip(before, after, strict=True))
    assert np.allclose(resize(logits.numpy(), *matrices), expected, atol=1e-3)


@pytest.mark.parametrize(("before", "after"), [(5, 9), (9, 5), (300, 20)])
def test_a_constant_stays_one(before, after):
    assert np.allclose(resampling_matrix(before, after).sum(axis=1), 1)
