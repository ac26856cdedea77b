# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ignite.distributed as idist
import pytest
import torch
from ignite.engine import Engine
from torch import nn

from monai_kdsam.handlers import ProcessMean
from monai_kdsam.losses import WeightedSumLoss


@pytest.mark.parametrize("decollated", [True, False])
def test_the_loss_and_its_terms_become_the_means_over_the_processes(monkeypatch, decollated) -> None:
    """As if there were a second process whose values are three times as large. Real ones: tests/test_processes.py."""
    monkeypatch.setattr(idist, "all_reduce", lambda own: own + 3 * own)
    monkeypatch.setattr(idist, "get_world_size", lambda: 2)
    loss = WeightedSumLoss({"l1": nn.L1Loss(), "mse": nn.MSELoss()})

    def train(engine: Engine, batch: int):
        output = {"loss": loss(torch.zeros(2), torch.full((2,), 3.0))}
        return [output, {}] if decollated else output

    engine = Engine(train)
    ProcessMean(loss).attach(engine)
    engine.run([0], max_epochs=1)
    assert loss.report(engine.state.output) == {"loss": 24.0, "l1": 6.0, "mse": 18.0}
