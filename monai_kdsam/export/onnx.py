# SPDX-License-Identifier: Apache-2.0
"""To ONNX, by PyTorch's own exporter."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from monai_kdsam.export.parts import AutomaticHead, Decoder, example_inputs
from monai_kdsam.networks import KDSAM
from monai_kdsam.networks.timm_encoder import fused

__all__ = ["join", "to_graphs", "to_half", "trace", "write_onnx"]

Graph = Any  # onnx.ModelProto; onnx is an extra
# In half precision the squares that a layer norm sums overflow, and its division loses what is left.
_KEPT_IN_FLOAT32 = ["ReduceMean", "Pow", "Sqrt", "Div", "Reciprocal", "Sub"]


def to_graphs(network: KDSAM) -> dict[str, Graph]:
    """The float32 graphs of `encoder`, `decoder` and `head` (see `AutomaticHead`), dynamic in batch and points."""
    image, embedding, points, labels = example_inputs(network.image_size)
    batch, count = torch.export.Dim("batch"), torch.export.Dim("points")
    prompts = [{0: batch}, {0: batch, 1: count}, {0: batch, 1: count}]
    return {
        "encoder": trace(fused(network.image_encoder), (image,), ["image"], ["embedding"], [{0: batch}]),
        "decoder": trace(
            Decoder(network).eval(),
            (embedding, points, labels),
            ["embedding", "points", "labels"],
            ["masks", "iou"],
            prompts,
        ),
        "head": trace(AutomaticHead(network).eval(), (embedding,), ["embedding"], ["pred"], [{0: batch}]),
    }


def trace(
    module: nn.Module, arguments: tuple[Tensor, ...], inputs: list[str], outputs: list[str], shapes: Sequence[Any]
) -> Graph:
    """The ONNX graph of a module.

    Args:
        module: in eval mode.
        arguments: an example of its inputs; free dimensions must be larger than one.
        inputs: their names.
        outputs: names of its outputs.
        shapes: the free dimensions of each input, as `torch.export` wants them.
    """
    noisy = logging.getLogger("onnxscript"), logging.getLogger("torch.onnx")
    levels = [logger.level for logger in noisy]
    try:
        for logger in noisy:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # about names of axes, and of torch's own deprecations
            program = torch.onnx.export(
                module,
                arguments,
                input_names=inputs,
                output_names=outputs,
                dynamic_shapes=tuple(shapes),
                dynamo=True,
                verbose=False,
            )
    finally:
        for logger, level in zip(noisy, levels, strict=True):
            logger.setLevel(level)
    assert program is not None  # None is what the exporter's older form returns
    return program.model_proto


def to_half(graph: Graph) -> Graph:
    """The graph in float16, but for its inputs, outputs and layer norms."""
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    blocked = [*DEFAULT_OP_BLOCK_LIST, *_KEPT_IN_FLOAT32]
    # Without its shape inference, which writes the batch of one picture into the graph.
    half = convert_float_to_float16(graph, keep_io_types=True, op_block_list=blocked, disable_shape_infer=True)
    sorted_by_use = OnnxModel(half)  # the casts were appended at the end
    sorted_by_use.topological_sort()
    return sorted_by_use.model


def join(encoder: Graph, head: Graph) -> Graph:
    """One graph, image -> pred, of an encoder of any precision and the automatic head."""
    import onnx.compose

    # Both graphs call their nodes by the same names.
    head = onnx.compose.add_prefix(head, "head/", rename_inputs=False, rename_outputs=False)
    encoder.ir_version = head.ir_version = max(encoder.ir_version, head.ir_version)
    return onnx.compose.merge_models(encoder, head, io_map=[("embedding", "embedding")])


def write_onnx(graphs: dict[str, Graph], folder: Path) -> dict[str, str]:
    """Write encoder, decoder and image-only model; returns part to file name."""
    import onnx

    parts = {
        "encoder": graphs["encoder"],
        "decoder": graphs["decoder"],
        "model": join(graphs["encoder"], graphs["head"]),
    }
    for name, graph in parts.items():
        onnx.save(graph, str(folder / f"{name}.onnx"))
    return {name: f"{name}.onnx" for name in parts}
