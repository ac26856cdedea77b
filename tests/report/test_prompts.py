# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from monai_kdsam.data.phantoms import make_phantom
from monai_kdsam.mask_prompts import box_from_mask, center_click
from monai_kdsam.report.prompts import PROMPT_TITLES, named_prompts

MASKS = [make_phantom("polyp", size=200, seed=seed)[1] for seed in range(40)]


def offsets(mask, name, seed=0):
    """Pixels outward of left, top, right, bottom, over the sides of the box."""
    exact, moved = box_from_mask(mask), named_prompts(mask, seed)[name].points
    outward = np.concatenate([exact[0] - moved[0], moved[1] - exact[1]])
    return outward, np.tile(exact[1] - exact[0] + 1, 2)


def test_every_kind_is_there_and_means_what_its_name_says():
    for mask in MASKS[:5]:
        prompts = named_prompts(mask)
        assert set(prompts) == set(PROMPT_TITLES)
        assert np.array_equal(prompts["box"].points, box_from_mask(mask))
        assert np.array_equal(prompts["center_click"].points, center_click(mask))
        x, y = prompts["random_click"].points[0].astype(int)
        assert mask[y, x]
        assert len(prompts["automatic"].labels) == 0
        assert all(prompts[name].labels.tolist() == [2, 3] for name in prompts if name.startswith("box"))


def test_the_same_mask_gives_the_same_prompts_and_another_seed_others():
    first, again, other = named_prompts(MASKS[0]), named_prompts(MASKS[0].copy()), named_prompts(MASKS[0], seed=1)
    for name in ("box_20px", "box_10pct", "box_20pct"):
        assert np.array_equal(first[name].points, again[name].points)
        assert not np.array_equal(first[name].points, other[name].points)


def test_twenty_pixels_are_twenty_of_1024_and_outward():
    moved = np.stack([offsets(mask, "box_20px")[0] / max(mask.shape) * 1024 for mask in MASKS])
    assert moved.min() >= -1e-3
    assert moved.max() <= 20 + 1e-3
    assert moved.max() > 15


@pytest.mark.parametrize(("name", "share"), [("box_10pct", 0.1), ("box_20pct", 0.2)])
def test_jitter_is_a_share_of_the_boxs_side_both_ways(name, share):
    moved = np.stack([np.divide(*offsets(mask, name)) for mask in MASKS])
    assert abs(moved).max() <= share + 1e-3
    assert moved.max() > 0.7 * share
    assert moved.min() < -0.7 * share


def test_nothing_to_find_has_only_the_automatic_prompt():
    assert set(named_prompts(np.zeros((20, 30), bool))) == {"automatic"}
