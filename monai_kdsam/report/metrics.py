# SPDX-License-Identifier: Apache-2.0
"""How well a mask agrees with its reference: MONAI's metrics, with what they leave undefined defined."""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import numpy as np
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_iou, compute_surface_dice
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["MaskScores", "mask_scores", "overlap_scores"]

Mask = NDArray[np.bool_]


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
