# SPDX-License-Identifier: Apache-2.0
"""Runs of two processes on CPUs, against the same runs of one: the same losses, weights, metrics and reports."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import BatchSampler, DistributedSampler

from monai_kdsam.handlers import ResumeHandler
from monai_kdsam.phases import phase_files, run_phase
from monai_kdsam.processes import (
    batch_share,
    check_launch,
    item_share,
    own_shard,
    synchronize_batch_norm,
    torchrun_number,
)

STEPS = 2 * 2  # two epochs of eleven images in batches of four
TRAINED = {"adapt": "teacher.pt", "distill": "distilled.pt", "refine": "refined.pt", "train": "model.pt"}
PHASES = [*TRAINED, "evaluate"]
# SGD's momentum is the sum of the gradients, which is what processes share. AdamW, the configs' optimizer, hides if
# they were summed or averaged, and moves a weight by the learning rate where its gradient is nothing but rounding. The
# rate moves hardly a weight, so that rounding does not add up from step to step.
LEARNING = {
    "optimizer": {
        "_target_": "torch.optim.SGD",
        "params": "$[parameter for parameter in @network.parameters() if parameter.requires_grad]",
        "lr": "@learning_rate",
        "momentum": 0.9,
    },
    "learning_rate": 1e-12,
    "epochs": 2,
}
# All phases in one start of Python, which takes longer than they do. The processes meet once, in the first phase, and
# part after the last one: gloo cannot meet again under one torchrun. Batch norms do not learn here: SyncBatchNorm, by
# which they would see the images of all processes, refuses CPUs.
SCRIPT = """
import json, sys
import torch
from monai_kdsam.phases import run_phase

torch.nn.BatchNorm2d.train = lambda norm, mode=True: torch.nn.Module.train(norm, False)
first, *between, last = json.loads(sys.argv[1])
run_phase(*first[0], **first[1], finalize=None)
for names, settings in between:
    run_phase(*names, **settings, process_group=None, finalize=None)
run_phase(*last[0], **last[1], process_group=None)
"""


def torchrun(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=180, check=False, env=environment)


def run_of(workspace, phase: str, output: Path, *overlays: str, **overrides: object) -> tuple[list[str], dict]:
    """The arguments of `run_phase`."""
    learning = {"best_checkpoint": str(output / TRAINED[phase]), **LEARNING} if phase in TRAINED else {}
    return [str(workspace.bundle), phase, "offline", "smoke", *overlays], {
        "dataset_dir": str(workspace.folder / "phantoms"),
        "split_file": str(workspace.output / "split.json"),
        "output_dir": str(output),
        "progress": False,
        "batch_size": 4,
        **learning,
        **overrides,
    }


@dataclass
class Runs:
    """The folders of the runs of one process and of two, and of two that go on where one broke off."""

    one: Path
    two: Path
    resumed: Path

    def losses(self, phase: str) -> list[dict[str, list[float]]]:
        """What one process and two logged in each step."""
        logged = []
        for folder in (self.one, self.two):
            events = EventAccumulator(str(folder / "runs" / f"{phase}_001")).Reload()
            logged.append({tag: [entry.value for entry in events.Scalars(tag)] for tag in events.Tags()["scalars"]})
        return logged


def assert_same_state(folder: Path, other: Path, phase: str) -> None:
    """The same gradients over the run.

    Rounding that turns a ReLU on or off changes the gradients of `distill` by up to 0.7 %, and those of the other
    phases by up to 0.1 %. Some gradients are nothing but rounding, such as that of a bias before a norm.
    """
    one, two = (torch.load(at / f"{phase}_state.pt", weights_only=True)["objects"] for at in (folder, other))
    torch.testing.assert_close(two["network"], one["network"], atol=1e-4, rtol=1e-4)
    gradients, others = (objects["optimizer"]["state"] for objects in (one, two))
    assert gradients.keys() == others.keys()
    for number, state in gradients.items():
        gradient, other_gradient = state["momentum_buffer"], others[number]["momentum_buffer"]
        apart = (other_gradient - gradient).norm()
        assert apart <= 0.05 * gradient.norm() + 1e-6, f"parameter {number}: {apart} of {gradient.norm()}"


@pytest.fixture(scope="module")
def runs(trained_once, tmp_path_factory) -> Runs:
    folder = tmp_path_factory.mktemp("processes")
    (folder / "phases.py").write_text(SCRIPT)
    runs = Runs(folder / "one", folder / "two", folder / "resumed")
    runs.resumed.mkdir()

    def save_and_keep_the_first(self, engine, save=ResumeHandler.save):
        save(self, engine)
        if engine.state.epoch == 1 and self.path.name == "train_state.pt":
            shutil.copy(self.path, runs.resumed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ResumeHandler, "save", save_and_keep_the_first)
        patch.setattr(torch.nn.BatchNorm2d, "train", lambda norm, mode=True: torch.nn.Module.train(norm, False))
        for phase in PHASES:
            # Workers in one phase, so that these are shown to change nothing as well.
            names, settings = run_of(trained_once, phase, runs.one, num_workers=2 * (phase == "train"))
            run_phase(*names, **settings)
    overlay = "multi_gpu_train"
    together = [run_of(trained_once, phase, runs.two, overlay) for phase in PHASES]
    together.append(run_of(trained_once, "train", runs.resumed, overlay, resume=True))
    done = torchrun(str(folder / "phases.py"), json.dumps(together))
    assert done.returncode == 0, done.stderr[-3000:]
    return runs


@pytest.mark.slow
@pytest.mark.parametrize("phase", TRAINED)
def test_two_processes_log_the_losses_and_metrics_of_one(runs, phase):
    one, two = runs.losses(phase)
    assert one.keys() == two.keys() >= {"loss", "val_mean_dice"}
    assert len(one["loss"]) == STEPS
    for tag, values in one.items():
        # A pixel whose logit is nothing but rounding may fall on either side of zero: 3e-4 of these metrics.
        assert two[tag] == pytest.approx(values, rel=1e-5, abs=1e-3 if tag.startswith("val_") else 1e-5), tag


@pytest.mark.slow
@pytest.mark.parametrize("phase", TRAINED)
def test_two_processes_average_the_gradients_of_one(runs, phase):
    assert_same_state(runs.one, runs.two, phase)


@pytest.mark.slow
def test_two_processes_resume_what_one_began(runs):
    assert_same_state(runs.one, runs.resumed, "train")


@pytest.mark.slow
@pytest.mark.parametrize("table", ["cases.csv", "summary.csv"])
def test_two_processes_report_what_one_does_though_three_images_cannot_be_shared_equally(runs, table):
    one, two = ((folder / "evaluate" / table).read_text() for folder in (runs.one, runs.two))
    assert one == two
    assert len((runs.two / "evaluate" / "cases.csv").read_text().splitlines()) == 1 + 3


@pytest.mark.slow
def test_only_the_first_process_writes(runs):
    for phase in TRAINED:
        writers = {file.name.split(".")[-2] for file in (runs.two / "runs" / f"{phase}_001").glob("events*")}
        assert len(writers) == 1  # the number of the process, which the file's name has


@pytest.mark.slow
def test_an_error_in_one_process_ends_all_with_its_message(workspace, tmp_path):
    names = phase_files(workspace.bundle, "adapt", "offline", "smoke", "multi_gpu_train")
    only_there = "$'nowhere.pth' if @rank == 1 else None"
    command = ["-m", "monai.bundle", "run", "--config_file", str(names), "--bundle_root", str(workspace.bundle)]
    command += ["--dataset_dir", str(workspace.folder / "phantoms"), "--sam_checkpoint", only_there]
    done = torchrun(*command)
    assert done.returncode != 0
    assert "monai_kdsam: error: No weights at nowhere.pth" in done.stderr
    assert "No weights at nowhere.pth" in done.stderr.partition("Root Cause")[2]


def test_a_config_for_one_process_under_torchrun_is_told_of_the_overlay(monkeypatch):
    check_launch()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"torchrun started 2 processes, .* put the bundle's .*multi_gpu_train\.yaml"):
        check_launch()
    monkeypatch.setenv("WORLD_SIZE", "1")
    check_launch()


def test_the_overlay_without_torchrun_is_told_how_to_start(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match=r"Expected the environment variable RANK, which torchrun sets\. Start"):
        torchrun_number("RANK")
    monkeypatch.setenv("RANK", "3")
    assert torchrun_number("RANK") == 3


@pytest.mark.parametrize("items", [4, 5, 7, 100])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_shares_of_items_are_each_item_once_in_order_and_almost_equal(items, world_size):
    shares = [item_share(items, rank, world_size) for rank in range(world_size)]
    assert [index for share in shares for index in share] == list(range(items))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_torchrun_divides_each_share_of_a_job_array_again(monkeypatch):
    whole = list(range(100))
    assert own_shard() == (0, 1)
    monkeypatch.setenv("WORLD_SIZE", "5")  # a cluster's own, without torchrun
    assert own_shard("3/4") == (2, 4)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    found = []
    for shard in ("1/4", "2/4", "3/4", "4/4"):
        for rank in range(5):
            monkeypatch.setenv("RANK", str(rank))
            number, count = own_shard(shard)
            found.append(whole[number::count])
    assert sorted(item for share in found for item in share) == whole
    assert {len(share) for share in found} == {5}


@pytest.mark.parametrize("items", [5, 8, 9, 11, 100])
@pytest.mark.parametrize("epoch", [1, 2])
def test_the_batches_of_several_processes_together_are_those_of_one(items, epoch):
    def batches(world_size):
        shares = []
        for rank in range(world_size):
            sampler = DistributedSampler(range(items), world_size, rank, seed=3, drop_last=True)
            sampler.set_epoch(epoch)
            shares.append(list(BatchSampler(sampler, batch_share(8, items, world_size), drop_last=True)))
        return [[index for share in step for index in share] for step in zip(*shares, strict=True)]

    one, two = batches(1), batches(2)
    assert len(one) == len(two) == max(1, items // 8)
    for step, expected in zip(two, one, strict=True):
        assert set(step) <= set(expected)
        assert len(step) == len(set(step)) == (8 if items >= 8 else items // 2 * 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((3, 100, 2), r"a multiple of their number 2, got 3\."), ((4, 1, 2), r"each of the 2 processes, got 1 images")],
)
def test_a_batch_that_cannot_be_shared_is_told(arguments, message):
    with pytest.raises(ValueError, match=message):
        batch_share(*arguments)


def test_on_cuda_batch_norms_are_torchs_and_the_activation_inside_timms_stays() -> None:
    layers = importlib.import_module("timm.layers")
    network = torch.nn.Sequential(layers.BatchNormAct2d(4), torch.nn.BatchNorm2d(4))
    shared = synchronize_batch_norm(network, torch.device("cuda"))
    assert all(isinstance(norm, torch.nn.SyncBatchNorm) for norm in shared)
    assert isinstance(shared[0].act, torch.nn.ReLU)
    assert shared.state_dict().keys() == network.state_dict().keys()
