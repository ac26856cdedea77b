# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import inspect
import json
import logging
from pathlib import Path

import pytest
import torch

import monai_kdsam
from monai_kdsam.inferers import BundlePredictor
from monai_kdsam.networks import build_student, build_teacher, build_volume_student, load_weights, save_weights
from monai_kdsam.weights.sidecar import copy_with_sidecar, read_sidecar

IMAGES = {"pixel_mean": [1.0, 2.0, 3.5], "pixel_std": [4.0, 5.0, 6.0]}


def student(**changes):
    return build_student(**{"backbone": "resnet18", "image_size": 64, **changes})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model.pt"
    torch.manual_seed(0)
    save_weights(student(), path, IMAGES)
    return path


def rewrite(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.fixture
def files(saved, tmp_path):
    copy_with_sidecar(saved, tmp_path / "model.pt", remedy="")
    return tmp_path / "model.pt", tmp_path / "model.json"


def test_weights_are_a_raw_state_dict_and_their_settings_lie_beside_them(saved):
    assert torch.load(saved, weights_only=True).keys() == student().state_dict().keys()
    content = json.loads(saved.with_suffix(".json").read_text())
    assert content["sha256"] == hashlib.sha256(saved.read_bytes()).hexdigest()
    assert content["monai_kdsam"] == monai_kdsam.__version__
    network = {"builder": "build_student", "backbone": "resnet18", "neck": "fpn", "image_size": 64, "prompt_map": False}
    assert network.items() <= content["settings"]["network"].items()
    arguments = inspect.signature(build_student).parameters.keys() - {"imagenet_weights"}
    assert content["settings"]["network"].keys() == arguments | {"builder"}
    assert content["settings"] == {"network": content["settings"]["network"], **IMAGES}


@pytest.mark.parametrize(
    ("changes", "images", "named"),
    [
        ({"image_size": 128}, IMAGES, r"image_size=64, and is to run with image_size=128"),
        ({"prompt_map": True}, IMAGES, r"prompt_map=false, and is to run with prompt_map=true"),
        ({"backbone": "resnet34"}, IMAGES, r"backbone=resnet18, and is to run with backbone=resnet34"),
        ({}, IMAGES | {"pixel_mean": [0, 0, 0]}, r"pixel_mean=\[1.0, 2.0, 3.5\], and is to run with .*\[0, 0, 0\]"),
    ],
)
def test_other_settings_than_in_training_are_refused_by_name(saved, changes, images, named):
    with pytest.raises(ValueError, match=rf"model\.pt was trained with {named}"):
        load_weights(student(**changes), saved, images)


def test_a_training_may_change_what_it_names(saved):
    assert load_weights(student(prompt_map=True), saved, IMAGES, may_differ=["prompt_map"]).prompt_map


def test_the_same_settings_load_into_the_network_of_volumes_too(saved):
    for network in (student(), build_volume_student(backbone="resnet18", image_size=64)):
        assert load_weights(network, saved, IMAGES) is network


def test_a_setting_that_this_version_does_not_know_is_refused_and_one_that_was_added_since_is_not(files):
    weights, sidecar = files
    rewrite(sidecar, lambda content: content["settings"]["network"].pop("prompt_map"))
    load_weights(student(), weights)
    rewrite(sidecar, lambda content: content["settings"]["network"].update(prompt_frequencies=8))
    with pytest.raises(ValueError, match=r"was trained with prompt_frequencies=8, and is to run with .*=null"):
        load_weights(student(), weights)


def test_weights_of_a_network_that_chose_among_three_masks_are_refused_and_of_one_that_could_are_not(files):
    weights, sidecar = files
    rewrite(sidecar, lambda content: content["settings"]["network"].update(multimask=False))
    load_weights(student(), weights)
    rewrite(sidecar, lambda content: content["settings"]["network"].update(multimask=True))
    with pytest.raises(ValueError, match=r"trained with multimask=true, which this version does not know\. Train anew"):
        load_weights(student(), weights)


def test_an_adapted_teacher_is_built_as_it_was_trained(tmp_path):
    path = tmp_path / "teacher.pt"
    save_weights(build_teacher("vit_micro", image_size=64), path, IMAGES)
    build_teacher("vit_micro", image_size=64, checkpoint=path)
    with pytest.raises(ValueError, match="trained with image_size=64, and is to run with image_size=128"):
        build_teacher("vit_micro", image_size=128, checkpoint=path)


def test_weights_without_a_sidecar_load_and_the_log_says_what_was_not_checked(files, caplog):
    weights, sidecar = files
    sidecar.unlink()
    with caplog.at_level(logging.INFO):
        load_weights(student(image_size=128), weights)
    assert "has no model.json beside it: its settings are not checked" in caplog.text


def test_weights_that_are_not_those_of_their_sidecar_are_refused_with_the_remedy(files):
    weights, sidecar = files
    torch.save(student().state_dict(), weights)
    with pytest.raises(ValueError, match=r"SHA-256 differ\. Restore the weights.*on purpose, delete .*model\.json"):
        load_weights(student(), weights)
    sidecar.write_text("{")
    with pytest.raises(ValueError, match=r"model\.json is damaged"):
        load_weights(student(), weights)


@pytest.mark.parametrize("part", ["weights", "sidecar"])
def test_a_writing_that_fails_leaves_no_sidecar_beside_weights_that_it_does_not_describe(files, monkeypatch, part):
    weights = files[0]
    before = weights.read_bytes()
    torch.manual_seed(1)

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((torch, "save") if part == "weights" else (Path, "write_text")), fail)
    with pytest.raises(OSError, match=r"Cannot write .*model\..*: No space left on device\. Free some\."):
        save_weights(student(), weights, remedy="Free some.")
    assert (weights.read_bytes() == before) == (part == "weights")
    monkeypatch.undo()
    assert (read_sidecar(weights) is None) == (part == "sidecar")
    load_weights(student(), weights)


def test_a_copy_has_the_sidecar_of_what_was_copied_or_none(files, tmp_path):
    weights, sidecar = files
    copy = tmp_path / "previous.pt"
    copy_with_sidecar(weights, copy, remedy="")
    assert read_sidecar(copy) == read_sidecar(weights)
    torch.save({}, weights)
    sidecar.unlink()
    copy_with_sidecar(weights, copy, remedy="")
    assert read_sidecar(copy) is None


def test_a_trained_bundle_runs_with_its_own_settings_and_no_others(trained):
    for name, phase in (("model", "student"), ("distilled", "student"), ("teacher", "teacher")):
        settings = read_sidecar(trained.models / f"{name}.pt")
        assert settings["network"]["builder"] == f"build_{phase}"
        assert settings["pixel_mean"] == [123.675, 116.28, 103.53]
    BundlePredictor(trained.bundle)
    with pytest.raises(ValueError, match="image_size=64, and is to run with image_size=128"):
        BundlePredictor(trained.bundle, image_size=128)
    with pytest.raises(ValueError, match=r"pixel_std=\[58.395, 57.12, 57.375\], and is to run with pixel_std=\[255"):
        BundlePredictor(trained.bundle, pixel_std=[255.0] * 3)
