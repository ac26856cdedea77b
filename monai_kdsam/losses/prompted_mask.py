# SPDX-License-Identifier: Apache-2.0
"""The loss of masks that a correction loop answers with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from monai_kdsam.losses.weighted import WeightedSumLoss

__all__ = ["PromptedMaskLoss"]


class PromptedMaskLoss(WeightedSumLoss):
    """Weighted sum of losses of (logits, masks), and of what the IoU head expected against what was real.

    Each prompt has asked for a mask of its own (a teacher's, for one), so the answer of the loop
    (`monai_kdsam.engines.CorrectionLoop`) brings along what it is to be compared with.

    Args:
        terms: name -> loss of two tensors (B, P, S, S), logits and masks of 0 and 1.
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
        total = super().forward(pred["logits"], pred["reference"])
        if self.iou_weight:
            error = F.mse_loss(pred["iou"].float(), pred["real_iou"].float())
            self.values["iou"] = error.detach()
            total = total + self.iou_weight * error
        return total
