# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np

from monai_kdsam.mask_prompts import center_click
from monai_kdsam.report.corrective_clicks import MOST_CLICKS, clicks_needed, correct, next_click
from monai_kdsam.report.prompts import Prompt

NO_CLICK = Prompt(np.zeros((0, 2), np.float32), np.zeros(0, np.int64))
REFERENCE = np.zeros((60, 80), bool)
REFERENCE[20:40, 30:50] = True


def click(x, y, label=1):
    return Prompt(np.array([[x, y]], np.float32), np.array([label]))


def test_the_first_click_is_the_deepest_point():
    first = next_click(REFERENCE, np.zeros_like(REFERENCE), NO_CLICK)
    assert np.array_equal(first.points, center_click(REFERENCE))
    assert first.labels.tolist() == [1]


def test_the_deepest_error_is_clicked_not_the_one_with_most_pixels():
    mask = REFERENCE.copy()
    mask[20:27, 30:37] = False  # 7 x 7 missing
    mask[50, :] = True  # a line of 80
    after = next_click(REFERENCE, mask, click(40, 30))
    assert after.points.tolist() == [[40, 30], [33, 23]]
    assert after.labels.tolist() == [1, 1]


def test_false_foreground_gets_a_background_click():
    mask = REFERENCE.copy()
    mask[5:14, 60:69] = True
    after = next_click(REFERENCE, mask, click(40, 30))
    assert after.points[-1].tolist() == [64, 9]
    assert after.labels.tolist() == [1, 0]


def test_the_images_border_counts_as_agreement():
    mask = REFERENCE.copy()
    mask[0:5, 0:5] = True
    assert next_click(REFERENCE, mask, click(40, 30)).points[-1].tolist() == [2, 2]


def test_no_click_is_made_twice():
    mask = np.zeros_like(REFERENCE)
    prompt = NO_CLICK
    for _ in range(30):
        prompt = next_click(REFERENCE, mask, prompt)
    assert len(np.unique(prompt.points, axis=0)) == 30


def test_nothing_is_left_to_click_on_in_a_perfect_mask():
    assert next_click(REFERENCE, REFERENCE, click(40, 30)) is None


def columns(count):
    """The first columns of the reference, two of twenty for each click."""
    mask = REFERENCE.copy()
    mask[:, 30 + 2 * count :] = False
    return mask


def test_a_model_that_gains_a_tenth_with_each_click_needs_nine():
    asked = []

    def predict(prompt):
        asked.append(prompt)
        return columns(len(prompt.labels))

    masks = list(correct(REFERENCE, click(40, 30), columns(1), predict))
    ious = [(mask & REFERENCE).sum() / (mask | REFERENCE).sum() for mask in masks]
    assert np.allclose(ious, np.minimum(np.arange(1, MOST_CLICKS + 1) / 10, 1))
    assert (clicks_needed(ious, 0.85), clicks_needed(ious, 0.9), clicks_needed(ious, 1.01)) == (9, 9, None)
    assert [len(prompt.labels) for prompt in asked] == list(range(2, 11))
    for prompt in asked:  # each new click is on what was still missing
        x, y = prompt.points[-1].astype(int)
        assert prompt.labels[-1] == 1
        assert (REFERENCE & ~columns(len(prompt.labels) - 1))[y, x]


def test_a_model_that_is_done_is_not_asked_again():
    def predict(prompt):
        assert len(prompt.labels) == 2
        return REFERENCE

    masks = list(correct(REFERENCE, click(40, 30), columns(1), predict))
    assert len(masks) == MOST_CLICKS
    assert all(np.array_equal(mask, REFERENCE) for mask in masks[1:])
