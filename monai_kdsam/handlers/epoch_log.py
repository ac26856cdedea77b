# SPDX-License-Identifier: Apache-2.0
"""A line for each epoch: its loss, and how much of it the trainer waited for its images."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor

__all__ = ["EpochLog"]

logger = logging.getLogger(__name__)


class EpochLog:
    """Logs each epoch's mean loss, its duration and the share of it in which the trainer waited for the DataLoader.

    ignite's BasicTimeProfiler measures the same, but reports at the end of a run and not during it. The start of the
    workers counts as waiting; validation does not belong to the epoch. Attach it behind ProcessMean, which makes
    the loss that of all processes, and before a ValidationHandler.

    Args:
        too_much: share from which on the log says what can be done.
        clock: seconds, for tests.
    """

    def __init__(self, *, too_much: float = 0.2, clock: Callable[[], float] = time.perf_counter) -> None:
        self.too_much = too_much
        self.clock = clock
        self.started = self.idle_since = self.waited = 0.0
        self.losses: list[Tensor] = []

    def attach(self, engine: Engine) -> None:
        """Measure every epoch."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self._got)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._idle)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def _start(self, engine: Engine) -> None:
        self.started = self.idle_since = self.clock()
        self.waited = 0.0
        self.losses = []

    def _got(self, engine: Engine) -> None:
        self.waited += self.clock() - self.idle_since

    def _idle(self, engine: Engine) -> None:
        output: Any = engine.state.output
        first = output[0] if isinstance(output, list) else output
        if isinstance(first, dict) and "loss" in first:  # MONAI's trainers
            self.losses.append(torch.as_tensor(first["loss"]).detach())
        self.idle_since = self.clock()

    def __call__(self, engine: Engine) -> None:
        """Log."""
        seconds = self.clock() - self.started
        share = self.waited / max(seconds, 1e-9)
        loss = f"loss {torch.stack(self.losses).mean():.4f}, " if self.losses else ""
        told = f"Epoch {engine.state.epoch}: {loss}{seconds:.1f} s, {share:.0%} of it waiting for images"
        remedy = "; more `num_workers`, or `cache_rate` where memory allows, would help" * (share > self.too_much)
        logger.info("%s%s.", told, remedy)
