# SPDX-License-Identifier: Apache-2.0
"""What a bundle's run begins with: its config is looked at, logged and kept."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import monai.bundle
import pytest
import torch
from monai.bundle import ConfigWorkflow

from monai_kdsam.errors import report_error
from monai_kdsam.run import begin_run


def workflow(folder: Path, **overrides) -> ConfigWorkflow:
    """A bundle that does nothing but begin."""
    configs = folder / "configs"
    configs.mkdir(parents=True)
    content = {
        "imports": ["$import monai_kdsam.run as kdsam_run"],
        "bundle_root": str(folder),
        "output_dir": str(folder / "output"),
        "phase": "train",
        "run_dir": "$kdsam_run.run_folder(@output_dir, @phase)",
        "epochs": 3,
        "weight_decay": 0.1,
        "log_interval": 3,
        "initialize": ["$kdsam_run.begin_run(7, @output_dir, @bundle_root, @run_dir)"],
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


@pytest.mark.parametrize("root", ["nowhere", "."])
def test_a_bundle_root_that_is_none_is_named(tmp_path, monkeypatch, root) -> None:
    (tmp_path / "elsewhere").mkdir()
    config = workflow(tmp_path / "bundle", bundle_root=root)
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(RuntimeError) as caught:
        config.initialize()
    told = f"Expected `bundle_root` to be a bundle's folder, with `configs` in it, but {tmp_path / 'elsewhere' / root}"
    assert any(str(error).startswith(told) for error in chain(caught.value))


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
    (tmp_path / "configs").mkdir()
    (tmp_path / "taken").write_text("a file where the folder should be")
    with pytest.raises(OSError, match=r"Cannot write to `output_dir` .*taken.*: .+\. Choose another one\."):
        begin_run(0, str(tmp_path / "taken" / below), str(tmp_path))


def test_a_beginning_changes_no_hook_of_a_program_that_is_not_the_bundle_command(tmp_path) -> None:
    (tmp_path / "configs").mkdir()
    before = sys.excepthook
    begin_run(0, str(tmp_path / "new" / "output"), str(tmp_path))
    assert sys.excepthook is before
    assert list((tmp_path / "new" / "output").iterdir()) == []


def test_a_mistake_in_a_real_workflow_is_told_in_one_line(tmp_path, capsys) -> None:
    with pytest.raises(RuntimeError) as caught:
        workflow(tmp_path / "bundle", epochz=5).initialize()
    report_error(caught.type, caught.value, caught.tb)
    told = "monai_kdsam: error: The config has a key that nothing knows: 'epochz'. Did you mean 'epochs'?\n"
    assert capsys.readouterr().err == told
