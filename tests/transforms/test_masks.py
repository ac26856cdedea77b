# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image
from scipy import ndimage

from monai_kdsam.transforms.masks import CleanMaskd, clean_mask, fill_outline, remove_specks, threshold_mask

REAL = os.environ.get("KDSAM_DATA")
needs_real_data = pytest.mark.skipif(not REAL, reason="set KDSAM_DATA to the folder of the real data sets")


def ellipse(center: tuple[float, float], radii: tuple[float, float] = (40, 60), angle: float = 0.4) -> np.ndarray:
    """Filled ellipse in (200, 240), clipped to the image."""
    y, x = np.mgrid[:200, :240].astype(float)
    y, x = y - center[0], x - center[1]
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    return (across / radii[0]) ** 2 + (along / radii[1]) ** 2 <= 1


def outline(filled: np.ndarray) -> np.ndarray:
    """Thin outline, open where the image cuts the shape off."""
    return filled & ~ndimage.binary_erosion(filled, border_value=1)


@pytest.mark.parametrize("center", [(100, 120), (10, 120), (100, 5), (190, 120), (100, 235), (5, 5), (195, 230)])
def test_a_filled_outline_is_the_ellipse_clipped_to_the_image(center: tuple[int, int]) -> None:
    filled = ellipse(center)
    np.testing.assert_array_equal(fill_outline(outline(filled)), filled)


def test_an_ellipse_cut_off_on_three_sides_is_filled() -> None:
    filled = ellipse((100, 120), radii=(110, 130), angle=0)
    np.testing.assert_array_equal(fill_outline(outline(filled)), filled)


def test_filling_twice_changes_nothing() -> None:
    filled = ellipse((100, 120))
    np.testing.assert_array_equal(fill_outline(fill_outline(outline(filled))), filled)


@pytest.mark.parametrize("center", [(100, 120), (10, 120)])
def test_an_outline_with_a_gap_is_an_error(center: tuple[int, int]) -> None:
    curve = outline(ellipse(center))
    row = int(np.nonzero(curve.any(axis=1))[0].max())
    curve[row - 2 : row + 1, :] = False
    with pytest.raises(ValueError, match="Close its gaps"):
        fill_outline(curve)


def test_an_empty_outline_is_an_error() -> None:
    with pytest.raises(ValueError, match="empty mask"):
        fill_outline(np.zeros((5, 5)))


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_arrays_and_tensors_come_back_as_they_came(kind: type) -> None:
    mask = kind(outline(ellipse((100, 120)))[None] * 255.0)
    for result in (clean_mask(mask), clean_mask(mask, "lossy"), clean_mask(mask, "outline")):
        assert type(result) is type(mask)
        assert result.shape == mask.shape


def test_specks_go_and_polyps_stay() -> None:
    mask = ellipse((100, 120)).astype(np.uint8)
    mask[0, 0] = 255
    np.testing.assert_array_equal(remove_specks(mask), ellipse((100, 120)))


def test_a_lossy_mask_is_what_it_was_before_the_jpeg(tmp_path: Path) -> None:
    Image.fromarray(ellipse((100, 120)).astype(np.uint8) * 255).save(tmp_path / "mask.jpg", quality=90)
    lossy = np.asarray(Image.open(tmp_path / "mask.jpg"))
    assert len(np.unique(lossy)) > 2
    cleaned = clean_mask(lossy[None], "lossy")[0]
    assert (cleaned != ellipse((100, 120))).mean() < 1e-3


@pytest.mark.parametrize("value", [255, 128, 64])
def test_a_lossy_mask_of_any_brightness_is_what_it_was_before_the_jpeg(tmp_path: Path, value: int) -> None:
    Image.fromarray(ellipse((100, 120)).astype(np.uint8) * value).save(tmp_path / "mask.jpg", quality=75)
    cleaned = clean_mask(np.asarray(Image.open(tmp_path / "mask.jpg"))[None], "lossy")[0] > 0
    assert (cleaned != ellipse((100, 120))).sum() < 0.01 * ellipse((100, 120)).sum()


@pytest.mark.parametrize("side", [2, 10])
def test_a_lesion_far_smaller_than_the_image_stays_in_a_lossy_mask(side: int) -> None:
    mask = np.zeros((1024, 1024), np.uint8)
    mask[500 : 500 + side, 300 : 300 + side] = 255
    assert clean_mask(mask[None], "lossy").sum() == side**2
    mask[0, 0] = 255
    assert clean_mask(mask[None], "lossy").sum() == (side**2 if side > 2 else 5)  # never all of the foreground


@pytest.mark.parametrize(
    ("values", "told"), [((0, 1), "got one of 1,"), ((0, 128, 255), "(?s)flat areas of about (128|255)")]
)
def test_labels_in_a_lossy_mask_are_refused(tmp_path: Path, values: tuple[int, ...], told: str) -> None:
    labels = np.zeros((64, 96), np.uint8)
    for number, value in enumerate(values):
        labels[:, 32 * number : 32 * number + 32] = value
    Image.fromarray(labels).save(tmp_path / "mask.jpg", quality=75)
    with pytest.raises(ValueError, match=told):
        clean_mask(np.asarray(Image.open(tmp_path / "mask.jpg"))[None], "lossy")


def test_a_black_lossy_mask_is_empty() -> None:
    assert not clean_mask(np.zeros((1, 16, 16), np.uint8), "lossy").any()


def test_channels_are_united_whatever_their_values() -> None:
    mask = np.zeros((2, 1, 3))
    mask[0, 0, 0], mask[1, 0, 1] = 255, 1
    assert clean_mask(mask).tolist() == [[[1, 1, 0]]]


def test_empty_and_full_masks_stay_so() -> None:
    assert clean_mask(np.zeros((1, 2, 2))).max() == 0
    assert clean_mask(np.full((1, 2, 2), 255)).min() == 1


@pytest.mark.parametrize(("values", "listed"), [([0, 1, 2], "0, 1, 2"), ([1, 2], "1, 2"), (range(20), "7, ...")])
def test_more_values_than_two_are_listed_with_file_and_remedy(values: list[int], listed: str) -> None:
    mask = MetaTensor(torch.tensor([[[float(value) for value in values]]]), meta={"filename_or_obj": "patient 7.png"})
    with pytest.raises(ValueError, match=rf"patient 7\.png: .*{listed}\).*`foreground_values`"):
        CleanMaskd("label")({"label": mask})


def test_foreground_values_choose_labels() -> None:
    assert clean_mask(np.array([[[0, 1, 2, 3]]]), foreground_values=[1, 3]).tolist() == [[[0, 1, 0, 1]]]


def test_an_unknown_kind_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"Expected `mask_kind` to be one of binary, lossy, outline, got 'blurry'"):
        clean_mask(np.zeros((1, 2, 2)), "blurry")  # type: ignore[arg-type]


def test_the_dictionary_transform_keeps_affine_and_name() -> None:
    mask = MetaTensor(torch.zeros(2, 4, 4), affine=2 * torch.eye(3), meta={"filename_or_obj": "a.png"})
    cleaned = CleanMaskd("label")({"label": mask, "mask_kind": "lossy"})["label"]
    assert isinstance(cleaned, MetaTensor)
    assert cleaned.dtype == torch.float32
    assert cleaned.shape == (1, 4, 4)
    assert cleaned.meta["filename_or_obj"] == "a.png"
    assert torch.equal(cleaned.affine, mask.affine)


@needs_real_data
def test_head_circumference_from_filled_hc18_outlines_is_the_official_one() -> None:
    folder = Path(REAL or ".") / "HC18"
    with open(folder / "training_set_pixel_size_and_HC.csv") as file:
        rows = [row for row in list(csv.reader(file))[1:] if (folder / "training_set" / row[0]).is_file()]
    for name, pixel_size, official in rows[::4]:
        annotation = folder / "training_set" / name.replace(".png", "_Annotation.png")
        filled = fill_outline(np.asarray(Image.open(annotation)))
        b, a = 2 * np.sqrt(np.linalg.eigvalsh(np.cov(np.nonzero(filled))))
        assert filled.sum() == pytest.approx(math.pi * a * b, rel=1e-3)  # an ellipse, with nothing spilt
        if not (filled[0].any() or filled[-1].any() or filled[:, 0].any() or filled[:, -1].any()):
            h = ((a - b) / (a + b)) ** 2
            circumference = math.pi * (a + b) * (1 + 3 * h / (10 + math.sqrt(4 - 3 * h)))  # Ramanujan
            assert circumference * float(pixel_size) == pytest.approx(float(official), rel=0.02)


@needs_real_data
def test_every_kvasir_mask_loses_its_stray_pixel_and_nothing_else() -> None:
    for path in sorted((Path(REAL or ".") / "Kvasir-SEG" / "masks").glob("*.jpg"))[::10]:
        foreground = threshold_mask(np.asarray(Image.open(path)).max(-1))
        removed = foreground & ~remove_specks(foreground)
        assert removed.sum() == removed[0, 0], path
