# SPDX-License-Identifier: Apache-2.0
"""The network cut into what is computed once an image and what is computed once a prompt."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_kdsam.networks import KDSAM

__all__ = ["AutomaticHead", "Decoder", "HalfPrecision", "example_inputs"]


class Decoder(nn.Module):
    """`KDSAM.decode` as a module: (embedding, points, labels) -> (masks, iou). Prompts are drawn inside, too."""

    def __init__(self, network: KDSAM) -> None:
        super().__init__()
        self.network = network

    def forward(self, embedding: Tensor, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Decode the prompts of one image; see `KDSAM.decode`."""
        return self.network.decode(embedding, points, labels)


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


def example_inputs(network: KDSAM, batch: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Image, embedding, points and labels to trace a network's parts with.

    Two rows and three points: an exporter takes a dimension of one for a constant.
    """
    points = torch.tensor([[[1.0, 2.0], [9.0, 9.0], [0.0, 0.0]]]).repeat(batch, 1, 1)
    labels = torch.tensor([[2, 3, -1], [1, 0, -1]])[:batch]
    image = torch.zeros(batch, 3, network.image_size, network.image_size)
    with torch.no_grad():
        channels = network.image_encoder(image[:1]).shape[1]
    return image, torch.zeros(batch, channels, network.image_size // 16, network.image_size // 16), points, labels
