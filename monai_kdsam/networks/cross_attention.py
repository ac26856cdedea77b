# SPDX-License-Identifier: Apache-2.0
"""SAM's attention between a few prompt tokens and the thousands of an image, cheap where the image is.

SAM projects every image token to keys, values or queries of 128 channels. A score is a product, q (W x + b) =
(q W) x + q b, and a weighted sum passes a projection as well, so the weights can be applied to the prompt's side
instead: the image's side then costs one product with `heads * tokens` rows, and the numbers are the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["attend_to_image", "image_attends"]

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
