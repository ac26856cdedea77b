# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_kdsam.label.uncertainty import disagreement, uncertainty
from monai_kdsam.networks import build_student


def square(side: int) -> np.ndarray:
    mask = np.zeros((8, 8), bool)
    mask[:side, :side] = True
    return mask


@pytest.mark.parametrize(
    ("sides", "expected"),
    [((4, 4, 4), 0), ((0, 0, 0), 0), ((4, 4, 0), 2 / 3), ((2, 4), 0.75), ((2, 4, 8), (0.75 + 0.75 + 15 / 16) / 3)],
)
def test_disagreement_is_the_mean_distance_of_pairs(sides, expected):
    assert disagreement([square(side) for side in sides]) == pytest.approx(expected)


class Scripted:
    """A network that answers the prompts in turn, and keeps them."""

    def __init__(self, masks, ious):
        self.answers = list(zip(masks, ious, strict=True))
        self.prompts = []

    def embed(self, image):
        return image

    def decode(self, embedding, points, labels):
        self.prompts.append((points[0].tolist(), labels[0].tolist()))
        mask, iou = self.answers[len(self.prompts) - 1]
        return torch.from_numpy(mask).float()[None, None] - 0.5, torch.tensor([[iou]])


def test_the_click_and_the_box_are_those_of_the_mask_found_without_a_prompt():
    mask = np.zeros((8, 8), bool)
    mask[1:4, 2:7] = True
    network = Scripted([mask, mask, square(0)], [0.9, 0.8, 0.1])
    found = uncertainty(network, torch.zeros(1, 3, 32, 32), (32, 32))
    assert network.prompts[0][1] == [-1]
    box, click = network.prompts[1:]
    assert box == ([[8.0, 4.0], [27.0, 15.0]], [2, 3])
    assert click[1] == [1]
    row, column = int(click[0][0][1]) // 4, int(click[0][0][0]) // 4
    assert mask[row, column]
    assert row == 2
    assert found.predicted_iou == pytest.approx(0.6)
    assert found.disagreement == pytest.approx(2 / 3)
    assert found.score == pytest.approx((0.4 + 2 / 3) / 2)


def test_a_network_that_finds_nothing_is_as_unsure_as_can_be():
    found = uncertainty(Scripted([square(0)], [0.7]), torch.zeros(1, 3, 32, 32), (32, 32))
    assert (found.disagreement, found.predicted_iou) == (1, pytest.approx(0.7))


def test_padding_does_not_count():
    masks = [square(4) for _ in range(3)]
    masks[1] = masks[1].copy()
    masks[1][6:] = True
    assert uncertainty(Scripted(masks, [1.5, 1, 1]), torch.zeros(1, 3, 32, 32), (24, 32)).score == 0


def test_a_real_network_is_asked_three_times_of_one_embedding():
    network = build_student("resnet18", image_size=64).eval()
    calls = []
    network.image_encoder.register_forward_hook(lambda *_: calls.append(1))
    found = uncertainty(network, torch.rand(1, 3, 64, 64), (64, 48))
    assert 0 <= found.score <= 1
    assert len(calls) == 1
