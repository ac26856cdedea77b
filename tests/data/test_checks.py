# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged
from PIL import Image

from monai_kdsam.data import Image2DReader
from monai_kdsam.data.checks import check_images, inspect_items
from monai_kdsam.report.items import load_reference
from monai_kdsam.transforms.masks import CleanMaskd

IMAGE = np.random.RandomState(0).randint(0, 256, (40, 50, 3), dtype=np.uint8)
MASK = np.zeros((40, 50), dtype=np.uint8)
MASK[10:20, 10:20] = 255


def item(folder: Path, image: np.ndarray = IMAGE, mask: np.ndarray = MASK, **more: object) -> dict:
    number = len(list(folder.iterdir()))
    paths = folder / f"{number}.{'tif' if image.dtype == np.float32 else 'png'}", folder / f"{number}_mask.png"
    for path, array in zip(paths, (image, mask), strict=True):
        Image.fromarray(array).save(path)
    return {"image": str(paths[0]), "label": str(paths[1]), **more}


def kinds(items: list[dict], **settings: object) -> list[str]:
    return [problem.kind for problem in inspect_items(items, **settings).problems]


def test_a_good_item_has_no_problem(tmp_path: Path) -> None:
    assert kinds([item(tmp_path)]) == []


def test_every_problem_is_found_in_one_pass(tmp_path: Path) -> None:
    three = MASK.copy()
    three[0] = 7
    nan = np.full((40, 50), np.nan, dtype=np.float32)
    items = [
        item(tmp_path, image=np.full_like(IMAGE, 9)),
        item(tmp_path, mask=MASK[:-1]),
        item(tmp_path, mask=three),
        item(tmp_path, mask=np.zeros_like(MASK)),
        item(tmp_path, image=nan),
        item(tmp_path, mask=MASK, mask_kind="outline"),
    ]
    cut = item(tmp_path)
    Path(cut["image"]).write_bytes(Path(cut["image"]).read_bytes()[:2000])
    assert kinds([*items, cut]) == ["constant", "size", "values", "empty", "unreadable", "unreadable"]


@pytest.mark.parametrize(("kind", "text"), [("size", r"50 x 39 pixels, its image 50 x 40"), ("values", r"0, 7, 255")])
def test_a_problem_names_the_file_and_what_came(tmp_path: Path, kind: str, text: str) -> None:
    three = MASK.copy()
    three[0] = 7
    bad = item(tmp_path, mask=MASK[:-1] if kind == "size" else three)
    (problem,) = inspect_items([bad]).problems
    assert problem.kind == kind
    assert bad["label"] in problem.message
    assert text in problem.message


def test_foreground_values_make_a_mask_of_labels_valid(tmp_path: Path) -> None:
    labels = MASK // 255 + np.eye(40, 50, dtype=np.uint8)
    assert kinds([item(tmp_path, mask=labels)]) == ["values"]
    assert kinds([item(tmp_path, mask=labels)], foreground_values=[2]) == []
    assert kinds([item(tmp_path, mask=labels)], foreground_values=[3]) == ["empty"]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_label_values_are_the_same_in_the_check_in_training_and_in_the_report(tmp_path: Path, dtype: type) -> None:
    """nibabel stores 0, 0.996 and 2.00000004 with a scale factor, as other programs do."""
    labels = np.zeros((40, 50))
    labels[10:20, 10:20], labels[25:30, 5:9] = 0.996, 1.99
    mask = nibabel.Nifti1Image(labels.T[..., None], np.diag([-1.0, -1, 1, 1]))
    mask.header.set_data_dtype(dtype)
    mask.to_filename(tmp_path / "mask.nii.gz")
    stored = np.unique(np.asanyarray(nibabel.load(tmp_path / "mask.nii.gz").dataobj))
    assert stored[1] == pytest.approx(1, abs=0.01)
    assert stored[1] != 1
    listed = item(tmp_path) | {"label": str(tmp_path / "mask.nii.gz")}
    assert kinds([listed], foreground_values=[1]) == []
    load = Compose([LoadImaged("label", reader=Image2DReader(mask=True)), EnsureChannelFirstd("label")])
    trained = CleanMaskd("label", foreground_values=[1])(load(listed))["label"][0].T
    reported = load_reference(listed | {"foreground_values": [1]})
    assert np.array_equal(trained, labels == 0.996)
    assert np.array_equal(reported, labels == 0.996)


@pytest.mark.parametrize("value", [0.5, 1 / 255])
def test_what_is_no_label_is_refused_with_its_value(tmp_path: Path, value: float) -> None:
    labels = np.where(MASK > 0, np.float32(value), np.float32(0))
    Image.fromarray(labels).save(tmp_path / "mask.tif")
    (problem,) = inspect_items([item(tmp_path) | {"label": str(tmp_path / "mask.tif")}]).problems
    assert f"mask.tif is no mask: Expected labels, which are whole numbers, got {value:.4g}." in problem.message


def coloured(*colours: tuple[int, ...], alpha: np.ndarray | None = None) -> np.ndarray:
    """Squares of different colours on black."""
    mask = np.zeros((40, 50, 3), np.uint8)
    for number, colour in enumerate(colours):
        mask[10:20, 15 * number : 15 * number + 10] = colour
    return mask if alpha is None else np.dstack([mask, alpha])


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        (coloured((200, 0, 0)), ""),
        (coloured((9, 9, 9)), ""),
        (coloured((255, 255, 255), alpha=np.full((40, 50), 255, np.uint8)), ""),
        (coloured((255, 255, 255), alpha=coloured((255,) * 3)[..., 0]), ""),
        (coloured((255, 0, 0), (0, 255, 0)), r"got \(0, 255, 0\), \(255, 0, 0\)"),
        (coloured((0, 128, 0), (255, 255, 255)), "of one colour"),
        (coloured(alpha=MASK), "Its colours are all 0"),
        (coloured((255, 255, 255), (255, 255, 255), alpha=MASK), "two different masks"),
        (
            coloured((255, 255, 255), alpha=coloured((255,) * 3)[..., 0] // 2 + np.eye(40, 50, dtype=np.uint8)),
            "anti-aliased",
        ),
    ],
)
def test_masks_of_several_colours_or_in_alpha_are_refused(tmp_path: Path, mask: np.ndarray, told: str) -> None:
    problems = inspect_items([item(tmp_path, mask=mask)]).problems
    assert len(problems) == bool(told)
    for problem in problems:
        assert re.search(told, problem.message)


def test_two_colours_in_a_jpeg_are_refused_and_its_noise_is_not(tmp_path: Path) -> None:
    for name, colours in (("one", [(255, 0, 0)]), ("two", [(255, 0, 0), (0, 0, 255)]), ("gray", [(250, 255, 255)])):
        Image.fromarray(coloured(*colours)).save(tmp_path / f"{name}.jpg", quality=80)
        listed = item(tmp_path) | {"label": str(tmp_path / f"{name}.jpg"), "mask_kind": "lossy"}
        assert kinds([listed]) == ["unreadable"] * (name == "two")


def test_different_values_in_different_masks_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    items = [item(tmp_path, mask=MASK // 255 * value, source="folder") for value in (1, 1, 2)]
    assert kinds(items) == []
    assert f"The masks of folder hold different values: 1 in 2 (first {items[0]['label']}), 2 in 1" in caplog.text


def test_foreground_values_that_no_mask_holds_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kinds([item(tmp_path, mask=MASK // 255), item(tmp_path, mask=MASK // 85)], foreground_values=[1, 4])
    assert "No mask holds 4 of `foreground_values`; they hold 1, 3 beside 0" in caplog.text


def test_pixels_that_are_removed_from_jpeg_masks_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    speck = MASK.copy()
    speck[0, 0] = 255
    caplog.set_level("INFO")
    bad = item(tmp_path, mask=speck, mask_kind="lossy")
    assert kinds([bad, item(tmp_path, mask_kind="lossy")]) == []
    assert f"1 stray pixels are removed from 1 JPEG masks, most of them (1) from {bad['label']}" in caplog.text


def test_one_empty_mask_of_two_is_no_problem(tmp_path: Path) -> None:
    full, empty = item(tmp_path), item(tmp_path, mask=np.zeros_like(MASK))
    assert kinds([{**full, "label": [full["label"], empty["label"]]}]) == []


def test_a_missing_file_is_reported_and_the_rest_still_looked_at(tmp_path: Path) -> None:
    inspection = inspect_items([{"image": "none.png", "label": "none_mask.png"}, item(tmp_path)])
    assert [problem.kind for problem in inspection.problems] == ["unreadable", "unreadable"]
    assert inspection.thumbnails[0].max() == 0
    assert inspection.thumbnails[1].mean() == pytest.approx(IMAGE.mean(), rel=0.05)


def test_images_to_be_segmented_are_checked_all_at_once_and_skipped_only_when_asked(tmp_path, caplog):
    good, bad, flat = (tmp_path / name for name in ("good.png", "bad.png", "flat.png"))
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8), dtype=np.uint8)).save(good)
    bad.write_bytes(good.read_bytes()[:40])
    Image.new("L", (8, 8), 7).save(flat)
    items = [{"image": str(path)} for path in (good, bad, flat)]
    with pytest.raises(ValueError, match="2 of 3 images cannot be segmented") as error:
        check_images(items)
    assert "bad.png" in str(error.value)
    assert "flat.png" in str(error.value)
    assert check_images(items, "skip") == items[:1]
    assert "2 of 3 images are left out" in caplog.text


def nifti(path: Path, rows_first: np.ndarray, affine: np.ndarray) -> str:
    nibabel.Nifti1Image(np.swapaxes(rows_first, 0, 1)[..., None], affine).to_filename(path)
    return str(path)


@pytest.mark.parametrize(("affine", "found"), [(np.eye(4), ["axes"]), (np.diag([-1.0, -1, 1, 1]), [])])
def test_a_mask_whose_axes_run_otherwise_would_be_flipped_against_its_image(tmp_path, affine, found) -> None:
    good = item(tmp_path)
    assert kinds([good | {"image": nifti(tmp_path / "a.nii.gz", IMAGE[..., 0], affine)}]) == found


@pytest.mark.parametrize(("shape", "found"), [((40, 40), "orientation"), ((40, 50), "size")])
def test_an_exif_orientation_that_the_mask_lacks_is_told(tmp_path, shape, found) -> None:
    data = item(tmp_path, image=IMAGE[: shape[0], : shape[1]], mask=np.rot90(MASK[: shape[0], : shape[1]], -1))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(data["image"]).save(data["image"], exif=exif)
    (problem,) = inspect_items([data]).problems
    assert problem.kind == found
    assert f"EXIF has viewers turn its image (orientation 6) and not {data['label']}" in problem.message

    turned = item(tmp_path)
    for path in (turned["image"], turned["label"]):
        Image.open(path).save(path, exif=exif)
    assert kinds([turned]) == []


def test_images_whose_masks_would_be_one_file_are_refused(tmp_path: Path) -> None:
    items = []
    for name in ("a.png", "a.bmp", "b.png"):
        Image.fromarray(IMAGE).save(tmp_path / name)
        items.append({"image": str(tmp_path / name)})
    with pytest.raises(ValueError, match=r"masks of a\.png and a\.bmp in .* would be written to one file"):
        check_images(items, "skip")
    assert check_images(items[1:]) == items[1:]


def test_images_that_viewers_turn_are_told_before_they_are_segmented(tmp_path, caplog) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(IMAGE).save(tmp_path / "turned.jpg", exif=exif)
    Image.fromarray(IMAGE).save(tmp_path / "plain.jpg")
    check_images([{"image": str(tmp_path / name)} for name in ("plain.jpg", "turned.jpg")])
    assert f"EXIF has viewers turn 1 of 2 images, as {tmp_path / 'turned.jpg'}" in caplog.text
