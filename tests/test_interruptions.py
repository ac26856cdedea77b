# SPDX-License-Identifier: Apache-2.0
"""Real runs, killed (SIGKILL) at random moments, end where an uninterrupted run does.

`KDSAM_KILLS` says how often to kill; the nox session `interruptions` asks for 50.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from monai_kdsam.data import EmbeddingStore
from monai_kdsam.phases import run_phase

KILLS = int(os.environ.get("KDSAM_KILLS", "3"))
KILLS_PER_CHAIN = 10
EPOCHS = 3
PHASES = ("embed", "distill", "train")
# The server process has only imported: a fork of it starts within milliseconds, and no thread is lost.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["monai_kdsam.phases", "monai.engines", "monai_kdsam.handlers"])


def run_bundle(bundle: Path, phase: str, settings: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    run_phase(bundle, phase, "offline", "smoke", **settings)


class Chain:
    """embed, distill from the cache, train: as a user repeats the commands until they are through."""

    def __init__(self, workspace, output: Path) -> None:
        self.output = output
        self.workspace = workspace

    def settings(self, phase: str) -> dict[str, Any]:
        result: dict[str, Any] = {
            "dataset_dir": str(self.workspace.folder / "phantoms"),
            "output_dir": str(self.output),
            "progress": False,
            "logging_file": False,
            "epochs": EPOCHS,
            "batch_size": 4,
            "augment": True,
            "overwrite": True,
        }
        if phase != "train":
            result |= {"cached_embeddings": True, "embedding_variants": 2}
            result["best_checkpoint"] = str(self.output / "distilled.pt")
        else:
            result["initial_checkpoint"] = str(self.output / "distilled.pt")
            result["best_checkpoint"] = str(self.output / "model.pt")
        if phase != "embed" and (self.output / f"{phase}_state.pt").exists():
            result["resume"] = True
        return result

    def is_finished(self, phase: str) -> bool:
        state = self.output / f"{phase}_state.pt"
        return state.exists() and torch.load(state, weights_only=True)["epoch"] == EPOCHS

    def attempt(self, phase: str, seconds: float | None = None) -> bool:
        """Run a phase, killed after so many seconds; whether it came to its end."""
        if self.is_finished(phase):
            return True
        process = FORKS.Process(target=run_bundle, args=(self.workspace.bundle, phase, self.settings(phase)))
        process.start()
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
            return False
        assert process.exitcode == 0, f"{phase} failed instead of going on after a kill"
        return True


@pytest.fixture
def uninterrupted(trained, tmp_path) -> tuple[Chain, dict[str, float]]:
    chain, seconds = Chain(trained, tmp_path / "whole"), {}
    for phase in PHASES:
        start = time.monotonic()
        assert chain.attempt(phase)
        seconds[phase] = time.monotonic() - start
    return chain, seconds


def embeddings(chain: Chain) -> dict[str, torch.Tensor]:
    (origin,) = (chain.output / "embeddings").glob("*/made_from.json")
    store = EmbeddingStore(origin.parent.parent, json.loads(origin.read_text()))
    assert store.verify() == []
    return {key: store.read(key) for key in store.keys()}  # noqa: SIM118


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_runs_killed_at_random_moments_lose_nothing(trained, uninterrupted, tmp_path) -> None:
    whole, seconds = uninterrupted
    draw = random.Random(0)
    kills, number = 0, 0
    while kills < KILLS:
        chain, quota = Chain(trained, tmp_path / f"killed{number}"), min(KILLS_PER_CHAIN, KILLS - kills)
        number += 1
        for phase in PHASES:
            allowed = -(-quota // len(PHASES)) if phase != "train" else quota
            while allowed > 0 and not chain.attempt(phase, draw.uniform(0.1, seconds[phase])):
                kills, quota, allowed = kills + 1, quota - 1, allowed - 1
            assert chain.attempt(phase)
        assert_equal(embeddings(whole), embeddings(chain))
        for name in ("distilled.pt", "model.pt"):
            assert_equal(*(torch.load(c.output / name, weights_only=True) for c in (whole, chain)))
    assert kills >= KILLS
