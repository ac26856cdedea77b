# SPDX-License-Identifier: Apache-2.0
"""SAM's two transposed convolutions as products of matrices, whose pixels are put in order at the very end."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["arrange", "pack", "upscale"]


def upscale(layers: nn.Sequential, image: Tensor, fine: Tensor | None = None) -> Tensor:
    """SAM's `output_upscaling` of image tokens.

    A transposed convolution whose stride is its kernel maps each pixel to a block of its own, so tokens stay tokens
    and no layout is changed between the layers; the layer norm is over the last dimension, where it is fast.

    Args:
        layers: transposed convolution, `LayerNorm2d`, activation, transposed convolution, activation.
        image: (B, H * W, 256).
        fine: (B, H * W, 768), what `FineFeatures` adds to the pixels at an eighth and at a quarter of the image's size,
            in the order of `pack`; None for nothing.

    Returns:
        (B, H * W * 16, 32): the 16 pixels of each token one after the other; see `arrange`.
    """
    parts: tuple[Any, ...] = tuple(layers)
    first, norm, activate, second, activate_again = parts
    split = 4 * first.out_channels
    x = _to_blocks(first, image)
    x = x if fine is None else x + fine[..., :split].reshape(x.shape)
    x = activate(F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps))
    x = _to_blocks(second, x)
    return activate_again(x if fine is None else x + fine[..., split:].reshape(x.shape))


def pack(features: Tensor, steps: int) -> Tensor:
    """Pixels of a finer grid as channels of a coarser one, in the order of `upscale`.

    Args:
        features: (B, C, H * 2**steps, W * 2**steps).
        steps: how often the grid was halved, 1 or 2.

    Returns:
        (B, C * 4**steps, H, W), the C channels of the first pixel of a block before those of the second.
    """
    for _ in range(steps):
        blocks = features.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # (B, C, H, 2, W, 2)
        features = blocks.permute(0, 3, 5, 1, 2, 4).flatten(1, 3)
    return features


def arrange(masks: Tensor, height: int, width: int) -> Tensor:
    """Pixels in the order of `upscale`, (B, M, H * W * 16), as maps (B, M, 4 * H, 4 * W)."""
    blocks = masks.reshape(-1, width, 2, 2, 2, 2)  # a row of tokens, column, and twice (row, column) within the block
    return blocks.permute(0, 2, 4, 1, 3, 5).reshape(*masks.shape[:2], 4 * height, 4 * width)


def _to_blocks(convolution: nn.ConvTranspose2d, tokens: Tensor) -> Tensor:
    """(B, N, C) -> (B, N * 4, D): the pixels of each 2 x 2 block, row by row."""
    weight = convolution.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (4 * D, C)
    assert convolution.bias is not None
    pixels = F.linear(tokens, weight, convolution.bias.repeat(4))
    return pixels.unflatten(2, (4, -1)).flatten(1, 2)
