# SPDX-License-Identifier: Apache-2.0
"""A `KDSAM` for TorchScript, which MONAI's `ckpt_export` and the Model Zoo's checks ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_kdsam.errors import UserError
from monai_kdsam.networks.sam import best_mask

if TYPE_CHECKING:
    from monai_kdsam.networks.kdsam import KDSAM

__all__ = ["scriptable"]


def scriptable(network: KDSAM) -> nn.Module:
    """A module of the network's forward that `torch.jit.script` takes: SAM's modules do not script, their traces do."""
    parameter, size = next(network.parameters()), network.image_size
    image = torch.zeros(2, 3, size, size, device=parameter.device, dtype=parameter.dtype)
    points = torch.tensor([[[1.0, 2.0], [9.0, 9.0], [0.0, 0.0]]], device=parameter.device).repeat(2, 1, 1)
    labels = torch.tensor([[2, 3, -1], [1, 0, -1]], device=parameter.device)
    with torch.no_grad():
        encoder = torch.jit.trace(network.image_encoder, image, check_trace=False)
        example = (network.image_encoder(image), points, labels)
        decoder = torch.jit.trace(_SingleMask(network), example, check_trace=False)
    return _Scriptable(encoder, decoder)


class _SingleMask(nn.Module):
    """`KDSAM.decode` as a module of its own, without the encoder, for tracing."""

    def __init__(self, network: KDSAM) -> None:
        super().__init__()
        self.multimask = network.multimask
        self.prompt_encoder, self.mask_decoder = network.prompt_encoder, network.mask_decoder

    def forward(self, embedding: Tensor, points: Tensor, labels: Tensor) -> Tensor:
        tokens, ignored = self.prompt_encoder(points, labels)
        dense, positions = self.prompt_encoder.dense(points, labels), self.prompt_encoder.positions()
        masks, iou = self.mask_decoder(embedding, positions, dense, tokens, ignored, self.multimask)
        return best_mask(masks, iou)[0] if self.multimask else masks


class _Scriptable(nn.Module):
    """`KDSAM.forward` in TorchScript's subset of Python, around traced parts."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(
        self,
        image: Tensor,
        points: Optional[Tensor] = None,  # noqa: UP045 - TorchScript does not know `X | None`
        labels: Optional[Tensor] = None,  # noqa: UP045
    ) -> Tensor:
        embedding = self.encoder(image)
        prompts = 1
        if points is None or labels is None:
            if points is not None or labels is not None:
                raise UserError("Expected `points` and `labels` together, got one of them.")
            points = torch.zeros([image.shape[0], 1, 2], device=image.device)
            labels = torch.full([image.shape[0], 1], -1, device=image.device)
        elif points.dim() == 4:
            prompts = points.shape[1]
            points, labels = points.flatten(0, 1), labels.flatten(0, 1)
        masks = self.decoder(embedding, points, labels)
        size = [image.shape[2], image.shape[3]]
        masks = F.interpolate(masks, size=size, mode="bilinear", align_corners=False)
        return masks.reshape(image.shape[0], prompts, size[0], size[1])
