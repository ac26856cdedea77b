# SPDX-License-Identifier: Apache-2.0
"""The builders: the only place that knows the networks' numbers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torchvision
from torch import nn

from monai_kdsam.errors import UserError
from monai_kdsam.networks.encoders import FineFeatures, NeckName, ResNetEncoder, build_neck
from monai_kdsam.networks.kdsam import KDSAM
from monai_kdsam.networks.sam import build_mask_decoder, build_prompt_encoder, build_vit
from monai_kdsam.networks.timm_encoder import PREFIX, build_timm_encoder
from monai_kdsam.weights.checkpoint import load_weights, mismatches
from monai_kdsam.weights.download import require_weights
from monai_kdsam.weights.reading import read_state_dict

__all__ = ["build_kdsam", "build_student", "build_teacher"]

logger = logging.getLogger(__name__)
TeacherName = Literal["vit_b", "vit_l", "vit_h", "vit_tiny", "vit_micro"]

# Arguments that name files: what a network starts from is no setting of it.
WEIGHT_FILES = ("checkpoint", "imagenet_weights")
# Channels of stages 2 to 5.
BACKBONES = {
    "resnet18": (64, 128, 256, 512),
    "resnet34": (64, 128, 256, 512),
    "resnet50": (256, 512, 1024, 2048),
    "resnet101": (256, 512, 1024, 2048),
}
# The first three are SAM's; vit_tiny and vit_micro are ours, for demonstrations and tests.
TEACHERS: dict[str, dict[str, Any]] = {
    "vit_b": {"embed_dim": 768, "depth": 12, "num_heads": 12, "global_attention": (2, 5, 8, 11), "window": 14},
    "vit_l": {"embed_dim": 1024, "depth": 24, "num_heads": 16, "global_attention": (5, 11, 17, 23), "window": 14},
    "vit_h": {"embed_dim": 1280, "depth": 32, "num_heads": 16, "global_attention": (7, 15, 23, 31), "window": 14},
    "vit_tiny": {"embed_dim": 192, "depth": 6, "num_heads": 3, "global_attention": (), "window": 0},
    "vit_micro": {"embed_dim": 64, "depth": 2, "num_heads": 2, "global_attention": (), "window": 0},
}


def _scalars(builder: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What a builder was called with, but for modules and files: the settings that travel with a network's weights."""
    kinds = (bool, int, float, str, type(None))
    return {"builder": builder} | {k: v for k, v in arguments.items() if isinstance(v, kinds) and k not in WEIGHT_FILES}


def build_kdsam(
    image_encoder: nn.Module, *, image_size: int = 1024, prompt_map: bool = False, multimask: bool = False
) -> KDSAM:
    """A `KDSAM` around any image encoder (B, 3, S, S) -> (B, 256, S/16, S/16).

    Args:
        image_encoder: the encoder.
        image_size: side S of the square input in pixels, a multiple of 32.
        prompt_map: draw prompts as well, see `draw_prompts`. SAM's own weights know nothing of it.
        multimask: see `KDSAM`.

    Raises:
        ValueError: when the size is not a positive multiple of 32.
    """
    settings = _scalars("build_kdsam", locals())
    if image_size <= 0 or image_size % 32:
        raise UserError(f"Expected `image_size` to be a positive multiple of 32, got {image_size}.")
    prompt_encoder = build_prompt_encoder(image_size, prompt_map=prompt_map)
    network = KDSAM(image_encoder, prompt_encoder, build_mask_decoder(), multimask=multimask)
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
    multimask: bool = False,
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
        multimask: see `KDSAM`.

    Raises:
        ValueError: on an unknown name, or weights of another backbone.
        FileNotFoundError: when the weights do not exist.

    Example:
        >>> network = build_student("resnet18", image_size=256)
        >>> sum(parameter.numel() for parameter in network.image_encoder.parameters())
        13473088
    """
    settings = _scalars("build_student", locals())
    if backbone.startswith(PREFIX):
        name = backbone.removeprefix(PREFIX)
        encoder: nn.Module = build_timm_encoder(
            name, neck=neck, image_size=image_size, imagenet_weights=imagenet_weights, fine_features=fine_features
        )
    else:
        encoder = _build_resnet_encoder(backbone, neck, imagenet_weights, fine_features)
    if imagenet_weights is not None:
        logger.info("The trunk %s begins with ImageNet's weights in %s.", backbone, imagenet_weights)
    network = build_kdsam(encoder, image_size=image_size, prompt_map=prompt_map, multimask=multimask)
    network.settings = settings
    network.has_imagenet_weights = imagenet_weights is not None
    return network


def _build_resnet_encoder(
    backbone: str, neck: NeckName, imagenet_weights: str | Path | None, fine_features: bool
) -> ResNetEncoder:
    if backbone not in BACKBONES:
        raise UserError(
            f"Expected `backbone` to be one of {', '.join(BACKBONES)}, or {PREFIX}NAME for a model of timm, "
            f"got {backbone!r}."
        )
    trunk = getattr(torchvision.models, backbone)(weights=None)
    if imagenet_weights is not None:
        # The classifier's size is the site's own business; everything else must fit.
        state = {k: v for k, v in read_state_dict(imagenet_weights).items() if not k.startswith("fc.")}
        trunk.fc = nn.Identity()
        problems = mismatches(state, trunk.state_dict())
        if problems:
            raise UserError(f"`imagenet_weights` {imagenet_weights} do not fit {backbone}: {problems}.")
        trunk.load_state_dict(state)
    channels = BACKBONES[backbone]
    fine = FineFeatures(channels[:2]) if fine_features else None
    return ResNetEncoder(trunk, build_neck(neck, channels[2:]), fine)


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
    settings = _scalars("build_teacher", locals())
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
