# SPDX-License-Identifier: Apache-2.0
"""ImageNet's weights into a trunk, whatever names and normalization they have; the classifier is left out."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import ResNet

from monai_kdsam.errors import UserError
from monai_kdsam.weights.checkpoint import mismatches
from monai_kdsam.weights.state_dict import read_state_dict

__all__ = ["fold_normalization", "load_resnet", "load_timm", "to_timm_names"]

# SAM's, of values in 0 to 255; ImageNet's too.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
# EfficientNet-Lite's published names. A block without an expansion has timm's names of a separable convolution.
OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def load_resnet(trunk: ResNet, path: str | Path, name: str) -> None:
    """Load a checkpoint of torchvision's into a ResNet of this name, whose classifier is dropped.

    Raises:
        ValueError: when they are another model's.
    """
    # The classifier's size is the site's own business; everything else must fit.
    state = {key: value for key, value in read_state_dict(path).items() if not key.startswith("fc.")}
    trunk.fc = nn.Identity()
    problems = mismatches(state, trunk.state_dict())
    if problems:
        raise UserError(f"`imagenet_weights` {path} do not fit {name}: {problems}.")
    trunk.load_state_dict(state)


def to_timm_names(state: Mapping[str, Tensor], whole: nn.Module) -> dict[str, Tensor]:
    """The weights of EfficientNet-Lite as its PyTorch port publishes them, under timm's names; others as they are.

    Args:
        state: a checkpoint.
        whole: timm's model, whose blocks lie in stages.
    """
    if "_conv_stem.weight" not in state:
        return dict(state)
    found = (re.match(r"blocks\.\d+\.\d+", name) for name, _ in whole.named_modules())
    blocks = list(dict.fromkeys(match[0] for match in found if match))
    renamed = {}
    for key, value in state.items():
        block = re.match(r"_blocks\.(\d+)\.(\w+)\.(.+)", key)
        if block and int(block[1]) < len(blocks):
            is_expanded = f"_blocks.{block[1]}._expand_conv.weight" in state
            part = (EXPANDED if is_expanded else SEPARABLE).get(block[2], block[2])
            renamed[f"{blocks[int(block[1])]}.{part}.{block[3]}"] = value
        else:
            part, _, rest = key.partition(".")
            renamed[f"{OUTER.get(part, part)}.{rest}"] = value
    return renamed


def fold_normalization(
    state: Mapping[str, Tensor], whole: nn.Module, first: str, mean: Sequence[float], std: Sequence[float]
) -> dict[str, Tensor]:
    """Weights for images that are normalized as SAM's, of weights for images that were normalized otherwise.

    The first convolution is scaled, and what is left of the shift goes into its bias or into the batch norm behind it.
    Equal to rounding but for the border, where padding is zero in both: black in one is not black in the other.

    Args:
        state: of `whole`.
        whole: the model, in the order of its computation.
        first: name of its first convolution.
        mean: that the weights were trained with, of values in 0 to 1.
        std: likewise.
    """
    ours, theirs = (torch.tensor(MEAN), torch.tensor(STD)), (torch.tensor(mean) * 255, torch.tensor(std) * 255)
    if all(torch.allclose(a, b, atol=0.01) for a, b in zip(ours, theirs, strict=True)):
        return dict(state)
    weight = state[f"{first}.weight"]
    constant = (weight * ((ours[0] - theirs[0]) / theirs[1]).view(1, 3, 1, 1)).sum(dim=(1, 2, 3))
    folded = {**state, f"{first}.weight": weight * (ours[1] / theirs[1]).view(1, 3, 1, 1)}
    if f"{first}.bias" in state:
        folded[f"{first}.bias"] = state[f"{first}.bias"] + constant
    else:
        names = [name for name, _ in whole.named_modules()]
        norms = {name for name, module in whole.named_modules() if isinstance(module, nn.BatchNorm2d)}
        norm = next(name for name in names[names.index(first) :] if name in norms)
        folded[f"{norm}.running_mean"] = state[f"{norm}.running_mean"] - constant
    return folded


def load_timm(trunk: nn.Module, whole: nn.Module, path: str | Path, name: str) -> None:
    """Load what a trunk needs of a checkpoint of the whole model; all that the whole model has not is an error."""
    state = to_timm_names(read_state_dict(path), whole)
    # How timm fits the files of a model's authors, and tables of positions of another image size.
    fit = getattr(importlib.import_module(type(whole).__module__), "checkpoint_filter_fn", None)
    try:
        if fit is not None and len(inspect.signature(fit).parameters) >= 2:
            state = fit(state, whole)
    except (KeyError, RuntimeError, IndexError, AttributeError, ValueError) as error:
        raise UserError(f"`imagenet_weights` {path} do not fit timm's {name}: {error!r}") from error
    cfg: Any = whole.pretrained_cfg
    if f"{cfg['first_conv']}.weight" in state:
        state = fold_normalization(state, whole, cfg["first_conv"], cfg["mean"], cfg["std"])
    # A trunk that gives its stages calls `stages.3` `stages_3`, or puts all under `model`.
    own = {_plain(key.removeprefix("model.")): key for key in trunk.state_dict()}
    known = {_plain(key) for key in whole.state_dict()}
    given = {own.get(_plain(key), key): value for key, value in state.items()}
    # The classifier's size is the site's own business, and so is what else follows the last stage.
    needless = {key for key in given if key not in own.values() and _plain(key) in known}
    problems = mismatches({k: v for k, v in given.items() if k not in needless}, trunk.state_dict())
    if problems:
        raise UserError(f"`imagenet_weights` {path} do not fit timm's {name}: {problems}.")
    trunk.load_state_dict({key: given[key] for key in own.values()})


def _plain(key: str) -> str:
    return key.replace(".", "_")
