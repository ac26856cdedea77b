# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from monai_kdsam import bundles
from monai_kdsam.bundles import (
    bundle_path,
    config_path,
    copy_bundle,
    default_bundle,
)
from monai_kdsam.config_files import list_configs, parse_config, parse_value
from monai_kdsam.parser import build_parser

CONFIGS = bundle_path() / "configs"


def test_a_bundle_is_copied_with_the_overlays_and_a_folder_of_models(tmp_path) -> None:
    target = copy_bundle(tmp_path / "my")
    assert target == tmp_path / "my" / "kdsam_deepgrow_2d"
    for file in CONFIGS.glob("*"):
        assert (target / "configs" / file.name).read_bytes() == file.read_bytes()
    assert {file.name for file in (target / "models").iterdir()} in (set(), {"model.pt", "model.json"})  # that ship
    assert not (target / "output").exists()
    overlays = {file.relative_to(config_path()) for file in config_path().rglob("*.yaml")}
    copied = tmp_path / "my" / "configs"
    assert {file.relative_to(copied) for file in copied.rglob("*.yaml")} >= overlays


def test_a_copy_takes_settings_for_training_and_serving_alike(tmp_path) -> None:
    target = copy_bundle(tmp_path, settings={"image_size": 512, "backbone": "resnet18"})
    read = {file.stem: ConfigParser.load_config_file(file) for file in list_configs(target / "configs")}
    for phase in ("train", "inference"):
        assert (read[phase]["image_size"], read[phase]["backbone"]) == (512, "resnet18")
    assert read["metadata"]["network_data_format"]["inputs"]["image"]["spatial_shape"] == [512, 512]


def test_a_copy_with_an_unknown_setting_is_refused_before_anything_is_written(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"The bundle has no setting 'backbonee'\. Did you mean 'backbone'\?"):
        copy_bundle(tmp_path, settings={"backbonee": "resnet18"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("prompts=[box,none]", r"Expected `prompts` to be a list, such as \[\"box\", .*, got '\[box,none\]'\."),
        ("image_size=512px", "Expected `image_size` to be a number, such as 256, got '512px'."),
        ("augment=off", "Expected `augment` to be True or False, such as True, got 'off'."),
        ("backbone=50", "Expected `backbone` to be text, such as timm/tf_efficientnet_lite0, got 50."),
        ("cache_rate=-1", "Expected `cache_rate` to be a number of at least 0, got -1."),
    ],
)
def test_a_setting_of_another_kind_is_refused_before_anything_is_written(tmp_path, word, message) -> None:
    key, value = word.split("=")
    with pytest.raises(ValueError, match=message):
        copy_bundle(tmp_path, settings={key: parse_value(value)})
    assert list(tmp_path.iterdir()) == []


SETTABLE = """
    prompts=["box"] prompts=$['box'] imagenet_weights=resnet50.pth val_interval=@epochs bfloat16=True
    foreground_values=[1,3] corrected_prompts=2 backbone=null
"""


@pytest.mark.parametrize("word", SETTABLE.split())
def test_what_may_be_meant_for_another_machine_or_run_is_set(tmp_path, word) -> None:
    key, _, value = word.partition("=")
    file = copy_bundle(tmp_path, settings={key: parse_value(value)}) / "configs" / "train.yaml"
    assert parse_config(file.read_text(), ".yaml")[key] == parse_value(value)


def test_a_setting_in_which_phases_differ_is_not_set_for_all_of_them(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"'learning_rate' is not one setting of the bundle: 1e-05 in adapt\.yaml, "):
        copy_bundle(tmp_path, settings={"learning_rate": 1e-4})
    assert list(tmp_path.iterdir()) == []


def test_a_second_bundle_leaves_edited_overlays_alone(tmp_path) -> None:
    copy_bundle(tmp_path, "kdsam_deepgrow_2d")
    overlay = tmp_path / "configs" / "recipes" / "plus.yaml"
    overlay.write_text("mse_weight: 2.0\n")
    copy_bundle(tmp_path, "kdsam_deepgrow_3d")
    assert overlay.read_text() == "mse_weight: 2.0\n"


def test_without_a_name_the_bundle_of_this_folder_is_meant_or_else_the_shipped_one(tmp_path, monkeypatch) -> None:
    shipped = copy_bundle(tmp_path / "shipped")
    monkeypatch.setattr(bundles, "bundle_path", lambda: shipped)
    monkeypatch.chdir(tmp_path)
    weights = shipped / "models" / "model.pt"
    weights.unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match=rf"comes with monai_kdsam at {weights}; .* Install it again, or name"):
        default_bundle()
    weights.touch()
    assert default_bundle() == shipped
    (tmp_path / "kdsam_deepgrow_2d").mkdir()
    assert default_bundle() == Path("kdsam_deepgrow_2d")


def test_options_of_several_values_may_be_given_several_times() -> None:
    parse = build_parser().parse_args
    assert parse(["bundle", "w", "--set", "a=1", "b=2", "--set", "c=3"]).set == ["a=1", "b=2", "c=3"]
    report = ["report", "--bundle", "b", "--data_list", "s.json", "--output", "o"]
    assert parse([*report, "--source", "x=1", "--source", "y=2"]).source == ["x=1", "y=2"]
    assert parse([*report, "--other", "x", "--other", "y"]).other == ["x", "y"]
    assert parse(["label", "--studies", "s", "--model", "x", "--model", "y"]).model == ["x", "y"]


def test_a_bundle_that_is_there_already_is_not_overwritten(tmp_path) -> None:
    target = copy_bundle(tmp_path)
    (target / "models" / "model.pt").write_text("trained for a week")
    with pytest.raises(FileExistsError, match="kdsam_deepgrow_2d exists already; choose another folder, or delete it"):
        copy_bundle(tmp_path)
    assert (target / "models" / "model.pt").read_text() == "trained for a week"


def test_an_unknown_bundle_or_overlay_lists_the_known_ones() -> None:
    with pytest.raises(FileNotFoundError, match=r"Expected a bundle among .*kdsam_deepgrow_2d.*, got 'kdsam'"):
        bundle_path("kdsam")
    with pytest.raises(FileNotFoundError, match=r"Expected a config overlay among .*smoke\.yaml.*, got 'smok\.yaml'"):
        config_path("smok.yaml")
