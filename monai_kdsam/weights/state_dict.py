# SPDX-License-Identifier: Apache-2.0
"""Reading weight files with errors that say what to do."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from monai_kdsam.errors import UserError
from monai_kdsam.weights.download import require_weights

__all__ = ["check_crc", "load_tensors", "merged_state_dict", "read_state_dict"]

WRAPPERS = ("model", "state_dict", "network", "model_state_dict")
PREFIXES = ("_orig_mod.", "module.", "model.", "sam.")


def _numpy_scalar() -> list[Any]:
    """What a numpy number (a best Dice, a learning rate) in a file asks for, under both names that numpy gave it."""
    scalar = np.float64(0).__reduce__()[0]
    kinds = {type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"}
    return [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")] + [np.dtype, *kinds]


_NUMPY_SCALAR = _numpy_scalar()


class _LeftBehind:
    """What a training put beside its weights, such as an optimizer: read over, with nothing of its class executed."""


def _empty(*_: Any) -> dict[Any, Any]:
    return {}


# SAM-Med2D's files hold an optimizer, others the command line.
_BESIDE = ("torch.optim.adam.Adam", "torch.optim.adamw.AdamW", "torch.optim.sgd.SGD", "argparse.Namespace")
_READ_OVER: list[Any] = [*((_LeftBehind, name) for name in _BESIDE), (_empty, "collections.defaultdict"), dict]


def load_tensors(path: str | Path) -> Any:
    """`torch.load` of tensors and plain containers; never executes what a pickle holds. Reads .safetensors as well.

    Raises:
        ValueError: with the reason in one line, when the file is damaged or holds other objects.
    """
    try:
        if Path(path).suffix == ".safetensors":
            return load_file(path)
        check_crc(path)  # torch does not
        with torch.serialization.safe_globals([*_NUMPY_SCALAR, *_READ_OVER]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged pickle raises depends on the damage
        # torch's own text spans many lines and suggests to execute the file.
        other = re.search(r"GLOBAL (\S+)", str(error))
        if other:
            raise UserError(f"it holds other objects than tensors ({other[1]})") from error
        text = str(error).partition("\n")[0]
        is_vague = not text or text.startswith("Weights only load failed")
        raise UserError("it is no complete PyTorch file" if is_vague else text.rstrip(".?")) from error


def merged_state_dict(network: nn.Module) -> dict[str, Tensor]:
    """The state_dict of the network without its parametrizations, such as LoRA's: what they compute is the weight."""
    state: dict[str, Tensor] = {}
    for name, value in network.state_dict().items():
        layer, is_parametrized, parts = name.rpartition(".parametrizations.")
        if not is_parametrized:
            state[name] = value
        elif parts.endswith(".original"):
            weight = parts.removesuffix(".original")
            state[f"{layer}.{weight}"] = getattr(network.get_submodule(layer), weight).detach()
    return state


def check_crc(path: str | Path) -> None:
    """Read a zip, which PyTorch's files are since 1.6, by the checksums in it; a file of another kind passes.

    Raises:
        ValueError: when a part is not what was written.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise UserError(f"its part {damaged} is not what was written, by the file's own checksum")


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file; never executes what a pickle holds.

    Official SAM, MedSAM and MONAI layouts are understood: a raw state_dict, or one under a name in `WRAPPERS`, where
    all names may have a prefix of `PREFIXES`, as `torch.compile`, data-parallel training or a class around SAM adds it.

    Raises:
        FileNotFoundError: naming the command that fetches the file.
        ValueError: when the file is damaged or holds something else, or values that are not finite.
    """
    path = require_weights(path)
    try:
        content = load_tensors(path)
    except ValueError as error:
        raise UserError(
            f"Cannot read {path} as PyTorch weights: {error}. "
            "If it was downloaded, it is damaged: delete it and run `python -m monai_kdsam download` again."
        ) from error
    state = _find_state(content)
    if state is None:
        held = f"a dictionary of {_list_names(content)}" if isinstance(content, dict) else type(content).__name__
        raise UserError(
            f"Expected {path} to hold a state_dict of tensors, or one under {', '.join(WRAPPERS)}; got {held}."
        )
    for name, value in state.items():
        if not value.isfinite().all():
            raise UserError(
                f"The weights in {path} are not finite: {name} holds NaN or infinity. Their training failed, or the "
                "file is damaged; take an earlier one, or train again with a lower `learning_rate`."
            )
    return _without_prefixes(state)


def _find_state(content: Any) -> dict[str, Tensor] | None:
    """The state_dict in what a file holds; None where there is none, or several might be meant."""
    if not isinstance(content, dict):
        return None
    inside = [content[name] for name in WRAPPERS if isinstance(content.get(name), dict)]
    state = inside[0] if inside else content
    return state if state and all(isinstance(value, Tensor) for value in state.values()) else None


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Strip what all names begin with, as long as it is one of `PREFIXES`."""
    while prefix := next((each for each in PREFIXES if all(name.startswith(each) for name in state)), ""):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _list_names(content: Mapping[Any, Any]) -> str:
    names = [str(name) for name in content]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "nothing"
