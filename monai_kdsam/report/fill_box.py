# SPDX-License-Identifier: Apache-2.0
"""The baseline that every model must beat: fill the box."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["FillBox"]


class FillBox(nn.Module):
    """A "network" that answers every prompt with its box, filled, or with the ellipse inscribed in it.

    It is called as `KDSAM` is, without parameters, and goes through the same evaluation. A prompt without a box (clicks
    only, or nothing) is answered as if the box were the whole image, padding included.

    Args:
        shape: "box" or "ellipse".

    Example:
        >>> image, box = torch.zeros(1, 3, 4, 6), torch.tensor([[[1.0, 1.0], [3.0, 2.0]]])
        >>> (FillBox()(image, box, torch.tensor([[2, 3]]))[0, 0] > 0).int()
        tensor([[0, 0, 0, 0, 0, 0],
                [0, 1, 1, 1, 0, 0],
                [0, 1, 1, 1, 0, 0],
                [0, 0, 0, 0, 0, 0]], dtype=torch.int32)
    """

    def __init__(self, shape: Literal["box", "ellipse"] = "box") -> None:
        super().__init__()
        self.shape = shape

    def forward(self, image: Tensor, points: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Logits (B, K, H, W), 10 inside and -10 outside, of prompts on images (B, C, H, W); see `KDSAM.forward`."""
        height, width = image.shape[-2:]
        last = torch.tensor([width - 1.0, height - 1.0], device=image.device)
        if points is None or labels is None:
            points, labels = last.expand(len(image), 1, 2), torch.full((len(image), 1), -1, device=image.device)
        if labels.ndim == 2:
            points, labels = points[:, None], labels[:, None]
        points, labels = F.pad(points, (0, 0, 0, 1)), F.pad(labels, (0, 1), value=-1)  # there may be no point at all
        first, end = (
            torch.where((labels == label)[..., None], points.to(last), -torch.inf).amax(dim=2)[..., None, None]
            for label in (2, 3)
        )  # (B, K, 2, 1, 1), of no box -inf
        x0, y0 = first.clamp_min(0).unbind(2)
        x1, y1 = torch.where(end.isfinite(), end, last[:, None, None]).unbind(2)
        x = torch.arange(width, device=image.device)
        y = torch.arange(height, device=image.device)[:, None]
        if self.shape == "box":
            inside = (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)
        else:
            # A pixel has an extent: the box of the corners 2 and 4 is three pixels wide.
            inside = ((2 * x - x0 - x1) / (x1 - x0 + 1)) ** 2 + ((2 * y - y0 - y1) / (y1 - y0 + 1)) ** 2 <= 1
        return torch.where(inside, 10.0, -10.0)
