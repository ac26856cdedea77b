# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from monai_kdsam.data.held_out import hold_out

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
