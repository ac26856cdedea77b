# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from monai_kdsam.data.validation import check_images, inspect_items

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


def test_images_whose_masks_would_be_one_file_are_refused(tmp_path: Path) -> None:
    items = []
    for name in ("a.png", "a.bmp", "b.png"):
        Image.fromarray(IMAGE).save(tmp_path / name)
        items.append({"image": str(tmp_path / name)})
    with pytest.raises(ValueError, match=r"masks of a\.png and a\.bmp in .* would be written to one file"):
        check_images(items, "skip")
    assert check_images(items[1:]) == items[1:]
