# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_kdsam.data import distillation_items, prepare_datalist, require_items

RANDOM = np.random.RandomState(0)


def add_pair(root: Path, name: str, *, empty: bool = False) -> None:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    mask = np.zeros((24, 32), dtype=np.uint8)
    mask[4:12, 4:20] = 0 if empty else 255
    Image.fromarray(RANDOM.randint(0, 256, (24, 32, 3), dtype=np.uint8)).save(root / "images" / f"{name}.png")
    Image.fromarray(mask).save(root / "masks" / f"{name}.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder data set of ten pairs."""
    for number in range(10):
        add_pair(tmp_path / "site", f"case {number}")
    return tmp_path / "site"


def stems(datalist: dict[str, list[dict]]) -> dict[str, list[str]]:
    return {split: [Path(item["image"]).stem for item in items] for split, items in datalist.items()}


def test_the_second_call_gives_the_lists_of_the_first(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "new folder" / "split.json"
    first = prepare_datalist({"folder": root}, file)
    assert {split: len(items) for split, items in first.items()} == {"training": 7, "validation": 1, "test": 2}
    assert prepare_datalist({"folder": root}, file) == first
    assert os.listdir(file.parent) == ["split.json"]


def test_the_split_file_and_the_data_may_move(root: Path, tmp_path: Path) -> None:
    first = prepare_datalist({"folder": root}, tmp_path / "split.json")
    shutil.move(root, tmp_path / "elsewhere")
    shutil.move(tmp_path / "split.json", tmp_path / "moved.json")
    second = prepare_datalist({"folder": tmp_path / "elsewhere"}, tmp_path / "moved.json")
    assert stems(first) == stems(second)
    assert all(Path(item["label"]).is_file() for item in second["training"])


def test_the_split_file_is_a_monai_datalist_with_settings_and_counts(root: Path, tmp_path: Path) -> None:
    prepare_datalist({"folder": root}, tmp_path / "split.json", seed=5)
    content = json.loads((tmp_path / "split.json").read_text())
    assert content["settings"]["seed"] == 5
    assert content["counts"] == {"training": {"folder": 7}, "validation": {"folder": 1}, "test": {"folder": 2}}
    assert content["training"][0]["image"].startswith("images/case ")


def test_other_settings_are_an_error_with_the_way_out(root: Path, tmp_path: Path) -> None:
    prepare_datalist({"folder": root}, tmp_path / "split.json")
    with pytest.raises(ValueError, match=r"other settings: seed 0 \(now 1\). Delete .*split\.json"):
        prepare_datalist({"folder": root}, tmp_path / "split.json", seed=1)


def test_a_file_that_is_no_split_file_is_an_error(root: Path, tmp_path: Path) -> None:
    (tmp_path / "split.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a split file"):
        prepare_datalist({"folder": root}, tmp_path / "split.json")


def test_all_problems_are_raised_at_once_and_written_down(root: Path, tmp_path: Path) -> None:
    (root / "images" / "case 3.png").write_bytes(b"broken")
    Image.fromarray(np.zeros((5, 5), dtype=np.uint8)).save(root / "masks" / "case 5.png")
    with pytest.raises(ValueError, match=r"(?s)2 images have problems.*--bad_images skip.*case 3\.png.*case 5\.png"):
        prepare_datalist({"folder": root}, tmp_path / "split.json")
    table = (tmp_path / "split_problems.csv").read_text().splitlines()
    assert table[0] == "image,label,kind,message"
    assert len(table) == 3
    assert not (tmp_path / "split.json").exists()


def test_bad_images_can_be_left_out(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    (root / "images" / "case 3.png").write_bytes(b"broken")
    for _ in range(2):
        caplog.clear()
        datalist = prepare_datalist({"folder": root}, tmp_path / "split.json", bad_images="skip")
        assert sum(len(items) for items in datalist.values()) == 9
    assert not caplog.records  # what was left out is not new the second time


@pytest.mark.parametrize(("setting", "count"), [("keep", 11), ("skip", 10)])
def test_empty_masks_are_counted_and_kept_or_left_out(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, setting: str, count: int
) -> None:
    add_pair(root, "healthy", empty=True)
    caplog.set_level(logging.INFO)
    datalist = prepare_datalist({"folder": root}, tmp_path / "split.json", empty_masks=setting)
    assert sum(len(items) for items in datalist.values()) == count
    assert "1 of 11 masks have no foreground" in caplog.text


def test_a_missing_file_is_an_error_and_a_new_one_a_warning(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prepare_datalist({"folder": root}, tmp_path / "split.json")
    add_pair(root, "new")
    prepare_datalist({"folder": root}, tmp_path / "split.json")
    assert "1 images in" in caplog.text
    (root / "masks" / "case 3.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 files listed in .*case 3\.png"):
        prepare_datalist({"folder": root}, tmp_path / "split.json")


def test_a_copy_of_an_image_is_on_the_same_side(root: Path, tmp_path: Path) -> None:
    for number in range(10):
        for folder in ("images", "masks"):
            shutil.copy(root / folder / f"case {number}.png", root / folder / f"copy {number}.png")
    split = stems(prepare_datalist({"folder": root}, tmp_path / "split.json", fractions=(0.4, 0.3, 0.3)))
    for names in split.values():
        assert {name[5:] for name in names if "case" in name} == {name[5:] for name in names if "copy" in name}


def test_unlabeled_images_are_a_list_of_their_own_without_relatives_of_held_out_images(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labeled = stems(prepare_datalist({"folder": root}, tmp_path / "labeled.json"))
    (root / "unlabeled").mkdir()
    for number in range(3):
        picture = RANDOM.randint(0, 256, (24, 32), dtype=np.uint8)
        Image.fromarray(picture).save(root / "unlabeled" / f"case {number}.png")
    for name in ("training", "test"):
        shutil.copy(root / "images" / f"{labeled[name][0]}.png", root / "unlabeled" / f"copy of {name}.png")
    (root / "unlabeled" / "empty.png").touch()
    caplog.set_level(logging.INFO)
    for _ in range(2):
        datalist = prepare_datalist({"folder": root}, tmp_path / "split.json", bad_images="skip")
        assert stems(datalist) == labeled | {"unlabeled": ["case 0", "case 1", "case 2", "copy of training"]}
        assert all("label" not in item for item in datalist["unlabeled"])
    assert "1 unlabeled images are left out: of a subject, or a near duplicate, of a validation or test" in caplog.text
    content = json.loads((tmp_path / "split.json").read_text())
    assert content["counts"]["unlabeled"] == {"folder": 4}
    assert {item["image"] for item in content["skipped"]} == {"unlabeled/copy of test.png", "unlabeled/empty.png"}


def test_unlabeled_images_of_a_held_out_subject_are_left_out(root: Path, tmp_path: Path) -> None:
    pairs = [
        {"image": f"site/images/case {n}.png", "label": f"site/masks/case {n}.png", "subject": n} for n in range(8)
    ]
    unlabeled = [{"image": f"site/images/case {n}.png", "subject": str(n - 7)} for n in (8, 9)]
    lists = {"training": pairs[:2], "validation": pairs[2:3], "test": pairs[3:], "unlabeled": unlabeled}
    (tmp_path / "list.json").write_text(json.dumps(lists))
    datalist = prepare_datalist({"datalist": tmp_path / "list.json"}, tmp_path / "split.json", use_official_split=True)
    assert stems(datalist)["unlabeled"] == ["case 8"]


def test_a_teacher_shows_the_images_of_training_and_unlabeled_ones() -> None:
    labeled = {"image": "a.png", "label": "a_mask.png", "subject": "a"}
    assert distillation_items({"training": [labeled]}) == [{"image": "a.png"}]
    both = {"training": [labeled], "validation": [labeled], "unlabeled": [{"image": "b.png", "subject": "b"}]}
    assert distillation_items(both) == [{"image": "a.png"}, {"image": "b.png"}]
    with pytest.raises(ValueError, match="images in the list 'training'"):
        distillation_items({"training": [], "unlabeled": both["unlabeled"]})


def test_one_source_of_a_pooled_split_may_be_asked_for(root: Path, tmp_path: Path) -> None:
    listed = {"training": [{"image": f"images/case {n}.png", "label": f"masks/case {n}.png"} for n in range(3)]}
    shutil.copytree(root, tmp_path / "other")
    for image in (tmp_path / "other" / "images").iterdir():  # not copies of the first source's
        Image.fromarray(RANDOM.randint(0, 256, (24, 32), dtype=np.uint8)).save(image)
    (tmp_path / "other" / "list.json").write_text(json.dumps(listed))
    sources = {"folder": root, "datalist": tmp_path / "other" / "list.json"}
    pooled = prepare_datalist(sources, tmp_path / "split.json")
    alone = prepare_datalist({"folder": root}, tmp_path / "split.json")
    for split in pooled:
        assert stems(alone)[split] == [Path(i["image"]).stem for i in pooled[split] if i["source"] == "folder"]
    with pytest.raises(ValueError, match="but not busi"):
        prepare_datalist({"busi": root}, tmp_path / "split.json")


def test_items_of_all_sources_have_equal_keys(root: Path, tmp_path: Path) -> None:
    items = [{"image": f"site/images/case {n}.png", "label": f"site/masks/case {n}.png"} for n in range(10)]
    items[0]["spacing"] = [0.1, 0.1]
    (tmp_path / "list.json").write_text(json.dumps({"training": items}))
    datalist = prepare_datalist({"datalist": tmp_path / "list.json"}, tmp_path / "split.json")
    assert len({tuple(sorted(item)) for split in datalist.values() for item in split}) == 1


def test_the_official_split_is_used_where_asked_for(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = [{"image": f"site/images/case {n}.png", "label": f"site/masks/case {n}.png"} for n in range(10)]
    (tmp_path / "list.json").write_text(json.dumps({"training": pairs[:4], "test": pairs[4:]}))
    datalist = prepare_datalist({"datalist": tmp_path / "list.json"}, tmp_path / "split.json", use_official_split=True)
    assert {split: len(items) for split, items in datalist.items()} == {"training": 4, "validation": 0, "test": 6}
    assert "has no validation images" in caplog.text


@pytest.mark.parametrize(("name", "value"), [("bad_images", "ignore"), ("empty_masks", "drop")])
def test_an_unknown_choice_is_an_error(root: Path, tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"Expected `{name}` to be one of .*, got '{value}'"):
        prepare_datalist({"folder": root}, tmp_path / "split.json", **{name: value})


def test_a_folder_that_cannot_be_written_is_an_error_before_any_image_is_read(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (root / "images" / "case 3.png").write_bytes(b"broken")
    with pytest.raises(OSError, match=r"Cannot write to `split_file` .*file.*Choose another one"):
        prepare_datalist({"folder": root}, tmp_path / "file" / "split.json")


def test_a_list_that_a_phase_needs_may_not_be_empty(root: Path, tmp_path: Path) -> None:
    datalist = prepare_datalist({"folder": root}, tmp_path / "split.json", fractions=(0.5, 0, 0.5))
    assert require_items(datalist, "test") == datalist["test"]
    with pytest.raises(ValueError, match=r"images in the list 'validation', got \d+ in 'training', 0 in 'validation'"):
        require_items(datalist, "validation")


def test_a_list_of_empty_masks_is_refused_before_the_run_but_teaches_what_a_teacher_sees(tmp_path: Path) -> None:
    for number in range(4):
        add_pair(tmp_path, str(number), empty=number > 0)
    lists = {
        name: [{"image": f"images/{n}.png", "label": f"masks/{n}.png"} for n in numbers]
        for name, numbers in {"training": [2, 3], "validation": [1], "test": [0]}.items()
    }
    (tmp_path / "list.json").write_text(json.dumps(lists))
    datalist = prepare_datalist({"datalist": tmp_path / "list.json"}, tmp_path / "split.json", use_official_split=True)
    for name, count in (("training", 2), ("validation", 1)):
        with pytest.raises(ValueError, match=f"Expected foreground in a mask of the list '{name}', got {count} empty"):
            require_items(datalist, name)
    assert len(require_items(datalist, "test")) == 1
    assert len(distillation_items(datalist)) == 2


def test_lists_whose_masks_a_small_image_size_leaves_empty_are_refused_with_its_name(root, tmp_path) -> None:
    mask = np.zeros((40, 64), dtype=np.uint8)
    mask[8, 8] = 255
    for path in (root / "masks").iterdir():
        Image.fromarray(mask).save(path)
        Image.fromarray(np.random.randint(0, 256, (40, 64, 3), dtype=np.uint8)).save(root / "images" / path.name)
    datalist = prepare_datalist({"folder": root}, tmp_path / "split.json")
    assert require_items(datalist, "training", 64) == require_items(datalist, "training")
    count = len(datalist["training"])
    with pytest.raises(
        ValueError, match=f"at `image_size` 32 in a mask of the list 'training', got {count} masks whose"
    ):
        require_items(datalist, "training", 32)


def test_an_image_without_mask_is_left_out_like_other_bad_images(root: Path, tmp_path: Path) -> None:
    (root / "masks" / "case 3.png").unlink()
    with pytest.raises(ValueError, match=r"(?s)1 images have problems.*case 3\.png has no mask"):
        prepare_datalist({"folder": root}, tmp_path / "split.json")
    datalist = prepare_datalist({"folder": root}, tmp_path / "split.json", bad_images="skip")
    assert sum(len(items) for items in datalist.values()) == 9


def test_a_pattern_finds_subjects_in_names(tmp_path: Path) -> None:
    for number in range(12):
        add_pair(tmp_path, f"pat{number // 3}_{number}")
    datalist = prepare_datalist({"folder": tmp_path}, tmp_path / "split.json", subject_pattern=r"(pat\d+)_")
    subjects = [{item["subject"] for item in datalist[name]} for name in ("training", "validation", "test")]
    assert sorted(subject for found in subjects for subject in found) == ["pat0", "pat1", "pat2", "pat3"]
    for pattern, told in (
        ("nobody", "to find the subject of each image, not so in images"),
        ("(", "regular expression"),
    ):
        with pytest.raises(ValueError, match=told):
            prepare_datalist({"folder": tmp_path}, tmp_path / "other.json", subject_pattern=pattern)


def test_what_official_lists_share_is_named(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def entry(number: int, subject: str) -> dict[str, str]:
        return {"image": f"site/images/case {number}.png", "label": f"site/masks/case {number}.png", "subject": subject}

    lists = {"training": [entry(0, "a"), entry(1, "b")], "validation": [entry(2, "a")], "test": [entry(3, "c")]}
    (tmp_path / "list.json").write_text(json.dumps(lists))
    prepare_datalist({"datalist": tmp_path / "list.json"}, tmp_path / "split.json", use_official_split=True)
    assert "1 images of the official list 'training' are also in validation or test" in caplog.text
    assert "(1 by subject)" in caplog.text
    assert (tmp_path / "split_shared.csv").read_text().splitlines() == [
        "image,list,why,other_image,other_list",
        f"{root}/images/case 0.png,training,subject,{root}/images/case 2.png,validation",
    ]
    assert "list 'validation'" not in caplog.text
