# SPDX-License-Identifier: Apache-2.0
"""A `KDSAM` for TorchScript, which MONAI's `ckpt_export` and the Model Zoo's checks ask for."""

from __future__ import annotations

import warnings
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ScriptableKDSAM"]


class ScriptableKDSAM(nn.Module):
    """`KDSAM.forward` in TorchScript's subset of Python: SAM's modules do not script, but traces of them do.

    Args:
        network: a `KDSAM`, whose `encode` and `decode` are traced.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        parameter, size = next(network.parameters()), network.image_size
        # Two rows and three points: what is one in an example is a constant in its trace.
        image = parameter.new_zeros(2, 3, size, size)
        points = torch.tensor([[[1.0, 2.0], [9.0, 9.0], [0.0, 0.0]]], device=image.device).repeat(2, 1, 1)
        labels = torch.tensor([[2, 3, -1], [1, 0, -1]], device=image.device)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # the sizes that are checked are constants
            examples = {"encode": image, "decode": (network.encode(image), points, labels)}
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
