# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest

from monai_kdsam.data.layouts import read_hc18, read_head_circumferences
from monai_kdsam.report.head_circumference import ellipse_circumference, head_circumference
from monai_kdsam.report.items import load_reference


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
