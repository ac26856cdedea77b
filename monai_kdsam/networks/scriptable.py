# SPDX-License-Identifier: Apache-2.0
"""A `KDSAM` for TorchScript, which MONAI's `ckpt_export` and the Model Zoo's checks ask for."""

from __future__ import annotations

import warnings
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ScriptableKDSAM", "example_inputs"]


def example_inputs(network: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Image, embedding, points and labels to trace a `KDSAM` or its parts with.

    Two rows and three points: an exporter takes a dimension of one for a constant.
    """
    device = next(network.parameters()).device
    image = torch.zeros(2, 3, network.image_size, network.image_size, device=device)
    points = torch.tensor([[[1.0, 2.0], [9.0, 9.0], [0.0, 0.0]]], device=device).repeat(2, 1, 1)
    labels = torch.tensor([[2, 3, -1], [1, 0, -1]], device=device)
    with torch.no_grad():
        return image, network.image_encoder(image), points, labels


class ScriptableKDSAM(nn.Module):
    """`KDSAM.forward` in TorchScript's subset of Python: SAM's modules do not script, but traces of them do.

    Args:
        network: a `KDSAM`, whose `encode` and `decode` are traced.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # the sizes that are checked are constants
            image, *prompted = example_inputs(network)
            examples = {"encode": image, "decode": tuple(prompted)}
            self.network: Any = torch.jit.trace_module(network, examples, check_trace=False)

    def forward(
        self,
        image: Tensor,
        points: Optional[Tensor] = None,  # noqa: UP045 - TorchScript does not know `X | None`
        labels: Optional[Tensor] = None,  # noqa: UP045
    ) -> Tensor:
        """Segment, see `KDSAM.forward`."""
        embedding = self.network.encode(image)
        prompts = 1
        if points is None or labels is None:
            if points is not None or labels is not None:
                raise ValueError("Expected `points` and `labels` together, got one of them.")
            points = torch.zeros([image.shape[0], 1, 2], device=image.device)
            labels = torch.full([image.shape[0], 1], -1, device=image.device)
        elif points.dim() == 4:
            prompts = points.shape[1]
            points, labels = points.flatten(0, 1), labels.flatten(0, 1)
        masks = self.network.decode(embedding, points, labels)[0]
        size = [image.shape[2], image.shape[3]]
        masks = F.interpolate(masks, size=size, mode="bilinear", align_corners=False)
        return masks.reshape(image.shape[0], prompts, size[0], size[1])
