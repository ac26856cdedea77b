# SPDX-License-Identifier: Apache-2.0
"""MONAI's own transforms are the oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.transforms import Resize

from monai_kdsam.runtime.resampling import fit_longest, resampling_matrix, resize

SIZES = [(53, 62, 128), (200, 150, 64), (767, 1022, 256), (64, 64, 64), (5, 400, 128), (300, 7, 96), (97, 33, 100)]


def apply(image, target, smooth):
    lengths = zip(image.shape[1:], target, strict=True)
    return resize(image, *(resampling_matrix(before, after, smooth=smooth) for before, after in lengths))


@pytest.mark.parametrize(("height", "width", "longest"), SIZES)
def test_it_is_the_resizing_of_the_bundle_and_its_inverse(height, width, longest):
    image = np.random.default_rng(0).integers(0, 256, (3, height, width)).astype(np.float32)
    transform = Resize(longest, size_mode="longest", mode="bilinear", anti_aliasing=True)
    expected = transform(torch.from_numpy(image))
    ours = apply(image, fit_longest(height, width, longest), smooth=True)
    assert ours.shape == expected.shape
    assert np.abs(ours - expected.numpy()).max() < 0.02  # of 255: float32 positions in one, float64 in the other

    logits = torch.randn(1, *ours.shape[1:])
    back = Resize((height, width), mode="bilinear")(logits).numpy()
    assert np.allclose(apply(logits.numpy(), (height, width), smooth=False), back, atol=1e-3)


@pytest.mark.parametrize(("before", "after"), [(5, 9), (9, 5), (300, 20)])
def test_a_constant_stays_one_away_from_the_border(before, after):
    sums = resampling_matrix(before, after, smooth=True).sum(axis=1)
    assert (sums <= 1 + 1e-6).all()
    assert sums[len(sums) // 2] == pytest.approx(1, abs=1e-3)
    assert np.allclose(resampling_matrix(before, after, smooth=False).sum(axis=1), 1)
