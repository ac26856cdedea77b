# SPDX-License-Identifier: Apache-2.0
"""Stores what a teacher sees, batch by batch."""

from __future__ import annotations

import logging
from typing import Any

from ignite.engine import Engine, Events

from monai_kdsam.data.embeddings import EmbeddingStore, embedding_key

__all__ = ["EmbeddingSaver"]

logger = logging.getLogger(__name__)


class EmbeddingSaver:
    """Keeps the predictions of an evaluator of the teacher's encoder.

    Args:
        store: gets each embedding under its item's `checksum` and `variant`, with its `file` for messages.
        expected: how many embeddings will come; what they need is compared with the free disk before the first one.
    """

    def __init__(self, store: EmbeddingStore, expected: int) -> None:
        self.store = store
        self.expected = expected

    def attach(self, engine: Engine) -> None:
        """Save after each iteration."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._tell)

    def __call__(self, engine: Engine) -> None:
        """Keep the batch's embeddings."""
        batch: Any = engine.state.batch
        output: Any = engine.state.output
        if engine.state.iteration == 1:
            self.store.check_room(self.expected, output["pred"][0])
        for row, embedding in enumerate(output["pred"]):
            item = {"checksum": batch["checksum"][row], "variant": int(batch["variant"][row])}
            self.store.write(embedding_key(item), batch["file"][row], embedding)

    def _tell(self, engine: Engine) -> None:
        logger.info("%s holds %d embeddings.", self.store.folder, len(self.store.keys()))
