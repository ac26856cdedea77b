# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_kdsam.engines import add_corrective_click, error_depth
from monai_kdsam.report.corrective_clicks import next_click
from monai_kdsam.report.prompts import Prompt

EMPTY = (torch.zeros(1, 1, 0, 2), torch.zeros(1, 1, 0, dtype=torch.long))


def disk(size: int, x: int, y: int, radius: int) -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return ((rows - y) ** 2 + (columns - x) ** 2 <= radius**2)[None, None]


@pytest.mark.parametrize("size", [64, 96, 256])
def test_the_click_lies_where_evaluation_would_click(size):
    reference = disk(size, 40, 20, 12) | disk(size, 12, 50, 4)
    points, labels = add_corrective_click(*EMPTY, torch.zeros_like(reference), reference)
    before = Prompt(np.zeros((0, 2), np.float32), np.zeros(0, np.int64))
    expected = next_click(reference[0, 0].numpy(), np.zeros((size, size), bool), before)
    assert np.abs(points[0, 0].numpy() - expected.points).max() <= 3
    assert labels.tolist() == [[[1]]]


def test_false_foreground_gets_a_negative_click():
    reference, mask = disk(64, 20, 20, 8), disk(64, 20, 20, 8) | disk(64, 48, 48, 8)
    points, labels = add_corrective_click(*EMPTY, mask, reference)
    assert np.abs(points[0, 0, 0].numpy() - [48, 48]).max() <= 2
    assert labels.tolist() == [[[0]]]


def test_where_nothing_is_wrong_padding_is_added_and_earlier_prompts_stay():
    points, labels = torch.full((1, 2, 1, 2), 7.0), torch.ones(1, 2, 1, dtype=torch.long)
    reference = torch.cat([disk(32, 8, 8, 4), disk(32, 20, 20, 4)], dim=1)
    mask = torch.cat([disk(32, 8, 8, 4), torch.zeros(1, 1, 32, 32, dtype=torch.bool)], dim=1)
    more, kinds = add_corrective_click(points, labels, mask, reference)
    assert torch.equal(more[:, :, :1], points)
    assert kinds.tolist() == [[[1, -1], [1, 1]]]


def test_clicks_are_always_on_errors():
    generator = torch.Generator().manual_seed(0)
    mask, reference = (torch.rand(3, 4, 48, 48, generator=generator) > 0.7 for _ in range(2))
    points, labels = add_corrective_click(torch.zeros(3, 4, 1, 2), torch.ones(3, 4, 1), mask, reference)
    for row in range(3):
        for prompt in range(4):
            x, y = points[row, prompt, -1].int().tolist()
            assert mask[row, prompt, y, x] != reference[row, prompt, y, x]
            assert labels[row, prompt, -1] == reference[row, prompt, y, x]


def test_only_errors_are_deep():
    errors = disk(32, 10, 10, 5)
    assert torch.equal(error_depth(errors) > 0, errors)
