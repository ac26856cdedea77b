# SPDX-License-Identifier: Apache-2.0
"""8-bit encoders by NNCF's post-training quantization; what it costs is measured on masks, not on features."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_kdsam.export.parity import mask_iou
from monai_kdsam.networks import KDSAM

__all__ = ["MaskAgreement", "kept_in_float32", "quantization_settings", "quantize", "runner"]

logger = logging.getLogger(__name__)
Image = NDArray[np.float32]  # (1, 3, S, S)


class MaskAgreement:
    """Mean IoU between the masks of another encoder and those of the network, under the same prompts.

    Args:
        network: the decoder, and the encoder to agree with.
        images: (1, 3, S, S), normalized.
        prompts: points (1, K, N, 2) and labels (1, K, N) of each image, XY pixels of the input.
    """

    def __init__(self, network: KDSAM, images: Sequence[Image], prompts: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.network, self.images, self.prompts = network, images, prompts
        with torch.no_grad():
            self.masks = [
                network(torch.from_numpy(image), *prompt).numpy() > 0
                for image, prompt in zip(images, prompts, strict=True)
            ]

    def __call__(self, encode: Callable[[Image], NDArray[Any]]) -> float:
        """Agreement of `encode`, (1, 3, S, S) to (1, 256, S/16, S/16)."""
        values: list[float] = []
        for image, prompt, masks in zip(self.images, self.prompts, self.masks, strict=True):
            with torch.no_grad():
                other = self.network.predict(torch.from_numpy(np.array(encode(image))), *prompt).numpy() > 0
            values += [mask_iou(a, b) for a, b in zip(other[0], masks[0], strict=True)]
        return float(np.mean(values))


def quantization_settings(encoder: Any, count: int) -> dict[str, Any]:
    """Keywords for `nncf.quantize` of an encoder, calibrated with `count` pictures.

    Some layers stay in float32, see `kept_in_float32`. The weights of the others keep to half of their range: without
    VNNI a CPU adds pairs of 8-bit products in 16 bits, which saturate. On every CPU, since the parity found here would
    say nothing about an older one that the export is sent to.
    """
    import nncf

    ignored = nncf.IgnoredScope(names=kept_in_float32(encoder))
    advanced = nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE)
    return {
        "subset_size": count,
        "preset": nncf.QuantizationPreset.MIXED,
        "advanced_parameters": advanced,
        "ignored_scope": ignored,
    }


def kept_in_float32(encoder: Any) -> list[str]:
    """Names of depthwise convolutions, and of the ones before and behind where a trunk begins with one.

    Each of their channels has a range of its own, which one scale for all does not serve: of EfficientNet-Lite0 they
    made nine tenths of the error, most of it in the first block, from which all others inherit it. Their weights are
    few, and ONNX Runtime is slower with them in 8 bits than in float32.
    """
    if hasattr(encoder, "graph"):
        shapes = {weights.name: weights.dims for weights in encoder.graph.initializer}
        nodes = [node for node in encoder.graph.node if node.op_type == "Conv"]
        found = [(node.name, shapes[node.input[1]][1] == 1) for node in nodes]  # reads one channel each
    else:
        kinds = ("Convolution", "GroupConvolution")
        operations = [one for one in encoder.get_ordered_ops() if one.get_type_name() in kinds]
        found = [(one.get_friendly_name(), one.input(1).get_shape()[-3] == 1) for one in operations]
    begins = [depthwise for _, depthwise in found[:2]] == [False, True]
    return [name for number, (name, depthwise) in enumerate(found) if depthwise or (begins and number < 3)]


def quantize(encoder: Any, images: Sequence[Image], agreement: MaskAgreement, *, least: float) -> Any:
    """An encoder with 8-bit weights and activations.

    Where that costs more agreement than allowed, the layers that hurt are found one by one and left in float32.

    Args:
        encoder: `onnx.ModelProto` or `openvino.Model`.
        images: to calibrate with.
        agreement: tells how good the result is.
        least: the agreement to reach.

    Returns:
        An encoder of the same kind.
    """
    import nncf

    nncf.set_log_level(logging.ERROR)
    feed = _feed(encoder)
    calibration = nncf.Dataset(images, feed)
    settings = quantization_settings(encoder, len(images))
    quantized = nncf.quantize(encoder, calibration, **settings)
    reached = agreement(runner(quantized))
    logger.info("In 8 bits masks agree to %.4f.", reached)
    if reached >= least:
        return quantized

    def validate(model: Any, _: Iterable[Any]) -> tuple[float, None]:
        # NNCF hands over compiled models of OpenVINO, but bare ones of ONNX.
        return agreement((lambda image: _first(model(image))) if callable(model) else runner(model)), None

    advanced = settings.pop("advanced_parameters")  # which has another name there
    logger.info("That is below %.4f: looking for the layers that hurt, which takes a while.", least)
    return nncf.quantize_with_accuracy_control(
        encoder,
        calibration,
        nncf.Dataset(agreement.images, feed),
        validate,
        max_drop=1 - least,
        advanced_quantization_parameters=advanced,
        **settings,
    )


def _feed(encoder: Any) -> Callable[[Image], Any]:
    """How NNCF wants the inputs of a model: ONNX by name, OpenVINO by position."""
    return (lambda image: {"image": image}) if hasattr(encoder, "graph") else (lambda image: image)


def _first(outputs: Any) -> NDArray[Any]:
    values: Iterator[Any] = iter(outputs.values() if hasattr(outputs, "values") else outputs)
    return np.asarray(next(values))


def runner(encoder: Any) -> Callable[[Image], NDArray[Any]]:
    """An encoder in memory as a function, (1, 3, S, S) to (1, 256, S/16, S/16)."""
    if hasattr(encoder, "graph"):
        import onnxruntime

        session = onnxruntime.InferenceSession(encoder.SerializeToString(), providers=["CPUExecutionProvider"])
        return lambda image: session.run(None, {"image": image})[0]
    import openvino

    compiled = openvino.compile_model(encoder, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda image: _first(compiled(image))
