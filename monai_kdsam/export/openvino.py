# SPDX-License-Identifier: Apache-2.0
"""To OpenVINO, from the ONNX graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["join", "to_models", "write_openvino"]

Model = Any  # openvino.Model; openvino is an extra


def to_models(graphs: dict[str, Any], folder: Path) -> dict[str, Model]:
    """OpenVINO's form of the graphs.

    Args:
        graphs: of `to_graphs`.
        folder: for temporary files; OpenVINO reads ONNX from files.
    """
    import onnx
    import openvino

    models = {}
    for name, graph in graphs.items():
        file = folder / f"{name}.onnx"
        onnx.save(graph, str(file))
        models[name] = openvino.convert_model(str(file))
        file.unlink()
    return models


def join(encoder: Model, head: Model) -> Model:
    """One model, image -> pred, of an encoder of any precision and the automatic head."""
    import openvino

    encoder, head = encoder.clone(), head.clone()
    embedding = encoder.output(0).get_node().input_value(0)
    for reader in head.input(0).get_target_inputs():
        reader.replace_source_output(embedding)
    return openvino.Model(head.get_results(), encoder.get_parameters(), "model")


def write_openvino(models: dict[str, Model], folder: Path, *, half: bool) -> dict[str, str]:
    """Write encoder, decoder and image-only model; returns part to file name.

    Args:
        models: encoder, decoder and head.
        folder: where to.
        half: store the encoder's weights in float16. A GPU computes in it as well, a CPU in float32.
    """
    import openvino

    parts = {name: models[name] for name in ("encoder", "decoder")}
    parts["model"] = join(models["encoder"], models["head"])
    for name, model in parts.items():
        openvino.save_model(model, folder / f"{name}.xml", compress_to_fp16=half and name in ("encoder", "model"))
    return {name: f"{name}.xml" for name in parts}
