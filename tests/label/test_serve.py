# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib.util
import re
import shutil
import socket
from pathlib import Path

import pytest
from filelock import FileLock
from hosts.label_server import random_bundle

from monai_kdsam import bundles
from monai_kdsam.__main__ import main
from monai_kdsam.label import app_folder, serve


@pytest.fixture
def bundle(tmp_path) -> Path:
    """What the command looks for in a trained bundle."""
    folder = tmp_path / "trained"
    for file in ("configs/inference.json", "models/model.pt", "models/teacher.pt"):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(file)
    return folder


@pytest.fixture
def studies(tmp_path) -> Path:
    (tmp_path / "studies").mkdir()
    return tmp_path / "studies"


@pytest.fixture
def server(monkeypatch):
    """MONAI Label's command line as a list of what it was called with; it writes an app as the real one does."""
    calls = []

    def command(*words):
        calls.append(words)
        if words[0] == "apps":
            app = Path(words[words.index("--output") + 1]) / "monaibundle"
            app.mkdir(parents=True)
            (app / "main.py").write_text("MONAI Label's")

    for module in (app_folder, serve):
        monkeypatch.setattr(module, "run_monailabel", command)
    monkeypatch.setattr(serve, "_check_prediction", lambda model: None)  # the bundles here are hollow
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(app_folder.tempfile, "tempdir", None)
    return calls


def run(**given) -> int:
    return main(["label", *(str(word) for name, value in given.items() for word in (f"--{name}", value))])


def test_without_a_model_that_of_the_folder_is_served_or_a_copy_of_the_shipped_one_that_may_learn(
    server, bundle, studies, tmp_path, monkeypatch, capsys
):
    shipped = shutil.copytree(bundle, tmp_path / "site-packages" / "kdsam_deepgrow_2d")
    for module in (bundles, app_folder):
        monkeypatch.setattr(module, "bundle_path", lambda name="kdsam_deepgrow_2d": shipped)
    monkeypatch.chdir(tmp_path)
    app = tmp_path / "label"
    for weights in ("models/model.pt", "learned"):
        assert run(studies=studies, dir=app, port=0) == 0
        copy = app / "kdsam_deepgrow_2d" / "models" / "model.pt"
        assert (app / "monaibundle/model/kdsam_deepgrow_2d/models/model.pt").resolve() == copy
        assert copy.read_text() == weights
        assert (
            f"the student that comes with monai_kdsam, from its copy in {copy.parent.parent}" in capsys.readouterr().out
        )
        copy.write_text("learned")
    assert (shipped / "models" / "model.pt").read_text() == "models/model.pt"

    own = bundle.rename(tmp_path / "kdsam_deepgrow_2d")
    assert run(studies=studies, dir=app, port=0) == 0
    assert "serving kdsam_deepgrow_2d of this folder" in capsys.readouterr().out
    assert (app / "monaibundle/model/kdsam_deepgrow_2d/configs").resolve() == own / "configs"


def test_the_server_is_started_with_what_a_local_bundle_needs(server, bundle, studies, tmp_path, capsys):
    assert run(studies=studies, model=bundle, dir=tmp_path / "label", port=0) == 0
    assert [words[0] for words in server] == ["apps", "start_server"]
    words = " ".join(server[1])
    for part in (
        "--conf models trained_deepgrow",
        "--conf zoo_source local",
        "--conf sam2 false",
        f"--studies {studies}",
    ):
        assert part in words
    told = capsys.readouterr().out
    for client in ("3D Slicer", "OHIF", "CVAT", "curl", "http://127.0.0.1:0"):
        assert client in told


def test_files_that_cannot_be_told_apart_are_named(server, bundle, studies, tmp_path, capsys):
    for name in ("a.jpg", "a.PNG", "b.png", "b.txt"):
        (studies / name).touch()
    assert run(studies=studies, model=bundle, dir=tmp_path / "label", port=0) == 0
    told = capsys.readouterr().out
    assert "a.jpg is not served: clients know images by their name without suffix, as a.PNG is." in told
    assert told.count("not served") == 1


def test_a_folder_is_one_servers_while_it_runs(server, bundle, studies, tmp_path, capsys):
    given = {"studies": studies, "model": bundle, "dir": tmp_path / "label", "port": 0}
    with FileLock(tmp_path / "label" / ".lock"):
        assert run(**given) == 1
        assert f"Another server works in {tmp_path / 'label'}. Stop it, or name another" in capsys.readouterr().err
        assert server == []
    assert run(**given) == 0
    assert run(**given) == 0


def test_the_app_serves_the_bundles_own_files_and_no_teacher(server, bundle, tmp_path):
    app, name = app_folder.prepare_app(tmp_path / "label", bundle)
    served = app / "model" / name
    assert name == "trained_deepgrow"
    assert (served / "configs" / "inference.json").read_text() == "configs/inference.json"
    assert [file.name for file in (served / "models").iterdir()] == ["model.pt"]
    assert "with_learning(monaibundle.MyApp)" in (app / "main.py").read_text()
    assert (app / "monaibundle.py").read_text() == "MONAI Label's"
    (bundle / "models" / "model.pt").write_text("trained on")
    (bundle / "models" / "model.json").write_text("their settings")
    assert (served / "models" / "model.pt").read_text() == "trained on"
    (bundle / "my_parts.py").write_text("own code")
    app_folder.prepare_app(tmp_path / "label", bundle)
    assert (served / "models" / "model.json").read_text() == "their settings"
    assert (served / "my_parts.py").read_text() == "own code"


def test_several_bundles_are_served_together(server, bundle, studies, tmp_path, capsys):
    other = shutil.copytree(bundle, tmp_path / "volumes_deepgrow_3d")
    given = ["--studies", str(studies), "--dir", str(tmp_path / "label"), "--port", "0", "--model", str(bundle)]
    assert main(["label", *given, str(other)]) == 0
    assert "--conf models trained_deepgrow,volumes_deepgrow_3d" in " ".join(server[1])
    told = capsys.readouterr().out
    assert "Serving trained_deepgrow, volumes_deepgrow_3d on" in told
    assert "trained_deepgrow: model.pt has no card: what it was trained on is not known." in told
    twin = shutil.copytree(bundle, tmp_path / "elsewhere" / "trained")
    assert main(["label", *given, str(twin)]) == 1
    assert "bundles of different names" in capsys.readouterr().err


def test_a_second_start_uses_the_app_again_with_another_bundle(server, bundle, tmp_path):
    app_folder.prepare_app(tmp_path / "label", bundle)
    other = bundle.rename(tmp_path / "my_deepgrow")
    app, name = app_folder.prepare_app(tmp_path / "label", other)
    assert name == "my_deepgrow"
    assert (app / "model" / name / "models" / "model.pt").read_text() == "models/model.pt"
    assert (app / "monaibundle.py").read_text() == "MONAI Label's"
    assert len(server) == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"studies": "nowhere"}, "Expected `--studies` to be a folder of images or the http address of a DICOMweb"),
        ({"studies": "http://127.0.0.1:9/dicom-web"}, "http://127.0.0.1:9/dicom-web does not answer ("),
        ({"model": "nowhere"}, "Expected a bundle with configs/inference.json at `--model`, got nowhere"),
        ({"port": 70000}, "Cannot listen on 127.0.0.1, port 70000"),
    ],
)
def test_a_mistake_is_told_in_one_line(server, bundle, studies, capsys, given, message):
    assert run(**({"studies": studies, "model": bundle, "port": 0} | given)) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not server


def test_a_bundle_without_weights_names_the_phases_that_write_them(server, bundle, studies, capsys):
    (bundle / "models" / "model.pt").unlink()
    assert run(studies=studies, model=bundle, port=0) == 1
    error = capsys.readouterr().err
    assert all(word in error for word in ("models/model.pt", "train.yaml", "distill.yaml"))


def test_a_port_in_use_is_told(server, bundle, studies, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert run(studies=studies, model=bundle, port=port) == 1
    assert f"Cannot listen on 127.0.0.1, port {port}" in capsys.readouterr().err


def test_without_monai_label_the_pip_command_is_told(monkeypatch, bundle, studies, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run(studies=studies, model=bundle) == 1
    error = capsys.readouterr().err
    assert f"pip install {serve.PACKAGES}" in error
    assert error.count("\n") == 1


def test_the_pip_command_is_that_of_the_extra():
    setup = (Path(__file__).resolve().parents[2] / "setup.py").read_text(encoding="utf-8")
    extra = re.findall(r'^ +"(.+)",$', re.search(r'"label": \[(.*?)\]', setup, re.DOTALL)[1], re.MULTILINE)
    assert sorted(extra) == sorted(serve.PACKAGES.replace('"', "").split())


@pytest.mark.parametrize("kept", ["tmp", "monaibundle/model/trained_deepgrow"])
def test_what_a_user_keeps_in_a_folder_of_the_servers_name_stays(server, bundle, studies, tmp_path, capsys, kept):
    given = {"studies": studies, "model": bundle, "dir": tmp_path / "label", "port": 0}
    thesis = tmp_path / "label" / kept / "thesis.txt"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("kept")
    assert run(**given) == 1
    assert "not this command's. Name another folder with `--dir`" in capsys.readouterr().err
    assert thesis.read_text() == "kept"
    shutil.rmtree(tmp_path / "label")
    assert run(**given) == 0
    (thesis.parent / "left").write_text("by the server")
    assert run(**given) == 0
    assert not (thesis.parent / "left").exists()


def test_who_may_come_in_is_passed_to_the_server(server, bundle, studies, tmp_path, capsys):
    given = {"studies": studies, "model": bundle, "dir": tmp_path / "label", "port": 0}
    assert run(**given, **{"allow-origin": "https://Label.example.org/", "max-upload": 5, "max-sessions": 7}) == 0
    words = " ".join(server[-1])
    for part in (
        "allow_origin https://label.example.org",
        "allow_model_upload false",
        f"max_upload {5 * 2**20}",
        f"max_sessions {7 * 2**20}",
    ):
        assert f"--conf {part}" in words
    assert run(**given, **{"allow-origin": "label.example.org"}) == 1
    assert "Expected `--allow-origin` of the kind" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("models/model.pt", b"no weights", "model.pt"),
        ("configs/metadata.json", None, "metadata.json"),
        ("configs/inference.json", b'{"phase": "infer', "Expecting|Unterminated"),
        ("configs/inference.json", b'{"network": "$no_such_module.build()"}', "no_such_module|device"),
    ],
)
def test_a_bundle_that_does_not_predict_is_told_in_one_line(
    tmp_path, studies, monkeypatch, capsys, file, content, reason
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    bundle = random_bundle(tmp_path, "resnet18", 64)
    if content is None:
        (bundle / file).unlink()
    else:
        (bundle / file).write_bytes(content)
    assert run(studies=studies, model=bundle, port=0, dir=tmp_path / "label") == 1
    error = capsys.readouterr().err
    assert re.search(f"{bundle} does not: .*({reason})", error), error
    assert "Traceback" not in error
