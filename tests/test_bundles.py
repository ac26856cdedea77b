# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import sys
from pathlib import Path

import monai.bundle
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from monai_kdsam import bundles
from monai_kdsam.bundles import (
    begin_run,
    bundle_path,
    config_path,
    copy_bundle,
    default_bundle,
    parse_value,
)
from monai_kdsam.config_files import list_configs, parse_config
from monai_kdsam.errors import report_error
from monai_kdsam.losses import WeightedSumLoss
from monai_kdsam.parser import build_parser
from monai_kdsam.transforms import RandPromptd, box_from_mask

CONFIGS = bundle_path() / "configs"


# --- the beginning of a run


def workflow(folder: Path, **overrides) -> ConfigWorkflow:
    """A bundle that does nothing but begin."""
    configs = folder / "configs"
    configs.mkdir(parents=True)
    content = {
        "imports": ["$import monai_kdsam.bundles as kdsam_bundles"],
        "bundle_root": str(folder),
        "output_dir": str(folder / "output"),
        "phase": "train",
        "run_dir": "$kdsam_bundles.run_folder(@output_dir, @phase)",
        "epochs": 3,
        "weight_decay": 0.1,
        "log_interval": 3,
        "initialize": ["$kdsam_bundles.begin_run(7, @output_dir, @bundle_root, @run_dir)"],
        "run": ["$@epochs"],
    }
    (configs / "train.yaml").write_text(json.dumps(content))
    return ConfigWorkflow(configs / "train.yaml", workflow_type="train", logging_file=False, **overrides)


def chain(error: BaseException) -> list[BaseException]:
    """An error and all that it wraps."""
    found = [error]
    while (following := found[-1].__cause__ or found[-1].__context__) is not None:
        found.append(following)
    return found


def test_a_bundle_root_that_is_not_there_is_named(tmp_path) -> None:
    with pytest.raises(RuntimeError) as caught:
        workflow(tmp_path / "bundle", bundle_root=str(tmp_path / "nowhere")).initialize()
    told = [str(error) for error in chain(caught.value)]
    assert f"Expected `bundle_root` to be a bundle's folder, but there is none at {tmp_path / 'nowhere'}." in told


def test_a_run_leaves_its_merged_config_and_logs_seed_and_versions(tmp_path, caplog) -> None:
    with caplog.at_level("INFO", logger="monai_kdsam"):
        workflow(tmp_path / "bundle", epochs=5).initialize()
    kept = json.loads((tmp_path / "bundle" / "output" / "runs" / "train_001" / "config.json").read_text())
    assert kept["epochs"] == 5
    assert "Seed 7; monai_kdsam " in caplog.text
    assert f"torch {torch.__version__}" in caplog.text
    assert {file.name for file in (tmp_path / "bundle" / "output").iterdir()} == {"runs", ".train.lock"}


def test_a_run_with_a_mistyped_override_does_not_begin(tmp_path) -> None:
    with pytest.raises(RuntimeError) as caught:
        workflow(tmp_path / "bundle", epochz=5).initialize()
    assert any("nothing knows: 'epochz'. Did you mean 'epochs'?" in str(error) for error in chain(caught.value))
    assert not (tmp_path / "bundle" / "output").exists()


def test_a_key_of_ones_own_may_be_used_by_a_macro_alone(tmp_path) -> None:
    folder, overlay = tmp_path / "bundle", tmp_path / "own.yaml"
    workflow(folder)
    overlay.write_text("epochz: 4\nepochs: '%epochz'\n")
    files = [str(folder / "configs" / "train.yaml"), str(overlay)]
    monai.bundle.run(config_file=files, logging_file=False)
    kept = json.loads((folder / "output" / "runs" / "train_001" / "config.json").read_text())
    assert (kept["epochs"], kept["epochz"]) == (4, 4)


@pytest.mark.parametrize("word", ["--weight_decay=0.1", "--log-interval=3"])
def test_what_is_typed_and_not_used_by_the_run_ends_it_and_monais_own_options_do_not(
    tmp_path, monkeypatch, word
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    typed = [
        "monai/bundle/__main__.py",
        "run",
        "--config_file",
        "train.json",
        "--epochs",
        "5",
        "--logging_file",
        "False",
    ]
    begun = workflow(tmp_path / "bundle", epochs=5)
    monkeypatch.setattr(sys, "argv", typed)
    begun.initialize()
    name = word.strip("-").partition("=")[0].replace("-", "_")
    begun = workflow(tmp_path / "other", **{name: 3})
    monkeypatch.setattr(sys, "argv", [*typed, word])
    with pytest.raises(RuntimeError) as caught:
        begun.initialize()
    assert any(f"does not use the setting `{name}`" in str(error) for error in chain(caught.value))


@pytest.mark.parametrize("below", ["", "deeper"])
def test_an_output_folder_that_cannot_be_written_is_named(tmp_path, below) -> None:
    (tmp_path / "taken").write_text("a file where the folder should be")
    with pytest.raises(OSError, match=r"Cannot write to `output_dir` .*taken.*: .+\. Choose another one\."):
        begin_run(0, str(tmp_path / "taken" / below), str(tmp_path))


def test_a_beginning_changes_no_hook_of_a_program_that_is_not_the_bundle_command(tmp_path) -> None:
    before = sys.excepthook
    begin_run(0, str(tmp_path / "new" / "output"), str(tmp_path))
    assert sys.excepthook is before
    assert list((tmp_path / "new" / "output").iterdir()) == []


# --- what travels with the package


def test_a_bundle_is_copied_with_the_overlays_and_an_empty_folder_of_models(tmp_path) -> None:
    target = copy_bundle(tmp_path / "my")
    assert target == tmp_path / "my" / "kdsam_deepgrow_2d"
    for file in CONFIGS.glob("*"):
        assert (target / "configs" / file.name).read_bytes() == file.read_bytes()
    assert list((target / "models").iterdir()) == []
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


# --- how errors are told


def reported(function, capsys) -> str:
    """What the exception hook writes about the error that a function raises."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the caller looks at what is written about it
        function()
    report_error(caught.type, caught.value, caught.tb)
    return capsys.readouterr().err


def wrapped(function):
    """A function whose error is wrapped twice by RuntimeErrors, as MONAI's Compose and ConfigParser do."""

    def inner() -> None:
        try:
            function()
        except Exception as error:
            raise RuntimeError("applying transform <...>") from error

    def outer() -> None:
        try:
            inner()
        except Exception as error:
            raise RuntimeError("Failed to evaluate") from error

    return outer


DELIBERATE = {
    "a ValueError": (lambda: RandPromptd("label", ["scribble"]), "Expected `kinds`"),
    "a FileNotFoundError": (lambda: bundle_path("kdsam"), "Expected a bundle among"),
    "a loss that is not finite": (
        lambda: WeightedSumLoss({"l1": torch.nn.L1Loss()}).report({"loss": float("nan")}),
        "The loss is no longer finite",
    ),
}


def full_disk() -> None:
    raise OSError(28, "No space left on device", "events.out.tfevents")


@pytest.mark.parametrize("wrap", [lambda function: function, wrapped], ids=["bare", "wrapped"])
def test_a_disk_without_room_is_told_in_one_line_whoever_meets_it(wrap, capsys) -> None:
    told = reported(wrap(full_disk), capsys)
    assert told == "monai_kdsam: error: [Errno 28] No space left on device: 'events.out.tfevents'\n"


@pytest.mark.parametrize("wrap", [lambda function: function, wrapped], ids=["bare", "wrapped"])
@pytest.mark.parametrize("name", DELIBERATE)
def test_a_deliberate_error_is_told_in_one_line(name, wrap, capsys) -> None:
    function, text = DELIBERATE[name]
    told = reported(wrap(function), capsys)
    assert told.startswith(f"monai_kdsam: error: {text}")
    assert told.count("\n") == 1


def test_an_error_in_a_real_workflow_is_told_in_one_line(tmp_path, capsys) -> None:
    run = workflow(tmp_path / "bundle", epochz=5)
    told = reported(run.initialize, capsys).splitlines()
    assert told == ["monai_kdsam: error: The config has a key that nothing knows: 'epochz'. Did you mean 'epochs'?"]


def other_code() -> None:
    raise ValueError("not ours")


@pytest.mark.parametrize("wrap", [lambda function: function, wrapped], ids=["bare", "wrapped"])
@pytest.mark.parametrize(
    ("function", "text"),
    [
        (other_code, "ValueError: not ours"),
        (lambda: box_from_mask(None), "AttributeError: 'NoneType' object has no attribute 'any'"),  # type: ignore[arg-type]
        (lambda: torch.zeros(2) + torch.zeros(3), "RuntimeError: The size of tensor a"),
    ],
    ids=["raised elsewhere", "a defect in our code", "raised by torch"],
)
def test_any_other_error_keeps_its_traceback(function, text, wrap, capsys) -> None:
    told = reported(wrap(function), capsys)
    assert "Traceback (most recent call last)" in told
    assert text in told
    assert "monai_kdsam: error" not in told


def test_a_traceback_can_be_asked_for(capsys, monkeypatch) -> None:
    monkeypatch.setenv("KDSAM_TRACEBACK", "1")
    assert "Traceback (most recent call last)" in reported(lambda: bundle_path("kdsam"), capsys)


def test_an_error_of_ours_in_a_dataloaders_worker_is_told_in_one_line_too(capsys, tmp_path):
    """Of an exception in a worker only the text of its traceback reaches the main process."""
    from monai.data import DataLoader, Dataset
    from monai.transforms import LoadImaged

    from monai_kdsam.data import Image2DReader

    (tmp_path / "broken.png").write_bytes(b"no picture")
    data = Dataset([{"image": str(tmp_path / "broken.png")}], LoadImaged("image", reader=Image2DReader()))
    with pytest.raises(RuntimeError) as error:
        list(DataLoader(data, num_workers=1))
    report_error(type(error.value), error.value, error.value.__traceback__)
    told = capsys.readouterr().err
    assert told.startswith("monai_kdsam: error: ")
    assert "broken.png" in told
    assert "Traceback" not in told
