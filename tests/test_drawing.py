# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from monai_kdsam.drawing import draw_contour, draw_prompt, save_picture_sheet

RED, YELLOW, GREEN, DARK_RED = (255, 0, 0), (255, 220, 0), (0, 220, 0), (230, 0, 0)


def flat(height: int, width: int, gray: int = 100) -> np.ndarray:
    return np.full((height, width, 3), gray, np.uint8)


def where(image: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    return (image == color).all(-1)


def disc(height: int, width: int) -> np.ndarray:
    y, x = np.indices((height, width))
    return (y - 30) ** 2 + (x - 40) ** 2 < 400


def test_a_contour_is_the_masks_boundary_and_nothing_else() -> None:
    mask = disc(80, 100)
    drawn = draw_contour(flat(80, 100), mask, RED)
    assert np.array_equal(where(drawn, RED), mask & ~ndimage.binary_erosion(mask))
    assert np.array_equal(where(drawn, (100, 100, 100)), ~where(drawn, RED))


def test_a_mask_that_fills_the_image_is_outlined_at_its_edge() -> None:
    drawn = where(draw_contour(flat(6, 9), np.ones((6, 9)), RED), RED)
    assert drawn[0].all()
    assert drawn[:, -1].all()
    assert not drawn[1:-1, 1:-1].any()


def test_an_empty_mask_has_no_contour() -> None:
    assert np.array_equal(draw_contour(flat(6, 9), np.zeros((6, 9), bool), RED), flat(6, 9))


def test_a_contour_is_thicker_on_a_large_image() -> None:
    mask = np.zeros((1280, 300), bool)
    mask[100:1200, 100:200] = True
    assert where(draw_contour(flat(1280, 300), mask, RED), RED)[600].sum() == 2 * 10
    assert where(draw_contour(flat(1280, 300), mask, RED, viewed_at=960), RED)[600].sum() == 2 * 2


@pytest.mark.parametrize("convert", [torch.from_numpy, lambda m: m[None, None], lambda m: m.astype(np.uint8) * 255])
def test_masks_come_as_tensors_with_channels_or_as_0_and_255(convert) -> None:
    mask = disc(80, 100)
    assert np.array_equal(draw_contour(flat(80, 100), convert(mask), RED), draw_contour(flat(80, 100), mask, RED))


def test_a_prompt_is_drawn_at_its_pixels_and_the_image_is_left_alone() -> None:
    image = flat(60, 90)
    points = torch.tensor([[10.0, 20.0], [50.0, 40.0], [30.0, 30.0], [70.0, 10.0], [0.0, 0.0]])
    drawn = draw_prompt(image, points, torch.tensor([2, 3, 1, 0, -1]))
    rows, columns = np.nonzero(where(drawn, YELLOW))
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (10, 20, 50, 40)
    assert tuple(drawn[30, 30]) == GREEN
    assert tuple(drawn[10, 70]) == DARK_RED
    assert tuple(drawn[0, 0]) == (100, 100, 100)
    assert np.array_equal(image, flat(60, 90))


def test_several_boxes_are_paired_in_order() -> None:
    drawn = draw_prompt(flat(40, 40), [[2, 2], [20, 20], [8, 8], [30, 30]], [2, 2, 3, 3])
    assert where(drawn, YELLOW).sum() == 24 + 40  # the perimeters of squares of 7 and of 11 pixels
    assert ndimage.label(where(drawn, YELLOW))[1] == 2


def test_a_box_that_leaves_the_image_and_one_of_swapped_corners_are_drawn() -> None:
    assert where(draw_prompt(flat(40, 40), [[-5, 10], [50, 20]], [2, 3]), YELLOW).sum() == 80
    assert np.array_equal(
        draw_prompt(flat(40, 40), [[20, 20], [5, 8]], [2, 3]), draw_prompt(flat(40, 40), [[5, 8], [20, 20]], [2, 3])
    )


@pytest.mark.parametrize(("captions", "height"), [(None, 22 + 2 * 68), (["one", "two"], 22 + 2 * 86)])
def test_a_sheet_has_a_cell_for_each_image(tmp_path, captions, height) -> None:
    rows = [[flat(10, 20, 255), flat(300, 200, 255)], [flat(64, 64, 255), flat(1, 1, 255)]]
    path = save_picture_sheet(
        tmp_path / "new" / "sheet.png", rows, columns=["wide", "tall"], captions=captions, cell=64
    )
    sheet = np.array(Image.open(path))
    assert sheet.shape == (height, 4 + 2 * 68, 3)
    cells = [where(sheet[22:86, left : left + 64], (255, 255, 255)) for left in (4, 72)]
    assert cells[0].sum() == 64 * 32  # the aspect is kept, the image in the middle
    assert cells[0][16:48].all()
    assert cells[1].sum() == 64 * 43


def test_titles_and_captions_are_written(tmp_path) -> None:
    path = save_picture_sheet(tmp_path / "s.png", [[flat(8, 8)]], columns=["a title"], captions=["a caption"], cell=64)
    sheet = np.array(Image.open(path)).max(-1)
    assert sheet[:22].max() > 200
    assert sheet[22 + 64 + 4 :].max() > 200


def test_wrong_arguments_are_named(tmp_path) -> None:
    with pytest.raises(ValueError, match="row 1 of `rows` to hold 2 images, got 1"):
        save_picture_sheet(tmp_path / "s.png", [[flat(4, 4)] * 2, [flat(4, 4)]], columns=["a", "b"])
    with pytest.raises(ValueError, match="`captions` to hold one text for each of 1 rows, got 2"):
        save_picture_sheet(tmp_path / "s.png", [[flat(4, 4)]], columns=["a"], captions=["a", "b"])
    with pytest.raises(TypeError, match="`image` to be a uint8 array, got float64"):
        save_picture_sheet(tmp_path / "s.png", [[np.zeros((4, 4, 3))]], columns=["a"])
    with pytest.raises(ValueError, match=r"`image` of shape \(H, W, 3\), got \(4, 4\)"):
        draw_prompt(np.zeros((4, 4), np.uint8), np.zeros((0, 2)), np.zeros(0))
    with pytest.raises(ValueError, match="as many labels 2 as 3"):
        draw_prompt(flat(4, 4), [[1, 1]], [2])
    with pytest.raises(ValueError, match=r"`mask` of the image's size \(4, 4\), got \(5, 4\)"):
        draw_contour(flat(4, 4), np.zeros((5, 4)), RED)
    (tmp_path / "taken").touch()
    with pytest.raises(OSError, match=r"Cannot write .*name a writable folder"):
        save_picture_sheet(tmp_path / "taken" / "s.png", [[flat(4, 4)]], columns=["a"])
