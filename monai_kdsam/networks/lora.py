# SPDX-License-Identifier: Apache-2.0
"""Low-rank adaptation (LoRA, arXiv 2106.09685): few numbers learn in place of a large image encoder."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from monai_kdsam.errors import UserError
from monai_kdsam.networks.kdsam import KDSAM

__all__ = ["LowRankUpdate", "add_lora"]

ADAPTED = ("attn.qkv", "attn.proj")  # attention's projections by the names of SAM's ViT and of timm's


class LowRankUpdate(nn.Module):
    """A frozen weight (out, in) and `up @ down`, which learns and begins at zero.

    PyTorch's parametrizations apply it wherever the weight is read, and merge it; `peft` would wrap each layer, which
    changes its name, and brings transformers and accelerate along.

    Args:
        weight: what is adapted.
        rank: of the update.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(weight.new_empty(rank, weight.shape[1]))
        self.up = nn.Parameter(weight.new_zeros(weight.shape[0], rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))  # as nn.Linear begins

    def forward(self, weight: Tensor) -> Tensor:
        """The weight that the layer computes with."""
        return torch.addmm(weight, self.up, self.down)


def add_lora(network: KDSAM, rank: int) -> KDSAM:
    """Let the image encoder learn by low-rank updates of its attention's projections alone.

    `save_weights` writes the weights that they amount to, under the names of a network without them.

    Args:
        network: whose image encoder has such layers: SAM's ViT, or a trunk of timm with attention. All of the encoder
            is frozen, batch norms too.
        rank: of the updates; 0 changes nothing.

    Returns:
        The same network.

    Raises:
        ValueError: when the rank is none, the encoder is frozen already or has no such layers.

    Example:
        >>> from monai_kdsam.networks import build_teacher
        >>> network = add_lora(build_teacher("vit_micro", image_size=64), rank=4)
        >>> sum(p.numel() for p in network.image_encoder.parameters() if p.requires_grad)
        3072
    """
    if rank == 0:
        return network
    encoder = network.image_encoder
    if not any(parameter.requires_grad for parameter in encoder.parameters()):
        raise UserError(f"Expected `frozen` without image_encoder for `lora_rank` {rank}, by which it learns.")
    layers = [m for name, m in encoder.named_modules() if isinstance(m, nn.Linear) and name.endswith(ADAPTED)]
    if not layers:
        raise UserError(
            f"Expected an image encoder with attention ({', '.join(ADAPTED)}) for `lora_rank` {rank}, got "
            f"{type(encoder).__name__} without; `lora_rank` 0 lets all of it learn."
        )
    most = min(min(layer.weight.shape) for layer in layers)
    if not isinstance(rank, int) or not 0 < rank <= most:
        raise UserError(f"Expected `lora_rank` to be a whole number from 0 to {most}, got {rank!r}.")
    network.freeze("image_encoder")
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", LowRankUpdate(layer.weight, rank))
    return network
