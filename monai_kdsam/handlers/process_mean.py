# SPDX-License-Identifier: Apache-2.0
"""The loss of the whole batch, where each process has a share of it."""

from __future__ import annotations

from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events

from monai_kdsam.losses import WeightedSumLoss

__all__ = ["ProcessMean"]


class ProcessMean:
    """Averages a trainer's loss, and its terms, over all processes before they are logged.

    ignite averages metrics, and MONAI's logging handlers read the output of their own process. Shares are equal and the
    losses means over images, so that this is the loss of the batch. Attach it before the handlers that log.

    Args:
        loss: the trainer's.
    """

    def __init__(self, loss: WeightedSumLoss) -> None:
        self.loss = loss

    def attach(self, engine: Engine) -> None:
        """Run after each iteration."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Replace the values of this process by the means."""
        output: Any = engine.state.output
        first = output[0] if isinstance(output, list) else output
        own = torch.stack([torch.as_tensor(first["loss"]), *self.loss.values.values()]).detach().double()
        total: Any = idist.all_reduce(own)
        mean = total / idist.get_world_size()
        first["loss"] = mean[0]
        self.loss.values = dict(zip(self.loss.values, mean[1:], strict=True))
