# SPDX-License-Identifier: Apache-2.0
"""Head circumference of a mask, as HC18 measures it: the circumference of an ellipse."""

from __future__ import annotations

import math

import numpy as np
import SimpleITK as sitk  # noqa: N813 (its own documentation's alias)
from numpy.typing import NDArray
from scipy.special import ellipe

__all__ = ["ellipse_circumference", "head_circumference"]


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
    if not mask.any():
        return math.nan
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    image.SetSpacing((float(spacing[1]), float(spacing[0])))
    shapes = sitk.LabelShapeStatisticsImageFilter()
    shapes.Execute(image)
    first, second = shapes.GetEquivalentEllipsoidDiameter(1)
    return ellipse_circumference(first / 2, second / 2)
