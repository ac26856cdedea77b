# SPDX-License-Identifier: Apache-2.0
"""Requests that reach for what is not theirs, at MONAI Label's application as `label` starts it.

In this process: only HTTP, files and the order of things matter here. The first test tells what must not have changed.
"""

from __future__ import annotations

import errno
import importlib.util
import io
import json
import os
import re
import shutil
import tarfile
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

if importlib.util.find_spec("monailabel") is None:
    reason = "MONAI Label is not installed; `nox -s label` runs these tests in an environment that has it"
    pytest.skip(reason, allow_module_level=True)

from fastapi.testclient import TestClient
from hosts.label_server import MODEL, random_bundle
from monailabel.interfaces.utils.app import app_instance
from pydicom.data import get_testdata_file

from monai_kdsam.data.phantoms import write_phantoms
from monai_kdsam.inferers import BundlePredictor
from monai_kdsam.label import app_folder, serve

CLICK = {"foreground": [[40, 45]]}
FOREIGN = {"Origin": "https://news.example.org"}


class Place:
    """The folders of a server, and its clients."""

    def __init__(self, root: Path, monkeypatch) -> None:
        self.root, self.dir, self.tmp = root, root / "label", root / "label" / "tmp"
        self.bundle = random_bundle(root, "resnet18", 64, go_on=True)
        self.weights = self.bundle / "models" / "model.pt"
        self.masks = write_phantoms(root / "data", per_kind=4, size=90) / "masks"
        self.studies = self.masks.parent / "images"
        (self.studies / "Upper_Case.PNG").write_bytes((self.studies / "polyp_000.png").read_bytes())
        shutil.copy(get_testdata_file("MR_small.dcm"), self.studies / "IM0001")
        (root / "secret.png").write_bytes((self.studies / "polyp_000.png").read_bytes())
        app, name = app_folder.prepare_app(self.dir, self.bundle)
        app_folder._empty(self.tmp)
        monkeypatch.setattr(app_folder.tempfile, "tempdir", str(self.tmp))
        monkeypatch.chdir(root)
        from monailabel.config import settings

        conf = {"models": name, "zoo_source": "local", "sam2": "false", "max_sessions": "200000"}
        for key, value in {
            "MONAI_LABEL_APP_DIR": str(app),
            "MONAI_LABEL_STUDIES": str(self.studies),
            "MONAI_LABEL_APP_CONF": conf,
            "MONAI_LABEL_DATASTORE_FILE_EXT": list(serve.SUFFIXES),
            "MONAI_LABEL_SESSION_PATH": str(self.dir / "sessions"),
        }.items():
            monkeypatch.setattr(settings, key, value)
        self.conf = conf
        from monai_kdsam.label.web_app import app as served

        self.client = TestClient(served, base_url="http://127.0.0.1:8000")

    def infer(self, image: str = "polyp_000", params: dict | None = None, **query):
        query = {"image": image, "output": "image", **query}
        return self.client.post(f"/infer/{MODEL}", params=query, data={"params": json.dumps(CLICK | (params or {}))})

    def save(self, content: bytes, image: str = "polyp_000", tag: str = "final", name: str = "mask.png"):
        query = {"image": image, "tag": tag}
        return self.client.put("/datastore/label", params=query, files={"label": (name, content)})

    def mask(self, name: str = "polyp_000") -> bytes:
        return (self.masks / f"{name}.png").read_bytes()

    def outside(self) -> set[str]:
        """All files but those that the server may write."""
        lock = self.bundle / "output" / "learn" / ".lock"
        own = (self.studies, self.tmp, self.dir / "sessions", self.dir / "monaibundle" / "logs", lock)
        return {str(f) for f in self.root.rglob("*") if f.is_file() and not any(map(f.is_relative_to, own))}

    def uploads(self) -> list[str]:
        return sorted(path.name for path in self.tmp.iterdir() if path.name != app_folder.MARKER)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        place = Place(tmp_path_factory.mktemp("requests"), monkeypatch)
        with place.client:
            yield place
        app_instance().datastore()._observer.stop()


@pytest.fixture(autouse=True)
def nothing_leads_out_and_nothing_stays(place):
    before = place.outside()
    yield
    assert place.outside() == before
    assert place.uploads() == []


def test_what_clients_do_goes_on(place):
    found = place.infer()
    assert found.status_code == 200, found.text
    with Image.open(place.studies / "polyp_000.png") as image, Image.open(io.BytesIO(found.content)) as mask:
        assert mask.size == image.size
    assert place.infer("polyp_000.png").content == place.infer(str(place.studies / "polyp_000.png")).content
    assert place.save(place.mask("polyp_001"), "polyp_001").json()["label"] == "polyp_001"
    assert place.client.get("/datastore/label", params={"label": "polyp_001", "tag": "final"}).content == place.mask(
        "polyp_001"
    )
    for name in ("Upper_Case", "IM0001"):
        assert place.infer(name).status_code == 200


def test_clicks_that_are_added_go_on_from_the_last_answer_to_the_same_client(place):
    predict = BundlePredictor(place.bundle)
    picture, more = place.studies / "polyp_001.png", {"background": [[70, 20]]}

    def ask(params=None, user="one", image="polyp_001"):
        place.client.headers["Authorization"] = user
        answer = place.infer(image, params)
        with Image.open(io.BytesIO(answer.content)) as mask:
            return np.asarray(mask)

    first = predict.predict(picture, **CLICK)
    afresh, goes_on = (predict.predict(picture, **CLICK, **more, mask_input=x).mask for x in (None, first.logits))
    assert (afresh != goes_on).mean() > 0.01
    np.testing.assert_array_equal(ask(), first.mask)
    np.testing.assert_array_equal(ask(more, user="another"), afresh)
    # Its own logits, where `mask_input` is read from the picture's.
    assert (ask(more) != goes_on).mean() < (afresh != goes_on).mean() / 4
    np.testing.assert_array_equal(ask(), first.mask)
    np.testing.assert_array_equal(ask(more, user="third"), afresh)
    np.testing.assert_array_equal(
        ask(more, image="polyp_002"), predict(place.studies / "polyp_002.png", **CLICK, **more)
    )
    del place.client.headers["Authorization"]


@pytest.mark.parametrize(
    "image", ["../secret.png", "/etc/hostname", "{root}/secret.png", "..", ".", "", "secret.png", "a\0b", "label"]
)
@pytest.mark.parametrize("where", ["query", "params", "wsi"])
def test_an_image_is_one_of_the_studies(place, image, where):
    image = image.format(root=place.root)
    if where == "wsi":
        answer = place.client.post(
            f"/infer/wsi_v2/{MODEL}", params={"image": "x"}, data={"wsi": json.dumps({"params": {"image": image}})}
        )
    else:
        answer = place.infer(image) if where == "query" else place.infer("x", {"image": image})
    assert answer.status_code == (400 if (where, image) == ("query", "") else 404)
    assert str(place.root) not in answer.json()["detail"] or where == "query"
    if where == "query" and image:
        assert place.client.get("/datastore/image", params={"image": image}).status_code == 404


@pytest.mark.parametrize("name", ["../../x", "{root}/main", "..", "a/b", "a\\b", "a\nb", ".hidden", "x" * 300])
def test_no_name_leads_out_of_the_studies(place, name):
    name = name.format(root=place.root)
    listed = sorted(place.studies.rglob("*"))
    for query, suffix in (({"image": name}, ".png"), ({"image": name}, ".py"), ({"image": "main"}, ".py")):
        files = {"file": (f"a{suffix}", place.mask())}
        assert place.client.put("/datastore/image", params=query, files=files).status_code == 400
    assert place.client.put("/datastore/", files={"file": ("..", place.mask())}).status_code == 400
    assert place.save(place.mask(), tag=name).status_code == 400
    assert place.save(place.mask(), name="mask.py").status_code == 400
    assert place.save(place.mask(), image=name).status_code in (400, 404)
    assert place.infer(params={"save_label": True, "label_tag": name}).status_code == 400
    assert sorted(place.studies.rglob("*")) == listed


def archive(kind: str, name: str, content: bytes = b"x") -> bytes:
    stream = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as opened:
            opened.writestr(name, content)
    else:
        with tarfile.open(fileobj=stream, mode="w:gz") as opened:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            if kind == "link":
                member.type, member.linkname, member.size = tarfile.SYMTYPE, "/etc", 0
            opened.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def open_session(place, *files: tuple[str, bytes], **query):
    return place.client.put("/session/", params=query, files=[("files", file) for file in files])


@pytest.mark.parametrize("kind", ["zip", "tar", "link"])
@pytest.mark.parametrize("name", ["../../../evil.py", "/{root}/evil.py", "a/../../evil.py"])
def test_no_member_of_an_archive_leads_out(place, kind, name):
    content = archive(kind, name.format(root=place.root))
    answer = open_session(place, ("a.zip" if kind == "zip" else "a.tar.gz", content), uncompress=True)
    assert answer.status_code == 400
    assert "Expected an archive of files" in answer.json()["detail"]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_is_unpacked_cut_ones_and_bombs_are_refused(place, kind):
    name = "a.zip" if kind == "zip" else "a.tar.gz"
    whole = archive(kind, "series/polyp.png", place.mask())
    found = open_session(place, (name, whole), uncompress=True)
    assert found.status_code == 200
    assert [file.name for file in Path(found.json()["session_info"]["image"]).rglob("*.png")] == ["polyp.png"]
    assert place.client.delete(f"/session/{found.json()['session_id']}").status_code == 200
    assert open_session(place, (name, whole[: len(whole) // 2]), uncompress=True).status_code == 400
    assert open_session(place, (name, archive(kind, "bomb", bytes(2**20))), uncompress=True).status_code == 413


def test_a_session_is_segmented_and_no_other_file_of_its_folder_is_one(place):
    made = open_session(place, ("a.png", (place.studies / "polyp_001.png").read_bytes())).json()
    assert place.infer("", session_id=made["session_id"]).content == place.infer("polyp_001").content
    meta = json.dumps({"image": str(place.root / "secret.png"), "name": "x", "path": "x"}).encode()
    own = open_session(place, ("meta.info", meta), ("b.png", b"x")).json()
    inner = f"{own['session_id']}/{Path(own['session_info']['image']).name}"
    assert place.infer("x", session_id=inner).status_code == 404
    for session in (made, own):
        assert place.client.delete(f"/session/{session['session_id']}").status_code == 200


def test_sessions_hold_no_more_than_they_may(place):
    first = open_session(place, ("a.png", bytes(150_000)))
    refused = open_session(place, ("b.png", bytes(100_000)))
    assert (first.status_code, refused.status_code) == (200, 413)
    assert "--max-sessions" in refused.json()["detail"]
    place.client.delete(f"/session/{first.json()['session_id']}")
    again = open_session(place, ("b.png", bytes(100_000)))
    assert again.status_code == 200
    place.client.delete(f"/session/{again.json()['session_id']}")


@pytest.mark.parametrize("path", ["/datastore/label", "/datastore/image", "/session/"])
def test_a_page_of_another_origin_writes_nothing(place, path):
    listed = sorted(place.studies.rglob("*"))
    files = {"label": ("a.png", place.mask()), "file": ("a.png", place.mask()), "files": ("a.png", place.mask())}
    query = {"image": "polyp_000", "tag": "final"}
    for headers in (FOREIGN, {"Host": "rebound.example.org"}):
        assert place.client.put(path, params=query, files=files, headers=headers).status_code in (403, 421)
    assert sorted(place.studies.rglob("*")) == listed


def test_weights_are_taken_from_clients_only_where_that_is_allowed(place):
    before, address = place.weights.read_bytes(), f"/model/{MODEL}"
    other = io.BytesIO()
    torch.save({key: value * 0.5 for key, value in torch.load(place.weights, weights_only=True).items()}, other)
    sent = {"file": ("model.pt", other.getvalue())}
    assert place.client.put(address, files=sent).status_code == 403
    assert place.client.delete(address).status_code == 403
    place.conf["allow_model_upload"] = "true"
    try:
        mask = place.infer().content
        assert place.client.put(address, files={"file": ("model.pt", b"abcd")}).status_code == 400
        assert place.weights.read_bytes() == before
        assert place.client.put("/model/none", files=sent).status_code == 404
        assert place.client.delete(address).status_code == 403
        assert place.client.put(address, files=sent).status_code == 200
        assert place.weights.read_bytes() == other.getvalue()
        previous = place.weights.with_name("previous.pt")
        assert previous.read_bytes() == before
        assert place.infer().content != mask
        previous.replace(place.weights)
        assert place.infer().content == mask
    finally:
        del place.conf["allow_model_upload"]


@pytest.mark.parametrize("kind", ["missing", "cut", "of another network"])
def test_without_its_weights_a_model_does_not_answer(place, kind):
    aside = place.weights.rename(place.weights.with_suffix(".aside"))
    try:
        if kind == "cut":
            place.weights.write_bytes(aside.read_bytes()[:-1000])
        elif kind == "of another network":
            state = torch.load(aside, weights_only=True)
            torch.save({f"other.{key}": value for key, value in state.items()}, place.weights)
        answer = place.infer()
        assert answer.status_code == 503
        assert answer.json()["detail"].startswith("The model cannot answer: ")
        assert str(place.root) not in answer.text
    finally:
        aside.replace(place.weights)
    assert place.infer().status_code == 200


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_told_and_what_was_accepted_stays(place, monkeypatch):
    assert place.save(place.mask()).status_code == 200
    stored, listed = place.studies / "labels" / "final" / "polyp_000.png", place.studies / "datastore_v2.json"
    before = listed.read_bytes()
    for writer in ("monai_kdsam.label.studies.shutil.copyfile", "pathlib.Path.write_bytes"):
        with monkeypatch.context() as disk:
            disk.setattr(writer, full)
            answer = place.save(place.mask("polyp_001"))
        assert answer.status_code == 507
        assert "no room" in answer.json()["detail"]
        assert str(place.root) not in answer.text
        assert (stored.read_bytes(), listed.read_bytes()) == (place.mask(), before)
    with monkeypatch.context() as disk:
        disk.setattr("monailabel.transform.writer.write_itk", lambda mask, file, *others: Path(file).touch())
        answer = place.infer()
    assert answer.status_code == 507
    assert "no room in the folder `--dir`" in answer.json()["detail"]


def test_a_label_of_no_bytes_is_refused_and_none(place):
    assert place.save(b"", "breast_lesion_000").status_code == 400
    objects = place.client.get("/datastore/", params={"output": "all"}).json()["objects"]
    assert objects["breast_lesion_000"]["labels"] == {}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"result_extension": ".exe"}, "`result_extension` among .png"),
        ({"result_extension": "/../../x.png"}, "`result_extension` among .png"),
        ({"result_dtype": "complex"}, "`result_dtype` for .png among uint8, uint16"),
        ({"result_dtype": "float32"}, "`result_dtype` for .png among uint8, uint16"),
        ({"device": "tpu"}, "`device` among"),
        ({"logging": "LOUD"}, "`logging` among"),
        ({"model_filename": "../../../secret.pt"}, "`model_filename` to be model.pt"),
        ({"skip_writer": True}, "without `skip_writer`"),
        ({"image": [1]}, "`image` to be a name"),
        ({"model": [1]}, "`model` to be text"),
        ({"latencies": []}, "without `latencies`"),
        ({"asked_by": "another"}, "without `asked_by`"),
        ({"mask_input": [[1]]}, "without `mask_input`"),
        ({"client_id": float("nan")}, "finite numbers in `client_id`"),
        ({"client_id": 10**400}, "finite numbers in `client_id`"),
        ({"client_id": ["\ud800"]}, "Unicode in `client_id`"),
        ({"roi": json.loads("[" * 300 + "]" * 300)}, "lists in one another in `roi`"),
    ],
)
def test_what_a_request_may_not_ask_for_is_told(place, params, message):
    answer = place.infer(params=params)
    assert answer.status_code == 400
    assert message in answer.json()["detail"]


ODD = [
    '{"client_id": NaN}',
    '{"label_tag": [1]}',
    '{"strategy": {}}',
    '{"a": "\\ud800"}',
    f'{{"a": {"[" * 50}{"]" * 50}}}',
]


@pytest.mark.parametrize(
    "address", ["/activelearning/random", "/scoring/uncertainty", f"/batch/infer/{MODEL}", f"/train/{MODEL}"]
)
def test_json_that_nothing_can_be_done_with_is_told(place, address):
    listed = (place.studies / "datastore_v2.json").read_bytes()
    for text in (*ODD, "[1]", "5", '{"a":', "[" * 100_000):
        answer = place.client.post(address, content=text, headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 422), (text[:30], answer.text[:200])
        assert answer.json()["detail"]
    assert (place.studies / "datastore_v2.json").read_bytes() == listed


@pytest.mark.parametrize("text", [*ODD, "[1]", "5", '{"a":', "[" * 100_000, "1" * 5000])
def test_forms_that_hold_no_json_object_are_told_and_store_nothing(place, text):
    listed = sorted((path, path.read_bytes()) for path in place.studies.rglob("*") if path.is_file())
    image = {"image": "polyp_000"}
    for method, address, field, file in (
        ("post", f"/infer/{MODEL}", "params", ""),
        ("put", "/datastore/label", "params", "label"),
        ("put", "/datastore/image", "params", "file"),
        ("put", "/datastore/image/info", "info", ""),
    ):
        files = {file: ("mask.png", place.mask())} if file else None
        answer = getattr(place.client, method)(address, params=image, data={field: text}, files=files)
        assert answer.status_code == 400, (address, answer.text[:200])
        assert "Expected" in answer.json()["detail"]
    assert sorted((path, path.read_bytes()) for path in place.studies.rglob("*") if path.is_file()) == listed
    wsi = f'{{"params": {text}}}' if text in ODD else text
    assert place.client.post(f"/infer/wsi_v2/{MODEL}", params=image, data={"wsi": wsi}).status_code == 400


@pytest.mark.parametrize("address", ["/scoring/uncertainty", f"/batch/infer/{MODEL}", "/scoring/"])
def test_no_request_says_what_a_task_imports(place, address):
    inner = {"uncertainty": {"bundle_path": str(place.root)}}
    answer = place.client.post(address, json=inner if address == "/scoring/" else inner["uncertainty"])
    assert answer.status_code == 400
    assert "bundle_path" in answer.json()["detail"]


def test_all_images_are_segmented_where_there_is_no_gpu(place):
    answer = place.client.post(f"/batch/infer/{MODEL}", params={"run_sync": True}, json={"max_batch_size": 2})
    assert answer.status_code == 200, answer.text
    names = sorted(answer.json())
    assert len(names) == 2
    assert all((place.studies / "labels" / "original" / f"{name}.png").stat().st_size for name in names[1:])


def test_a_batch_passes_over_what_the_model_cannot_segment(place):
    nibabel.save(nibabel.Nifti1Image(np.ones((9, 9, 4), np.int16), np.eye(4)), place.studies / "a_volume.nii.gz")
    images = ["a_volume.nii.gz", "polyp_000"]
    answer = place.client.post(f"/batch/infer/{MODEL}", params={"run_sync": True}, json={"images": images})
    assert answer.status_code == 200, answer.text
    assert "cut it into slices" in answer.json()["a_volume.nii.gz"]["error"]
    assert "error" not in answer.json()["polyp_000"]
    answer = place.client.post(f"/batch/infer/{MODEL}", params={"run_sync": True}, json={"images": images[:1]})
    (place.studies / "a_volume.nii.gz").unlink()
    assert (answer.status_code, "None of 1 images" in answer.text) == (400, True), answer.text


def test_dicom_seg_of_a_plain_folder_is_the_clients_mistake(place):
    answer = place.infer(output="dicom_seg")
    assert (answer.status_code, "these studies are a folder" in answer.json()["detail"]) == (400, True)


def test_a_refused_upload_has_the_images_name(place):
    answer = place.client.post(
        f"/infer/{MODEL}", params={"image": "mine.png"}, data={"params": "{}"}, files={"file": ("mine.png", b"nothing")}
    )
    assert answer.status_code == 400
    assert "Cannot read mine.png" in answer.json()["detail"]


def test_errors_tell_no_folders(place):
    (place.studies / "broken.png").write_bytes(b"no picture")
    answer = place.infer("broken.png")
    (place.studies / "broken.png").unlink()
    assert answer.status_code == 400
    assert "broken.png" in answer.json()["detail"]
    assert not re.search(r"/\w+/", answer.json()["detail"])
