# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch

from monai_kdsam.report.fill_box import FillBox

IMAGE = torch.zeros(1, 3, 20, 30)
BOX = torch.tensor([[[4.0, 5.0], [8.0, 11.0]]])
CORNERS = torch.tensor([[2, 3]])


def filled(logits: torch.Tensor) -> torch.Tensor:
    assert set(logits.unique().tolist()) <= {-10.0, 10.0}
    return logits > 0


def test_a_box_is_filled_to_its_last_pixel() -> None:
    expected = torch.zeros(1, 1, 20, 30, dtype=torch.bool)
    expected[0, 0, 5:12, 4:9] = True
    assert torch.equal(filled(FillBox()(IMAGE, BOX, CORNERS)), expected)


def test_a_box_of_one_pixel_is_one_pixel_in_either_shape() -> None:
    pixel = torch.tensor([[[7.0, 3.0], [7.0, 3.0]]])
    for shape in ("box", "ellipse"):
        assert filled(FillBox(shape)(IMAGE, pixel, CORNERS)).nonzero().tolist() == [[0, 0, 3, 7]]


def test_an_ellipse_covers_pi_quarters_of_its_box_and_touches_its_sides() -> None:
    image, box = torch.zeros(1, 3, 300, 400), torch.tensor([[[10.0, 20.0], [309.0, 219.0]]])
    mask = filled(FillBox("ellipse")(image, box, CORNERS))[0, 0]
    assert mask.sum() / (300 * 200) == pytest.approx(math.pi / 4, abs=0.001)
    rows, columns = mask.nonzero(as_tuple=True)
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (10, 309, 20, 219)


@pytest.mark.parametrize(
    ("points", "labels"),
    [
        (None, None),
        (torch.zeros(1, 0, 2), torch.zeros(1, 0, dtype=torch.int64)),
        (torch.zeros(1, 2, 2), torch.tensor([[-1, -1]])),
        (torch.tensor([[[3.0, 3.0], [5.0, 5.0]]]), torch.tensor([[1, 0]])),
    ],
    ids=["nothing", "no points", "padding", "clicks"],
)
def test_without_a_box_the_image_is_the_box(points, labels) -> None:
    assert filled(FillBox()(IMAGE, points, labels)).all()
    assert filled(FillBox("ellipse")(IMAGE, points, labels)).float().mean() == pytest.approx(math.pi / 4, abs=0.02)


def test_clicks_and_padding_beside_a_box_change_nothing() -> None:
    points = torch.cat([torch.tensor([[[0.0, 0.0], [29.0, 19.0], [0.0, 0.0]]]), BOX], dim=1)
    labels = torch.tensor([[1, 0, -1, 2, 3]])
    assert torch.equal(FillBox()(IMAGE, points, labels), FillBox()(IMAGE, BOX, CORNERS))


def test_each_image_of_a_batch_has_its_own_box() -> None:
    points = torch.cat([BOX, BOX + 2, BOX])
    labels = torch.tensor([[2, 3], [2, 3], [-1, -1]])
    together = FillBox("ellipse")(torch.zeros(3, 3, 20, 30), points, labels)
    alone = [FillBox("ellipse")(IMAGE, points[i : i + 1], labels[i : i + 1]) for i in range(3)]
    assert together.shape == (3, 1, 20, 30)
    assert torch.equal(together, torch.cat(alone))


def test_each_prompt_of_an_image_has_its_own_channel() -> None:
    points, labels = torch.stack([BOX, BOX + 3, BOX], dim=1), torch.tensor([[[2, 3], [2, 3], [1, 0]]])
    logits = FillBox()(IMAGE, points, labels)
    assert logits.shape == (1, 3, 20, 30)
    for k in range(3):
        assert torch.equal(logits[:, k : k + 1], FillBox()(IMAGE, points[:, k], labels[:, k]))


def test_integer_points_are_taken() -> None:
    assert torch.equal(FillBox()(IMAGE, BOX.long(), CORNERS.int()), FillBox()(IMAGE, BOX, CORNERS))
