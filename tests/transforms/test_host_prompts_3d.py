# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_kdsam.transforms import SlicesLastd, VolumePromptsd

SHAPE = (20, 30, 10)


def image(affine=None) -> MetaTensor:
    affine = np.diag([0.8, 0.8, 2.5, 1.0]) if affine is None else affine
    values = torch.arange(np.prod(SHAPE)).reshape(1, *SHAPE)
    return MetaTensor(values, affine=affine, meta={"original_affine": affine.copy(), "spatial_shape": SHAPE})


def prompts(volume=None, axis="acquisition", **request) -> dict:
    """The prompts of a request, without padding, in the stack of slices; and the stack."""
    data = SlicesLastd("image", axis=axis)({"image": image() if volume is None else volume, **request})
    stack = VolumePromptsd()(data)["image"]
    used = stack.meta["labels"] >= 0
    assert stack.meta["points"].shape == (64, 3)
    return {
        "points": stack.meta["points"][used].numpy(),
        "labels": stack.meta["labels"][used].tolist(),
        "propagate": bool(stack.meta["propagate"]),
        "bounds": stack.meta["bounds"].tolist(),
        "stack": stack,
    }


@pytest.mark.parametrize("axis", ["acquisition", "coronal", "sagittal"])
@pytest.mark.parametrize("signs", list(itertools.product((1, -1), repeat=3)))
def test_clicks_stay_on_their_voxels_through_the_change_of_axes(axis, signs):
    clicks = [[3, 4, 5], [19, 29, 9], [0, 0, 0]]
    volume = image(np.diag([*(np.array(signs) * (0.8, 0.8, 2.5)), 1.0]))
    found = prompts(volume, axis, foreground=clicks[:2], background=clicks[2:])
    assert found["labels"] == [1, 1, 0]
    for (x, y, number), (i, j, k) in zip(found["points"].round().astype(int), clicks, strict=True):
        assert found["stack"][0, y, x, number] == volume[0, i, j, k]


def test_a_box_alone_prompts_its_middle_slice_and_bounds_the_propagation():
    found = prompts(roi=[12, 2, 25, 5, 8, 2])
    assert found["labels"] == [2, 3]
    assert found["points"][:, 2].tolist() == [5, 5]
    assert found["bounds"] == [2, 8]
    (left, top, _), (right, bottom, _) = found["points"]
    assert left < right
    assert top < bottom


def test_a_box_goes_with_the_foreground_clicks_within_it():
    found = prompts(roi=[2, 12, 5, 25, 2, 8], foreground=[[5, 9, 3], [5, 9, 9]], background=[[6, 9, 5]])
    boxed = found["points"][np.array(found["labels"]) == 2, 2]
    assert boxed.tolist() == [3]


def test_a_box_on_one_slice_bounds_nothing():
    for request in ({"roi": [2, 12, 5, 25, 4, 4]}, {"roi": [12, 25, 2, 5], "slice": 4}):
        found = prompts(**request)
        assert found["points"][:, 2].tolist() == [4, 4]
        assert found["bounds"] == [0, 9]


def test_a_box_may_reach_out_of_the_volume_across_the_slices():
    assert prompts(roi=[2, 12, 5, 25, -3, 40])["bounds"] == [0, 9]


def test_a_box_that_reaches_out_of_a_slice_is_cut_off():
    assert np.array_equal(prompts(roi=[-5, 200, 5, 25, 4, 4])["points"], prompts(roi=[0, 19, 5, 25, 4, 4])["points"])


def test_no_prompt_is_automatic():
    assert prompts()["labels"] == []
    assert prompts(foreground=[], roi=None)["labels"] == []


@pytest.mark.parametrize(
    ("value", "expected"), [(True, True), ("true", True), (False, False), ("False", False), (1, True), (None, False)]
)
def test_a_request_may_ask_for_propagation(value, expected):
    assert prompts(propagate=value)["propagate"] is expected


def test_the_bundles_setting_is_what_a_request_without_a_word_means():
    data = {"image": SlicesLastd("image")({"image": image()})["image"]}
    assert bool(VolumePromptsd(propagate=True)(data)["image"].meta["propagate"])


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"foreground": [[3, 4]]}, r"Expected clicks \[i, j, k\] in `foreground`, got \[3, 4\]"),
        ({"foreground": [[20.5, 4, 5]]}, "Expected `foreground` within the volume of 20 x 30 x 10 voxels, got"),
        ({"background": [[3, 4, -1]]}, "Expected `background` within the volume"),
        ({"foreground": [[3, float("nan"), 5]]}, "Expected finite numbers in `foreground`"),
        ({"foreground": [["a", 1, 2]]}, "Expected numbers in `foreground`"),
        ({"foreground": 7}, "Expected `foreground` to be a list of clicks, got 7"),
        ({"foreground": [[1, 1, 1]] * 65}, "Expected at most 64 points in a prompt, got 65"),
        ({"roi": [1, 2, 3]}, r"Expected `roi` to be \[i1, i2, j1, j2, k1, k2\]"),
        ({"roi": [1, 2, 9, 9]}, "Expected `slice` with a `roi` of four numbers"),
        ({"roi": [3, 3, 5, 25, 2, 8]}, "Expected `roi` to be a box with an area"),
        ({"roi": [25, 120, 5, 25, 2, 8]}, "Expected `roi` to cover some of the volume of 20 x 30 x 10 voxels"),
        ({"roi": [2, 12, 5, 25, 20, 28]}, "Expected `roi` to cover some of the volume"),
        ({"propagate": "maybe"}, "Expected `propagate` to be true or false, got 'maybe'"),
    ],
)
def test_a_bad_prompt_is_told_by_its_name(request_, message):
    with pytest.raises(ValueError, match=message):
        prompts(**request_)
