# SPDX-License-Identifier: Apache-2.0
"""TensorBoard's events, without which a training goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ignite.engine import Engine
from monai.handlers import TensorBoardStatsHandler

__all__ = ["TensorBoardLog"]

logger = logging.getLogger(__name__)


class TensorBoardLog(TensorBoardStatsHandler):
    """MONAI's handler, which ends the training when its disk is full; this one ends itself, in a line of the log."""

    is_full = False

    def epoch_completed(self, engine: Engine) -> None:
        """Write an epoch's values."""
        self._write(super().epoch_completed, engine)

    def iteration_completed(self, engine: Engine) -> None:
        """Write an iteration's values."""
        self._write(super().iteration_completed, engine)

    def _write(self, write: Callable[[Engine], None], engine: Engine) -> None:
        if self.is_full:
            return
        try:
            write(engine)
        except OSError as error:
            self.is_full = True
            logger.warning("TensorBoard's events end here, the run goes on: %s.", error)
