# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from monai_kdsam.data.checks import inspect_items
from monai_kdsam.data.layouts import read_busi
from monai_kdsam.data.splits import duplicate_groups, hold_out, split_items

REAL = os.environ.get("KDSAM_DATA")
needs_real_data = pytest.mark.skipif(not REAL, reason="set KDSAM_DATA to the folder of the real data sets")
RANDOM = np.random.RandomState(0)


def items_of(source: str, subjects: int, frames: int = 1) -> list[dict]:
    return [
        {"image": f"/{source}/{subject:03}_{frame}.png", "source": source, "subject": str(subject)}
        for subject in range(subjects)
        for frame in range(frames)
    ]


def split_of(splits: dict[str, list[dict]]) -> dict[str, str]:
    return {item["image"]: name for name, split in splits.items() for item in split}


def pictures(count: int) -> np.ndarray:
    return gaussian_filter(RANDOM.rand(count, 32, 32), (0, 1, 1)) * 255


def test_brighter_noisy_and_shaded_copies_are_duplicates_and_others_are_not() -> None:
    originals = pictures(200)
    shade = np.linspace(0, 100, 32)
    copies = [originals[0] * 0.5 + 60, originals[1] + RANDOM.normal(0, 2, (32, 32)), originals[2] + shade]
    groups = duplicate_groups(np.concatenate([originals, copies]))
    assert groups[-3:].tolist() == groups[:3].tolist()
    assert len(set(groups)) == 200


def test_a_common_shading_does_not_make_duplicates() -> None:
    y, x = np.mgrid[-1:1:32j, -1:1:32j]
    shading = 200 - 80 * y - 100 * x**2
    images = shading + pictures(50) * 0.5
    assert np.corrcoef(images.reshape(50, -1)).min() > 0.86
    assert len(set(duplicate_groups(images))) == 50


def test_duplicates_of_duplicates_are_one_group_and_flat_images_are_alone() -> None:
    a, b = pictures(2)
    chain = [(1 - t) * a + t * b for t in np.linspace(0, 1, 6)]
    groups = duplicate_groups(np.stack([*chain, np.zeros((32, 32)), np.full((32, 32), 9.0)]))
    assert len(set(groups[:6])) == 1
    assert len(set(groups[5:])) == 3


def test_no_images_are_no_groups() -> None:
    assert duplicate_groups(np.zeros((0, 32, 32))).tolist() == []


def test_the_split_does_not_depend_on_the_order_but_on_the_seed() -> None:
    items = items_of("a", 60) + items_of("b", 30)
    order = RANDOM.permutation(len(items))
    assert split_items(items, seed=3) == split_items([items[n] for n in order], seed=3)
    assert split_items(items, seed=3) != split_items(items, seed=4)


def test_every_item_is_in_one_list_and_each_source_has_its_shares() -> None:
    items = items_of("a", 100) + items_of("b", 50)
    splits = split_items(items, fractions=(0.6, 0.2, 0.2))
    assert sorted(split_of(splits)) == sorted(item["image"] for item in items)
    shares = {name: [sum(i["source"] == s for i in split) for s in "ab"] for name, split in splits.items()}
    assert shares == {"training": [60, 30], "validation": [20, 10], "test": [20, 10]}


@pytest.mark.parametrize("wanted", [(640, 160, 200), (413, 104, 130)])
def test_fractions_of_whole_numbers_give_these_numbers(wanted: tuple[int, int, int]) -> None:
    total = sum(wanted)
    fractions = tuple(number / total for number in wanted)
    splits = split_items(items_of("a", total), fractions=fractions)  # type: ignore[arg-type]
    assert tuple(len(split) for split in splits.values()) == wanted


def test_groups_move_the_numbers_by_less_than_the_largest_group() -> None:
    wanted, groups = np.array([413, 104, 130]), np.arange(647)
    groups[:40] //= 2  # 20 pairs
    groups[40:52] //= 4  # 3 sets of four
    items = items_of("a", 647)
    for seed in range(20):
        splits = split_items(items, groups=groups, fractions=tuple(wanted / 647), seed=seed)
        assert np.abs([len(split) for split in splits.values()] - wanted).max() < 4


def test_subjects_and_groups_never_part() -> None:
    items = items_of("a", 40, frames=3) + items_of("b", 20)
    groups = np.arange(len(items))
    groups[[0, 50, 130]] = 0  # subjects 0 and 16 of one source and a picture of the other
    where = split_of(split_items(items, groups=groups))
    for subject in range(40):
        assert len({where[f"/a/{subject:03}_{frame}.png"] for frame in range(3)}) == 1
    assert len({where[items[n]["image"]] for n in (0, 1, 48, 50, 130)}) == 1


def test_equal_subjects_of_two_sources_are_two_subjects() -> None:
    where = split_of(split_items(items_of("a", 50) + items_of("b", 50)))
    assert any(where[f"/a/{n:03}_0.png"] != where[f"/b/{n:03}_0.png"] for n in range(50))


@pytest.mark.parametrize("subjects", [3, 4, 7])
def test_small_sources_have_a_group_in_every_list(subjects: int) -> None:
    splits = split_items(items_of("a", subjects, frames=2))
    assert all(len(split) >= 2 for split in splits.values())


def test_too_small_a_source_is_an_error_unless_fewer_lists_are_wanted() -> None:
    with pytest.raises(ValueError, match=r"Source 'a' has 2 group\(s\).*too few for 3 lists"):
        split_items(items_of("a", 2, frames=5))
    assert split_items(items_of("a", 2), fractions=(0.5, 0.5, 0))["test"] == []
    assert len(split_items(items_of("a", 1), fractions=(0, 0, 1))["test"]) == 1


@pytest.mark.parametrize("fractions", [(0.7, 0.3), (0.7, 0.7, -0.4), (0.5, 0.1, 0.1)])
def test_fractions_must_add_up_to_1(fractions: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="Expected `fractions`"):
        split_items(items_of("a", 10), fractions=fractions)  # type: ignore[arg-type]


@needs_real_data
def test_busi_has_its_known_duplicates_and_no_chains() -> None:
    items = read_busi(Path(REAL or ".") / "Dataset_BUSI_with_GT")
    groups = duplicate_groups(inspect_items(items).thumbnails)
    assert 1 < np.bincount(groups).max() <= 4
    group_of = dict(zip((item["subject"] for item in items), groups.tolist(), strict=True))
    assert group_of["benign (437)"] == group_of["normal (34)"]


IMAGES = [f"{number:03d}" for number in range(40)]


def held(choice) -> set[str]:
    return {image for image, out in choice.items() if out}


@pytest.mark.parametrize(("images", "expected"), [(2, 1), (3, 1), (4, 2), (6, 3), (12, 3), (20, 4), (40, 8)])
def test_a_fifth_is_held_out_but_at_least_three_and_at_most_half(images, expected):
    assert len(held(hold_out(IMAGES[:images], {}, 0.2))) == expected


def test_never_more_than_half_are_held_out():
    assert len(held(hold_out(IMAGES[:10], {}, 0.9))) == 5


def test_as_labels_come_in_no_image_changes_sides():
    choice: dict[str, bool] = {}
    for count in (2, 5, 9, 17, 40):
        later = hold_out(IMAGES[-count:], choice, 0.2)
        assert choice.items() <= later.items()
        choice = later
    assert len(held(choice)) == 8


def test_the_order_of_the_images_does_not_matter():
    assert hold_out(IMAGES, {}, 0.2) == hold_out(IMAGES[::-1], {}, 0.2)


@pytest.mark.parametrize("side", [True, False])
def test_where_the_labels_of_one_side_are_gone_one_image_changes_over(side):
    choice = hold_out(["a", "b"], {"a": side, "b": side, "c": not side}, 0.2)
    assert {choice["a"], choice["b"]} == {True, False}


@pytest.mark.parametrize("images", [[], ["a"], ["a", "a"]])
def test_one_image_is_not_enough(images):
    with pytest.raises(ValueError, match=rf"at least 2 different images, .* got {len(set(images))}"):
        hold_out(images, {}, 0.2)
