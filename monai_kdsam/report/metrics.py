# SPDX-License-Identifier: Apache-2.0
"""Every measure: overlap and distances of two masks, reliability of an expected IoU, circumference of a head."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_iou, compute_roc_auc, compute_surface_dice
from numpy.typing import ArrayLike, NDArray
from scipy.special import ellipe
from scipy.stats import spearmanr
from torch import Tensor

__all__ = [
    "POOR_IOU",
    "MaskScores",
    "calibration",
    "ellipse_circumference",
    "head_circumference",
    "mask_scores",
    "overlap_scores",
]

Mask = NDArray[np.bool_]
# A Dice of 0.82: the outline has to be redrawn. The ISIC challenge of 2018 counts a mask as failed below 0.65, from the
# agreement of experts (Codella et al. 2019, arXiv 1902.03368).
POOR_IOU = 0.7
_BINS = 10


class MaskScores(NamedTuple):
    """Agreement of one mask with its reference; distances in the unit of the spacing that was given."""

    dice: float
    iou: float
    hd95: float = math.nan
    surface_dice: float = math.nan


def overlap_scores(mask: Mask, reference: Mask) -> MaskScores:
    """Dice and IoU alone.

    Args:
        mask: (H, W).
        reference: (H, W), not empty.

    Example:
        >>> reference = np.zeros((8, 8), bool); reference[:4] = True
        >>> overlap_scores(np.ones((8, 8), bool), reference)[:2] == (np.float32(2 / 3), 0.5)
        True
    """
    predicted, expected = _batch(mask), _batch(reference)
    return MaskScores(float(compute_dice(predicted, expected)), float(compute_iou(predicted, expected)))


def mask_scores(mask: Mask, reference: Mask, *, spacing: tuple[float, float], tolerance: float) -> MaskScores:
    """Dice, IoU, 95 % Hausdorff distance and surface Dice.

    An empty mask has no surface: its distance is the image's diagonal, the farthest that any mask could be, so that a
    model cannot improve its mean by giving up, and its surface Dice is 0.

    Args:
        mask: (H, W).
        reference: (H, W), not empty.
        spacing: (y, x) of a pixel, in any unit.
        tolerance: of the surface Dice, in that unit.
    """
    overlap = overlap_scores(mask, reference)
    if not mask.any():
        diagonal = math.hypot(*(side * step for side, step in zip(mask.shape, spacing, strict=True)))
        return overlap._replace(hd95=diagonal, surface_dice=0.0)
    predicted, expected = _batch(mask), _batch(reference)
    steps = [float(step) for step in spacing]
    with warnings.catch_warnings():
        # MONAI calls its own function with an argument that it has deprecated.
        warnings.simplefilter("ignore", FutureWarning)
        hd95 = compute_hausdorff_distance(predicted, expected, include_background=True, percentile=95, spacing=steps)
        surface = compute_surface_dice(
            predicted, expected, [tolerance], include_background=True, spacing=steps, use_subvoxels=True
        )
    return overlap._replace(hd95=float(hd95), surface_dice=float(surface))


def _batch(mask: Mask) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(mask))[None, None].float()


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


def ellipse_circumference(a: float, b: float) -> float:
    """Circumference of an ellipse by the complete elliptic integral of the second kind, exact.

    Args:
        a: one semi-axis.
        b: the other, in the same unit.

    Example:
        >>> ellipse_circumference(1, 1) / math.pi, ellipse_circumference(0, 2)
        (2.0, 8.0)
    """
    longer, shorter = max(a, b), min(a, b)
    return 4 * longer * float(ellipe(1 - (shorter / longer) ** 2)) if longer else 0.0


def head_circumference(mask: NDArray[np.bool_], spacing: tuple[float, float]) -> float:
    """Circumference of the ellipse that has the mask's area and second moments.

    The ellipse is fitted to the whole mask, without picking a component first: a stray island is an error of the model.
    Where the image cuts a head off, the fitted ellipse is too small.

    Args:
        mask: (H, W).
        spacing: (y, x) of a pixel in mm.

    Returns:
        mm; nan for an empty mask.

    Example:
        >>> y, x = np.indices((200, 200))
        >>> disk = (y - 100) ** 2 + (x - 100) ** 2 <= 50**2
        >>> round(head_circumference(disk, (0.5, 0.5)) / (2 * math.pi * 25), 2)
        1.0
    """
    import SimpleITK as sitk  # noqa: N813 (its own documentation's alias)

    if not mask.any():
        return math.nan
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    image.SetSpacing((float(spacing[1]), float(spacing[0])))
    shapes = sitk.LabelShapeStatisticsImageFilter()
    shapes.Execute(image)
    first, second = shapes.GetEquivalentEllipsoidDiameter(1)
    return ellipse_circumference(first / 2, second / 2)
