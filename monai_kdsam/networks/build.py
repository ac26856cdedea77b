# SPDX-License-Identifier: Apache-2.0
"""The builders of students, and of a `KDSAM` around any image encoder."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from monai_kdsam.errors import UserError
from monai_kdsam.networks.encoders import RESNETS, NeckName, build_resnet_encoder
from monai_kdsam.networks.kdsam import KDSAM, VolumeKDSAM
from monai_kdsam.networks.sam import MaskDecoder, PromptEncoder, TwoWayTransformer
from monai_kdsam.networks.timm_encoder import PREFIX, build_timm_encoder

__all__ = ["build_kdsam", "build_student", "build_volume_student", "settings_of"]

logger = logging.getLogger(__name__)
# Arguments that name files: what a network starts from is no setting of it.
WEIGHT_FILES = ("checkpoint", "imagenet_weights")


def settings_of(builder: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What a builder was called with, but for modules and files: the settings that travel with a network's weights."""
    kinds = (bool, int, float, str, type(None))
    return {"builder": builder} | {k: v for k, v in arguments.items() if isinstance(v, kinds) and k not in WEIGHT_FILES}


def build_kdsam(image_encoder: nn.Module, *, image_size: int = 1024, prompt_map: bool = False) -> KDSAM:
    """A `KDSAM` around any image encoder (B, 3, S, S) -> (B, 256, S/16, S/16).

    Args:
        image_encoder: the encoder.
        image_size: side S of the square input in pixels, a multiple of 32.
        prompt_map: draw prompts as well, see `draw_prompts`. SAM's own weights know nothing of it.

    Raises:
        ValueError: when the size is not a positive multiple of 32.
    """
    settings = settings_of("build_kdsam", locals())
    if image_size <= 0 or image_size % 32:
        raise UserError(f"Expected `image_size` to be a positive multiple of 32, got {image_size}.")
    grid = (image_size // 16, image_size // 16)
    # The numbers of the official checkpoints.
    prompt_encoder = PromptEncoder(
        embed_dim=256, image_embedding_size=grid, input_image_size=(image_size, image_size), mask_in_chans=16
    )
    prompt_encoder.prompt_map = prompt_map
    mask_decoder = MaskDecoder(
        num_multimask_outputs=3,
        transformer=TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8),
        transformer_dim=256,
        iou_head_depth=3,
        iou_head_hidden_dim=256,
    )
    network = KDSAM(image_encoder, prompt_encoder, mask_decoder)
    network.settings = settings
    count = sum(parameter.numel() for parameter in image_encoder.parameters())
    logger.info("Image encoder %s: %.1f M parameters.", type(image_encoder).__name__, count / 1e6)
    return network


def build_student(
    backbone: str = "resnet50",
    *,
    neck: NeckName = "fpn",
    image_size: int = 1024,
    imagenet_weights: str | Path | None = None,
    prompt_map: bool = False,
    fine_features: bool = False,
) -> KDSAM:
    """A student: an image encoder of a known trunk and a neck, and SAM's decoder.

    Args:
        backbone: resnet18, resnet34, resnet50 or resnet101, or timm/NAME for a model of timm, see `build_timm_encoder`.
        neck: fpn (with resnet50 the paper's 26.4 M parameters), sam or deconv.
        image_size: side of the square input in pixels.
        imagenet_weights: a classifier's checkpoint of the same backbone, in torchvision's or timm's layout; None starts
            at random, which is logged.
        prompt_map: see `build_kdsam`.
        fine_features: see `FineFeatures`.

    Raises:
        ValueError: on an unknown name, or weights of another backbone.
        FileNotFoundError: when the weights do not exist.

    Example:
        >>> network = build_student("resnet18", image_size=256)
        >>> sum(parameter.numel() for parameter in network.image_encoder.parameters())
        13473088
    """
    settings = settings_of("build_student", locals())
    start: dict[str, Any] = {"neck": neck, "imagenet_weights": imagenet_weights, "fine_features": fine_features}
    if backbone.startswith(PREFIX):
        encoder: nn.Module = build_timm_encoder(backbone.removeprefix(PREFIX), image_size=image_size, **start)
    elif backbone in RESNETS:
        encoder = build_resnet_encoder(backbone, **start)
    else:
        raise UserError(
            f"Expected `backbone` to be one of {', '.join(RESNETS)}, or {PREFIX}NAME for a model of timm, "
            f"got {backbone!r}."
        )
    if imagenet_weights is not None:
        logger.info("The trunk %s begins with ImageNet's weights in %s.", backbone, imagenet_weights)
    network = build_kdsam(encoder, image_size=image_size, prompt_map=prompt_map)
    network.settings = settings
    network.has_imagenet_weights = imagenet_weights is not None
    return network


def build_volume_student(**settings: Any) -> VolumeKDSAM:
    """The network of `build_student` with the same arguments and weights, for volumes.

    It keeps 1 GiB of embeddings, 256 slices at 1024 pixels.

    Example:
        >>> import torch
        >>> network = build_volume_student(backbone="resnet18", image_size=64).eval()
        >>> network(torch.zeros(1, 3, 64, 64, 2)).shape
        torch.Size([1, 1, 64, 64, 2])
    """
    student = build_student(**settings)
    parts = (student.image_encoder, student.prompt_encoder, student.mask_decoder)
    network = VolumeKDSAM(*parts)
    network.settings = student.settings
    return network
