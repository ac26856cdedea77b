# SPDX-License-Identifier: Apache-2.0
"""What the App SDK needs before MONAI may be imported."""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import NoReturn

from monai_kdsam.errors import UserError

__all__ = ["prepare_app_sdk"]

CUDA_RUNTIME = "libcudart.so.13"
INSTALL = {
    "monai-deploy-app-sdk": 'pip install "monai-deploy-app-sdk==4.0.0" "holoscan-cu13<4.3" "holoscan-cli<4.3"',
    "holoscan": 'pip install "holoscan-cu13<4.3"',
    "highdicom": 'pip install "highdicom>=0.23"',
    CUDA_RUNTIME: "pip install nvidia-cuda-runtime==13.0.96",
}


def prepare_app_sdk() -> None:
    """Find the App SDK and load the CUDA runtime that holoscan is linked with, on a machine without a GPU too.

    To be called before MONAI is imported: the App SDK is a part of MONAI's package and is imported with it.

    Raises:
        UserError: naming what is missing, and the command that installs it.
    """
    # Holoscan tells on stderr what is on the way to its caller as an exception.
    os.environ.setdefault("HOLOSCAN_LOG_LEVEL", "OFF")
    # Hints at faster decoders, larger stacks and newer formats, none of which a user of this command can follow.
    warnings.filterwarnings("ignore", module=r"(holoscan|highdicom|monai|torch)\.")
    logging.getLogger("monai").setLevel(logging.ERROR)
    # MONAI itself must not be imported in order to find its part.
    folders = [Path(entry) / "monai" / "deploy" for entry in sys.path]
    if not any(folder.is_dir() for folder in folders):
        _missing("monai-deploy-app-sdk")
    for module in ("holoscan", "highdicom"):
        if importlib.util.find_spec(module) is None:
            _missing(module)
    _load_cuda_runtime()


def _missing(package: str) -> NoReturn:
    raise UserError(f"`deploy` needs {package}, which is not installed here: {INSTALL[package]}")


def _load_cuda_runtime() -> None:
    """A library that is loaded once is found again by its name, wherever it lies."""
    installed = [Path(entry) / "nvidia" / "cu13" / "lib" / CUDA_RUNTIME for entry in sys.path]
    for place in [str(path) for path in installed if path.is_file()] + [CUDA_RUNTIME]:
        try:
            ctypes.CDLL(place, ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return
    _missing(CUDA_RUNTIME)
