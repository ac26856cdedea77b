# SPDX-License-Identifier: Apache-2.0
"""The loss of masks that a correction loop answers with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_kdsam.losses.weighted import WeightedSumLoss

__all__ = ["PromptedMaskLoss"]

CERTAIN_BACKGROUND = -1e4


class PromptedMaskLoss(WeightedSumLoss):
    """Weighted sum of losses of (logits, masks), and of what the IoU head expected against what was real.

    Each prompt has asked for a mask of its own (a teacher's, for one), so the answer of the loop
    (`monai_kdsam.engines.CorrectionLoop`) brings along what it is to be compared with, and which pixels are image. Only
    those count: no term sees what the network makes of padding.

    Args:
        terms: name -> loss of two tensors (B, P, S, S), logits and masks of 0 and 1. A term that is not reduced
            (`reduction: none`) is averaged over the pixels of each image, and then over the images.
        weights: see `WeightedSumLoss`.
        iou_weight: of the squared error of the expected IoU, SAM's loss of that head (arXiv 2304.02643, appendix A).

    Raises:
        ValueError: see `WeightedSumLoss`.
    """

    def __init__(
        self, terms: Mapping[str, nn.Module], weights: Mapping[str, float] | None = None, *, iou_weight: float = 0.0
    ) -> None:
        super().__init__(terms, weights)
        self.iou_weight = iou_weight

    def forward(self, pred: Mapping[str, Tensor], target: Any = None) -> Tensor:
        """A scalar; `target` is not looked at."""
        logits, reference = pred["logits"], pred["reference"]
        valid = pred.get("valid", torch.ones_like(logits[:, :1]))
        # Background of which the network is certain, and rightly so: no term has anything to say about it.
        logits, reference = logits.masked_fill(valid == 0, CERTAIN_BACKGROUND), reference * valid
        results = {name: _over_image(term(logits, reference), valid) for name, term in self.terms.items()}
        total = self._sum(results)
        if self.iou_weight:
            error = F.mse_loss(pred["iou"].float(), pred["real_iou"].float())
            self.values["iou"] = error.detach()
            total = total + self.iou_weight * error
        return total


def _over_image(value: Tensor, valid: Tensor) -> Tensor:
    """A term as it is, or if it is a map (B, P, S, S), its mean over valid pixels, prompts and images."""
    if value.ndim == 0:
        return value
    pixels = valid.sum(dim=(1, 2, 3)).clamp_min(1) * value.shape[1]
    return ((value * valid).sum(dim=(1, 2, 3)) / pixels).mean()
