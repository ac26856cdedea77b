# SPDX-License-Identifier: Apache-2.0
"""Reading weight files with errors that say what to do."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from monai_kdsam.download import require_weights

__all__ = ["read_state_dict"]


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file; never executes what a pickle holds.

    Official SAM, MedSAM and MONAI layouts are understood: a raw state_dict, or one under "model", "state_dict" or
    "network", with or without the "module." prefix of data-parallel training.

    Raises:
        FileNotFoundError: naming the command that fetches the file.
        ValueError: when the file is damaged or holds something else.
    """
    path = require_weights(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, UnpicklingError, OSError, ValueError) as error:
        raise ValueError(
            f"Cannot read {path} as PyTorch weights: {str(error).splitlines()[0]} "
            "If it was downloaded, it is damaged: delete it and run `python -m monai_kdsam download` again."
        ) from error
    for wrapper in ("model", "state_dict", "network"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"Expected {path} to hold a state_dict of tensors, got {type(content).__name__}.")
    return {name.removeprefix("module."): value for name, value in content.items()}
