# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from monai_kdsam.data.checks import inspect_items
from monai_kdsam.data.layouts import LAYOUTS, read_dataset

REAL = os.environ.get("KDSAM_DATA")
needs_real_data = pytest.mark.skipif(not REAL, reason="set KDSAM_DATA to the folder of the real data sets")


def touch(root: Path, *names: str) -> Path:
    """Make empty files: the readers look at names only."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def names(items: list[dict], key: str = "image") -> list[str]:
    return [Path(item[key]).name for item in items]


def test_kvasir_masks_are_lossy(tmp_path: Path) -> None:
    items = read_dataset("kvasir", touch(tmp_path, "images/b.jpg", "images/a.jpg", "masks/a.jpg", "masks/b.jpg"))
    assert names(items) == ["a.jpg", "b.jpg"]
    assert {(item["source"], item["mask_kind"]) for item in items} == {("kvasir", "lossy")}


def test_isic_knows_its_official_split_and_ignores_superpixels(tmp_path: Path) -> None:
    for part in ("Training", "Validation", "Test_v2"):
        folder = f"ISIC-2017_{part}_"
        touch(tmp_path, f"{folder}Data/ISIC_{part}.jpg", f"{folder}Data/ISIC_{part}_superpixels.png")
        touch(tmp_path, f"{folder}Data/ISIC-2017_{part}_metadata.csv")
        touch(tmp_path, f"{folder}Part1_GroundTruth/ISIC_{part}_segmentation.png")
    items = read_dataset("isic2017", tmp_path)
    assert names(items) == ["ISIC_Test_v2.jpg", "ISIC_Training.jpg", "ISIC_Validation.jpg"]
    assert [item["official_split"] for item in items] == ["test", "training", "validation"]


def test_hc18_frames_of_one_subject_share_it_and_have_their_pixel_size(tmp_path: Path) -> None:
    frames = [
        f"training_set/{name}{end}.png" for name in ("198_HC", "198_2HC", "199_HC") for end in ("", "_Annotation")
    ]
    table = (
        "filename,pixel size(mm),head circumference (mm)\n198_HC.png,0.1,44\n198_2HC.png,0.2,45\n199_HC.png,0.3,46\n"
    )
    (touch(tmp_path, *frames) / "training_set_pixel_size_and_HC.csv").write_text(table)
    items = read_dataset("hc18", tmp_path)
    assert [(item["subject"], item["spacing"][0]) for item in items] == [("198", 0.2), ("198", 0.1), ("199", 0.3)]
    assert {item["mask_kind"] for item in items} == {"outline"}


def test_busi_masks_of_one_image_stay_together(tmp_path: Path) -> None:
    touch(tmp_path, "benign/benign (1).png", "benign/benign (1)_mask.png", "benign/benign (1)_mask_1.png")
    touch(tmp_path, "benign/benign (10).png", "benign/benign (10)_mask.png")
    touch(tmp_path, "normal/normal (1).png", "normal/normal (1)_mask.png")
    items = read_dataset("busi", tmp_path)
    assert names(items) == ["benign (1).png", "benign (10).png", "normal (1).png"]
    assert names([{"label": label} for label in items[0]["label"]], "label") == [
        "benign (1)_mask.png",
        "benign (1)_mask_1.png",
    ]
    assert Path(items[1]["label"]).name == "benign (10)_mask.png"


def test_a_folder_pairs_stems_of_any_format(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.dcm", "images/b.nii.gz", "images/c.png", "images/notes.txt", "images/.c.png")
    touch(tmp_path, "masks/a.png", "masks/b.nii.gz", "masks/c.jpg")
    items = read_dataset("folder", tmp_path)
    assert [(Path(item["label"]).name, item["mask_kind"]) for item in items] == [
        ("a.png", "binary"),
        ("b.nii.gz", "binary"),
        ("c.jpg", "lossy"),
    ]


def test_two_masks_of_one_stem_in_a_folder_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Expected one mask for"):
        read_dataset("folder", touch(tmp_path, "images/a.png", "masks/a.png", "masks/a.jpg"))


def test_a_datalist_has_paths_relative_to_itself_and_its_own_split(tmp_path: Path) -> None:
    touch(tmp_path, "x/a.png", "x/a_mask.png", "x/b.png", "x/b_mask.png", "x/b_mask2.png", "cine.dcm", "x/c.png")
    lists = {
        "name": "a MONAI datalist may hold more",
        "training": [{"image": "x/a.png", "label": "x/a_mask.png", "subject": "7"}],
        "test": [
            {"image": "x/b.png", "label": ["x/b_mask.png", "x/b_mask2.png"]},
            {"image": "cine#frame3.dcm", "label": "x/c.png"},
        ],
    }
    (tmp_path / "list.json").write_text(json.dumps(lists))
    items = read_dataset("datalist", tmp_path / "list.json")
    assert {Path(item["image"]).name: item["official_split"] for item in items} == {
        "a.png": "training",
        "b.png": "test",
        "cine#frame3.dcm": "test",
    }
    assert sorted(item["subject"] for item in items) == ["7", "cine#frame3.dcm", "x/b.png"]


def test_unlabeled_images_of_a_folder_are_subjects_of_their_own(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.png", "masks/a.png", "unlabeled/a.png", "unlabeled/notes.txt")
    labeled, unlabeled = read_dataset("folder", tmp_path)
    assert labeled["label"] == str(tmp_path / "masks/a.png")
    assert unlabeled == {
        "image": str(tmp_path / "unlabeled/a.png"),
        "source": "folder",
        "subject": "unlabeled/a",
    }


def test_unlabeled_images_of_a_datalist_need_an_image_only(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "a_mask.png", "b.png", "c.png")
    lists = {
        "training": [{"image": "a.png", "label": "a_mask.png", "subject": 7}],
        "unlabeled": [{"image": "b.png", "subject": 7}, {"image": "c.png", "label": "not looked at.png"}],
    }
    (tmp_path / "list.json").write_text(json.dumps(lists))
    _, *unlabeled = read_dataset("datalist", tmp_path / "list.json")
    assert [(Path(item["image"]).name, item["subject"]) for item in unlabeled] == [("b.png", "7"), ("c.png", "c.png")]
    assert all("label" not in item and "official_split" not in item for item in unlabeled)


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "[]",
        '{"folds": []}',
        '{"training": [{"image": "a.png"}]}',
        '{"training": null}',
        '{"training": [], "unlabeled": "a.png"}',
        '{"training": [], "unlabeled": ["a.png"]}',
        '{"training": [], "unlabeled": [{"label": "a.png"}]}',
        '{"training": [{"image": "a.png", "label": null}]}',
        '{"training": [{"image": "a.png", "label": []}]}',
    ],
)
def test_what_is_no_datalist_is_an_error_that_names_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(ValueError, match=r"list\.json"):
        read_dataset("datalist", tmp_path / "list.json")


def test_files_that_a_datalist_names_must_exist(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text('{"training": [{"image": "a.png", "label": "b.png"}]}')
    with pytest.raises(FileNotFoundError, match=r"2 files listed in .*a\.png, .*b\.png"):
        read_dataset("datalist", tmp_path / "list.json")


def test_all_images_without_a_mask_are_named_at_once(tmp_path: Path) -> None:
    items = read_dataset(
        "kvasir", touch(tmp_path, "images/a.jpg", "images/b.jpg", "images/c.jpg", "masks/b.jpg", "masks/a_mask.png")
    )
    bare = [problem for problem in inspect_items(items).problems if problem.kind == "mask"]
    assert [Path(problem.image).name for problem in bare] == ["a.jpg", "c.jpg"]
    assert f"a.jpg has no mask. Of no image are in {tmp_path / 'masks'}: a_mask.png. A mask has" in bare[0].message


def test_subfolders_are_subjects_and_pictures_of_other_formats_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = [
        f"{kind}/pat{number}/f{frame}.png" for kind in ("images", "masks") for number in (1, 2) for frame in (0, 1)
    ]
    touch(
        tmp_path, *pairs, "images/c.webp", "images/c.png", "masks/c.png", "images/.hidden/d.png", "unlabeled/pat1/u.png"
    )
    items = read_dataset("folder", tmp_path)
    assert [(Path(item["image"]).name, item["subject"]) for item in items] == [
        ("c.png", "c"),
        ("f0.png", "pat1"),
        ("f1.png", "pat1"),
        ("f0.png", "pat2"),
        ("f1.png", "pat2"),
        ("u.png", "pat1"),
    ]
    assert all(Path(item["label"]).parent.name == item["subject"] for item in items[1:5])
    assert "c.webp" in caplog.text


def test_a_csv_file_is_a_datalist(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "a_mask.png", "b.png")
    (tmp_path / "list.csv").write_text(
        "\ufeffimage,label,split,subject\na.png,a_mask.png,test,7\nb.png,,unlabeled,8\n", encoding="utf-8"
    )
    one, two = read_dataset("datalist", tmp_path / "list.csv")
    assert (one["official_split"], one["subject"], one["label"]) == ("test", "7", str(tmp_path / "a_mask.png"))
    assert two == {"image": str(tmp_path / "b.png"), "source": "datalist", "subject": "8"}
    (tmp_path / "list.csv").write_text("image,label\na.png,a_mask.png\n")
    assert "official_split" not in read_dataset("datalist", tmp_path / "list.csv")[0]
    (tmp_path / "list.csv").write_text("image,label,split\na.png,a_mask.png,train\n")
    with pytest.raises(ValueError, match=r"got the splits train\."):
        read_dataset("datalist", tmp_path / "list.csv")


def test_lists_of_other_names_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "a.png", "a_mask.png")
    entry = [{"image": "a.png", "label": "a_mask.png"}]
    (tmp_path / "list.json").write_text(json.dumps({"train": entry, "val": entry}))
    with pytest.raises(ValueError, match=r"got none of them \(it has train, val\)"):
        read_dataset("datalist", tmp_path / "list.json")
    (tmp_path / "list.json").write_text(json.dumps({"training": entry, "val": entry}))
    assert len(read_dataset("datalist", tmp_path / "list.json")) == 1
    assert "has lists that are not read: val." in caplog.text


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_wrong_layout_is_an_error_that_shows_the_right_one(tmp_path: Path, layout: str) -> None:
    with pytest.raises(FileNotFoundError, match="Expected"):
        read_dataset(layout, tmp_path)


def test_empty_folders_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    with pytest.raises(ValueError, match=r"No image in .* has a mask"):
        read_dataset("folder", tmp_path)


def test_an_unknown_layout_is_an_error_that_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"Unknown data set layout 'isic'.*kvasir, isic2017, hc18, busi, folder, datalist"
    ):
        read_dataset("isic", tmp_path)


@needs_real_data
@pytest.mark.parametrize(
    ("layout", "folder"),
    [("kvasir", "Kvasir-SEG"), ("isic2017", "."), ("hc18", "HC18"), ("busi", "Dataset_BUSI_with_GT")],
)
def test_every_image_of_the_real_sets_has_existing_masks(layout: str, folder: str) -> None:
    items = read_dataset(layout, Path(REAL or ".") / folder)
    assert len(items) > 100
    assert len({item["image"] for item in items}) == len(items)
    labels = [[item["label"]] if isinstance(item["label"], str) else item["label"] for item in items]
    assert all(os.path.exists(path) for paths in labels for path in paths)


def test_names_that_are_uids_are_whole_names(tmp_path: Path) -> None:
    for number in (7, 8):
        for place in (tmp_path / "images" / f"1.2.840.{number}", tmp_path / "masks" / f"1.2.840.{number}.png"):
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(bytes(128) + b"DICM")
    items = read_dataset("folder", tmp_path)
    assert [Path(item["label"]).name for item in items] == ["1.2.840.7.png", "1.2.840.8.png"]


def test_masks_of_another_name_or_format_are_named(tmp_path, caplog):
    touch(tmp_path, *(f"images/{name}.png" for name in "abc"), "masks/a.gif", "masks/b_mask.png", "masks/c.png")
    assert [bool(item["label"]) for item in read_dataset("folder", tmp_path)] == [False, False, True]
    assert "a.gif, b_mask.png. A mask has its image's name" in caplog.text
    assert "no format that is read (or DICOM without its preamble): a.gif" in caplog.text


def test_files_that_are_passed_over_are_named(tmp_path, caplog):
    (touch(tmp_path, "images/a.png", "masks/a.png") / "images" / "IM0001").write_bytes(b"\x08\x00\x16\x00UI")
    assert names(read_dataset("folder", tmp_path)) == ["a.png"]
    assert "IM0001" in caplog.text
