# SPDX-License-Identifier: Apache-2.0
"""How distillation enters MONAI's stock trainer: the target of a batch is the teacher's embedding of its images."""

from __future__ import annotations

from typing import Any

import torch
from monai.engines import PrepareBatch
from torch import Tensor, nn

__all__ = ["PromptedTeacherPrepareBatch", "TeacherPrepareBatch"]


class TeacherPrepareBatch(PrepareBatch):
    """Pairs each image with what the teacher sees in it.

    Args:
        encoder: the teacher's, (B, 3, S, S) -> (B, 256, S/16, S/16), float32; None where batches bring the `embedding`
            along, read from a cache.

    Raises:
        ValueError: when called on a batch without `valid`, the map of the unpadded image, or without `embedding` where
            there is no encoder.
    """

    def __init__(self, encoder: nn.Module | None) -> None:
        self.encoder = encoder

    def __call__(
        self,
        batchdata: dict[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A batch with `image` (B, 3, S, S) and `valid` (B, 1, S, S) -> (image, target of the embedding losses)."""
        if "valid" not in batchdata:
            raise ValueError("Expected the batch to hold `valid`, which ValidRegiond adds before the padding.")
        if self.encoder is None and "embedding" not in batchdata:
            raise ValueError("Expected the batch to hold `embedding`, which LoadEmbeddingd adds, or an `encoder`.")
        # Plain tensors: the embedding has another frame than the image, so its metadata would lie.
        image, valid = (
            torch.as_tensor(batchdata[key]).as_subclass(Tensor).to(device, non_blocking=non_blocking, **kwargs)
            for key in ("image", "valid")
        )
        if self.encoder is None:
            embedding = batchdata["embedding"].to(device, non_blocking=non_blocking, **kwargs)
        else:
            embedding = self.encoder(image)
        return image, {"embedding": embedding, "valid": valid}


class PromptedTeacherPrepareBatch(TeacherPrepareBatch):
    """As `TeacherPrepareBatch`, for a `TeacherLoop`: the teacher's embedding is an argument, beside the prompts.

    Args:
        encoder: see `TeacherPrepareBatch`.
    """

    def __call__(  # type: ignore[override]
        self,
        batchdata: dict[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor, tuple[()], dict[str, Tensor]]:
        """A batch with `image`, `valid`, `label`, `points` and `labels` -> (image, label, (), the loop's arguments)."""
        image, target = super().__call__(batchdata, device, non_blocking, **kwargs)
        label, points, labels = (
            torch.as_tensor(batchdata[key]).as_subclass(Tensor).to(device, non_blocking=non_blocking)
            for key in ("label", "points", "labels")
        )
        arguments = {"points": points, "labels": labels, "reference": target["embedding"], "valid": target["valid"]}
        return image, label, (), arguments
