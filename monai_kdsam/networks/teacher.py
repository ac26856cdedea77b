# SPDX-License-Identifier: Apache-2.0
"""The teacher: a SAM with a ViT image encoder, and what distillation sees of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from segment_anything.modeling import ImageEncoderViT
from torch import Tensor, nn

from monai_kdsam.errors import UserError
from monai_kdsam.networks.build import build_kdsam, settings_of
from monai_kdsam.networks.kdsam import KDSAM
from monai_kdsam.weights.checkpoint import load_weights
from monai_kdsam.weights.download import require_weights

__all__ = ["TeacherEncoder", "build_teacher", "build_vit"]

TeacherName = Literal["vit_b", "vit_l", "vit_h", "vit_tiny", "vit_micro"]
# The first three are SAM's; vit_tiny and vit_micro are ours, for demonstrations and tests.
TEACHERS: dict[str, dict[str, Any]] = {
    "vit_b": {"embed_dim": 768, "depth": 12, "num_heads": 12, "global_attention": (2, 5, 8, 11), "window": 14},
    "vit_l": {"embed_dim": 1024, "depth": 24, "num_heads": 16, "global_attention": (5, 11, 17, 23), "window": 14},
    "vit_h": {"embed_dim": 1280, "depth": 32, "num_heads": 16, "global_attention": (7, 15, 23, 31), "window": 14},
    "vit_tiny": {"embed_dim": 192, "depth": 6, "num_heads": 3, "global_attention": (), "window": 0},
    "vit_micro": {"embed_dim": 64, "depth": 2, "num_heads": 2, "global_attention": (), "window": 0},
}
# SAM's normalization, of values in 0 to 255.
PIXEL_MEAN, PIXEL_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


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


def build_teacher(
    kind: TeacherName = "vit_b",
    *,
    image_size: int = 1024,
    preprocessing: Literal["sam", "medsam"] = "sam",
    checkpoint: str | Path | None = None,
    leave_out: Sequence[str] = (),
) -> KDSAM:
    """A SAM with a ViT image encoder.

    Args:
        kind: vit_b, vit_l, vit_h (SAM's), vit_tiny or vit_micro (small ones for demonstrations and tests).
        image_size: side of the square input in pixels; the position tables of a checkpoint are interpolated to it.
        preprocessing: what the checkpoint was trained with: sam takes images in SAM's normalization, medsam makes
            values between 0 and 1 of them, by each image's own range.
        checkpoint: an official SAM file, or any of that layout (MedSAM, a site's own) or of `transformers.SamModel`;
            None starts at random.
        leave_out: see `load_weights`.

    Raises:
        ValueError: on an unknown kind or a checkpoint of another layout.
        FileNotFoundError: naming the command that fetches the checkpoint.
    """
    settings = settings_of("build_teacher", locals())
    if kind not in TEACHERS:
        raise UserError(f"Expected `kind` to be one of {', '.join(TEACHERS)}, got {kind!r}.")
    if preprocessing not in ("sam", "medsam"):
        raise UserError(f"Expected `preprocessing` to be sam or medsam, got {preprocessing!r}.")
    if checkpoint is not None:
        require_weights(checkpoint)  # before a ViT-H is built in vain
    encoder = build_vit(**TEACHERS[kind], image_size=image_size, own_range=preprocessing == "medsam")
    network = build_kdsam(encoder, image_size=image_size)
    network.settings = settings
    return load_weights(network, checkpoint, leave_out=leave_out)


def build_vit(
    *,
    embed_dim: int,
    depth: int,
    num_heads: int,
    global_attention: tuple[int, ...],
    window: int,
    image_size: int,
    own_range: bool = False,
) -> ImageEncoderViT:
    """SAM's ViT image encoder: (B, 3, S, S) normalized image -> (B, 256, S/16, S/16); see `OwnRangeViT`."""
    return (OwnRangeViT if own_range else ImageEncoderViT)(
        img_size=image_size,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=window,
        global_attn_indexes=global_attention,
    )


class OwnRangeViT(ImageEncoderViT):
    """SAM's ViT for images between 0 and 1 by their own range, as MedSAM was trained; weights have SAM's names.

    It takes what every encoder here takes, images in SAM's normalization, and undoes that.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Embed (B, 3, S, S) images in SAM's normalization."""
        return super().forward(to_own_range(x))


def to_own_range(image: Tensor) -> Tensor:
    """Images (B, 3, S, S) in SAM's normalization to 0..1 by each one's least and greatest value; padding becomes 0.

    Example:
        >>> gray = torch.tensor([[[[10.0, 20.0, 60.0]]]]).expand(1, 3, 1, 3)
        >>> to_own_range((gray - _tensor(PIXEL_MEAN)) / _tensor(PIXEL_STD))[0, 0].round(decimals=3)
        tensor([[0.0000, 0.2000, 1.0000]])
    """
    is_padding = (image == 0).all(dim=1, keepdim=True)  # a pixel of exactly the mean color is as good as padding
    pixels = image * _tensor(PIXEL_STD).to(image) + _tensor(PIXEL_MEAN).to(image)
    low = pixels.masked_fill(is_padding, torch.inf).amin(dim=(1, 2, 3), keepdim=True)
    high = pixels.masked_fill(is_padding, -torch.inf).amax(dim=(1, 2, 3), keepdim=True)
    return ((pixels - low) / (high - low).clamp(min=1e-8)).masked_fill(is_padding, 0.0)


def _tensor(channels: tuple[float, ...]) -> Tensor:
    return torch.tensor(channels)[None, :, None, None]
