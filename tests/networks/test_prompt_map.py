# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from monai_kdsam.networks import draw_prompts

SIZE = 64


def one(*prompts):
    """Points (1, N, 2) and labels (1, N) of (x, y, label)."""
    return torch.tensor([[prompt[:2] for prompt in prompts]]), torch.tensor([[prompt[2] for prompt in prompts]])


def test_a_box_covers_what_a_picture_of_it_covers():
    """The oracle is the box painted at full size, averaged over each cell."""
    left, top, right, bottom = 5, 9, 37, 50
    painted = torch.zeros(1, 1, SIZE, SIZE)
    painted[..., top : bottom + 1, left : right + 1] = 1
    drawn = draw_prompts(*one((left, top, 2), (right, bottom, 3)), SIZE)
    torch.testing.assert_close(drawn, 2 * torch.nn.functional.avg_pool2d(painted, 4) - 1)


def test_a_click_is_a_disk_over_the_box_and_the_nearer_click_wins():
    drawn = draw_prompts(*one((0, 0, 2), (63, 63, 3), (32, 32, 0), (44, 32, 1), (-9, -9, -1)), SIZE)[0, 0]
    assert drawn[8, 8] == -2
    assert drawn[8, 11] == 2
    assert (drawn == -2).sum() > 8
    assert (drawn[:4] == 1).all(), "padding draws nothing"
    middle = [drawn[8, column].item() for column in (8, 9, 10)]
    assert middle == [-2, -2, 2]  # cells at 33.5, 37.5 and 41.5 between clicks at 32 and 44


def test_no_prompt_is_an_empty_map_and_rows_do_not_mix():
    points, labels = torch.rand(3, 2, 2) * SIZE, torch.tensor([[2, 3], [-1, -1], [1, 0]])
    points[0] = points[0].sort(dim=0).values
    together = draw_prompts(points, labels, SIZE)
    assert (together[1] == 0).all()
    for row in range(3):
        alone = draw_prompts(points[row : row + 1], labels[row : row + 1], SIZE)
        torch.testing.assert_close(together[row : row + 1], alone)


def test_the_last_answer_is_seen_under_the_box_and_zeros_are_none():
    prompt = one((8, 8, 2), (40, 40, 3), (60, 60, 1))
    logits = torch.linspace(-20, 20, 256).reshape(1, 1, 16, 16)
    box = draw_prompts(*prompt, SIZE)
    drawn = draw_prompts(*prompt, SIZE, logits)
    clicked = box == 2
    torch.testing.assert_close(drawn[~clicked], (box + logits.sigmoid() - 0.5)[~clicked])
    assert (drawn[clicked] == 2).all()
    assert torch.equal(draw_prompts(*prompt, SIZE, torch.zeros_like(logits)), box)


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_coordinates_of_half_precision_networks_are_drawn_in_full_precision(precision):
    prompt = one((5.0, 9.0, 2), (37.0, 50.0, 3))
    with torch.autocast("cpu", precision):
        assert torch.equal(draw_prompts(*prompt, SIZE), draw_prompts(*one((5, 9, 2), (37, 50, 3)), SIZE))
