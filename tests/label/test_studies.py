# SPDX-License-Identifier: Apache-2.0
"""The store of a folder of studies: what it accepted is there after a kill, a full disk and beside other writers."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

if importlib.util.find_spec("monailabel") is None:
    reason = "MONAI Label is not installed; `nox -s label` runs these tests in an environment that has it"
    pytest.skip(reason, allow_module_level=True)

from monailabel.datastore.local import LocalDatastore

from monai_kdsam.label import app_folder, serve
from monai_kdsam.label.app_folder import label_folder
from monai_kdsam.label.serve import SUFFIXES
from monai_kdsam.label.studies import StudiesDatastore

LIST = "datastore_v2.json"


def opened(folder: Path) -> StudiesDatastore:
    return StudiesDatastore(str(folder), extensions=SUFFIXES)


@pytest.fixture
def studies(tmp_path) -> Path:
    """Ten images, and beside their folder two labels."""
    folder = tmp_path / "studies"
    folder.mkdir()
    for number in range(10):
        (folder / f"image_{number}.png").write_bytes(b"image")
    (tmp_path / "label.png").write_bytes(b"label")
    (tmp_path / "label.nii.gz").write_bytes(b"other")
    return folder


def labelled(store: StudiesDatastore) -> set[str]:
    return set(store.get_labeled_images())


@pytest.mark.parametrize("content", [b"", b'{"name": "new-data', b"\xff\xfe", b'{"objects": 5}'])
def test_a_list_that_cannot_be_read_is_made_anew_from_the_labels(studies, tmp_path, content, caplog):
    opened(studies).save_label("image_3", str(tmp_path / "label.png"), "final", {})
    (studies / LIST).write_bytes(content)
    again = opened(studies)
    assert labelled(again) == {"image_3"}
    assert len(again.list_images()) == 10
    assert "made anew" in caplog.text
    assert [file.read_bytes() for file in studies.glob(f"{LIST}.*.damaged")] == [content]
    assert labelled(opened(studies)) == {"image_3"}


def write_until_killed(folder: Path, label: Path, answered: Path) -> None:
    store = opened(folder)
    while True:
        for number in range(10):
            store.save_label(f"image_{number}", str(label), f"tag_{time.monotonic_ns() % 7}", {"n": number})
            with answered.open("a") as stream:
                stream.write(f"image_{number}\n")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a process that was forked")
def test_what_was_answered_is_there_after_a_kill(studies, tmp_path):
    answered = tmp_path / "answered"
    for attempt in range(4):
        arguments = (studies, tmp_path / "label.png", answered)
        writer = multiprocessing.get_context("fork").Process(target=write_until_killed, args=arguments)
        writer.start()
        while not answered.exists() or answered.read_text().count("\n") < 3 * (attempt + 1):
            time.sleep(0.003)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        json.loads((studies / LIST).read_text())
        store = opened(studies)
        known = {name for name in store.list_images() if store.get_labels_by_image_id(name)}
        assert known >= set(answered.read_text().split())
        assert all(file.read_bytes() == b"label" for file in studies.glob("labels/*/*.png"))


def test_two_writers_do_not_undo_each_others_changes(studies, tmp_path):
    """As the server and its scoring have a list each in memory."""
    one, other = opened(studies), opened(studies)
    one.save_label("image_1", str(tmp_path / "label.png"), "final", {})
    other.update_image_info("image_2", {"uncertainty": 0.5})
    one.update_image_info("image_3", {"uncertainty": 0.7})
    found = json.loads((studies / LIST).read_text())["objects"]
    assert "final" in found["image_1"]["labels"]
    assert [found[f"image_{number}"]["image"]["info"]["uncertainty"] for number in (2, 3)] == [0.5, 0.7]


def test_several_images_get_their_scores_at_once_and_what_else_was_written_stays(studies, tmp_path):
    one, other = opened(studies), opened(studies)
    one.save_label("image_1", str(tmp_path / "label.png"), "final", {})
    other.update_image_infos({"image_1": {"uncertainty": 0.5}, "gone": {"uncertainty": 0.1}, "image_2": {"näher": 1}})
    text = (studies / LIST).read_text(encoding="utf-8")
    found = json.loads(text)
    assert text == json.dumps(found, indent=2, ensure_ascii=False)
    assert "final" in found["objects"]["image_1"]["labels"]
    assert [found["objects"][name]["image"]["info"].get("uncertainty") for name in ("image_1", "image_2")] == [
        0.5,
        None,
    ]
    assert "gone" not in found["objects"]


def test_what_is_known_of_an_image_is_what_monai_labels_own_store_tells(studies, tmp_path):
    (studies / "link.png").symlink_to(tmp_path / "label.png")
    store = opened(studies)
    store.update_image_info("link", {"uncertainty": 0.5})
    for image in ("image_1", "link", "none"):
        assert store.get_image_info(image) == LocalDatastore.get_image_info(store, image)


def test_a_correction_in_another_format_replaces_the_label(studies, tmp_path):
    store = opened(studies)
    for name in ("label.png", "label.nii.gz"):
        store.save_label("image_0", str(tmp_path / name), "final", {})
    assert [file.name for file in (studies / "labels" / "final").iterdir()] == ["image_0.nii.gz"]
    assert Path(store.get_label_uri("image_0", "final")).read_bytes() == b"other"
    (studies / LIST).unlink()
    assert Path(opened(studies).get_label_uri("image_0", "final")).read_bytes() == b"other"


def test_a_label_file_of_no_bytes_is_none(studies):
    (studies / "labels" / "final").mkdir(parents=True)
    (studies / "labels" / "final" / "image_4.png").touch()
    assert labelled(opened(studies)) == set()
    content = json.loads((studies / LIST).read_text())
    content["objects"]["image_4"]["labels"]["final"] = {"ext": ".png", "info": {}}
    (studies / LIST).write_text(json.dumps(content))
    assert labelled(opened(studies)) == set()


@pytest.mark.parametrize("name", ["SCAN.NII.GZ", "photo.JPG", "frame.DCM", "x" * 240 + ".png", "é#$ @%\n.png", "1.2.3"])
def test_images_of_any_name_are_found_and_labelled(studies, tmp_path, name):
    content = bytes(128) + b"DICM" if name == "1.2.3" else b"image"
    (studies / name).write_bytes(content)
    store = opened(studies)
    (image,) = set(store.list_images()) - {f"image_{number}" for number in range(10)}
    assert Path(store.get_image_uri(image)).read_bytes() == content
    store.save_label(image, str(tmp_path / "label.nii.gz"), "final", {})
    assert labelled(opened(studies)) == {image}


def test_a_name_that_is_no_unicode_is_told_and_spoils_no_list(studies, tmp_path):
    with open(os.fsencode(studies) + b"/Gr\xf6\xdfe.png", "wb") as file:
        file.write(b"image")
    opened(studies).save_label("image_1", str(tmp_path / "label.png"), "final", {"n": 5})
    store = opened(studies)
    assert store.get_label_info("image_1", "final")["n"] == 5
    assert len(store.list_images()) == 10
    assert not list(studies.glob("*.damaged"))
    assert serve._remarks(studies).startswith("'Gr\\udcf6\\udcdfe.png' is not served: its name is no UTF-8")


def test_images_that_cannot_be_written_beside_are_labelled_elsewhere(studies, tmp_path, monkeypatch):
    (studies / "labels" / "final").mkdir(parents=True)
    (studies / "labels" / "final" / "image_3.png").write_bytes(b"earlier")
    before = sorted(studies.rglob("*"))
    assert label_folder(studies, tmp_path) == studies
    monkeypatch.setattr("os.access", lambda path, mode: path != studies)
    kept = label_folder(studies, tmp_path)
    for _ in range(2):
        assert "is read-only: labels are kept in" in app_folder.copy_labels(studies, kept)
        store = StudiesDatastore(str(kept), images_dir=str(studies), extensions=SUFFIXES)
        store.save_label("image_4", str(tmp_path / "label.png"), "final", {})
    assert labelled(store) == {"image_3", "image_4"}
    assert Path(store.get_image_uri("image_4")) == studies / "image_4.png"
    assert Path(store.get_label_uri("image_3", "final")).read_bytes() == b"earlier"
    assert len(store.list_images()) == 10
    assert sorted(studies.rglob("*")) == before
    assert label_folder(tmp_path / "other" / "studies", tmp_path) != kept


def test_of_two_files_of_one_name_the_first_is_served(studies):
    (studies / "image_1.bmp").write_bytes(b"bitmap")
    store = opened(studies)
    assert store.list_images().count("image_1") == 1
    assert Path(store.get_image_uri("image_1")).read_bytes() == b"bitmap"
