# SPDX-License-Identifier: Apache-2.0
"""The student that ships, here a small one: made, copied, damaged, trained on and told of."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import monai.bundle
import numpy as np
import pytest
import torch
from ship import CARD, agreement, halved, ship
from yaml import safe_load

from monai_kdsam import bundles
from monai_kdsam import fit as fit_module
from monai_kdsam.__main__ import main
from monai_kdsam.bundle_weights import weights_path
from monai_kdsam.bundles import BUNDLES, bundle_path, copy_bundle
from monai_kdsam.data.phantoms import write_phantoms
from monai_kdsam.errors import UserError
from monai_kdsam.inferers import BundlePredictor
from monai_kdsam.networks import build_student, load_weights, save_weights
from monai_kdsam.phases import run_phase
from monai_kdsam.run_folder import check_checkpoint
from monai_kdsam.weights.sidecar import describe_weights, is_shipped, read_sidecar, sidecar_path

SMALL = {"backbone": "timm/tf_efficientnet_lite0", "image_size": 64}
QUICK = {"batch_size": 4, "num_workers": 0, "epochs": 1, "progress": False, "device": "cpu", "logging_file": False}
NAME = "KD SAM Lite0"
REMEDY = "pip install --force-reinstall monai_kdsam"
FLAT, VOLUMES = BUNDLES


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Weights as a training writes them."""
    path = tmp_path_factory.mktemp("trained") / "trained.pt"
    torch.manual_seed(0)
    network = build_student(**SMALL, prompt_map=True, fine_features=True)
    images = {"pixel_mean": [123.675, 116.28, 103.53], "pixel_std": [58.395, 57.12, 57.375]}
    save_weights(network, path, images, about={"phase": "train", "prompts": ["box", "none"]})
    return path


@pytest.fixture(scope="module")
def made(trained, tmp_path_factory):
    """The bundles of a package whose own network is small, with that student."""
    folder = tmp_path_factory.mktemp("package") / "bundles"
    for name in BUNDLES:
        copy_bundle(folder, name, settings=SMALL)
    ship(trained, folder / FLAT, safe_load(CARD.read_text()))
    return folder


@pytest.fixture
def package(made, tmp_path, monkeypatch):
    """A copy of it in place of the package's own, so that tests may damage it."""
    folder = shutil.copytree(made, tmp_path / "package")
    other = bundles._data_folder
    monkeypatch.setattr(bundles, "_data_folder", lambda name: folder if name == "bundles" else other(name))
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def pictures(tmp_path):
    return write_phantoms(tmp_path / "pictures", per_kind=5, size=72)


# --- the file


def test_the_shipped_file_is_a_state_dict_in_half_precision_with_a_card_and_the_same_masks(trained, package, pictures):
    file = weights_path(bundle_path())
    full, half = (torch.load(path, weights_only=True) for path in (trained, file))
    assert {name for name in full if half[name].dtype != full[name].dtype} == {
        name for name, value in full.items() if value.ndim > 1 and "gaussian" not in name
    }
    assert file.stat().st_size < 0.55 * trained.stat().st_size
    content = json.loads(sidecar_path(file).read_text())
    assert set(content["card"]) >= {"name", "data", "start", "use", "license", "trained_on", "not_trained_on"}
    assert all(one["license"].startswith("CC") for one in content["card"]["data"])
    assert agreement(trained, package / FLAT, pictures / "images", most=3)["mean_iou"] > 0.98


def test_it_loads_strictly_in_stock_monai_and_in_float32(package, monkeypatch):
    own = BundlePredictor().network
    monkeypatch.chdir(package / FLAT)  # `load` cannot be told the bundle's root
    loaded = monai.bundle.load(FLAT, bundle_dir="..", workflow_type="inference", device="cpu")
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32, torch.int64}
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(image), own(image))


def test_weights_of_another_network_or_beyond_half_precision_are_not_shipped(trained, package, tmp_path):
    save_weights(build_student("resnet34", image_size=64), tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"was trained with backbone=resnet34, .*is to run with backbone=timm"):
        ship(tmp_path / "other.pt", package / FLAT, {})
    state = torch.load(trained, weights_only=True)
    state["mask_decoder.iou_token.weight"] *= 1e8
    torch.save(state, tmp_path / "large.pt")
    with pytest.raises(UserError, match=r"iou_token\.weight of .* is not finite in half precision"):
        ship(tmp_path / "large.pt", package / FLAT, {})
    assert halved(state)["mask_decoder.iou_token.weight"].dtype == torch.float16


@pytest.mark.skipif(not weights_path(bundle_path()).is_file(), reason="none ships yet")
def test_the_one_in_the_tree_is_what_its_card_says_of_the_bundles_network():
    file = weights_path(bundle_path())
    assert is_shipped(file)
    assert file.stat().st_size <= 20e6
    assert BundlePredictor(device="cpu")(np.zeros((30, 40, 3), np.uint8)).shape == (30, 40)
    assert NAME in describe_weights(file)


def test_a_damaged_one_is_told_with_the_remedy(package):
    file = package / FLAT / "models" / "model.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"model\.pt is damaged .*SHA-256 differ.*{REMEDY}"):
        BundlePredictor()
    assert not is_shipped(file)
    with pytest.raises(FileExistsError, match="has the weights of an earlier run"):
        check_checkpoint(file, resume=False, overwrite=False)


# --- copies


def test_copies_serve_it_at_once_and_volumes_have_no_second_file(package, tmp_path, capsys):
    assert main(["bundle", "work", "--set", "augment=False"]) == 0
    told = capsys.readouterr().out
    assert f"{FLAT} serves {NAME}, trained on ISIC 2017, HC18, BUSI; research use, not a medical device." in told
    assert is_shipped("work/kdsam_deepgrow_2d/models/model.pt")
    volumes = BundlePredictor(Path("work", VOLUMES)).network.state_dict()
    shipped = BundlePredictor().network.state_dict()
    assert all(torch.equal(volumes[name], value) for name, value in shipped.items())
    assert not [*Path("work", VOLUMES, "models").iterdir()]
    assert main(["bundle", "alone", "--name", VOLUMES]) == 0
    assert is_shipped(Path("alone", VOLUMES, "models", "model.pt"))


def test_a_copy_with_another_network_has_no_weights_and_says_so(package, capsys):
    assert main(["bundle", "work", "--set", "image_size=128"]) == 0
    assert f"{FLAT} has no weights yet" in (told := capsys.readouterr().out)
    assert "are of another network, image_size=64." in told
    assert not [*Path("work", FLAT, "models").iterdir()]


# --- trainings


def test_a_training_replaces_it_unasked_and_nothing_else(package, pictures, caplog):
    bundle = copy_bundle("work")
    settings = QUICK | {"dataset_dir": pictures}
    with caplog.at_level(logging.INFO):
        run_phase(bundle, "train", student_weights="shipped", train_encoder=True, ema_decay=0.5, **settings)
    assert f"Loaded {package / FLAT / 'models' / 'model.pt'}: {NAME}, trained on ISIC 2017" in caplog.text
    told = describe_weights(bundle / "models" / "model.pt")
    assert told.startswith(
        f"model.pt of your phase train, trained with the prompts box, clicks, none, begun from {NAME}"
    )
    with pytest.raises(RuntimeError) as caught:
        run_phase(bundle, "train", student_weights="shipped", **settings)
    assert "has the weights of an earlier run" in str(caught.value.__cause__ or caught.value)


@pytest.mark.parametrize("given", [{}, {"imagenet_weights": "nowhere.pth"}])
def test_a_student_begins_with_it_whatever_else_is_given(package, given, caplog):
    bundle = copy_bundle("work")
    parser = fit_module.read_phase(bundle, "distill", student_weights="shipped", **given)
    with caplog.at_level(logging.INFO):
        network = parser.get_parsed_content("initial_network")
    shipped = BundlePredictor().network.state_dict()
    assert all(torch.equal(value, shipped[name]) for name, value in network.state_dict().items())
    assert "RANDOM" not in caplog.text


def test_a_student_of_another_network_or_none_at_all_is_told(package):
    bundle = copy_bundle("work", settings={"backbone": "resnet34"})
    start = fit_module.read_phase(bundle, "train", student_weights="shipped")
    with pytest.raises(RuntimeError) as caught:
        start.get_parsed_content("initial_network")
    assert "was trained with backbone=timm/tf_efficientnet_lite0, and is to run with backbone=resnet34" in str(
        caught.value.__cause__
    )
    (package / FLAT / "models" / "model.pt").unlink()
    with pytest.raises(FileNotFoundError, match="Expected the student that comes with monai_kdsam"):
        bundles.find_student("shipped")
    assert bundles.find_student("mine.pt") == "mine.pt"


def test_a_fit_into_a_new_bundle_is_stopped_by_it_as_little_as_it_takes_it_for_its_own(package, pictures, monkeypatch):
    given = {}
    monkeypatch.setattr(fit_module, "run_phase", lambda _, phase, *__, **settings: given.update({phase: settings}))
    monkeypatch.setattr(fit_module._Plan, "conclude", lambda _: "")
    same = ["image_size=64", "student_weights=shipped"]
    command = ["fit", str(pictures), "--recipe", "promptable", "--set", *same]
    assert main(command) == 0  # and asks for no ImageNet weights
    assert is_shipped(Path(FLAT, "models", "model.pt"))
    assert [*given] == ["train", "evaluate"]
    assert given["train"]["student_weights"] == "shipped"
    assert "student_weights" not in given["evaluate"]


# --- what is told


@pytest.mark.parametrize(
    ("about", "told"),
    [
        ({"phase": "distill", "prompts": []}, "model.pt of the phase distill, NEVER TRAINED WITH PROMPTS."),
        ({"phase": "train", "prompts": ["none"]}, "model.pt of the phase train, NEVER TRAINED WITH PROMPTS."),
        ({"phase": "train", "prompts": ["box"]}, "model.pt of your phase train, trained with the prompts box."),
        ({}, "model.pt has no card: what it was trained on is not known."),
    ],
)
def test_weights_are_told_of_in_a_line(about, told, tmp_path):
    save_weights(torch.nn.Linear(1, 1), tmp_path / "model.pt", about=about)
    assert describe_weights(tmp_path / "model.pt") == told


def test_a_student_of_a_student_names_the_first(package, tmp_path):
    network = load_weights(build_student(**SMALL, prompt_map=True, fine_features=True), weights_path(bundle_path()))
    save_weights(network, tmp_path / "one.pt")
    save_weights(load_weights(network, tmp_path / "one.pt"), tmp_path / "two.pt")
    assert f"begun from {NAME} (" in describe_weights(tmp_path / "two.pt")
    assert read_sidecar(tmp_path / "two.pt")["network"]["backbone"] == SMALL["backbone"]
