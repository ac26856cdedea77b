# SPDX-License-Identifier: Apache-2.0
"""The weights of `transformers.SamModel`, as SAM and MedSAM lie on the hub, under SAM's own names."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

__all__ = ["fit_positions", "to_sam_layout"]

# Applied one after the other, of transformers' names to SAM's.
_RENAMED = (
    (r"^vision_encoder\.", "image_encoder."),
    (r"^image_encoder\.patch_embed\.projection\.", "image_encoder.patch_embed.proj."),
    (r"^image_encoder\.layers\.(\d+)\.layer_norm(\d)\.", r"image_encoder.blocks.\1.norm\2."),
    (r"^image_encoder\.layers\.", "image_encoder.blocks."),
    (r"^image_encoder\.neck\.conv1\.", "image_encoder.neck.0."),
    (r"^image_encoder\.neck\.layer_norm1\.", "image_encoder.neck.1."),
    (r"^image_encoder\.neck\.conv2\.", "image_encoder.neck.2."),
    (r"^image_encoder\.neck\.layer_norm2\.", "image_encoder.neck.3."),
    (r"^(prompt_encoder\.shared_embedding|shared_image_embedding)\.", "prompt_encoder.pe_layer."),
    (r"\.pe_layer\.positional_embedding$", ".pe_layer.positional_encoding_gaussian_matrix"),
    (r"^prompt_encoder\.point_embed\.", "prompt_encoder.point_embeddings."),
    (r"^prompt_encoder\.mask_embed\.conv1\.", "prompt_encoder.mask_downscaling.0."),
    (r"^prompt_encoder\.mask_embed\.layer_norm1\.", "prompt_encoder.mask_downscaling.1."),
    (r"^prompt_encoder\.mask_embed\.conv2\.", "prompt_encoder.mask_downscaling.3."),
    (r"^prompt_encoder\.mask_embed\.layer_norm2\.", "prompt_encoder.mask_downscaling.4."),
    (r"^prompt_encoder\.mask_embed\.conv3\.", "prompt_encoder.mask_downscaling.6."),
    (r"^(mask_decoder\.transformer\.layers\.\d+)\.layer_norm(\d)\.", r"\1.norm\2."),
    (r"^mask_decoder\.transformer\.layer_norm_final_attn\.", "mask_decoder.transformer.norm_final_attn."),
    (r"^mask_decoder\.upscale_conv1\.", "mask_decoder.output_upscaling.0."),
    (r"^mask_decoder\.upscale_layer_norm\.", "mask_decoder.output_upscaling.1."),
    (r"^mask_decoder\.upscale_conv2\.", "mask_decoder.output_upscaling.3."),
    (r"\.proj_in\.", ".layers.0."),
)


def to_sam_layout(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of `transformers.SamModel`; those of another layout pass unchanged.

    Of the two names that transformers gives SAM's table of positions, which is one tensor, either is enough.

    Example:
        >>> list(to_sam_layout({"vision_encoder.layers.2.layer_norm1.bias": Tensor()}))
        ['image_encoder.blocks.2.norm1.bias']
    """
    if not any(name.startswith("vision_encoder.") for name in state):
        return dict(state)
    return {_renamed(name): value for name, value in state.items()}


def _renamed(name: str) -> str:
    # A perceptron of three layers is `proj_in`, `layers.0` and `proj_out` there, and three `layers` in SAM.
    if re.match(r"mask_decoder\.(output_hypernetworks_mlps\.\d+|iou_prediction_head)\.", name):
        name = name.replace(".layers.0.", ".layers.1.").replace(".proj_out.", ".layers.2.")
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def fit_positions(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Interpolate a ViT checkpoint's position tables to another input size (SAM's are for 1024 pixels).

    Args:
        state: a SAM state_dict; tables that already fit, and all other entries, pass unchanged.
        own: the state_dict of the network that it is for. Its shapes tell which tables depend on the input's size:
            those of windowed blocks do not.
    """
    fitted = dict(state)
    for name, value in state.items():
        wanted = own[name].shape if name in own else value.shape
        if name.endswith("pos_embed") and value.ndim == 4 and value.shape != wanted:
            maps = F.interpolate(value.permute(0, 3, 1, 2), size=wanted[1:3], mode="bicubic", align_corners=False)
            fitted[name] = maps.permute(0, 2, 3, 1)
        elif ".rel_pos_" in name and value.ndim == 2 and value.shape != wanted:
            columns = F.interpolate(value.t()[None], size=wanted[0], mode="linear", align_corners=False)
            fitted[name] = columns[0].t()
    return fitted
