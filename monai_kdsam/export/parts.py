# SPDX-License-Identifier: Apache-2.0
"""The network cut into what is computed once an image and what is computed once a prompt."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_kdsam.networks import KDSAM
from monai_kdsam.networks.projection import Projection

__all__ = ["AutomaticHead", "Decoder", "HalfPrecision", "Projector", "example_inputs"]


class Projector(nn.Module):
    """`KDSAM.project` as a module: embedding -> (image, keys, values, queries)."""

    def __init__(self, network: KDSAM) -> None:
        super().__init__()
        self.network = network

    def forward(self, embedding: Tensor) -> tuple[Tensor, ...]:
        """Compute what all prompts on an image share; see `Projection`."""
        # A map for each head, in memory too: what is copied here needs no transposition for each click.
        return tuple(part.contiguous() for part in self.network.project(embedding))


class Decoder(nn.Module):
    """`KDSAM.decode_projected` as a module: (image, keys, values, queries, points, labels) -> (masks, iou)."""

    def __init__(self, network: KDSAM) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, image: Tensor, keys: Tensor, values: Tensor, queries: Tensor, points: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Decode the prompts of one image; see `KDSAM.decode`."""
        return self.network.decode_projected(Projection(image, keys, values, queries), points, labels)


class AutomaticHead(nn.Module):
    """What follows the encoder when there is no prompt: embedding -> (B, 1, S, S) logits."""

    def __init__(self, network: KDSAM) -> None:
        super().__init__()
        self.network = network

    def forward(self, embedding: Tensor) -> Tensor:
        """Decode without a prompt, at full size."""
        masks, _ = self.network.decode_projected(self.network.project(embedding))
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


def example_inputs(size: int, batch: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Image, embedding, points and labels to trace with; `size` is the image's side in pixels.

    Two rows and three points: an exporter takes a dimension of one for a constant.
    """
    points = torch.tensor([[[1.0, 2.0], [9.0, 9.0], [0.0, 0.0]]]).repeat(batch, 1, 1)
    labels = torch.tensor([[2, 3, -1], [1, 0, -1]])[:batch]
    return torch.zeros(batch, 3, size, size), torch.zeros(batch, 256, size // 16, size // 16), points, labels
