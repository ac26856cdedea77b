# SPDX-License-Identifier: Apache-2.0
"""One exported file as a function of named arrays, whatever runs it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_kdsam.errors import UserError

__all__ = ["Part", "open_part"]

# Inputs by position, outputs in their order. Threads may call one together.
Part = Callable[..., list[NDArray[Any]]]
DEVICES = ("cpu", "gpu")


def open_part(path: Path, form: str, *, threads: int | None = None, device: str = "cpu", half: bool = False) -> Part:
    """Load an exported file.

    Args:
        path: of the file.
        form: onnx, openvino or torchscript (which needs torch).
        threads: to compute with; None leaves it to the runtime, which takes every physical core.
        device: cpu or gpu: NVIDIA's for onnx and torchscript, Intel's for openvino.
        half: whether OpenVINO computes in float16 on a gpu, where the other formats do what the file says.

    Raises:
        ImportError: naming the package that runs the file, and how to install it.
        ValueError: when the file cannot be loaded, or there is no such device.
    """
    openers = {"onnx": _open_onnx, "openvino": _open_openvino, "torchscript": _open_torchscript}
    if form not in openers:
        raise UserError(f"Expected the format {', '.join(openers)}, got {form!r} for {path}.")
    if threads is not None and threads < 1:
        raise UserError(f"Expected `threads` to be at least 1, got {threads}.")
    if device not in DEVICES:
        raise UserError(f"Expected `device` to be one of {', '.join(DEVICES)}, got {device!r}.")
    package = {"onnx": "onnxruntime", "openvino": "openvino", "torchscript": "torch"}[form]
    try:
        library = importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f"{path.name} needs the package {package}: pip install {package}") from error
    if device == "gpu" and not _HAS_GPU[form](library):
        # Each of them would compute on the CPU instead, and two of them without a word.
        raise UserError(f"Expected a GPU that {package} {library.__version__} can use for `device` 'gpu', found none.")
    try:
        return openers[form](library, path, threads, device == "gpu", half)
    except Exception as error:  # each runtime has exceptions of its own
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"{package} {library.__version__} cannot load {path}: {reason}") from error


_HAS_GPU: dict[str, Callable[[Any], bool]] = {
    "onnx": lambda ort: "CUDAExecutionProvider" in ort.get_available_providers(),
    "openvino": lambda ov: any(name.startswith("GPU") for name in ov.Core().available_devices),
    "torchscript": lambda torch: torch.cuda.is_available(),
}


def _open_onnx(ort: Any, path: Path, threads: int | None, gpu: bool, half: bool) -> Part:
    ort.disable_telemetry_events()  # which its builds for Windows send to Microsoft
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    provider = "CUDAExecutionProvider" if gpu else "CPUExecutionProvider"
    session = ort.InferenceSession(str(path), options, providers=[provider])
    if provider not in session.get_providers():
        raise UserError("the CUDA provider does not start; are CUDA and cuDNN of its version installed?")
    names = [node.name for node in session.get_inputs()]
    return lambda *arrays: session.run(None, dict(zip(names, arrays, strict=True)))


def _open_openvino(ov: Any, path: Path, threads: int | None, gpu: bool, half: bool) -> Part:
    # By itself OpenVINO computes in bfloat16 on CPUs that have it, in float16 on a GPU, and the masks are no longer
    # those of the network.
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    settings["INFERENCE_PRECISION_HINT"] = "f16" if gpu and half else "f32"
    if threads is not None and not gpu:
        settings["INFERENCE_NUM_THREADS"] = threads
    compiled = ov.Core().compile_model(str(path), "GPU" if gpu else "CPU", settings)
    idle: list[Any] = []  # requests that nobody uses now: one computes for one caller only

    def run(*arrays: NDArray[Any]) -> list[NDArray[Any]]:
        try:
            request = idle.pop()
        except IndexError:
            request = compiled.create_infer_request()
        # Inputs are read where they lie; outputs are views of memory that the request's next caller overwrites.
        result = [np.array(value) for value in request.infer(list(arrays), share_inputs=True).values()]
        idle.append(request)
        return result

    return run


def _open_torchscript(torch: Any, path: Path, threads: int | None, gpu: bool, half: bool) -> Part:
    if threads is not None:
        torch.set_num_threads(threads)
    device = "cuda" if gpu else "cpu"
    module = torch.jit.load(str(path), map_location=device).eval()

    def run(*arrays: NDArray[Any]) -> list[NDArray[Any]]:
        with torch.no_grad():
            result = module(*(torch.from_numpy(array).to(device) for array in arrays))
        return [tensor.cpu().numpy() for tensor in (result if isinstance(result, tuple) else (result,))]

    return run
