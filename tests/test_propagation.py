# SPDX-License-Identifier: Apache-2.0
"""On an ellipsoid, with a segmenter that finds what the box and the clicks of a prompt allow it to find."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from monai_kdsam.propagation import has_ended, prompt_from_mask, propagate

DEPTH, CENTER = 40, 20
REACH = {"carry": partial(prompt_from_mask, margin=0.1), "min_overlap": 0.5}


def ellipsoid(center=(CENTER, CENTER, CENTER), radii=(9, 7, 12)) -> np.ndarray:
    grid = np.indices((DEPTH,) * 3)
    return sum(((axis - c) / r) ** 2 for axis, c, r in zip(grid, center, radii, strict=True)) <= 1


class Finder:
    """Segments a slice of a known volume inside the prompt's box, and counts its calls."""

    def __init__(self, truth: np.ndarray) -> None:
        self.truth = truth
        self.asked: list[int] = []

    def __call__(self, number, prompt, *, carried=False):
        self.asked.append(number)
        points, labels = prompt
        found = self.truth[..., number].copy()
        if (labels == 2).any():
            (left, top), (right, bottom) = points[labels == 2][0], points[labels == 3][0]
            rows, columns = np.indices(found.shape)
            found &= (rows >= top) & (rows <= bottom) & (columns >= left) & (columns <= right)
        for x, y in points[labels == 0].round().astype(int):
            found[:, : x + 1] = False
            assert self.truth.shape[0] > y
        return np.where(found, 3.0, -3.0).astype(np.float32)


def click(*xy) -> tuple[np.ndarray, np.ndarray]:
    return np.array([xy], dtype=np.float32), np.array([1])


def stacked(masks: dict[int, np.ndarray], shape) -> np.ndarray:
    volume = np.zeros(shape, bool)
    for number, mask in masks.items():
        volume[..., number] = mask
    return volume


def test_one_click_finds_the_whole_structure_and_ends_with_it():
    truth = ellipsoid()
    find = Finder(truth)
    found = stacked(propagate(range(DEPTH), {CENTER: click(CENTER, CENTER)}, find, **REACH), truth.shape)
    present = np.flatnonzero(truth.any(axis=(0, 1)))
    # The poles are a single voxel, of less than half the area of their neighbors.
    np.testing.assert_array_equal(found[..., present[1:-1]], truth[..., present[1:-1]])
    assert not found[..., : present[0]].any()
    assert not found[..., present[-1] + 1 :].any()
    assert len(find.asked) == len(set(find.asked)) <= len(present)


def test_a_structure_that_leans_is_followed():
    truth = np.stack([np.roll(ellipsoid(radii=(8, 8, 99))[..., 0], k, axis=1) for k in range(12)], axis=-1)
    found = propagate(range(12), {0: click(CENTER, CENTER)}, Finder(truth), **REACH)
    assert sorted(found) == list(range(12))
    overlaps = [(found[k] & truth[..., k]).sum() / truth[..., k].sum() for k in range(12)]
    assert min(overlaps) > 0.9


def test_a_sudden_change_of_area_ends_it():
    truth = ellipsoid(radii=(6, 6, 99))
    truth[..., 25:] = True

    def leak(number, prompt, *, carried=False):
        return np.where(truth[..., number], 1.0, -1.0)

    assert sorted(propagate(range(DEPTH), {CENTER: click(CENTER, CENTER)}, leak, **REACH)) == list(range(25))


def test_a_prompted_slice_keeps_its_own_mask():
    truth = ellipsoid()
    prompts = {k: click(CENTER, CENTER) for k in (14, CENTER, 27)}
    found = propagate(range(DEPTH), prompts, Finder(truth), **REACH)
    for number in prompts:
        np.testing.assert_array_equal(found[number], truth[..., number])


def test_between_two_clicks_the_nearer_one_weighs_more():
    lower, upper = np.zeros((DEPTH, DEPTH), bool), np.zeros((DEPTH, DEPTH), bool)
    lower[10:20, 10:20], upper[10:20, 10:22] = True, True

    def echo(number, prompt, *, carried=False):
        """The lower mask for prompts that come from below, the upper for those from above."""
        points, labels = prompt
        from_above = number == 9 or points[labels == 3][:, :1].max(initial=0) > 21
        return np.where(upper if from_above else lower, 1.0, -1.0)

    found = propagate(range(DEPTH), {4: click(12, 12), 9: click(12, 12)}, echo, **REACH)
    for number in (5, 6):
        np.testing.assert_array_equal(found[number], lower)
    for number in (7, 8):
        np.testing.assert_array_equal(found[number], upper)


def test_what_one_side_does_not_reach_is_left_to_the_other():
    truth = ellipsoid(radii=(6, 6, 99))
    truth[..., 22:25] = False
    found = propagate(range(DEPTH), {10: click(CENTER, CENTER), 30: click(CENTER, CENTER)}, Finder(truth), **REACH)
    assert sorted(found) == [*range(22), *range(25, DEPTH)]


def test_a_background_click_corrects_its_slice_beside_the_prompt_that_reaches_it():
    truth = ellipsoid()
    background = (np.array([[15.0, 20.0]], dtype=np.float32), np.array([0]))
    found = propagate(range(DEPTH), {CENTER: click(CENTER, CENTER), 22: background}, Finder(truth), **REACH)
    assert found[22].any()
    assert not found[22][:, :16].any()
    assert propagate(range(DEPTH), {22: background}, Finder(truth), **REACH) == {}


def test_slices_out_of_bounds_are_not_touched():
    found = propagate(range(18, 24), {CENTER: click(CENTER, CENTER)}, Finder(ellipsoid()), **REACH)
    assert sorted(found) == list(range(18, 24))
    prompts = {CENTER: click(CENTER, CENTER), 15: click(CENTER, CENTER)}
    beyond = propagate(range(18, 24), prompts, Finder(ellipsoid()), **REACH)
    assert sorted(beyond) == [15, *range(18, 24)]


def test_a_prompt_without_a_mask_goes_nowhere():
    find = Finder(np.zeros((DEPTH,) * 3, bool))
    assert list(propagate(range(DEPTH), {3: click(5, 5)}, find, **REACH)) == [3]
    assert find.asked == [3]


def test_the_prompt_of_a_mask_holds_its_largest_part():
    mask = np.zeros((30, 40), bool)
    mask[5:15, 20:35], mask[25, 2] = True, True
    points, labels = prompt_from_mask(mask, margin=0.2)
    assert labels.tolist() == [2, 3]
    assert points.tolist() == [[17, 2], [37, 17]]


@pytest.mark.parametrize("corner", [(0, 0), (29, 39)])
def test_the_prompts_box_stays_in_the_slice(corner):
    mask = np.zeros((30, 40), bool)
    mask[corner] = True
    points, _ = prompt_from_mask(mask, margin=0.5)
    assert (points >= 0).all()
    assert (points <= (39, 29)).all()


@pytest.mark.parametrize(("width", "ended"), [(10, False), (6, False), (4, True), (0, True), (19, False), (30, True)])
def test_an_end_is_a_loss_of_overlap(width, ended):
    previous, current = np.zeros((2, 40, 40), bool)
    previous[:, :10], current[:, :width] = True, True
    assert has_ended(previous, current, 0.5) == ended
