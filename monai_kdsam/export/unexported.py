# SPDX-License-Identifier: Apache-2.0
"""The light runtime's predictor on a bundle that was not exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from monai_kdsam.export.bundle import describe, read_config
from monai_kdsam.export.parts import Decoder
from monai_kdsam.inferers import BundlePredictor
from monai_kdsam.runtime import Predictor
from monai_kdsam.runtime.manifest import Manifest
from monai_kdsam.runtime.sessions import Part

__all__ = ["UnexportedPredictor"]


class UnexportedPredictor(Predictor):
    """Segments as the exported files of a bundle would, with its network in PyTorch, which takes seconds to start.

    Args:
        folder: of the bundle.
        **settings: of `Predictor`.
    """

    def _load(self, folder: Path, threads: int | None, device: str) -> tuple[Manifest, Part, Part]:
        if threads is not None:
            torch.set_num_threads(threads)
        predictor = BundlePredictor(folder, device="cpu", progress=False)
        manifest = describe(folder, predictor, "pytorch", "fp32", {}, {}, read_config(folder))
        network = predictor.network
        return manifest, _part(network.image_encoder), _part(Decoder(network))


def _part(module: nn.Module) -> Part:
    def run(*arrays: NDArray[Any]) -> list[NDArray[Any]]:
        with torch.no_grad():
            result = module(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))
        return [tensor.numpy() for tensor in (result if isinstance(result, tuple) else (result,))]

    return run
