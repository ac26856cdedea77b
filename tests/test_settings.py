# SPDX-License-Identifier: Apache-2.0
"""Settings that cannot be meant end a run before it begins, in one line."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser

from monai_kdsam.bundles import BUNDLES, bundle_path, config_path
from monai_kdsam.settings import check_device, check_settings

CONFIGS = bundle_path() / "configs"
PHASES = {
    "adapt": ["adapt"],
    "embed": ["distill", "embed"],
    "distill": ["distill"],
    "refine": ["distill", "refine"],
    "train": [],
    "learn": ["learn"],
    "evaluate": ["evaluate"],
}


def merged(phase: str, *overlays: str, **typed: Any) -> dict[str, Any]:
    own = ["inference.json"] if phase == "inference" else [f"{name}.yaml" for name in ("train", *PHASES[phase])]
    files = [CONFIGS / name for name in own]
    parser = ConfigParser()
    parser.read_config([*files, *(config_path(name) for name in overlays)])
    parser.update(typed)
    parser.parse()
    config: dict[str, Any] = parser.config
    return config


def check(phase: str, *overlays: str, folder=CONFIGS, **typed: Any) -> None:
    check_settings(merged(phase, *overlays, **typed), folder, typed=typed, roots=("initialize", "run", "finalize"))


@pytest.mark.parametrize(("typed", "meant"), [("epochz", "epochs"), ("learning_rat", "learning_rate")])
def test_a_mistyped_key_is_named_with_the_one_that_was_meant(typed, meant) -> None:
    with pytest.raises(ValueError, match=rf"a key that nothing knows: '{typed}'\. Did you mean '{meant}'\?"):
        check("train", **{typed: 5})


def test_a_key_like_no_other_is_named_with_what_would_allow_it() -> None:
    with pytest.raises(ValueError, match=r"nothing knows: 'xyzzy'\. A key of your own must be used by another: '@key'"):
        check("train", xyzzy=5)


@pytest.mark.parametrize("use", ["@xyzzy", "$2 * @xyzzy"])
def test_a_key_of_ones_own_that_another_uses_is_allowed(use) -> None:
    check("train", xyzzy=5, epochs=use)


@pytest.mark.parametrize("phase", [*PHASES, "inference"])
def test_the_bundles_own_settings_pass(phase) -> None:
    check(phase)


def test_those_of_the_bundle_of_volumes_pass_too() -> None:
    folder = bundle_path(BUNDLES[1]) / "configs"
    parser = ConfigParser()
    parser.read_config(folder / "inference.json")
    parser.parse()
    check_settings(parser.config, folder, typed={"window_width": 2.5}, roots=("initialize", "run"))


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ({"device": "gpu"}, "Expected `device` to be cpu, cuda or cuda:N, got 'gpu'."),
        ({"device": "cuda:99"}, r"Expected `device` to be one of this machine, got 'cuda:99'; PyTorch .* sees \d+ GPU"),
        ({"foreground_values": 1}, r"Expected `foreground_values` to be a list, such as \[1, 2\].*, got 1\."),
        ({"learning_rate": "abc"}, "Expected `learning_rate` to be a number, such as 1e-05, got 'abc'."),
        ({"learning_rate": 0}, "Expected `learning_rate` to be above 0, got 0."),
        ({"epochs": 0}, "Expected `epochs` to be a whole number of at least 1, got 0."),
        ({"epochs": 1.5}, "Expected `epochs` to be a whole number of at least 1, got 1.5."),
        ({"num_workers": -1}, "Expected `num_workers` to be a whole number of at least 0, got -1."),
        ({"weight_decay": float("nan")}, "Expected `weight_decay` to be a number of at least 0, got nan."),
        ({"augment": "false"}, "Expected `augment` to be True or False, such as True, got 'false'."),
        ({"resume": 1}, "Expected `resume` to be True or False, such as False, got 1."),
        ({"prompts": "box"}, r"Expected `prompts` to be a list, such as \[\"box\", .*, got 'box'\."),
        ({"backbone": 50}, "Expected `backbone` to be text, such as timm/tf_efficientnet_lite0, got 50."),
        ({"dataset_dir": "scans#1"}, "Expected `dataset_dir` without '#'.*Rename the file or folder."),
        ({"output_dir": "out#1"}, "Expected `output_dir` without '#'"),
        ({"sources": {"folder": "scans#1"}}, "Expected `sources` without '#'"),
    ],
    ids=str,
)
def test_a_value_that_cannot_be_meant_is_named(typed, message) -> None:
    with pytest.raises(ValueError, match=message) as error:
        check("train", **typed)
    assert "\n" not in str(error.value)


def test_a_path_that_the_command_line_cuts_at_its_hash_is_named() -> None:
    config = merged("train", output_dir="out")  # what Fire leaves of the word
    with pytest.raises(ValueError, match=r"Expected `output_dir` without '#'.*got 'out#1'"):
        check_settings(config, CONFIGS, typed={"output_dir": "out#1"}, roots=("initialize", "run"))
    words = {"epochs": "$@val_interval * len('#')", "network_def#image_size": "64"}
    check_settings(config, CONFIGS, typed=words, roots=("initialize", "run"))


@pytest.mark.parametrize(
    "typed",
    [
        {"device": "cpu"},
        {"device": "$torch.device('cuda', 99)"},
        {"foreground_values": [1]},
        {"foreground_values": None},
        {"dice_weight": 1},
        {"learning_rate": "$1e-4 * 2"},
        {"prompts": ("box",)},
        {"frozen": ["mask_decoder"]},
        {"train#trainer#max_epochs": 5},
        {"initial_checkpoint": "models/mine.pt"},
    ],
    ids=str,
)
def test_what_can_be_meant_passes(typed) -> None:
    check("train", **typed)
    check_device(typed.get("device"))  # what `BundlePredictor` looks at alone


@pytest.mark.parametrize(
    ("phase", "typed", "message"),
    [
        (
            "train",
            {"mse_weight": 7},
            "train does not use the setting `mse_weight`, .* It is of distill.yaml.",
        ),
        ("train", {"vgg_weights": "/no/such/file"}, "does not use the setting `vgg_weights`"),
        ("evaluate", {"learning_rate": 0.1}, "The phase evaluate does not use the setting `learning_rate`"),
        ("evaluate", {"optimizer#lr": 0.1}, "does not use the setting `optimizer`"),
        ("embed", {"epochs": 5}, "The phase embed does not use the setting `epochs`"),
        ("adapt", {"backbone": "resnet18"}, "The phase adapt does not use the setting `backbone`"),
    ],
)
def test_a_setting_that_the_phase_does_not_use_is_refused_where_it_was_typed(phase, typed, message) -> None:
    with pytest.raises(ValueError, match=message):
        check(phase, **typed)


def test_overlays_are_for_several_phases_and_what_one_ignores_is_logged(caplog) -> None:
    with caplog.at_level(logging.INFO, logger="monai_kdsam"):
        check("train", "recipes/paper.yaml", "offline.yaml")
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith("Settings of overlays that the phase train does not use: teacher, sam_checkpoint, vgg_layer")
    assert "dice_weight" not in line


def test_a_device_may_be_named_by_its_text() -> None:
    for device in ("cpu", torch.device("cpu")):
        parser = ConfigParser()
        parser.read_config(CONFIGS / "train.yaml")
        parser["device"] = device
        assert parser.get_parsed_content("amp") is False


@pytest.mark.parametrize(("phase", "typed"), [("distill", {}), ("refine", {}), ("train", {"train_encoder": True})])
def test_a_batch_of_one_value_for_a_batch_norm_is_refused(phase, typed) -> None:
    with pytest.raises(ValueError, match="Expected `batch_size` of at least 2 with an `image_size` of 32"):
        check(phase, image_size=32, batch_size=1, **typed)
    check(phase, image_size=32, batch_size=2, **typed)
    check(phase, image_size=64, batch_size=1, **typed)
    check("train", image_size=32, batch_size=1)
