# SPDX-License-Identifier: Apache-2.0
"""What the mask decoder computes of an embedding before it sees a prompt, and a bounded memory of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from monai_kdsam.bounded_cache import BoundedCache

__all__ = ["Projection", "ProjectionCache"]


class Projection(NamedTuple):
    """The part of decoding that all prompts on an image share; made by `KDSAM.project`.

    Args:
        image: (B, HW, 256), the image tokens.
        keys: (B, 8, HW, 16), by head; what the prompts attend to in the first layer,
        values: (B, 8, HW, 16), and get from it.
        queries: (B, 8, 16, HW), with which the image attends to the prompts in the first layer.
    """

    image: Tensor
    keys: Tensor
    values: Tensor
    queries: Tensor


@dataclass(frozen=True, eq=False)
class _Identity:
    """A tensor as a key: itself, not its content. It is kept alive, so no other can take its place in memory."""

    tensor: Tensor

    def __hash__(self) -> int:
        return id(self.tensor)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and other.tensor is self.tensor


class ProjectionCache(BoundedCache[Projection]):
    """Least recently used projections of embeddings, keyed by the embedding as an object.

    Hashing the content would take as long as half of the projection. What is written into the embedding afterwards, or
    into the decoder's weights, gives another key. Embeddings are kept alive along with their projections, and take two
    fifths of the bytes besides. Copies of a network begin with an empty memory.

    Args:
        max_bytes: what all kept projections together may occupy; 0 keeps none.
    """

    def __init__(self, max_bytes: int = 64 * 2**20) -> None:
        super().__init__(max_bytes)

    def get(self, embedding: Tensor, project: Callable[[Tensor], Projection], weights: str) -> Projection:
        """The projection of `embedding` by a decoder of these weights, from memory, or by `project` and then kept."""
        if embedding.is_inference():  # torch does not count what is written to it
            return project(embedding)
        autocast = torch.is_autocast_enabled(embedding.device.type)
        key = _Identity(embedding), embedding._version, weights, autocast
        return self.recall(key, lambda: project(embedding))
