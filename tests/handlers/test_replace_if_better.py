# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine
from torch import nn

from monai_kdsam.handlers import ReplaceIfBetter
from monai_kdsam.handlers.replace_if_better import is_better

NAN = float("nan")


@pytest.mark.parametrize(
    ("before", "after", "expected", "reason"),
    [
        ([0.5, 0.5, 0.5], [0.9, 0.9, 0.1], True, "better on 3 held-out images"),
        ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5], False, "no better on 3"),
        ([0.5, 0.5, 0.5], [0.4, 0.5, 0.5], False, "no better on 3"),
        ([0.5, 0.5], [0.6, 0.6], True, "better on 2"),
        ([0.5, 0.5], [0.9, 0.4], False, "1 of 2 held-out images got worse"),
        ([0.5], [0.6], True, "better on 1"),
        ([0.5], [NAN], False, "no better"),
        # An image whose reference is empty judges nothing, so two judges are left.
        ([0.5, 0.5, NAN], [0.9, 0.4, NAN], False, "1 of 2 held-out images got worse"),
        ([NAN], [NAN], False, "no held-out image has foreground"),
    ],
)
def test_the_mean_decides_and_with_few_images_each_of_them(before, after, expected, reason):
    decision = is_better(torch.tensor(before)[:, None], torch.tensor(after)[:, None])
    assert decision[0] is expected
    assert reason in decision[1]


class Evaluator:
    """Measures what the network's weight says."""

    def __init__(self, network):
        self.network = network
        self.state = SimpleNamespace(key_metric_name="dice", metric_details={})

    def run(self):
        value = self.network.weight.item()
        self.state.metric_details["dice"] = torch.tensor([[value, value / 2]] * 3)


def train(tmp_path, to: float, meanwhile=lambda file: None) -> dict:
    """A training that takes the network's weight, which is its Dice, from 0.5 to another value."""
    network = nn.Linear(1, 1, bias=False)
    network.load_state_dict({"weight": torch.tensor([[0.5]])})
    torch.save(network.state_dict(), tmp_path / "model.pt")
    files = {"backup": tmp_path / "previous.pt", "report": tmp_path / "report.json"}
    handler = ReplaceIfBetter(
        network, tmp_path / "model.pt", **files, evaluator=Evaluator(network), prompts=["box", "none"]
    )

    def step(*_) -> None:
        meanwhile(tmp_path / "model.pt")
        network.load_state_dict({"weight": torch.tensor([[to]])})

    trainer = Engine(step)
    handler.attach(trainer)
    trainer.run([0], max_epochs=1)
    return json.loads((tmp_path / "report.json").read_text())


def weight(path) -> float:
    return float(torch.load(path, weights_only=True)["weight"])


def test_better_weights_are_served_and_the_old_ones_kept(tmp_path):
    report = train(tmp_path, 0.8)
    assert report["replaced"]
    assert report["before"] == {"mean": 0.375, "box": 0.5, "none": 0.25}
    assert report["best_metric"] == report["after"]["mean"] == 0.6
    assert (weight(tmp_path / "model.pt"), weight(tmp_path / "previous.pt")) == pytest.approx((0.8, 0.5))


@pytest.mark.parametrize("to", [0.5, 0.2, NAN])
def test_other_weights_change_nothing_but_the_report(tmp_path, to):
    report = train(tmp_path, to)
    assert not report["replaced"]
    assert report["best_metric"] == 0.375
    assert report["after"]["mean"] is None or report["after"]["mean"] <= 0.375
    assert weight(tmp_path / "model.pt") == 0.5
    assert not (tmp_path / "previous.pt").exists()


def restore(file) -> None:
    torch.save({"weight": torch.tensor([[0.1]])}, file)


@pytest.mark.parametrize("meanwhile", [restore, lambda file: file.unlink()])
def test_weights_that_were_not_measured_are_not_replaced(tmp_path, meanwhile):
    report = train(tmp_path, 0.8, meanwhile)
    assert not report["replaced"]
    assert report["reason"] == "other weights are served than at the start of the training"
    assert not (tmp_path / "previous.pt").exists()
    assert not (tmp_path / "model.pt").exists() or weight(tmp_path / "model.pt") == pytest.approx(0.1)
