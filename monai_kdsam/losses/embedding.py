# SPDX-License-Identifier: Apache-2.0
"""Losses between a student's and a teacher's embedding, blind to the padding of the image.

Each takes the student's embedding (B, 256, h, w) and a target dictionary: `embedding`, the teacher's (B, 256, h, w),
and `valid` (B, 1, S, S), 1 on the image and 0 on its padding. Each is a mean over images of a loss of the single image,
so that the mean of the losses of equal shares of a batch, one for each process, is the loss of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from pytorch_msssim import ms_ssim
from torch import Tensor, nn

from monai_kdsam.errors import UserError

__all__ = ["EmbeddingMSELoss", "MSSSIMLoss", "masked_mse", "valid_positions"]


def valid_positions(valid: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, 1, S, S) map of the image -> (B, 1, h, w) map of the embedding positions that see any of it."""
    return F.adaptive_max_pool2d(valid, size)


def masked_mse(pred: Tensor, target: Tensor, positions: Tensor) -> Tensor:
    """Mean squared error over the channels of the positions that count, and then over the images.

    Args:
        pred: (B, C, h, w).
        target: (B, C, h, w).
        positions: (B, 1, h, w), 1 where a position counts.

    Example:
        >>> import torch
        >>> a, b = torch.zeros(1, 2, 1, 2), torch.tensor([[[[1.0, 9.0]], [[3.0, 9.0]]]])
        >>> masked_mse(a, b, torch.tensor([[[[1.0, 0.0]]]])).item()
        5.0
    """
    squared = (pred - target).square().mean(dim=1, keepdim=True) * positions
    return (squared.sum(dim=(1, 2, 3)) / positions.sum(dim=(1, 2, 3)).clamp_min(1)).mean()


def without_fine(pred: Tensor, target: Tensor) -> Tensor:
    """A student's embedding without fine features, of which its teacher has none.

    Raises:
        ValueError: unless student and teacher agree in shape then.
    """
    pred = pred[:, : target.shape[1]]
    if pred.shape != target.shape:
        raise UserError(
            f"Expected the student's embedding of the teacher's shape {tuple(target.shape)}, got {tuple(pred.shape)}: "
            "both need the same `image_size` and 256 channels at a stride of 16."
        )
    return pred


class EmbeddingMSELoss(nn.Module):
    """MSE between embeddings over the unpadded positions (L_MSE of arXiv 2501.16740)."""

    def forward(self, pred: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """A scalar; see the module's docstring for the arguments."""
        pred = without_fine(pred, target["embedding"])
        positions = valid_positions(target["valid"], (pred.shape[2], pred.shape[3]))
        return masked_mse(pred.float(), target["embedding"].float(), positions)


class MSSSIMLoss(nn.Module):
    """1 - MS-SSIM between embeddings: a structural alternative to the perceptual loss that needs no weights.

    Each channel is an image. Three scales with a window of 3 fit SAM's 64 x 64 grid; smaller grids are enlarged to
    that size first. Padding is set to zero in both. The range of the values is that of the teacher's embedding of the
    image.
    """

    def forward(self, pred: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """A scalar in [0, 2]; see the module's docstring for the arguments."""
        pred = without_fine(pred, target["embedding"])
        positions = valid_positions(target["valid"], (pred.shape[2], pred.shape[3]))
        ours, theirs = (enlarge(x.float() * positions) for x in (pred, target["embedding"]))
        # SSIM of both divided by a range is SSIM with that range, which pytorch_msssim takes for a whole batch only.
        span = (theirs.amax(dim=(1, 2, 3)) - theirs.amin(dim=(1, 2, 3))).clamp_min(1e-6)[:, None, None, None]
        return 1 - ms_ssim(ours / span, theirs / span, data_range=1.0, win_size=3, weights=[1 / 3] * 3)


def enlarge(maps: Tensor, at_least: int = 64) -> Tensor:
    """Bilinearly enlarge (B, C, h, w) maps whose shorter side is below `at_least`."""
    factor = at_least / min(maps.shape[-2:])
    if factor <= 1:
        return maps
    return F.interpolate(maps, scale_factor=factor, mode="bilinear", align_corners=False)
