# SPDX-License-Identifier: Apache-2.0
"""Clicks on what a mask got wrong, for whole batches and on any device: pure functions without randomness."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["add_corrective_click", "surroundedness"]


def surroundedness(errors: Tensor) -> Tensor:
    """How much of each pixel's surroundings is wrong too, summed over all scales; 0 where nothing is wrong.

    A distance transform tells the same, but there is none for batches on a GPU. The share of errors in windows of 2, 4, 8
    pixels and so on up to the image is largest in the middle of the largest error, which is where evaluation clicks
    (`monai_kdsam.evaluation.next_click`).

    Args:
        errors: (B, K, S, S) bool.

    Returns:
        (B, K, S, S) float32.

    Example:
        >>> errors = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
        >>> errors[..., 1:4, 1:4] = errors[..., 4:15, 6:15] = True
        >>> divmod(surroundedness(errors).flatten().argmax().item(), 16)
        (9, 10)
    """
    wrong = errors.float()
    total, share, size = wrong.clone(), wrong, errors.shape[-2:]
    while min(share.shape[-2:]) >= 2:
        share = F.avg_pool2d(share, 2)
        total += F.interpolate(share, size=size, mode="bilinear", align_corners=False)
    return total * wrong


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
    place = surroundedness(errors).flatten(2).argmax(dim=2, keepdim=True)
    width = mask.shape[-1]
    xy = torch.stack([place % width, place // width], dim=-1).to(points.dtype)
    label = reference.flatten(2).gather(2, place).to(labels.dtype)
    label = torch.where(errors.flatten(2).any(dim=2, keepdim=True), label, -1)
    return torch.cat([points, xy], dim=2), torch.cat([labels, label], dim=2)
