# SPDX-License-Identifier: Apache-2.0
"""Putting weights into a network."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from monai_kdsam.networks.sam import fit_positions
from monai_kdsam.weights import read_state_dict

__all__ = ["load_weights", "mismatches"]

logger = logging.getLogger(__name__)
Module = TypeVar("Module", bound=nn.Module)


def load_weights(network: Module, path: str | Path | None) -> Module:
    """Load a checkpoint into a network, all of it or not at all.

    A ViT's position tables are interpolated where the network's input size differs from the checkpoint's.

    Args:
        network: a `KDSAM` of the same architecture as the checkpoint.
        path: see `read_state_dict`; None leaves the network as it is, which is logged.

    Returns:
        The same network.

    Raises:
        ValueError: naming the entries that are missing, not expected or of another shape.
    """
    if path is None:
        logger.warning("%s starts from random weights: no checkpoint was given.", type(network).__name__)
        return network
    own = network.state_dict()
    state = fit_positions(read_state_dict(path), own)
    problems = mismatches(state, own)
    if problems:
        raise ValueError(
            f"The weights in {path} are of another architecture{_describe(state)}: {problems}. "
            "Choose the network that the checkpoint was made for (`teacher`, `backbone`, `neck`)."
        )
    network.load_state_dict(state)
    logger.info("Loaded %s.", path)
    return network


def mismatches(state: dict[str, Tensor], own: dict[str, Tensor]) -> str:
    """The first few entries of a checkpoint that do not fit a network's own state; empty where all do."""
    problems = [f"missing {name}" for name in own if name not in state]
    problems += [f"unexpected {name}" for name in state if name not in own]
    problems += [
        f"{name} is {tuple(state[name].shape)}, the network's is {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    return "; ".join(problems[:4]) + (f"; and {len(problems) - 4} more" if len(problems) > 4 else "")


def _describe(state: dict[str, Tensor]) -> str:
    """Name a SAM's size, for the error message."""
    patches = state.get("image_encoder.patch_embed.proj.weight")
    if patches is None:
        return ""
    width = patches.shape[0]
    name = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}.get(width, "ViT")
    return f" (it holds a {name} of width {width})"
