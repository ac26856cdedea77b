# SPDX-License-Identifier: Apache-2.0
"""Stores what a teacher sees, batch by batch."""

from __future__ import annotations

import logging
from typing import Any

from ignite.engine import Engine, Events

from monai_kdsam.data.embedding_writer import EmbeddingWriter
from monai_kdsam.data.embeddings import embedding_key

__all__ = ["EmbeddingSaver"]

logger = logging.getLogger(__name__)


class EmbeddingSaver:
    """Hands the predictions of an evaluator of the teacher's encoder to a writer.

    Args:
        writer: gets each embedding under its item's `checksum` and `variant`, with its `file` for messages.
    """

    def __init__(self, writer: EmbeddingWriter) -> None:
        self.writer = writer

    def attach(self, engine: Engine) -> None:
        """Save after each iteration, and the rest at the end."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def __call__(self, engine: Engine) -> None:
        """Add the batch's embeddings."""
        batch: Any = engine.state.batch
        output: Any = engine.state.output
        for row, embedding in enumerate(output["pred"]):
            item = {"checksum": batch["checksum"][row], "variant": int(batch["variant"][row])}
            self.writer.add(embedding_key(item), batch["file"][row], embedding)

    def _finish(self, engine: Engine) -> None:
        self.writer.flush()
        store = self.writer.store
        store.refresh()
        logger.info("%s holds %d embeddings.", store.folder, len(store))
