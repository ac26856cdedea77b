# SPDX-License-Identifier: Apache-2.0
"""The 2-D network as hosts of 3-D bundles see it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from monai_kdsam.networks.build import build_student
from monai_kdsam.networks.kdsam import KDSAM
from monai_kdsam.networks.memory import EmbeddingCache

__all__ = ["VolumeKDSAM", "build_volume_student"]


class VolumeKDSAM(KDSAM):
    """A `KDSAM`, weights and all, whose forward takes volumes too, and that remembers the slices of a whole one.

    MONAI judges a bundle's network by calling it with an input of metadata's shape, three spatial dimensions here.
    What serves prompts is `VolumeInferer`, through `embed` and `predict`.
    """

    def __init__(self, *parts: Any, multimask: bool = False, embedding_bytes: int = 2**30) -> None:
        super().__init__(*parts, multimask=multimask)
        self.embeddings = EmbeddingCache(embedding_bytes)

    def forward(self, image: Tensor, points: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Segment images (B, 3, S, S) as `KDSAM` does, or each slice of volumes (B, 3, S, S, D) automatically.

        Returns:
            logits (B, 1, S, S), or (B, 1, S, S, D).
        """
        if image.ndim != 5:
            return super().forward(image, points, labels)
        return torch.stack([super(VolumeKDSAM, self).forward(part) for part in image.unbind(dim=-1)], dim=-1)


def build_volume_student(**settings: Any) -> VolumeKDSAM:
    """The network of `build_student` with the same arguments and weights, for volumes.

    It keeps 1 GiB of embeddings, 256 slices at 1024 pixels.

    Example:
        >>> network = build_volume_student(backbone="resnet18", image_size=64).eval()
        >>> network(torch.zeros(1, 3, 64, 64, 2)).shape
        torch.Size([1, 1, 64, 64, 2])
    """
    student = build_student(**settings)
    parts = (student.image_encoder, student.prompt_encoder, student.mask_decoder)
    network = VolumeKDSAM(*parts, multimask=student.multimask)
    network.settings = student.settings
    return network
