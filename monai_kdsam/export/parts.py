# SPDX-License-Identifier: Apache-2.0
"""The network cut into what is computed once an image and what is computed once a prompt."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_kdsam.mask_input import CELL
from monai_kdsam.networks import KDSAM

__all__ = ["AutomaticHead", "Decoder", "HalfPrecision", "example_masks"]


class Decoder(nn.Module):
    """`KDSAM.decode` as a module: (embedding, points, labels) -> (masks, iou). Prompts are drawn inside, too.

    With the last two inputs, segment_anything's, it goes on from an earlier answer. Where prompts are drawn it costs
    nothing to have them; elsewhere SAM's layers for mask prompts would run without a mask, too.
    """

    def __init__(self, network: KDSAM) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        embedding: Tensor,
        points: Tensor,
        labels: Tensor,
        mask_input: Tensor | None = None,
        has_mask_input: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Decode the K prompts of one image; see `KDSAM.decode`. `has_mask_input` is (K,) float, 0 or 1."""
        has_mask = None if has_mask_input is None else has_mask_input > 0.5
        return self.network.decode(embedding, points, labels, mask_input, has_mask)


def example_masks(network: KDSAM) -> tuple[Tensor, ...]:
    """`mask_input` and `has_mask_input` to trace a `Decoder` with; none where it has no such inputs."""
    cells = network.image_size // CELL
    return (torch.zeros(2, 1, cells, cells), torch.tensor([1.0, 0.0])) if network.prompt_map else ()


class AutomaticHead(nn.Module):
    """What follows the encoder when there is no prompt: embedding -> (B, 1, S, S) logits."""

    def __init__(self, network: KDSAM) -> None:
        super().__init__()
        self.network = network

    def forward(self, embedding: Tensor) -> Tensor:
        """Decode without a prompt, at full size."""
        masks, _ = self.network.decode(embedding)
        return F.interpolate(masks, size=(self.network.image_size,) * 2, mode="bilinear", align_corners=False)


class HalfPrecision(nn.Module):
    """An image encoder in float16 that takes and gives float32.

    The prompts' coordinates need float32, and decoding is cheap: lower precision is the encoder's alone.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder.half()

    def forward(self, image: Tensor) -> Tensor:
        """Encode (B, 3, S, S) float32."""
        return self.encoder(image.half()).float()
