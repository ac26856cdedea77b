# SPDX-License-Identifier: Apache-2.0
"""How unsure a promptable network is of an image that nobody has labelled."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_kdsam.mask_prompts import box_from_mask, center_click
from monai_kdsam.networks import KDSAM

__all__ = ["Uncertainty", "disagreement", "uncertainty"]

STRIDE = 4  # of the decoder's masks, in pixels of the network's input


@dataclass(frozen=True)
class Uncertainty:
    """Two views of how unsure the network is, each in [0, 1].

    Args:
        predicted_iou: what the network itself expects its masks to reach, the mean over the prompts.
        disagreement: of the masks that different prompts of one structure give, see `disagreement`.
    """

    predicted_iou: float
    disagreement: float

    @property
    def score(self) -> float:
        """From 0, sure, to 1: the mean of the two."""
        return (1 - self.predicted_iou + self.disagreement) / 2


def disagreement(masks: list[NDArray[np.bool_]]) -> float:
    """Mean of 1 - IoU over all pairs of masks (H, W); two empty masks agree.

    Example:
        >>> full, half = np.ones((2, 2), bool), np.array([[True, True], [False, False]])
        >>> disagreement([full, full, half])
        0.3333333333333333
    """
    distances = []
    for one, other in combinations(masks, 2):
        union = (one | other).sum()
        distances.append(1 - (one & other).sum() / union if union else 0.0)
    return float(np.mean(distances))


def uncertainty(network: KDSAM, image: Tensor, valid: tuple[int, int]) -> Uncertainty:
    """Segment an image without a prompt, then with a click in the middle of that mask, then with the box around it.

    A network that knows the structure gives about the same mask three times. Where it finds nothing on its own there
    is nothing to click on: the disagreement is then 1.

    Args:
        network: in eval mode.
        image: (1, 3, S, S), as the network takes it.
        valid: rows and columns of the image that are not padding.
    """
    rows, columns = (-(-side // STRIDE) for side in valid)
    with torch.no_grad():
        embedding = network.embed(image)
        masks, ious = [], []
        prompts: list[tuple[Any, list[int]]] = [([[0.0, 0.0]], [-1])]
        while prompts:
            xy, labels = prompts.pop()
            points = torch.as_tensor(np.asarray(xy, dtype=np.float32), device=image.device)[None]
            logits, iou = network.decode(embedding, points, torch.tensor([labels], device=image.device))
            masks.append((logits[0, 0, :rows, :columns] > 0).cpu().numpy())
            ious.append(min(max(float(iou), 0.0), 1.0))
            if len(masks) == 1 and masks[0].any():
                corners = box_from_mask(masks[0]) * STRIDE + [[0, 0], [STRIDE - 1, STRIDE - 1]]
                prompts = [((center_click(masks[0]) + 0.5) * STRIDE - 0.5, [1]), (corners, [2, 3])]
    return Uncertainty(float(np.mean(ious)), disagreement(masks) if len(masks) > 1 else 1.0)
