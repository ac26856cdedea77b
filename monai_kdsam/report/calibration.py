# SPDX-License-Identifier: Apache-2.0
"""Does the IoU head know when a mask is wrong? Predicted against real IoU."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from monai.metrics import compute_roc_auc
from numpy.typing import ArrayLike
from scipy.stats import spearmanr

__all__ = ["POOR_IOU", "calibration"]

# A Dice of 0.82: the outline has to be redrawn. The ISIC challenge of 2018 counts a mask as failed below 0.65, from the
# agreement of experts (Codella et al. 2019, arXiv 1902.03368).
POOR_IOU = 0.7
_BINS = 10


def calibration(predicted: ArrayLike, actual: ArrayLike) -> dict[str, Any]:
    """Reliability of predicted IoUs.

    Args:
        predicted: (N,); what lies outside [0, 1] is clipped for the bins.
        actual: (N,) in [0, 1].

    Returns:
        `curve`: for each bin of ten that is not empty [mean predicted, mean actual, masks]; `expected_error`, their
        mean distance weighted by masks (the expected calibration error of Guo et al. 2017, arXiv 1706.04599, for a
        regression); `spearman`, the rank correlation, and `auroc`, how well a low prediction finds the masks with a
        real IoU below `POOR_IOU`: both nan where there is nothing to tell apart; `poor`, their share; `masks`.

    Example:
        >>> calibration([0.2, 0.9, 0.8], [0.2, 0.9, 0.8])["expected_error"]
        0.0
    """
    expected, real = (np.asarray(values, dtype=np.float64) for values in (predicted, actual))
    expected = expected.clip(0, 1)
    bins = np.minimum((expected * _BINS).astype(int), _BINS - 1)
    curve = []
    for number in np.unique(bins):
        members = bins == number
        curve.append([float(expected[members].mean()), float(real[members].mean()), int(members.sum())])
    poor = real < POOR_IOU
    varied = np.ptp(expected) > 0 and np.ptp(real) > 0
    return {
        "curve": curve,
        "expected_error": sum(abs(x - y) * count for x, y, count in curve) / len(real),
        "spearman": float(spearmanr(expected, real)[0]) if varied else math.nan,
        "auroc": _auroc(-expected, poor) if 0 < poor.sum() < len(poor) else math.nan,
        "poor": float(poor.mean()),
        "masks": len(real),
    }


def _auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    return float(compute_roc_auc(torch.from_numpy(scores), torch.from_numpy(positive.astype(np.int64))))  # type: ignore[arg-type]
