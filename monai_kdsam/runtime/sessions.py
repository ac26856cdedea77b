# SPDX-License-Identifier: Apache-2.0
"""One exported file as a function of named arrays, whatever runs it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Part", "open_part"]

# Inputs by position, outputs in their order.
Part = Callable[..., list[NDArray[Any]]]


def open_part(path: Path, form: str, *, threads: int | None = None) -> Part:
    """Load an exported file.

    Args:
        path: of the file.
        form: onnx, openvino or torchscript (which needs torch).
        threads: to compute with; None leaves it to the runtime, which takes every physical core.

    Raises:
        ImportError: naming the package that runs the file, and how to install it.
        ValueError: when the file cannot be loaded.
    """
    openers = {"onnx": _open_onnx, "openvino": _open_openvino, "torchscript": _open_torchscript}
    if form not in openers:
        raise ValueError(f"Expected the format {', '.join(openers)}, got {form!r} for {path}.")
    if threads is not None and threads < 1:
        raise ValueError(f"Expected `threads` to be at least 1, got {threads}.")
    package = {"onnx": "onnxruntime", "openvino": "openvino", "torchscript": "torch"}[form]
    try:
        library = importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f"{path.name} needs the package {package}: pip install {package}") from error
    try:
        return openers[form](library, path, threads)
    except Exception as error:  # each runtime has exceptions of its own
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(f"{package} {library.__version__} cannot load {path}: {reason}") from error


def _open_onnx(ort: Any, path: Path, threads: int | None) -> Part:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    return lambda *arrays: session.run(None, dict(zip(names, arrays, strict=True)))


def _open_openvino(ov: Any, path: Path, threads: int | None) -> Part:
    # OpenVINO computes in bfloat16 by itself where the CPU has it, and the masks are no longer those of the network.
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    request = ov.Core().compile_model(str(path), "CPU", settings).create_infer_request()

    def run(*arrays: NDArray[Any]) -> list[NDArray[Any]]:
        # Inputs are read where they lie; outputs are views of memory that the next call overwrites.
        return [np.array(value) for value in request.infer(list(arrays), share_inputs=True).values()]

    return run


def _open_torchscript(torch: Any, path: Path, threads: int | None) -> Part:
    if threads is not None:
        torch.set_num_threads(threads)
    module = torch.jit.load(str(path), map_location="cpu").eval()

    def run(*arrays: NDArray[Any]) -> list[NDArray[Any]]:
        with torch.no_grad():
            result = module(*(torch.from_numpy(array) for array in arrays))
        return [tensor.numpy() for tensor in (result if isinstance(result, tuple) else (result,))]

    return run
