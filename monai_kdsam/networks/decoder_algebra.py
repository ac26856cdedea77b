# SPDX-License-Identifier: Apache-2.0
"""The algebra of SAM's mask decoder, reordered so that it is cheap where the image is; the numbers are the same.

SAM projects every image token to keys, values or queries of 128 channels. A score is a product, q (W x + b) =
(q W) x + q b, and a weighted sum passes a projection as well, so the weights can be applied to the prompt's side
instead: the image's side then costs one product with `heads * tokens` rows. And its two transposed convolutions are
products of matrices, whose pixels are put in order at the very end.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["arrange", "attend_to_image", "image_attends", "pack", "upscale"]

Attention = Any  # of `sam.py`, which imports this file


def attend_to_image(attention: Attention, tokens: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """`attention(tokens, keys, values)` of tokens (B, T, C) to an image (B, HW, C)."""
    if not _few(attention, tokens):
        return attention(tokens, keys, values)
    heads = attention.num_heads
    queries = _separate_heads(attention.q_proj(tokens), heads)
    weights = _scores(queries, attention.k_proj, keys).softmax(dim=-1)
    seen = (weights.flatten(1, 2) @ values).unflatten(1, (heads, -1))  # (B, heads, T, C)
    weight, bias = _by_head(attention.v_proj, heads)
    return attention.out_proj(_recombine(seen @ weight.mT + bias[:, None]))


def image_attends(
    attention: Attention, image: Tensor, queries: Tensor, keys: Tensor, values: Tensor, ignored: Tensor
) -> Tensor:
    """`image + attention(queries, keys, values, ignored)` of an image (B, HW, C) to tokens (B, T, C)."""
    if not _few(attention, keys):
        return image + attention(queries, keys, values, ignored)
    scores = _scores(_separate_heads(attention.k_proj(keys), attention.num_heads), attention.q_proj, queries)
    return _add_attended(attention, image, scores, values, ignored)


def _few(attention: Attention, tokens: Tensor) -> bool:
    # What is exported has one form for any number: that of clicks and boxes.
    is_recorded = torch.jit.is_tracing() or torch.compiler.is_compiling()
    return is_recorded or attention.num_heads * tokens.shape[1] <= attention.internal_dim


def _scores(tokens: Tensor, projection: nn.Linear, image: Tensor) -> Tensor:
    """Scaled products of tokens (B, heads, T, C / heads) and `projection(image)`: (B, heads, T, HW)."""
    heads, width = tokens.shape[1], tokens.shape[3]
    weight, bias = _by_head(projection, heads)
    tokens = tokens * width**-0.5
    scores = (tokens @ weight).flatten(1, 2) @ image.mT
    return scores.unflatten(1, (heads, -1)) + tokens @ bias[..., None]


def _add_attended(attention: Attention, image: Tensor, scores: Tensor, values: Tensor, ignored: Tensor) -> Tensor:
    """`image` (B, HW, C) and what it gets of the tokens' `values` (B, T, C) by scores (B, heads, T, HW)."""
    heads = attention.num_heads
    weights = scores.masked_fill(ignored[:, None, :, None], -torch.inf).softmax(dim=2)
    weight = attention.out_proj.weight.unflatten(1, (heads, -1)).permute(1, 2, 0)  # (heads, C / heads, C)
    # Each head's weights sum to one, so what the tokens share out may contain the bias.
    shares = _separate_heads(attention.v_proj(values), heads) @ weight + attention.out_proj.bias / heads
    return torch.baddbmm(image, weights.flatten(1, 2).mT, shares.flatten(1, 2))


def _by_head(projection: nn.Linear, heads: int) -> tuple[Tensor, Tensor]:
    """Weight (heads, C / heads, C) and bias (heads, C / heads)."""
    return projection.weight.unflatten(0, (heads, -1)), projection.bias.unflatten(0, (heads, -1))


def _separate_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, C) -> (B, heads, N, C / heads)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _recombine(x: Tensor) -> Tensor:
    """(B, heads, N, C / heads) -> (B, N, C)."""
    return x.transpose(1, 2).flatten(2)


def upscale(layers: nn.Sequential, image: Tensor, fine: Tensor | None = None) -> Tensor:
    """SAM's `output_upscaling` of image tokens.

    A transposed convolution whose stride is its kernel maps each pixel to a block of its own, so tokens stay tokens
    and no layout is changed between the layers; the layer norm is over the last dimension, where it is fast.

    Args:
        layers: transposed convolution, `LayerNorm2d`, activation, transposed convolution, activation.
        image: (B, H * W, 256).
        fine: (B / K, 768, H, W), what `FineFeatures` adds to the pixels at an eighth and at a quarter of the image's
            size, in the order of `pack`, the same for the K prompts of an image; None for nothing.

    Returns:
        (B, H * W * 16, 32): the 16 pixels of each token one after the other; see `arrange`.
    """
    parts: tuple[Any, ...] = tuple(layers)
    first, norm, activate, second, activate_again = parts
    split = 4 * first.out_channels
    x = _to_blocks(first, image, None if fine is None else fine[:, :split])
    x = activate(F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps))
    return activate_again(_to_blocks(second, x, None if fine is None else fine[:, split:]))


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


def _to_blocks(convolution: nn.ConvTranspose2d, tokens: Tensor, fine: Tensor | None) -> Tensor:
    """(B, N, C) -> (B, N * 4, D): the pixels of each 2 x 2 block, row by row, and what `fine` adds to them."""
    weight = convolution.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (4 * D, C)
    assert convolution.bias is not None
    bias = convolution.bias.repeat(4)
    if fine is None:
        pixels = F.linear(tokens, weight, bias)
    else:  # once an image, not once a prompt: order and bias
        images = fine.shape[0]  # not `len`, which would be a constant in what is traced
        shared = (fine.flatten(2).mT.reshape(images, -1, len(bias)) + bias)[:, None]  # (B / K, 1, N, 4 * D)
        pixels = (F.linear(tokens, weight).unflatten(0, (images, -1)) + shared).flatten(0, 1)
    return pixels.unflatten(2, (4, -1)).flatten(1, 2)
