# SPDX-License-Identifier: Apache-2.0
"""Weights out of a network into a file, and back."""

from __future__ import annotations

import fnmatch
import json
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from monai_kdsam.errors import UserError
from monai_kdsam.files import replacing
from monai_kdsam.weights.sam_layout import fit_positions, to_sam_layout
from monai_kdsam.weights.sidecar import describe_weights, origin_of, read_sidecar, sidecar_path, write_sidecar
from monai_kdsam.weights.state_dict import merged_state_dict, read_state_dict

__all__ = ["load_weights", "mismatches", "save_weights"]

logger = logging.getLogger(__name__)
Module = TypeVar("Module", bound=nn.Module)
# Settings of networks of earlier versions, with the value by which these are networks of this one.
GIVEN_UP = {"multimask": False}
ADAPTER = re.compile("adapter|lora_", re.IGNORECASE)


def save_weights(
    network: nn.Module,
    path: str | Path,
    settings: Mapping[str, Any] | None = None,
    *,
    remedy: str = "",
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write a network's raw state_dict, LoRA merged, and beside it the sidecar with what it was built and trained with.

    Both are replaced atomically, the weights first: at no time there is a sidecar beside weights that it does not
    describe.

    Args:
        network: what a builder of ours made knows its settings itself (`KDSAM.settings`).
        path: of the weights.
        settings: further ones, such as the normalization of the images; `load_weights` compares them.
        remedy: see `replacing`.
        about: the training, for people, see `describe_weights`; nothing compares it.

    Raises:
        OSError: when the disk is full or the folder is not writable.
    """
    path = Path(path)
    with replacing(path, remedy) as unfinished:
        torch.save(merged_state_dict(network), unfinished)
        sidecar_path(path).unlink(missing_ok=True)
    start = {"began_from": began_from} if (began_from := getattr(network, "began_from", None)) else {}
    write_sidecar(path, _settings(network, settings), remedy=remedy, about=start | dict(about or {}))


def load_weights(
    network: Module,
    path: str | Path | None,
    settings: Mapping[str, Any] | None = None,
    *,
    may_differ: Collection[str] = (),
    leave_out: Sequence[str] = (),
) -> Module:
    """Load a checkpoint into a network, all of it or not at all.

    A ViT's position tables are interpolated where the network's input size differs from the checkpoint's, and the
    names of `transformers.SamModel` are understood as SAM's. Weights that a training of ours wrote are loaded only into
    a network with the settings that they were trained with.

    Args:
        network: a `KDSAM` of the same architecture as the checkpoint.
        path: see `read_state_dict`; None leaves the network as it is, which is logged.
        settings: see `save_weights`.
        may_differ: settings that a training which starts from these weights may change.
        leave_out: patterns, as of file names, of the checkpoint's entries that this network has no place for, such as
            those of adapters or of HQ-SAM.

    Returns:
        The same network.

    Raises:
        ValueError: naming the entries that are missing, not expected or of another shape, the settings that are
            others, or what is wrong with the files.
    """
    if path is None:
        if not getattr(network, "has_imagenet_weights", False):
            logger.warning(
                "%s starts from RANDOM weights: neither a checkpoint, `student_weights` nor `imagenet_weights` were "
                "given. ImageNet's are worth many epochs: `python -m monai_kdsam download --help` names them.",
                type(network).__name__,
            )
        else:
            logger.info("%s starts from ImageNet's weights in its trunk.", type(network).__name__)
            _note_start(network, "ImageNet's weights")
        return network
    _check_settings(Path(path), _settings(network, settings), may_differ)
    own = network.state_dict()
    state = fit_positions(_without(to_sam_layout(read_state_dict(path)), leave_out, path), own)
    # They begin at zero: without them in the file the network computes what it was trained to compute.
    state = {name: value for name, value in own.items() if name.startswith("image_encoder.fine.")} | state
    problems = mismatches(state, own)
    if problems:
        raise UserError(
            f"The weights in {path} are of another architecture{_describe(state)}: {problems}. "
            "Choose the network that the checkpoint was made for (`teacher`, `backbone`, `neck`); entries that it has "
            f"beyond that network can be left out (`leave_out`).{_of_adapters(state, own)}"
        )
    network.load_state_dict(state)
    logger.info("Loaded %s: %s", path, describe_weights(path))
    _note_start(network, origin_of(path))
    return network


def _note_start(network: nn.Module, start: str) -> None:
    """What the network begins from, which its sidecar will say; modules that are not ours do without."""
    if hasattr(network, "began_from"):
        network.began_from = start  # type: ignore[assignment]


def _without(state: dict[str, Tensor], patterns: Sequence[str], path: str | Path) -> dict[str, Tensor]:
    """Leave out the entries of these names."""
    for pattern in patterns:
        found = fnmatch.filter(state, pattern)
        if not found:
            raise UserError(f"Expected `leave_out` to name entries of {path}, got {pattern!r}, which none is like.")
        logger.info("%d entries of %s are left out: %s.", len(found), path, _few(found))
        state = {name: value for name, value in state.items() if name not in found}
    return state


def mismatches(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """The entries of a checkpoint that do not fit a network's own state, a few of each kind; empty where all do."""
    problems = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "of another shape": [
            f"{name} {tuple(state[name].shape)}, the network's is {tuple(own[name].shape)}"
            for name in own
            if name in state and state[name].shape != own[name].shape
        ],
    }
    return "; ".join(f"{len(names)} {kind} ({_few(names)})" for kind, names in problems.items() if names)


def _few(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _settings(network: nn.Module, others: Mapping[str, Any] | None) -> dict[str, Any]:
    """The network's own settings under "network" and the others beside it, as they come back from JSON."""
    settings: dict[str, Any] = json.loads(json.dumps({"network": getattr(network, "settings", {}), **(others or {})}))
    return settings


def _check_settings(path: Path, own: dict[str, Any], may_differ: Collection[str]) -> None:
    """Raise where weights were trained with other settings than those of the network that they are for."""
    trained = read_sidecar(path)
    if trained is None:
        logger.info("%s has no %s beside it: its settings are not checked.", path, sidecar_path(path).name)
        return
    built, network = trained.pop("network", {}), own.pop("network")
    for name, value in GIVEN_UP.items():
        if built.pop(name, value) != value:
            was = f"{name}={_as_typed(not value)}"
            raise UserError(f"{path} was trained with {was}, which this version does not know. Train anew.")
    # What the same builder does not know was added by a later version; another builder takes other arguments.
    of_network = built.keys() if built.get("builder") == network.get("builder") else built.keys() & network.keys()
    pairs = {name: (built[name], network.get(name)) for name in of_network - {"builder"}}
    pairs |= {name: (trained[name], own[name]) for name in trained.keys() & own.keys()}
    others = sorted(
        (name, *values) for name, values in pairs.items() if values[0] != values[1] and name not in may_differ
    )
    if others:
        was, now = (", ".join(f"{each[0]}={_as_typed(each[place])}" for each in others) for place in (1, 2))
        raise UserError(
            f"{path} was trained with {was}, and is to run with {now}: its masks would be wrong. Ask for what it was "
            "trained with, on the command line for one run or in the bundle's configs (`bundle DIR --set`) for good; "
            "or train anew."
        )


def _as_typed(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _of_adapters(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """A sentence that names the entries of adapters, which only their authors' network has a place for."""
    found = [name for name in state if name not in own and ADAPTER.search(name)]
    if not found:
        return ""
    patterns = sorted({f"*{part}*" for name in found for part in name.split(".") if ADAPTER.search(part)})
    return f" {len(found)} are of adapters, {patterns}: without these it is not its authors' model."


def _describe(state: dict[str, Tensor]) -> str:
    """Name a SAM's size, for the error message."""
    if any(name.startswith("image_encoder.trunk.") for name in state):
        return " (it holds a SAM 2, which no network here is)"
    patches = state.get("image_encoder.patch_embed.proj.weight")
    if patches is None:
        return ""
    width = patches.shape[0]
    name = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}.get(width, "ViT")
    return f" (it holds a {name} of width {width})"
