# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from monai_kdsam.report.metrics import mask_scores, overlap_scores


def rectangle(top, left, bottom, right, shape=(40, 60)):
    mask = np.zeros(shape, bool)
    mask[top:bottom, left:right] = True
    return mask


SQUARE = rectangle(10, 10, 20, 20)


def edge_distances(a, b, spacing):
    """From each edge pixel of `a` to the nearest of `b`, every pair measured."""
    one, two = (np.argwhere(mask & ~ndimage.binary_erosion(mask)) * spacing for mask in (a, b))
    return np.linalg.norm(one[:, None] - two[None], axis=-1).min(axis=1)


def test_half_of_a_square_has_two_thirds_dice_and_half_iou():
    scores = overlap_scores(SQUARE & rectangle(10, 10, 20, 15), SQUARE)
    assert scores.dice == pytest.approx(2 / 3)
    assert scores.iou == pytest.approx(1 / 2)
    assert math.isnan(scores.hd95)


def test_a_perfect_mask():
    assert mask_scores(SQUARE, SQUARE, spacing=(1, 1), tolerance=1) == (1, 1, 0, 1)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 2.0)])
@pytest.mark.parametrize("mask", [rectangle(10, 13, 20, 23), rectangle(5, 12, 33, 16), rectangle(10, 10, 21, 20)])
def test_distances_are_those_of_every_pair_of_edge_pixels(mask, spacing):
    scores = mask_scores(mask, SQUARE, spacing=spacing, tolerance=2.0)
    there, back = edge_distances(mask, SQUARE, spacing), edge_distances(SQUARE, mask, spacing)
    assert scores.hd95 == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), abs=1e-4)


def disk(y, x, radius):
    rows, columns = np.indices((40, 60))
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


@pytest.mark.parametrize(
    ("mask", "reference", "tolerance", "spacing", "expected"),
    [
        (disk(20, 30, 10), disk(20.3, 31, 11), 1.0, (1, 1), 0.7330952442),
        (disk(20, 30, 10), disk(20.3, 31, 11), 0.5, (0.5, 0.5), 0.7330952442),
        (disk(20, 30, 10), disk(20, 33, 10), 1.0, (1, 1), 0.3886592401),
        (disk(20, 30, 10), disk(22, 33, 8), 1.0, (1, 0.5), 0.4772431233),
        (disk(0, 30, 10), disk(0, 31, 11), 1.0, (1, 1), 0.8523325711),
    ],
)
def test_surface_dice_is_that_of_its_authors(mask, reference, tolerance, spacing, expected):
    """Expected: DeepMind's surface_distance 0.1, compute_surface_dice_at_tolerance."""
    scores = mask_scores(mask, reference, spacing=spacing, tolerance=tolerance)
    assert scores.surface_dice == pytest.approx(expected, abs=1e-6)


def test_a_square_moved_by_three_pixels_is_three_pixels_off():
    assert mask_scores(rectangle(10, 13, 20, 23), SQUARE, spacing=(1, 1), tolerance=3).hd95 == 3
    assert mask_scores(rectangle(10, 13, 20, 23), SQUARE, spacing=(1, 1), tolerance=3).surface_dice == 1
    assert mask_scores(rectangle(10, 13, 20, 23), SQUARE, spacing=(1, 0.1), tolerance=1).hd95 == pytest.approx(0.3)


def test_an_empty_mask_is_as_far_off_as_can_be():
    scores = mask_scores(np.zeros((40, 60), bool), SQUARE, spacing=(0.5, 0.5), tolerance=1)
    assert scores == (0, 0, pytest.approx(math.hypot(20, 30)), 0)
