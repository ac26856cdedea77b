# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging

import pytest
import torch
from ignite.engine import Engine

from monai_kdsam.handlers import EpochLog


class Clock:
    """Time passes only where the test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def lines(caplog, *, load: float, step: float, epochs: int = 1) -> list[str]:
    """The log of a run of four steps an epoch that take as long as they are told to."""
    clock = Clock()

    class Loader:
        def __iter__(self):
            for number in range(4):
                clock.now += load
                yield number

        def __len__(self) -> int:
            return 4

    def train(engine: Engine, batch: int) -> None:
        clock.now += step

    engine = Engine(train)
    EpochLog(clock=clock).attach(engine)
    with caplog.at_level(logging.INFO, logger="monai_kdsam"):
        engine.run(Loader(), max_epochs=epochs)
    return [record.getMessage() for record in caplog.records if record.name.startswith("monai_kdsam")]


@pytest.mark.parametrize(("load", "step", "share"), [(0.0, 1.0, "0%"), (1.0, 9.0, "10%"), (1.0, 1.0, "50%")])
def test_the_share_of_an_epoch_spent_waiting_is_logged(caplog, load, step, share) -> None:
    (line,) = lines(caplog, load=load, step=step)
    assert line.startswith(f"Epoch 1: {4 * (load + step):.1f} s, {share} of it waiting for images")


def test_what_would_help_is_told_only_where_much_is_waited(caplog) -> None:
    assert "`num_workers`" in lines(caplog, load=1, step=1)[0]
    caplog.clear()
    assert "`num_workers`" not in lines(caplog, load=1, step=9)[0]


def test_each_epoch_is_measured_on_its_own(caplog) -> None:
    assert len({line.partition(": ")[2] for line in lines(caplog, load=1, step=3, epochs=3)}) == 1


def test_the_mean_loss_of_the_epoch_is_logged(caplog) -> None:
    engine = Engine(lambda _, batch: [{"loss": torch.tensor(batch)}])
    EpochLog().attach(engine)
    with caplog.at_level(logging.INFO, logger="monai_kdsam"):
        engine.run([1.0, 2.0, 6.0], max_epochs=2)
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("monai_kdsam")]
    assert [line.startswith("Epoch 2: loss 3.0000, ") for line in ours] == [False, True]
