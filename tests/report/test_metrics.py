# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from monai_kdsam.data.layouts import read_hc18, read_head_circumferences
from monai_kdsam.report.items import load_reference
from monai_kdsam.report.metrics import (
    POOR_IOU,
    calibration,
    ellipse_circumference,
    head_circumference,
    mask_scores,
    overlap_scores,
)


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


def ellipse(a, b, angle, shape=(300, 400), center=(150.3, 190.6)):
    y, x = np.indices(shape)
    dy, dx = y - center[0], x - center[1]
    across = dx * math.cos(angle) + dy * math.sin(angle)
    down = dy * math.cos(angle) - dx * math.sin(angle)
    return (across / a) ** 2 + (down / b) ** 2 <= 1


def ramanujan(a, b):
    """His second approximation (1914), which is exact to 1e-9 for such ellipses."""
    h = ((a - b) / (a + b)) ** 2
    return math.pi * (a + b) * (1 + 3 * h / (10 + math.sqrt(4 - 3 * h)))


@pytest.mark.parametrize(("a", "b"), [(1, 1), (120, 95), (95, 120), (100, 50)])
def test_the_circumference_is_ramanujans(a, b):
    assert ellipse_circumference(a, b) == pytest.approx(ramanujan(a, b), rel=1e-7)


@pytest.mark.parametrize("angle", [0, 0.4, 1.3])
def test_a_drawn_ellipse_has_its_analytic_circumference(angle):
    mask = ellipse(120, 90, angle)
    assert head_circumference(mask, (0.15, 0.15)) == pytest.approx(0.15 * ramanujan(120, 90), rel=2e-3)


def test_pixels_need_not_be_square():
    mask = ellipse(120, 45, 0)
    assert head_circumference(mask, (0.3, 0.15)) == pytest.approx(ramanujan(18, 13.5), rel=3e-3)


def test_no_head_has_no_circumference():
    assert math.isnan(head_circumference(np.zeros((8, 8), bool), (1, 1)))


def test_real_masks_have_nearly_the_official_circumference(real_data):
    """The reference's outline is some pixels wide and filled with its rim: about one pixel of radius too much."""
    official = read_head_circumferences(real_data / "HC18")
    for item in read_hc18(real_data / "HC18")[:6]:
        spacing = tuple(item["spacing"])
        expected = official[item["image"].rpartition("/")[2]]
        rim = 2 * math.pi * 2 * spacing[0]
        assert expected - rim / 4 < head_circumference(load_reference(item), spacing) < expected + rim
