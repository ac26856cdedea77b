# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from numpy.random import RandomState
from scipy import ndimage

from monai_kdsam.transforms import box_from_mask, center_click, clicks_from_mask, jitter_box, simulate_prompts
from monai_kdsam.transforms.host_prompts import points_from_request
from monai_kdsam.transforms.simulated_prompts import PROMPT_KINDS, background_around, one_component

SHAPE = (40, 60)


def disk(x: float, y: float, radius: float, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    rows, columns = np.indices(shape)
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


FULL = np.ones(SHAPE, dtype=bool)
EMPTY = np.zeros(SHAPE, dtype=bool)
DISK = disk(30, 20, 9)
RING = disk(30, 20, 15) & ~disk(30, 20, 12)
CRESCENT = disk(30, 20, 16) & ~disk(38, 20, 16)
TWO = disk(12, 20, 6) | disk(45, 20, 9)
SHAPES = pytest.mark.parametrize(
    "mask", [DISK, RING, CRESCENT, TWO, FULL], ids=["disk", "ring", "crescent", "two", "full"]
)


def inside(points: np.ndarray, mask: np.ndarray) -> bool:
    columns, rows = points.astype(int).T
    return bool(mask[rows, columns].all())


def prompt(mask: np.ndarray, kind: str, seed: int = 0, **settings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One prompt without its padding, and its target."""
    points, labels, targets = simulate_prompts(mask, [kind], rng=RandomState(seed), **settings)
    assert (points[labels == -1] == 0).all()
    return points[0][labels[0] >= 0], labels[0][labels[0] >= 0], targets[0]


# --- boxes


def test_the_box_of_a_full_mask_is_the_image() -> None:
    assert box_from_mask(FULL).tolist() == [[0, 0], [59, 39]]


@pytest.mark.parametrize(
    ("rows", "columns", "box"),
    [
        (slice(7, 8), slice(31, 32), [[30.5, 6.5], [31.5, 7.5]]),
        (slice(7, 8), slice(20, 32), [[20, 6.5], [31, 7.5]]),
        (slice(0, 1), slice(59, 60), [[58.5, 0], [59, 0.5]]),
    ],
)
def test_the_box_of_one_pixel_is_that_pixel_and_has_an_area_so_that_hosts_take_it(rows, columns, box) -> None:
    mask = EMPTY.copy()
    mask[rows, columns] = True
    assert box_from_mask(mask).tolist() == box
    points, _ = points_from_request({"roi": np.ravel(box).tolist()}, (60, 40))
    assert points.tolist() == box


@SHAPES
def test_a_box_holds_the_whole_mask_and_each_of_its_edges_touches_it(mask) -> None:
    (left, top), (right, bottom) = np.ceil(box_from_mask(mask)).astype(int)
    assert mask[top : bottom + 1, left : right + 1].sum() == mask.sum()
    assert mask[top].any()
    assert mask[bottom].any()
    assert mask[:, left].any()
    assert mask[:, right].any()


def test_an_empty_mask_has_no_box() -> None:
    with pytest.raises(ValueError, match="Expected a `mask` with foreground, got an empty one"):
        box_from_mask(EMPTY)


def test_each_offset_moves_its_own_edge_outward() -> None:
    box = np.array([[20, 10], [40, 30]], dtype=np.float32)
    assert jitter_box(box, (1, 2, 3, 4), SHAPE).tolist() == [[19, 8], [43, 34]]
    assert jitter_box(box, (0, 0, 0, 0), SHAPE).tolist() == box.tolist()


def test_a_box_moved_outward_contains_the_exact_one_and_stays_in_the_image() -> None:
    rng, exact = RandomState(0), box_from_mask(DISK)
    for _ in range(200):
        low, high = jitter_box(exact, rng.uniform(0, 30, size=4), SHAPE)
        assert (low >= 0).all()
        assert (low <= exact[0]).all()
        assert (high >= exact[1]).all()
        assert (high <= (59, 39)).all()


def test_a_box_moved_inward_never_turns_inside_out() -> None:
    rng, exact = RandomState(0), box_from_mask(DISK)
    for _ in range(200):
        low, high = jitter_box(exact, -rng.uniform(0, 30, size=4), SHAPE)
        assert (low <= high).all()
        assert (low >= exact[0]).all()
        assert (high <= exact[1]).all()


def test_edges_that_would_pass_each_other_meet_in_the_middle() -> None:
    box = np.array([[20, 10], [40, 30]], dtype=np.float32)
    assert jitter_box(box, (-99, -99, -99, -99), SHAPE).tolist() == [[29.5, 19.5], [30.5, 20.5]]


def test_jitter_covers_its_range_evenly_on_every_edge() -> None:
    shape = (1000, 500)  # so large that nothing is cut off; fractions are of the longer side
    mask = disk(250, 500, 50, shape)
    exact, rng = box_from_mask(mask), RandomState(0)
    draws = []
    for _ in range(500):
        points, _, _ = simulate_prompts(mask, ["box"], rng=rng, box_jitter=(-0.02, 0.04))
        draws.append(np.concatenate([exact[0] - points[0, 0], points[0, 1] - exact[1]]))
    outward = np.array(draws)
    assert outward.min() >= -20
    assert outward.max() <= 40
    np.testing.assert_allclose(outward.min(axis=0), -20, atol=1)
    np.testing.assert_allclose(outward.max(axis=0), 40, atol=1)
    np.testing.assert_allclose(outward.mean(axis=0), 10, atol=3)
    assert np.abs(np.corrcoef(outward.T) - np.eye(4)).max() < 0.2  # edges move independently of each other


# --- clicks


@SHAPES
def test_the_center_click_lies_inside_however_concave_the_mask(mask) -> None:
    assert inside(center_click(mask), mask)


def test_the_center_click_of_a_disk_is_its_center() -> None:
    assert center_click(DISK).tolist() == [[30, 20]]


def test_the_images_border_counts_as_background_for_the_center_click() -> None:
    strip = EMPTY.copy()
    strip[:, :11] = True
    assert center_click(strip)[0, 0] == 5
    assert center_click(FULL)[0, 1] in (19, 20)


def test_no_pixel_is_deeper_than_the_center_click() -> None:
    depth = ndimage.distance_transform_edt(np.pad(CRESCENT, 1))[1:-1, 1:-1]
    x, y = center_click(CRESCENT)[0].astype(int)
    assert depth[y, x] == depth.max()


@SHAPES
def test_random_clicks_are_different_pixels_inside_the_mask(mask) -> None:
    clicks = clicks_from_mask(mask, 20, RandomState(0))
    assert inside(clicks, mask)
    assert len({tuple(click) for click in clicks.tolist()}) == 20


def test_more_clicks_than_pixels_are_all_the_pixels() -> None:
    mask = EMPTY.copy()
    mask[3, 4] = mask[30, 50] = True
    assert sorted(clicks_from_mask(mask, 9, RandomState(0)).tolist()) == [[4, 3], [50, 30]]
    assert clicks_from_mask(EMPTY, 3, RandomState(0)).shape == (0, 2)


def test_every_pixel_is_clicked_at_times() -> None:
    mask, rng = disk(30, 20, 2), RandomState(0)
    clicked = {tuple(clicks_from_mask(mask, 1, rng)[0].astype(int)) for _ in range(300)}
    assert clicked == {(x, y) for y, x in np.argwhere(mask)}


@SHAPES
def test_the_background_around_a_mask_is_outside_it_and_within_the_margin(mask) -> None:
    around = background_around(mask, 4.0)
    assert not (around & mask).any()
    assert np.array_equal(around | mask, ndimage.distance_transform_edt(~mask) <= 4.0)


def test_the_background_of_an_empty_mask_is_the_image() -> None:
    assert background_around(EMPTY, 4.0).all()


@SHAPES
@pytest.mark.parametrize("seed", range(10))
def test_clicks_have_the_side_of_the_mask_that_their_label_says(mask, seed) -> None:
    for kind in ("center", "click", "clicks", "box+clicks"):
        points, labels, target = prompt(mask, kind, seed, max_clicks=4, max_background_clicks=3)
        assert inside(points[labels == 1], mask)
        assert inside(points[labels == 0], background_around(mask, 0.1 * 60))
        assert np.array_equal(target, mask)


def test_the_numbers_of_clicks_range_from_one_and_from_none_to_their_limits() -> None:
    found = [prompt(DISK, "clicks", seed, max_clicks=3, max_background_clicks=2)[1] for seed in range(100)]
    assert {int((labels == 1).sum()) for labels in found} == {1, 2, 3}
    assert {int((labels == 0).sum()) for labels in found} == {0, 1, 2}


# --- simulated prompts


def test_each_kind_has_its_labels() -> None:
    expected = {"box": [2, 3], "center": [1], "click": [1], "clicks": [1], "box+clicks": [2, 3, 1], "none": []}
    assert set(expected) == set(PROMPT_KINDS)
    for kind, labels in expected.items():
        assert prompt(DISK, kind, max_clicks=1, max_background_clicks=0)[1].tolist() == labels


@pytest.mark.parametrize(("foreground", "background", "length"), [(3, 2, 7), (1, 0, 3), (10, 5, 17)])
def test_all_prompts_have_one_shape_and_are_padded_at_the_end(foreground, background, length) -> None:
    points, labels, targets = simulate_prompts(
        DISK, PROMPT_KINDS, rng=RandomState(0), max_clicks=foreground, max_background_clicks=background
    )
    assert (points.shape, points.dtype) == ((6, length, 2), np.float32)
    assert (labels.shape, labels.dtype) == ((6, length), np.int64)
    assert (targets.shape, targets.dtype) == ((6, *SHAPE), bool)
    for row, kinds in zip(points, labels, strict=True):
        filled = int((kinds >= 0).sum())
        assert (kinds[:filled] >= 0).all()
        assert (kinds[filled:] == -1).all()
        assert (row[filled:] == 0).all()


def test_a_box_without_jitter_is_the_masks_box() -> None:
    assert np.array_equal(prompt(TWO, "box")[0], box_from_mask(TWO))


def test_several_lesions_are_one_target_by_default() -> None:
    for kind in PROMPT_KINDS:
        assert np.array_equal(prompt(TWO, kind)[2], TWO)


def test_a_prompt_for_a_component_points_at_it_and_asks_for_it_alone() -> None:
    chosen = set()
    for seed in range(20):
        points, labels, targets = simulate_prompts(
            TWO, ["box", "center", "clicks", "none"], rng=RandomState(seed), target="component"
        )
        left = bool(targets[0, 20, 12])
        chosen.add(left)
        lesion = disk(12, 20, 6) if left else disk(45, 20, 9)
        assert all(np.array_equal(target, lesion) for target in targets[:3])
        assert np.array_equal(points[0, :2], box_from_mask(lesion))
        assert inside(points[1, :1], lesion)
        assert inside(points[2][labels[2] == 1], lesion)
        assert np.array_equal(targets[3], TWO)  # without a prompt nothing says which lesion is meant
    assert chosen == {True, False}


def test_lesions_that_touch_at_a_corner_are_one_component() -> None:
    mask = EMPTY.copy()
    mask[5:8, 5:8] = mask[8:11, 8:11] = True
    assert np.array_equal(one_component(mask, RandomState(0)), mask)


@pytest.mark.parametrize(
    ("kind", "labels"),
    [("box", []), ("center", [0]), ("click", [0]), ("clicks", [0]), ("box+clicks", [0]), ("none", [])],
)
@pytest.mark.parametrize("target", ["union", "component"])
def test_an_empty_mask_gets_a_background_click_or_nothing_and_an_empty_target(kind, labels, target) -> None:
    points, found, targets = prompt(EMPTY, kind, target=target)
    assert found.tolist() == labels
    assert inside(points, ~EMPTY)
    assert not targets.any()


@pytest.mark.parametrize("kind", PROMPT_KINDS)
def test_the_same_generator_state_gives_the_same_prompt(kind) -> None:
    first, second = (prompt(TWO, kind, 3, box_jitter=(-0.1, 0.1), target="component") for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_prompts_do_not_touch_numpys_global_generator() -> None:
    np.random.seed(0)
    expected = np.random.rand()
    np.random.seed(0)
    simulate_prompts(TWO, PROMPT_KINDS, rng=RandomState(1), box_jitter=(-0.1, 0.1), target="component")
    assert np.random.rand() == expected
