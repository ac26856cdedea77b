# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from monai.transforms import FillHoles
from scipy import ndimage

from monai_kdsam.holes import fill_holes


@pytest.mark.parametrize("seed", range(8))
def test_holes_are_those_of_scipy_and_monai_and_a_clicked_one_stays(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 60, 2)
    noise = ndimage.gaussian_filter(rng.normal(size=(height, width)), rng.uniform(0, 2))
    mask = (noise > np.quantile(noise, 0.3)).astype(np.uint8)
    before, clicks = mask.copy(), rng.uniform(0, (width - 1, height - 1), (4, 2))
    filled = fill_holes(mask)
    assert filled.dtype == np.uint8
    assert np.array_equal(filled, ndimage.binary_fill_holes(mask))
    assert np.array_equal(filled, np.asarray(FillHoles(connectivity=1)(mask[None].copy()))[0])
    parts, _ = ndimage.label(mask == 0)
    clicked = parts[tuple(np.rint(clicks).astype(int).T[::-1])]
    assert np.array_equal(fill_holes(mask, clicks), filled & ~np.isin(parts, clicked[clicked > 0]))
    assert np.array_equal(mask, before)


def test_a_spiral_is_no_hole_and_an_empty_mask_has_none():
    rows = ("1111111", "1000001", "1011101", "1010101", "1010001", "1011111")
    spiral = np.array([[int(cell) for cell in row] for row in rows], np.uint8)
    assert np.array_equal(fill_holes(spiral), spiral)
    spiral[5, 1] = 1
    assert fill_holes(spiral).all()
    assert not fill_holes(np.zeros((3, 4), np.uint8), [[1, 1]]).any()
