# SPDX-License-Identifier: Apache-2.0
"""Bundles from a hub and to it, by huggingface_hub's own client against a stand-in on this machine."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil

import numpy as np
import pytest
import torch
from hosts.hub import hub_stand_in
from huggingface_hub import ModelCard, constants, hf_api
from monai.bundle import download, load
from safetensors.torch import load_file

from monai_kdsam.__main__ import main
from monai_kdsam.bundles import bundle_path, copy_bundle
from monai_kdsam.errors import UserError
from monai_kdsam.hub import fetch_bundle
from monai_kdsam.inferers import BundlePredictor
from monai_kdsam.networks import KDSAM, build_student, load_weights, save_weights

PICTURE = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
NETWORK = {"backbone": "timm/lcnet_050", "image_size": 64, "prompt_map": False, "fine_features": False}
IMAGES = {"pixel_mean": [123.675, 116.28, 103.53], "pixel_std": [58.395, 57.12, 57.375]}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A small student at random, whose training says that it was distilled and saw no prompts."""
    folder = copy_bundle(tmp_path_factory.mktemp("bundle"), settings=NETWORK)
    torch.manual_seed(0)
    about = {"phase": "distill", "prompts": []}
    save_weights(build_student(**NETWORK), folder / "models" / "model.pt", IMAGES, about=about)
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with hub_stand_in() as hub:
        # What HF_ENDPOINT and HF_HOME set in a process of its own.
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(hf_api.api, "endpoint", hub.address)
        address = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub


def test_a_fetched_bundle_gives_the_masks_of_its_folder(bundle, hub, caplog):
    commit = hub.add_folder("org/kdsam", bundle)
    hub.add("org/kdsam", {"model.onnx": b"what nobody asked for"})
    with caplog.at_level(logging.INFO, logger="monai_kdsam"):
        found = BundlePredictor.from_pretrained("org/kdsam", revision=commit, close_up=0).predict(PICTURE)
    assert f"org/kdsam is at commit {commit}" in caplog.text
    assert np.array_equal(found.logits, BundlePredictor(bundle, close_up=0).predict(PICTURE).logits)


def test_a_bundle_is_downloaded_into_a_folder_for_every_command(bundle, hub, tmp_path, capsys):
    first = hub.add_folder("org/kdsam", bundle)
    hub.add("org/kdsam", {"README.md": b"new"})
    download = ["download", "org/kdsam", "--dir", str(tmp_path), "--revision", first]
    assert main(download) == 0
    folder = tmp_path / "kdsam"
    assert capsys.readouterr().out == f"{folder}\n"
    assert not any(file.is_symlink() for file in folder.rglob("*"))
    assert not (folder / "README.md").exists()
    assert BundlePredictor(folder).network.image_size == 64
    assert main(download) == 1
    assert f"{folder} exists already: remove it" in capsys.readouterr().err
    assert main(["download", "vgg16", "--revision", "main"]) == 1
    assert "Expected `--revision` with a bundle, ORG/NAME, got it with the weights vgg16." in capsys.readouterr().err


def test_the_newest_commit_is_fetched_unless_another_is_named_and_without_a_hub_the_last(bundle, hub):
    first = hub.add_folder("org/kdsam", bundle)
    newest = hub.add("org/kdsam", {"models/model.onnx": b"large", "README.md": b"new"})
    folder = fetch_bundle("org/kdsam")
    assert (folder.name, (folder / "README.md").read_text()) == (newest, "new")
    assert not (folder / "models" / "model.onnx").exists()
    assert fetch_bundle("org/kdsam", first).name == first
    hub.failure = 503
    assert fetch_bundle("org/kdsam") == folder


def test_a_folder_is_opened_as_it_is(bundle):
    assert BundlePredictor.from_pretrained(bundle, device="cpu").network.image_size == 64
    with pytest.raises(UserError, match=r"Expected `revision` with a bundle on a hub alone, got it with the folder"):
        BundlePredictor.from_pretrained(bundle, revision="main")


@pytest.mark.parametrize(
    ("bundle_name", "revision", "failure", "message"),
    [
        ("org/missing", None, 0, r"^There is no org/missing on http://127\.0\.0\.1:\d+, or it is private: correct the"),
        ("org/kdsam", "v9", 0, r"^Expected `revision` to be a branch, tag or commit of http.*/org/kdsam, got 'v9'"),
        ("org/gated", None, 0, r"^org/gated is gated: ask for it at http.*/org/gated, and log in \(`hf auth login`"),
        ("org/kdsam", None, 401, r"^http.* refuses org/kdsam to you \(401\): log in"),
        ("org/kdsam", None, 503, r"^http.* answered 503 for org/kdsam\. Try again later\. Connect, or name the folder"),
        ("org/kdsam", None, -1, r"^Cannot get through to http.*, which HF_ENDPOINT chooses: .*refused\. Connect, or"),
        ("org/empty", None, 0, r"^Expected org/empty to hold a bundle, but it has no configs/inference\.json"),
        ("no such folder", None, 0, r"^Expected `bundle` to be a folder, or ORG/NAME on a hub, got 'no such folder'"),
        ("org/a--b", None, 0, r"^Expected `bundle` to be a folder, or ORG/NAME on a hub, got 'org/a--b'"),
    ],
)
def test_what_a_hub_does_not_give_is_told_in_a_line(bundle, hub, monkeypatch, bundle_name, revision, failure, message):
    for repo in ("org/kdsam", "org/gated"):
        hub.add_folder(repo, bundle)
    hub.add("org/empty", {"README.md": b""})
    hub.gated.add("org/gated")
    hub.failure = max(failure, 0)
    if failure < 0:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    with pytest.raises(UserError, match=message) as caught:
        BundlePredictor.from_pretrained(bundle_name, revision=revision)
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_those_of_their_sidecar_are_refused(bundle, hub):
    hub.add_folder("org/kdsam", bundle)
    commit = hub.add("org/kdsam", {"models/model.pt": b"another file"})
    with pytest.raises(UserError, match=rf"model\.pt of org/kdsam at {commit} is not the file that its model\.json"):
        fetch_bundle("org/kdsam")


@pytest.mark.parametrize(
    ("file", "change", "named"),
    [
        ("configs/inference.json", {"image_sise": "$__import__('pathlib').Path('sprung').touch()"}, "image_sise"),
        ("configs/inference.json", {"device": "@network"}, "device"),
        ("configs/inference.json", {"seed": "%configs/train.yaml#seed"}, "seed"),
        ("configs/inference.json", {"network_def": {"_target_": "os.getcwd"}}, "network_def"),
        ("configs/inference.json", {"imports": ["$import antigravity"]}, "imports"),
        ("configs/inference.json", {"network_def#backbone": "resnet34"}, "network_def#backbone"),
        ("torch.py", None, "the module torch"),
        ("yaml/__init__.py", None, "the module yaml"),
    ],
)
def test_code_of_others_is_named_and_not_run_before_it_is_trusted(
    bundle, hub, tmp_path, monkeypatch, file, change, named
):
    monkeypatch.chdir(tmp_path)
    hub.add_folder("org/kdsam", bundle)
    content = json.loads((bundle / "configs" / "inference.json").read_text())
    hub.add("org/kdsam", {file: json.dumps(content | change).encode() if change else b"open('sprung', 'w')"})
    text = rf"^org/kdsam brings code of its own \({named}\), or was made by.*allow it with `trust_remote_code=T"
    with pytest.raises(UserError, match=text):
        fetch_bundle("org/kdsam")
    assert not (tmp_path / "sprung").exists()


def test_a_configuration_that_is_damaged_is_told(bundle, hub):
    hub.add_folder("org/kdsam", bundle)
    for content in (b"{", b"[1]"):
        hub.add("org/kdsam", {"configs/inference.json": content})
        with pytest.raises(UserError, match=r"^The configs/inference\.json of org/kdsam is damaged"):
            fetch_bundle("org/kdsam")


def test_an_own_module_that_is_trusted_is_used(bundle, hub, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(bundle, own)
    (own / "my_student.py").write_text("from monai_kdsam.networks import build_student as build\n")
    config = json.loads((own / "configs" / "inference.json").read_text())
    config["network_def"]["_target_"] = "my_student.build"
    (own / "configs" / "inference.json").write_text(json.dumps(config))
    hub.add_folder("org/own", own)
    with pytest.raises(UserError, match=r"code of its own \(network_def, the module my_student\)"):
        fetch_bundle("org/own")
    found = BundlePredictor.from_pretrained("org/own", trust_remote_code=True).predict(PICTURE)
    assert np.array_equal(found.logits, BundlePredictor(bundle).predict(PICTURE).logits)


# --- publish


@pytest.fixture(scope="module")
def published(bundle, tmp_path_factory):
    (bundle / "output").mkdir()
    (bundle / "output" / "split.json").write_text('{"training": [{"image": "patient_name.png"}]}')
    torch.save({}, bundle / "models" / "sam_vit_b.pth")
    folder = tmp_path_factory.mktemp("published") / "kdsam_deepgrow_2d"
    assert main(["publish", "--bundle", str(bundle), "--dir", str(folder)]) == 0
    return folder


def test_what_is_published_is_the_bundle_with_its_weights_in_both_formats_and_nothing_of_the_site(bundle, published):
    files = {str(file.relative_to(published)) for file in published.rglob("*") if file.is_file()}
    own = {str(file.relative_to(bundle)) for name in ("configs", "docs") for file in (bundle / name).iterdir()}
    models = {f"models/model.{kind}" for kind in ("pt", "json", "safetensors", "cdx.json")}
    assert files == own | models | {"LICENSE", "README.md"}
    assert not any(b"patient_name" in (published / name).read_bytes() for name in files)
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    tensors = load_file(published / "models" / "model.safetensors")
    assert all(torch.equal(tensors.pop(name), value) for name, value in state.items())
    assert not tensors
    described = json.loads((published / "models" / "model.json").read_text())
    sums = [hashlib.sha256((published / f"models/model.{n}").read_bytes()).hexdigest() for n in ("pt", "safetensors")]
    assert [described["sha256"], described["safetensors"]] == sums
    bill = json.loads((published / "models" / "model.cdx.json").read_text())["metadata"]["component"]
    assert bill["hashes"][0]["content"] == sums[0]


def test_safetensors_are_read_as_the_weights_that_they_are_and_are_checked_too(published, tmp_path):
    weights = tmp_path / "model.safetensors"
    for name in ("model.safetensors", "model.json"):
        shutil.copyfile(published / "models" / name, tmp_path / name)
    load_weights(build_student(**NETWORK), weights, IMAGES)
    with pytest.raises(UserError, match="image_size=64, and is to run with image_size=128"):
        load_weights(build_student(**NETWORK | {"image_size": 128}), weights, IMAGES)
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(UserError, match=r"model\.safetensors is damaged or another file than model\.json"):
        load_weights(build_student(**NETWORK), weights, IMAGES)


def test_the_card_says_that_weights_have_not_been_trained_with_prompts_and_claims_no_license(published):
    card = ModelCard.load(published / "README.md")
    assert card.data.to_dict() == {
        "library_name": "monai",
        "pipeline_tag": "mask-generation",
        "tags": ["monai", "medical", "segment-anything", "interactive-segmentation", "knowledge-distillation"],
    }
    assert "**model.pt of the phase distill, NEVER TRAINED WITH PROMPTS.**" in card.text
    assert "| prompts in training | none |" in card.text
    assert "- Not evaluated in clinical use. Not a medical device." in card.text
    assert "{{" not in card.text


def test_the_card_of_the_student_that_ships_has_its_license_data_and_figures(tmp_path):
    assert main(["publish", "--dir", str(tmp_path / "kdsam_deepgrow_2d")]) == 0
    card = ModelCard.load(tmp_path / "kdsam_deepgrow_2d" / "README.md")
    shipped = json.loads((bundle_path() / "models" / "model.json").read_text())["card"]
    assert card.data.license == "apache-2.0"
    assert card.text.strip().startswith("# KD SAM Lite0")
    for data in shipped["data"]:
        assert f"| {data['name']} | {data['what']} | {data['license']} | {data['from']} |" in card.text
    assert f"| ISIC 2017, box | {shipped['validation']['ISIC 2017, box']} |" in card.text


def test_a_bundle_of_volumes_takes_the_weights_along_that_lie_beside_it(bundle, tmp_path):
    volumes = copy_bundle(tmp_path, "kdsam_deepgrow_3d", settings=NETWORK)
    shutil.copytree(bundle, tmp_path / "kdsam_deepgrow_2d")
    assert main(["publish", "--bundle", str(volumes), "--dir", str(tmp_path / "out")]) == 0
    weights = [folder / "models" / "model.pt" for folder in (bundle, tmp_path / "out")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert "--name kdsam_deepgrow_3d" in (tmp_path / "out" / "README.md").read_text()


def test_monai_downloads_and_loads_what_was_published(bundle, published, hub, tmp_path):
    hub.add_folder("org/kdsam", published)
    place = {"name": "kdsam_deepgrow_2d", "source": "huggingface_hub", "repo": "org/kdsam", "bundle_dir": tmp_path}
    download(**place)
    assert BundlePredictor(tmp_path / "kdsam_deepgrow_2d").network.image_size == 64
    shutil.rmtree(tmp_path / "kdsam_deepgrow_2d")
    network = load(**place, workflow_type="inference", device="cpu")
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert isinstance(network, KDSAM)
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())


def test_only_push_uploads_into_a_private_repository_and_what_is_fetched_is_what_was_pushed(
    published, hub, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "out"
    shutil.copytree(published, folder)
    page = folder / "README.md"
    page.write_text(page.read_text() + "\nA line of ours.\n")
    assert hub.commits == {}
    push = ["publish", "--dir", str(folder), "--push", "org/kdsam"]
    assert main(push) == 1
    assert "refuses org/kdsam to you (401): log in" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert main(push) == 0
    assert [repo["visibility"] for repo in hub.created] == ["private"]
    files = hub.files("org/kdsam")
    assert files == {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    assert b'from_pretrained("org/kdsam"' in files["README.md"]
    assert files["README.md"].endswith(b"A line of ours.\n")
    commit = next(iter(hub.commits["org/kdsam"]))
    assert f"Pushed to org/kdsam, commit {commit}." in capsys.readouterr().out
    assert fetch_bundle("org/kdsam", commit).name == commit


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dir", "other"], "Expected `--dir` to be new or empty, got other"),
        (["--dir", "other", "--push", "org/name"], "Expected `--dir` to be new or empty, got other"),
        (["--dir", "new", "--push", "name"], "Expected `--push` to be ORG/NAME on a hub, got 'name'"),
        (["--dir", "new", "--bundle", "other"], "Expected a bundle with LICENSE at `--bundle`, got other"),
        (
            ["--dir", "published", "--bundle", "bundle", "--push", "org/name"],
            "published holds other weights than bundle",
        ),
        (["--dir", "new", "--bundle", "bare"], "which every training writes"),
        (["--dir", "published", "--push", "org/name"], "Cannot get through to http://127.0.0.1:9"),
    ],
)
def test_what_cannot_be_published_is_told(bundle, published, hub, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    for source, name in ((published, "published"), (bundle, "bundle"), (bundle, "bare")):
        shutil.copytree(source, tmp_path / name, copy_function=os.link)
    (tmp_path / "bundle" / "models" / "model.pt").unlink()
    (tmp_path / "bundle" / "models" / "model.pt").write_bytes(b"other weights")
    (tmp_path / "bare" / "models" / "model.json").unlink()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    assert main(["publish", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
