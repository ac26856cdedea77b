# SPDX-License-Identifier: Apache-2.0
"""The baseline that every model must beat: fill the box."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from monai_kdsam.errors import UserError

__all__ = ["FillBox"]

_LOGIT = 10.0


class FillBox(nn.Module):
    """A "network" that answers every prompt with its box, filled, or with the ellipse inscribed in it.

    It has the signature of ``KDSAM.forward`` and no parameters, and goes through the same evaluation. A prompt without
    a box (clicks only, or nothing) is answered as if the box were the whole image, padding included.

    Args:
        shape: "box" or "ellipse".

    Raises:
        ValueError: if ``shape`` is neither.

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
        if shape not in ("box", "ellipse"):
            raise UserError(f'Expected `shape` to be "box" or "ellipse", got {shape!r}.')
        self.shape = shape

    def forward(self, image: Tensor, points: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Fill the boxes.

        Args:
            image: (B, C, H, W); only its size matters.
            points: (B, N, 2), or (B, K, N, 2) for K prompts per image; XY pixels of ``image``.
            labels: (B, N) or (B, K, N); 2 box top-left, 3 box bottom-right, both part of the box; others are ignored.

        Returns:
            Logits (B, 1, H, W) or (B, K, H, W), float32: 10 inside and -10 outside.

        Raises:
            ValueError: if only one of ``points`` and ``labels`` is given, or their shapes do not go together.
        """
        height, width = image.shape[-2:]
        low, high = self._corners(image, points, labels)  # (B, K, 2) each
        x = torch.arange(width, device=image.device, dtype=torch.float32)
        y = torch.arange(height, device=image.device, dtype=torch.float32)[:, None]
        (x0, y0), (x1, y1) = (corner[..., None, None].unbind(2) for corner in (low, high))
        if self.shape == "box":
            inside = (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)
        else:
            # A pixel has an extent: the box of the corners 2 and 4 is three pixels wide.
            across = (2 * x - x0 - x1) / (x1 - x0 + 1)
            down = (2 * y - y0 - y1) / (y1 - y0 + 1)
            inside = across**2 + down**2 <= 1
        return torch.where(inside, _LOGIT, -_LOGIT)

    @staticmethod
    def _corners(image: Tensor, points: Tensor | None, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """First and last XY (B, K, 2) inside each prompt's box; the image's where a prompt has none."""
        last = torch.tensor([image.shape[-1] - 1.0, image.shape[-2] - 1.0], device=image.device)
        if points is None and labels is None:
            last = last.expand(len(image), 1, 2)
            return torch.zeros_like(last), last
        if points is None or labels is None:
            raise UserError("Expected `points` and `labels` together, got only one of them.")
        if labels.ndim not in (2, 3) or points.shape != (*labels.shape, 2) or len(points) != len(image):
            raise UserError(
                "Expected `points` (B, N, 2) and `labels` (B, N), or (B, K, N, 2) and (B, K, N), with "
                f"B = {len(image)} as the image, got {tuple(points.shape)} and {tuple(labels.shape)}."
            )
        if labels.ndim == 2:
            points, labels = points[:, None], labels[:, None]
        points, labels = points.to(last), labels.to(last.device)
        first_corner, last_corner = (labels == 2)[..., None], (labels == 3)[..., None]
        boxed = first_corner.any(2) & last_corner.any(2)  # (B, K, 1)
        if points.shape[2] == 0:
            return torch.zeros_like(last).expand(*boxed.shape[:2], 2), last.expand(*boxed.shape[:2], 2)
        low = torch.where(first_corner, points, torch.inf).amin(2)
        high = torch.where(last_corner, points, -torch.inf).amax(2)
        return torch.where(boxed, low, 0.0), torch.where(boxed, high, last)
