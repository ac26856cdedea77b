# SPDX-License-Identifier: Apache-2.0
"""Reading weight files with errors that say what to do."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from monai_kdsam.download import require_weights

__all__ = ["check_crc", "load_tensors", "read_state_dict"]


def load_tensors(path: str | Path) -> Any:
    """`torch.load` of tensors and plain containers; never executes what a pickle holds. Reads .safetensors as well.

    Raises:
        ValueError: with the reason in one line, when the file is damaged or holds other objects.
    """
    try:
        if Path(path).suffix == ".safetensors":
            return load_file(path)
        check_crc(path)  # torch does not
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged pickle raises depends on the damage
        # torch's own text spans many lines and suggests to execute the file.
        other = re.search(r"GLOBAL (\S+)", str(error))
        if other:
            raise ValueError(f"it holds other objects than tensors ({other[1]})") from error
        text = str(error).partition("\n")[0]
        is_vague = not text or text.startswith("Weights only load failed")
        raise ValueError("it is no complete PyTorch file" if is_vague else text.rstrip(".?")) from error


def check_crc(path: str | Path) -> None:
    """Read a zip, which PyTorch's files are since 1.6, by the checksums in it; a file of another kind passes.

    Raises:
        ValueError: when a part is not what was written.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"its part {damaged} is not what was written, by the file's own checksum")


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file; never executes what a pickle holds.

    Official SAM, MedSAM and MONAI layouts are understood: a raw state_dict, or one under "model", "state_dict" or
    "network", with or without the "module." prefix of data-parallel training.

    Raises:
        FileNotFoundError: naming the command that fetches the file.
        ValueError: when the file is damaged or holds something else, or values that are not finite.
    """
    path = require_weights(path)
    try:
        content = load_tensors(path)
    except ValueError as error:
        raise ValueError(
            f"Cannot read {path} as PyTorch weights: {error}. "
            "If it was downloaded, it is damaged: delete it and run `python -m monai_kdsam download` again."
        ) from error
    for wrapper in ("model", "state_dict", "network"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"Expected {path} to hold a state_dict of tensors, got {type(content).__name__}.")
    for name, value in content.items():
        if not value.isfinite().all():
            raise ValueError(
                f"The weights in {path} are not finite: {name} holds NaN or infinity. Their training failed, or the "
                "file is damaged; take an earlier one, or train again with a lower `learning_rate`."
            )
    return {name.removeprefix("module."): value for name, value in content.items()}
