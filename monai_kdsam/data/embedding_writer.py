# SPDX-License-Identifier: Apache-2.0
"""Writing the embedding cache: what comes from the teacher, shard by shard."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from monai_kdsam.data.embeddings import FORMAT, EmbeddingStore, Precision, crc32_of, header_crc32
from monai_kdsam.errors import UserError, UserFileError
from monai_kdsam.files import remove_leftovers, replacing

__all__ = ["EmbeddingWriter"]

logger = logging.getLogger(__name__)


class EmbeddingWriter:
    """Adds embeddings to a store, in shards.

    A shard is written when it is full, and when `seconds` have passed since the last one: that is the most work that
    an interruption costs.

    Args:
        store: to add to.
        expected: how many embeddings will come; what they need is compared with the free disk before the first one.
        rank: of the process, part of the shards' names.
        size: embeddings in a shard.
        seconds: between shards at the most.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        store: EmbeddingStore,
        *,
        expected: int,
        rank: int = 0,
        size: int = 32,
        seconds: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = store
        self.expected = expected
        self.rank = rank
        self.size = size
        self.seconds = seconds
        self.clock = clock
        self.last = clock()
        self.pending: dict[str, Tensor] = {}
        self.entries: dict[str, dict[str, Any]] = {}
        self.is_checked = False

    def add(self, key: str, image: str, embedding: Tensor) -> None:
        """Keep an embedding (256, h, w); it is on the disk after the next `flush`.

        Raises:
            ValueError: when it is not finite.
            OSError: when the disk has no room for all that are expected.
        """
        if not bool(torch.isfinite(embedding).all()):
            raise UserError(f"The teacher's embedding of {image} is not finite.")
        stored, scale = _quantize(embedding.detach().cpu(), self.store.precision)
        if not self.is_checked:
            self._check_disk(stored.nbytes)
        name = str(len(self.entries))
        self.pending[name] = stored
        if scale is not None:
            self.pending[f"{name}.scale"] = scale
        self.entries[name] = {"key": key, "image": image, "crc32": crc32_of(key, stored, scale)}
        if len(self.entries) >= self.size or self.clock() - self.last >= self.seconds:
            self.flush()

    def _check_disk(self, nbytes: int) -> None:
        self.is_checked = True
        self.store.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.store.folder)
        needed, free = self.expected * nbytes, shutil.disk_usage(self.store.folder).free
        logger.info("%d embeddings need %.2f GiB; %.2f GiB are free.", self.expected, needed / 2**30, free / 2**30)
        if needed > free:
            raise UserFileError(
                f"{self.expected} embeddings of {nbytes / 2**20:.2f} MiB need {needed / 2**30:.2f} GiB, and "
                f"{self.store.folder} has {free / 2**30:.2f} GiB. Free disk space, name another `embedding_dir`, "
                "lower `embedding_variants`, or set `embedding_precision` to int8, which takes half of float16."
            )

    def flush(self) -> None:
        """Write what is pending as a shard.

        Raises:
            OSError: when the disk is full; the shards before are kept, and the next run goes on after them.
        """
        self.last = self.clock()
        if not self.entries:
            return
        # Named by its content: no two runs or processes can want one name for different content.
        named = hashlib.blake2b(",".join(e["key"] for e in self.entries.values()).encode(), digest_size=8).hexdigest()
        path = self.store.folder / f"r{self.rank}-{named}.safetensors"
        header: dict[str, Any] = {"format": FORMAT, "made_from": self.store.made_from, "entries": self.entries}
        header["crc32"] = header_crc32(header)
        with replacing(
            path, "Free disk space and run the phase `embed` again; it goes on after the last shard."
        ) as part:
            # Not save_file, whose files only their owner can read.
            part.write_bytes(save(self.pending, {"monai_kdsam": json.dumps(header)}))
        self.pending, self.entries = {}, {}


def _quantize(embedding: Tensor, precision: Precision) -> tuple[Tensor, Tensor | None]:
    if precision != "int8":
        return embedding.to(getattr(torch, precision)).contiguous(), None
    scale = embedding.float().abs().amax(dim=(1, 2), keepdim=True).clamp_min(1e-12) / 127
    return (embedding.float() / scale).round().to(torch.int8), scale
