# SPDX-License-Identifier: Apache-2.0
"""The teacher as distillation sees it: an image goes in, what is to be imitated comes out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from monai_kdsam.networks.kdsam import KDSAM

__all__ = ["TeacherEncoder"]


class TeacherEncoder(nn.Module):
    """A frozen teacher's image encoder: (B, 3, S, S) normalized image -> (B, 256, S/16, S/16), float32.

    Args:
        teacher: stays frozen and in eval mode.
        autocast: type to run it in; None: float32.
    """

    def __init__(self, teacher: KDSAM, *, autocast: torch.dtype | None = None) -> None:
        super().__init__()
        self.teacher = teacher.freeze("image_encoder", "prompt_encoder", "mask_decoder").eval()
        self.autocast = autocast

    def forward(self, image: Tensor) -> Tensor:
        """Embed, without a graph."""
        with torch.no_grad(), torch.autocast(image.device.type, self.autocast, enabled=self.autocast is not None):
            return self.teacher.encode(image).float()

    def train(self, mode: bool = True) -> TeacherEncoder:
        """Stays in eval mode."""
        return super().train(False)
