# SPDX-License-Identifier: Apache-2.0
"""Student image encoders on the trunks of timm, the library of image backbones; the only file that knows timm."""

from __future__ import annotations

import copy
import difflib
import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from monai_kdsam.errors import UserError
from monai_kdsam.networks.encoders import FineFeatures, NeckName, build_neck
from monai_kdsam.weights.imagenet import load_timm

__all__ = ["PREFIX", "TimmEncoder", "build_timm_encoder", "fused"]

PREFIX = "timm/"  # as the model hub that timm's weights lie in calls them


class TimmEncoder(nn.Module):
    """A trunk of timm and a neck: (B, 3, S, S) normalized image -> (B, 256, S/16, S/16) embedding.

    Args:
        trunk: made with `features_only=True`, with the stages of stride 16 and 32, or of stride 16 alone; before them
            those of stride 4 and 8 where there is `fine`.
        neck: takes both of them, see `build_neck`; of a single stage it gets twice the same.
        fine: takes the first two; its 768 channels follow those of the embedding. None for none.
    """

    def __init__(self, trunk: nn.Module, neck: nn.Module, fine: FineFeatures | None = None) -> None:
        super().__init__()
        self.trunk = trunk
        self.neck = neck
        self.fine = fine
        # Swin and its kin give (B, h, w, C).
        self.channels_last = getattr(trunk, "output_fmt", None) == "NHWC"

    def forward(self, image: Tensor) -> Tensor:
        """Encode (B, 3, S, S), S a multiple of 32, to (B, 256, S/16, S/16), or 1024 channels with `fine`."""
        stages = self.trunk(image)
        if self.channels_last:
            stages = [stage.permute(0, 3, 1, 2) for stage in stages]
        if self.fine is None:
            return self.neck(stages[0], stages[-1])
        return torch.cat([self.neck(stages[2], stages[-1]), self.fine(stages[0], stages[1])], dim=1)


def build_timm_encoder(
    name: str,
    *,
    neck: NeckName = "fpn",
    image_size: int = 1024,
    imagenet_weights: str | Path | None = None,
    fine_features: bool = False,
) -> TimmEncoder:
    """An encoder by the name of timm's model. Nothing is downloaded.

    Args:
        name: of a model with stages ("repvit_m1_1"), as in `timm.list_models()`.
        neck: fpn, sam or deconv; for a trunk that ends at stride 16 (a plain ViT) only sam, which doubles nothing then.
        image_size: side of the square input in pixels, for models that must know it.
        imagenet_weights: a checkpoint of the whole model in timm's layout, .pth or .safetensors.
        fine_features: see `FineFeatures`.

    Raises:
        ValueError: when timm lacks the model, the model has no stage of stride 16 or none that the neck
            needs, it takes no images of this size, or the weights are another model's.
        FileNotFoundError: when the weights do not exist.
    """
    timm = importlib.import_module("timm")  # which takes seconds
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f" Did you mean {' or '.join(PREFIX + other for other in near)}?" if near else ""
        raise UserError(f"timm {timm.__version__} has no model {name!r}.{hint}")
    try:
        description = timm.models.get_pretrained_cfg(name)
        # Those with tables of positions are built for one size.
        is_of_one_size = description is not None and description.fixed_input_size
        settings = {"pretrained": False} | ({"img_size": image_size} if is_of_one_size else {})
        stages = timm.create_model(name, features_only=True, **settings).feature_info
        indices, channels = _select(name, stages, neck, fine_features)
        trunk = timm.create_model(name, features_only=True, out_indices=indices, **settings)
        if is_of_one_size:  # which some accept and pass over: try it, without computing it
            copy.deepcopy(trunk).to("meta").eval()(torch.empty(1, 3, image_size, image_size, device="meta"))
    except (RuntimeError, TypeError, NotImplementedError, AssertionError) as error:
        raise UserError(f"timm's {name} cannot be built for {image_size} pixels: {error}") from error
    if imagenet_weights is not None:
        load_timm(trunk, timm.create_model(name, **settings), imagenet_weights, name)
    fine = FineFeatures((channels[0], channels[1])) if fine_features else None
    return TimmEncoder(trunk, build_neck(neck, (channels[2 * fine_features], channels[-1])), fine)


def _select(name: str, stages: Any, neck: str, fine_features: bool) -> tuple[list[int], list[int]]:
    """Numbers and channels of the stages that are taken: the last of stride 16 and of 32, with fine ones 4 and 8."""
    found = {
        stride: (index, width)
        for stride, index, width in zip(stages.reduction(), stages.out_indices, stages.channels(), strict=True)
    }
    needed = {
        16: ", which the embedding needs",
        **({} if neck == "sam" else {32: f" for the neck {neck} to double: choose the neck sam"}),
        **({4: ", which `fine_features` need", 8: ", which `fine_features` need"} if fine_features else {}),
    }
    for stride, reason in needed.items():
        if stride not in found:
            strides = ", ".join(str(stride) for stride in found)
            raise UserError(f"timm's {name} has no stage of stride {stride}{reason}; its strides: {strides}.")
    chosen = [found[stride] for stride in ((4, 8) if fine_features else ()) + (16, 32) if stride in found]
    return [index for index, _ in chosen], [width for _, width in chosen]


def fused(encoder: nn.Module) -> nn.Module:
    """A copy for inference, in which trunks that train with parallel branches (RepViT, MobileOne) have single ones.

    What it computes stays the same, to rounding. Encoders without a trunk of timm come back as they are.
    """
    if not isinstance(encoder, TimmEncoder):
        return encoder
    # Its place in timm has moved; this name of it has stayed.
    return importlib.import_module("timm.utils").reparameterize_model(encoder).eval()
