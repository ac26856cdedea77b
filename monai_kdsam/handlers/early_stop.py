# SPDX-License-Identifier: Apache-2.0
"""The end of a training that has stopped to become better."""

from __future__ import annotations

import logging
from typing import Any

from ignite.engine import Engine, Events

__all__ = ["EarlyStop"]

logger = logging.getLogger(__name__)


class EarlyStop:
    """Ends a run when the best validation is `patience` epochs ago.

    MONAI's EarlyStopHandler counts from nothing after a resumption; this one asks the evaluator, whose best epoch
    `ResumeHandler` keeps. Attach it behind the ValidationHandler.

    Args:
        evaluator: with a key metric.
        patience: epochs; 0 never stops.
    """

    def __init__(self, evaluator: Engine, patience: int) -> None:
        self.evaluator = evaluator
        self.patience = patience

    def attach(self, engine: Engine) -> None:
        """Look after each epoch."""
        if self.patience > 0:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Stop, or not."""
        state: Any = self.evaluator.state  # MONAI's engines add to ignite's
        if engine.state.epoch - max(state.best_metric_epoch, 0) >= self.patience:
            logger.info(
                "Stopped after epoch %d: no better than epoch %d (`patience`).",
                engine.state.epoch,
                state.best_metric_epoch,
            )
            engine.terminate()
