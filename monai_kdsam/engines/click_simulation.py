# SPDX-License-Identifier: Apache-2.0
"""Clicks on what a mask got wrong, for whole batches and on any device: pure functions without randomness."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["add_corrective_click", "error_depth"]


def error_depth(errors: Tensor, grid: int = 48) -> Tensor:
    """How deep inside an error each pixel lies, in cells of a grid; 0 where nothing is wrong.

    Evaluation clicks where a Euclidean distance transform is largest (`monai_kdsam.report.next_click`). There is
    none for batches on a GPU; counting how often an error survives an erosion by one cell tells nearly the same.

    Args:
        errors: (B, K, S, S) bool.
        grid: cells along a side. Errors smaller than a cell count by the share of it that they fill.

    Returns:
        (B, K, S, S) float32.

    Example:
        >>> errors = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
        >>> errors[..., 1:4, 1:4] = errors[..., 5:14, 6:15] = True
        >>> divmod(error_depth(errors).flatten().argmax().item(), 16)
        (9, 10)
    """
    size = (errors.shape[-2], errors.shape[-1])
    left = F.adaptive_avg_pool2d(errors.float(), (min(grid, size[0]), min(grid, size[1])))
    depth = left
    while left.any():
        left = -F.max_pool2d(-F.pad(left, (1, 1, 1, 1)), kernel_size=3, stride=1)  # beyond the border there is no error
        depth = depth + left
    return F.interpolate(depth, size=size, mode="bilinear", align_corners=False) * errors


def add_corrective_click(points: Tensor, labels: Tensor, mask: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Each prompt with one click more, on what its mask got wrong: positive where foreground is missing.

    Where there is no error, padding is added. One loop of this is what EdgeSAM (arXiv 2312.06660, table 5g) gains most
    from; it draws the click from the errors at random, we take the middle, as a user would, and so that a run does not
    depend on how many processes share it.

    Args:
        points: (B, K, N, 2), XY pixels.
        labels: (B, K, N), see `KDSAM.decode`.
        mask: (B, K, S, S) bool, what the network made of the prompts.
        reference: (B, K, S, S) bool, what they asked for.

    Returns:
        points (B, K, N + 1, 2) and labels (B, K, N + 1).
    """
    errors = mask != reference
    place = error_depth(errors).flatten(2).argmax(dim=2, keepdim=True)
    width = mask.shape[-1]
    xy = torch.stack([place % width, place // width], dim=-1).to(points.dtype)
    label = reference.flatten(2).gather(2, place).to(labels.dtype)
    label = torch.where(errors.flatten(2).any(dim=2, keepdim=True), label, -1)
    return torch.cat([points, xy], dim=2), torch.cat([labels, label], dim=2)
