# SPDX-License-Identifier: Apache-2.0
"""How distillation enters MONAI's stock trainer: the target of a batch is the teacher's embedding of its images."""

from __future__ import annotations

from typing import Any

import torch
from monai.engines import PrepareBatch
from torch import Tensor

from monai_kdsam.networks import KDSAM

__all__ = ["TeacherPrepareBatch"]


class TeacherPrepareBatch(PrepareBatch):
    """Pairs each image with what the teacher sees in it.

    Args:
        teacher: stays frozen and in eval mode.
        autocast: type to run the teacher in; MONAI's trainer prepares batches outside its own autocast. None: float32.

    Raises:
        ValueError: when called on a batch without `valid`, the map of the unpadded image.
    """

    def __init__(self, teacher: KDSAM, *, autocast: torch.dtype | None = None) -> None:
        self.autocast = autocast
        self.teacher = teacher.freeze("image_encoder", "prompt_encoder", "mask_decoder").eval()

    def get_target(self, image: Tensor, batchdata: dict[str, Any]) -> Tensor:
        """(B, 3, S, S) -> (B, 256, S/16, S/16)."""
        enabled = self.autocast is not None
        with torch.no_grad(), torch.autocast(image.device.type, self.autocast, enabled=enabled):
            return self.teacher.encode(image).float()

    def __call__(
        self,
        batchdata: dict[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A batch with `image` (B, 3, S, S) and `valid` (B, 1, S, S) -> (image, target of the embedding losses)."""
        if "valid" not in batchdata:
            raise ValueError("Expected the batch to hold `valid`, which ValidRegiond adds before the padding.")
        # Plain tensors: the embedding has another frame than the image, so its metadata would lie.
        image, valid = (
            torch.as_tensor(batchdata[key]).as_subclass(Tensor).to(device, non_blocking=non_blocking, **kwargs)
            for key in ("image", "valid")
        )
        return image, {"embedding": self.get_target(image, batchdata), "valid": valid}
