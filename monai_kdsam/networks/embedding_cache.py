# SPDX-License-Identifier: Apache-2.0
"""A bounded memory of image embeddings, so that a second click on an image costs only the decoder."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Any

from torch import Tensor

__all__ = ["EmbeddingCache"]


class EmbeddingCache:
    """Least recently used embeddings, keyed by the content of the image.

    Safe under threads: the embedding is computed outside the lock, and a key is the image's whole content, so two
    users never get each other's. Copies and pickles of a cache are empty.

    Args:
        max_bytes: what all kept embeddings together may occupy; 0 keeps none.
    """

    def __init__(self, max_bytes: int = 256 * 2**20) -> None:
        self.max_bytes = max_bytes
        self._entries: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = Lock()

    def get(self, image: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """The embedding of `image`, from memory, or by `encode` and then kept."""
        key = self._key(image)
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key]
        embedding = encode(image)
        with self._lock:
            self._entries[key] = embedding
            while self._entries and self.nbytes > self.max_bytes:
                self._entries.popitem(last=False)
        return embedding

    @property
    def nbytes(self) -> int:
        """Bytes that the kept embeddings occupy."""
        return sum(entry.element_size() * entry.nelement() for entry in self._entries.values())

    def clear(self) -> None:
        """Forget everything, as when the weights change."""
        with self._lock:
            self._entries.clear()

    @staticmethod
    def _key(image: Tensor) -> str:
        content = image.detach().cpu().contiguous().numpy()
        digest = hashlib.blake2b(content.tobytes(), digest_size=20).hexdigest()
        return f"{digest}-{tuple(image.shape)}-{image.dtype}-{image.device}"

    def __len__(self) -> int:
        return len(self._entries)

    def __deepcopy__(self, memo: dict[int, Any]) -> EmbeddingCache:
        return EmbeddingCache(self.max_bytes)

    def __reduce__(self) -> tuple[type[EmbeddingCache], tuple[int]]:
        return EmbeddingCache, (self.max_bytes,)
