# SPDX-License-Identifier: Apache-2.0
"""`python -m monai_kdsam fit`: from images to a report, told as commands, interrupted and gone on with."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import monai_kdsam
from monai_kdsam import fit as module
from monai_kdsam.__main__ import main
from monai_kdsam.data.phantoms import write_phantoms
from monai_kdsam.phases import run_phase

SMALL = ["image_size=64", "backbone=resnet18", "teacher=vit_micro", "batch_size=2", "num_workers=0", "epochs=1"]
SMALL += ["progress=False"]


def ran(printed: str) -> list[str]:
    """The phases whose commands were printed."""
    files = [shlex.split(line)[6] for line in printed.splitlines() if line.startswith("$ ")]
    known = ("refine", "distill", "adapt", "evaluate", "train")
    return [next(name for name in known if f"/{name}." in text) for text in files]


@pytest.fixture
def images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_phantoms("images of mine", per_kind=6, size=72)
    return "images of mine"


def test_a_fit_is_broken_off_in_refine_and_the_same_command_goes_on_to_the_report(images, monkeypatch, capsys):
    command = ["fit", images, "--teacher", "scratch", "--bundle", "mine", "--device", "cpu", "--set", *SMALL]
    begun = []

    def run(bundle, phase, *overlays, **settings):
        begun.append(phase)
        if begun.count("refine") == 1 and phase == "refine":
            raise KeyboardInterrupt
        return run_phase(bundle, phase, *overlays, **settings)

    monkeypatch.setattr(module, "run_phase", run)
    assert main(command) == 130
    first = capsys.readouterr()
    assert ran(first.out) == begun == ["adapt", "distill", "refine"]
    assert "The same command goes on." in first.err
    served = json.loads(Path("mine/configs/inference.json").read_text())
    assert (served["image_size"], served["backbone"], served["close_up"]) == (64, "resnet18", 0)
    assert served["go_on"] is False

    assert main(command) == 0
    second = capsys.readouterr().out
    assert ran(second) == ["refine", "train", "evaluate"]
    assert second.count(": finished\n") == 2
    assert Image.open("mine/output/pictures.png").width > 0
    head, row = (line.split() for line in second.splitlines() if line.startswith(("mean Dice", "of ")))
    assert head[2:] == ["box", "center", "none"]
    assert all(0 <= float(value) <= 1 for value in row[-3:])

    assert main([*command, "seed=1"]) == 1  # the last option is --set
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "run_phase", lambda *_, **__: pytest.fail("everything is finished"))
        assert main(command) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recipe", "plush"], "Expected `recipe` to be one of plus, paper, promptable, few_labels, got 'plush'."),
        (["--teacher", "me"], "Expected `teacher` to be one of sam, adapted, scratch, got 'me'."),
        (["--set", "epochz=3"], "has the setting 'epochz'. Did you mean 'epochs'?"),
        (["--set", "distil.epochs=3"], "has the setting 'distil.epochs'. Did you mean 'distill.epochs'?"),
        ([], "download sam_vit_b --dir kdsam_deepgrow_2d/models && python -m monai_kdsam download resnet50 --dir"),
        ([], "Where SAM's cannot be had, `--teacher scratch`"),
        (["--recipe", "paper"], "download vgg16 --dir kdsam_deepgrow_2d/models"),
        (["--overlays", "students/none"], "Expected a config students/none"),
    ],
)
def test_what_a_fit_cannot_do_is_told_in_one_line_before_its_first_phase(images, capsys, words, message):
    assert main(["fit", images, *words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert Path("kdsam_deepgrow_2d").exists() == ("download" in line)  # made for the weights, and for nothing else


def test_images_that_do_not_exist_are_told_before_a_bundle_is_made(images, capsys):
    assert main(["fit", "nowhere"]) == 1
    assert "images/ and masks/, or a datalist (.json, .csv), got nowhere" in capsys.readouterr().err
    assert not Path("kdsam_deepgrow_2d").exists()


def test_a_bundle_that_serves_another_network_and_weights_of_an_earlier_run_are_told(images, capsys):
    assert main(["bundle", ".", "--set", "image_size=128"]) == 0
    command = ["fit", images, "--teacher", "scratch"]
    assert main([*command, "--set", "image_size=128"]) == 1  # the bundle's network is not the recipe's
    assert "would train, which has backbone=resnet50, prompt_map=False, fine_features=False." in capsys.readouterr().err
    same = ["backbone=resnet50", "image_size=128", "prompt_map=False", "fine_features=False"]
    assert main(["bundle", "mine", "--set", *same]) == 0
    command += ["--bundle", "mine/kdsam_deepgrow_2d", "--set", "image_size=128"]
    Path("mine/kdsam_deepgrow_2d/models/refined.pt").touch()
    assert main(command) == 1
    assert "models/refined.pt has the weights of an earlier run." in capsys.readouterr().err


def test_imagenet_s_weights_begin_the_student_and_each_phase_has_its_own_settings(images, monkeypatch):
    given = {}
    monkeypatch.setattr(module, "run_phase", lambda _, phase, *__, **settings: given.update({phase: settings}))
    monkeypatch.setattr(module._Plan, "conclude", lambda _: "")
    command = ["fit", images, "--set", "backbone=resnet18", "distill.learning_rate=0.01", "learning_rate=0.002"]
    assert main(command) == 1  # no weights yet, but a bundle to fetch them to
    for name in ("sam_vit_b", "resnet18"):
        Path("kdsam_deepgrow_2d/models", module.WEIGHTS[name].filename).touch()
    assert main(command) == 0
    assert [*given] == ["distill", "refine", "train", "evaluate"]
    assert given["distill"]["imagenet_weights"].name == module.WEIGHTS["resnet18"].filename
    assert not any("imagenet_weights" in given[phase] for phase in ("refine", "train", "evaluate"))
    rates = {phase: settings.get("learning_rate") for phase, settings in given.items()}
    assert rates == {"distill": 0.01, "refine": 0.002, "train": 0.002, "evaluate": None}


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"monai_kdsam {monai_kdsam.__version__}\n"


@pytest.mark.slow
def test_forty_images_go_from_nothing_to_a_report_though_the_process_is_killed(tmp_path):
    write_phantoms(tmp_path / "images", per_kind=20, size=128)
    settings = ["image_size=128", *SMALL[1:3], "batch_size=7", "num_workers=0", "epochs=2", "progress=False"]
    command = [sys.executable, "-m", "monai_kdsam", "fit", "images", "--teacher", "scratch", "--set", *settings]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    state = tmp_path / "kdsam_deepgrow_2d" / "output" / "distill_state.pt"
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL) as process:
        while not state.exists():  # after its first epoch of two
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert torch.load(state, weights_only=True)["epoch"] == 1
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert ran(done.stdout) == ["distill", "refine", "train", "evaluate"]
    assert "--resume True" in next(line for line in done.stdout.splitlines() if line.startswith("$ "))
    assert Image.open(tmp_path / "kdsam_deepgrow_2d" / "output" / "pictures.png").width > 0


@pytest.mark.parametrize("name", ["list.json", "list.CSV"])
def test_a_datalist_is_read_as_one_in_either_format(name) -> None:
    assert module._Plan(Path(name), "plus", "sam", Path("bundle"), (), {}).overlays[0] == "datasets/datalist"
