# SPDX-License-Identifier: Apache-2.0
"""To ONNX, by PyTorch's own exporter."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from monai_kdsam.export.parts import AutomaticHead, Decoder, example_masks
from monai_kdsam.networks import KDSAM
from monai_kdsam.networks.scriptable import example_inputs
from monai_kdsam.networks.timm_encoder import fused

__all__ = ["encoder_graph", "join", "to_graphs", "to_half", "trace", "write_onnx"]

Graph = Any  # onnx.ModelProto; onnx is an extra
# In half precision the squares that a layer norm sums overflow, and its division loses what is left.
_KEPT_IN_FLOAT32 = ["ReduceMean", "Pow", "Sqrt", "Div", "Reciprocal", "Sub"]


def encoder_graph(network: KDSAM) -> Graph:
    """The float32 graph image -> embedding, of any number of images."""
    image = example_inputs(network)[0]
    return trace(fused(network.image_encoder).eval(), {"image": (image, {0: torch.export.Dim("batch")})}, ["embedding"])


def to_graphs(network: KDSAM) -> dict[str, Graph]:
    """The float32 graphs of `encoder`, `decoder` and `head` (see `AutomaticHead`).

    The decoder takes any number of prompts and points on one image, the others any number of images.
    """
    _, embedding, points, labels = example_inputs(network)
    batch, prompts, count = (torch.export.Dim(name) for name in ("batch", "prompts", "points"))
    masks = zip(("mask_input", "has_mask_input"), example_masks(network), strict=False)
    parts: dict[str, tuple[nn.Module, dict[str, tuple[Tensor, dict[int, Any]]], list[str]]] = {
        "decoder": (
            Decoder(network),
            {
                "embedding": (embedding[:1], {}),
                "points": (points, {0: prompts, 1: count}),
                "labels": (labels, {0: prompts, 1: count}),
                **{name: (example, {0: prompts}) for name, example in masks},
            },
            ["masks", "iou"],
        ),
        "head": (AutomaticHead(network), {"embedding": (embedding, {0: batch})}, ["pred"]),
    }
    graphs = {name: trace(module.eval(), inputs, outputs) for name, (module, inputs, outputs) in parts.items()}
    return {"encoder": encoder_graph(network), **graphs}


def trace(module: nn.Module, inputs: dict[str, tuple[Tensor, dict[int, Any]]], outputs: list[str]) -> Graph:
    """The ONNX graph of a module.

    Args:
        module: in eval mode.
        inputs: by name an example and its free dimensions, which must be larger than one in the example.
        outputs: names of its outputs.
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
                tuple(example for example, _ in inputs.values()),
                input_names=list(inputs),
                output_names=outputs,
                dynamic_shapes=tuple(free for _, free in inputs.values()),
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


def join(first: Graph, second: Graph, through: str) -> Graph:
    """One graph of two, the second of which reads what the first gives by the name `through`."""
    import onnx.compose

    # Both graphs call their nodes by the same names.
    second = onnx.compose.add_prefix(second, f"{through}/", rename_inputs=False, rename_outputs=False)
    first.ir_version = second.ir_version = max(first.ir_version, second.ir_version)
    return onnx.compose.merge_models(first, second, io_map=[(through, through)])


def write_onnx(graphs: dict[str, Graph], folder: Path) -> dict[str, str]:
    """Write encoder, decoder and image-only model; returns part to file name."""
    import onnx

    parts = {name: graphs[name] for name in ("encoder", "decoder")}
    parts["model"] = join(graphs["encoder"], graphs["head"], "embedding")
    for name, graph in parts.items():
        onnx.save(graph, str(folder / f"{name}.onnx"))
    return {name: f"{name}.onnx" for name in parts}
