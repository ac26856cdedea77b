# SPDX-License-Identifier: Apache-2.0
"""Prompts as a picture: what SAM's layers for mask prompts see of a student whose prompts are also drawn."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["draw_prompts"]

CELL = 4  # pixels of the input along a side; SAM's mask prompts have a quarter of its size
BOX, CLICK, RADIUS = 1.0, 2.0, 2.0  # values inside a box and on a click, and a click's radius in cells


def draw_prompts(points: Tensor, labels: Tensor, size: int, mask: Tensor | None = None) -> Tensor:
    """Draw clicks, boxes and the mask of the last answer into one map.

    SAM encodes a box as two tokens, from which a small decoder hardly learns where the box ends. A map says it of each
    position. The box is 1 inside and -1 outside, by coverage in the cells at its edges, and 0 everywhere without one;
    an earlier mask adds its probability minus a half; clicks are disks over both, 2 on foreground, -2 on background.

    Args:
        points: (B, N, 2), XY pixels of the network's input.
        labels: (B, N): 1 foreground, 0 background, 2 box top-left, 3 box bottom-right, -1 padding.
        size: side S of the network's input.
        mask: (B, 1, S/4, S/4) logits of an earlier answer; None for none. A row of zeros is none as well.

    Returns:
        (B, 1, S/4, S/4) float32.

    Example:
        >>> box = torch.tensor([[[8.0, 8.0], [23.0, 15.0]]]), torch.tensor([[2, 3]])  # pixels 8 to 23, 8 to 15
        >>> draw_prompts(*box, size=32)[0, 0, :, 3].int().tolist()
        [-1, -1, 1, 1, -1, -1, -1, -1]
    """
    points = points.float()
    cells = torch.arange(size // CELL, dtype=torch.float32, device=points.device) * CELL - 0.5  # their near edges
    drawn = _draw_box(points, labels, cells)
    if mask is not None:
        drawn = drawn + (mask[:, 0].float().sigmoid() - 0.5)
    offset = points[:, :, None] - (cells + CELL / 2)[:, None]  # (B, N, S/4, 2)
    squared = offset[:, :, None, :, 0].square() + offset[:, :, :, None, 1].square()  # (B, N, S/4, S/4)
    near = [squared.masked_fill((labels != label)[..., None, None], 1e9) for label in (0, 1)]
    background, foreground = (distance.amin(dim=1) for distance in near)
    click = torch.where(background < foreground, -CLICK, CLICK)
    is_clicked = torch.minimum(background, foreground) <= (RADIUS * CELL) ** 2
    return torch.where(is_clicked, click, drawn)[:, None]


def _draw_box(points: Tensor, labels: Tensor, cells: Tensor) -> Tensor:
    """(B, S/4, S/4)."""
    corners = [torch.where((labels == label)[..., None], points, 0.0).sum(dim=1) for label in (2, 3)]
    first, last = corners[0] - 0.5, corners[1] + 0.5  # edges: the corners are pixels of the box
    near = torch.maximum(first[:, None], cells[:, None])  # (B, S/4, 2)
    covered = ((torch.minimum(last[:, None], cells[:, None] + CELL) - near) / CELL).clamp_min(0)
    inside = covered[:, None, :, 0] * covered[:, :, None, 1]
    has_box = (labels == 3).any(dim=1)[:, None, None]
    return torch.where(has_box, BOX * (2 * inside - 1), 0.0)
