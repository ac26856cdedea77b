# SPDX-License-Identifier: Apache-2.0
"""What learns of a network, and what an optimizer is given of it."""

from __future__ import annotations

from typing import Any

from torch import nn

from monai_kdsam.networks.kdsam import KDSAM

__all__ = ["frozen_parts", "parameter_groups"]


def frozen_parts(prompt_map: bool, train_encoder: bool, iou_weight: float) -> list[str]:
    """The parts for `KDSAM.freeze` that a training on masks leaves as they are.

    Args:
        prompt_map: prompts are drawn as well; the prompt encoder, which draws them, then learns too.
        train_encoder: the image encoder learns too.
        iou_weight: of the loss of the IoU head; without one it does not learn.
    """
    learns = {"prompt_encoder": prompt_map, "image_encoder": train_encoder, "iou_head": iou_weight > 0}
    return [part for part, does in learns.items() if not does]


def parameter_groups(network: KDSAM, *, learning_rate: float, trunk_rate: float = 1.0) -> list[dict[str, Any]]:
    """The parameters that learn, in groups for `torch.optim.AdamW`.

    Weight decay is for weights that are multiplied with what a layer sees. Biases and norms are left out of it, as
    usual, and so are the prompts' and masks' embeddings and the last layer of the IoU head, of which some rows belong
    to masks that no loss reaches: decay alone would wear them away. (MONAI's `generate_param_groups` knows rates, but
    no decay; timm's knows decay, but no rates.)

    Args:
        network: frozen parts of it are left out.
        learning_rate: of all but the trunk.
        trunk_rate: share of it for the image encoder without its neck and its fine features, which begins with weights
            of its own more often than the others.

    Returns:
        Up to four groups, each with `lr`; those that must not decay have a `weight_decay` of 0.
    """
    undecayed = {id(parameter) for parameter in network.mask_decoder.iou_prediction_head.layers[-1].parameters()}
    undecayed |= {id(module.weight) for module in network.modules() if isinstance(module, nn.Embedding)}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            in_trunk = name.startswith("image_encoder.") and name.split(".")[1] not in ("neck", "fine")
            decays = parameter.ndim > 1 and id(parameter) not in undecayed
            groups.setdefault((in_trunk, decays), []).append(parameter)
    return [
        {"params": parameters, "lr": learning_rate * (trunk_rate if in_trunk else 1.0)}
        | ({} if decays else {"weight_decay": 0.0})
        for (in_trunk, decays), parameters in groups.items()
    ]
