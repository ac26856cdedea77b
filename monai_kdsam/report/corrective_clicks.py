# SPDX-License-Identifier: Apache-2.0
"""A simulated user who corrects a mask click by click, and how many clicks a model needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from monai_kdsam.report.prompts import Prompt

__all__ = ["GOALS", "MOST_CLICKS", "clicks_needed", "correct", "next_click"]

Mask = NDArray[np.bool_]
MOST_CLICKS = 20  # as in RITM and SimpleClick
GOALS = {"85": 0.85, "90": 0.90}  # IoUs


def next_click(reference: Mask, mask: Mask, before: Prompt) -> Prompt | None:
    """Add the click that the field's standard protocol makes next.

    It is the point deepest inside an error, missing foreground or false foreground: the farthest from where mask and
    reference agree, the image's border counting as agreement. It is positive where foreground is missing, and never on
    an earlier click. So evaluate RITM (Sofiiuk et al. 2022, arXiv 2102.06583) and SimpleClick (Liu et al. 2023, arXiv
    2210.11006).

    Args:
        reference: (H, W).
        mask: (H, W), what the model made of the clicks before.
        before: those clicks.

    Returns:
        All clicks, or None where no error is left to click on.

    Example:
        >>> reference = np.zeros((9, 9), bool); reference[1:8, 1:6] = True
        >>> no_click = Prompt(np.zeros((0, 2), np.float32), np.zeros(0, np.int64))
        >>> next_click(reference, np.zeros((9, 9), bool), no_click).points.tolist()
        [[3.0, 3.0]]
    """
    missing, false = (_depth(error, before.points) for error in (reference & ~mask, mask & ~reference))
    positive = missing.max() > false.max()
    depth = missing if positive else false
    if depth.max() == 0:
        return None
    row, column = np.unravel_index(np.argmax(depth), depth.shape)
    xy = np.array([[column, row]], dtype=np.float32)
    return Prompt(np.concatenate([before.points, xy]), np.append(before.labels, int(positive)))


def _depth(error: Mask, clicked: NDArray[np.float32]) -> NDArray[np.float64]:
    depth = np.zeros(error.shape)
    # Within the error's own box, which is exact: whatever lies beyond its margin is farther than the margin.
    for box in ndimage.find_objects(error.astype(np.uint8)):
        depth[box] = ndimage.distance_transform_edt(np.pad(error[box], 1))[1:-1, 1:-1]
    columns, rows = clicked.astype(int).T
    depth[rows, columns] = 0
    return depth


def correct(reference: Mask, first: Prompt, mask: Mask, predict: Callable[[Prompt], Mask]) -> Iterator[Mask]:
    """Masks after 1 to `MOST_CLICKS` clicks, each made when it is asked for; where all is right, the last one stays.

    Args:
        reference: (H, W).
        first: the first click.
        mask: what the model made of it.
        predict: the model, from clicks to a mask (H, W).
    """
    yield mask
    prompt: Prompt | None = first
    for _ in range(MOST_CLICKS - 1):
        prompt = prompt and next_click(reference, mask, prompt)
        mask = predict(prompt) if prompt else mask
        yield mask


def clicks_needed(ious: Sequence[float], goal: float) -> int | None:
    """Number of clicks after which the IoU first reached the goal; None where it never did.

    >>> clicks_needed([0.2, 0.91, 0.86], 0.9), clicks_needed([0.2], 0.9)
    (2, None)
    """
    return next((count for count, iou in enumerate(ious, start=1) if iou >= goal), None)
