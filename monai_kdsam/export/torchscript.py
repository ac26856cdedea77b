# SPDX-License-Identifier: Apache-2.0
"""To TorchScript: MONAI's own `ckpt_export` for the hosts, and the two parts beside it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch
from monai.bundle import ckpt_export
from monai.data import load_net_with_metadata, save_net_with_metadata
from monai.networks.utils import convert_to_torchscript

from monai_kdsam.export.parts import Decoder, HalfPrecision, example_masks
from monai_kdsam.networks import KDSAM
from monai_kdsam.networks.scriptable import example_inputs
from monai_kdsam.networks.timm_encoder import fused

__all__ = ["write_torchscript"]


def write_torchscript(network: KDSAM, bundle: Path, folder: Path, *, half: bool) -> dict[str, str]:
    """Write encoder, decoder and the model with the bundle's configs inside; returns part to file name.

    Args:
        network: with the bundle's weights; with `half`, its encoder is replaced.
        bundle: folder of the bundle.
        folder: where to.
        half: the encoder in float16, for a GPU.
    """
    files = {part: f"{part}.ts" for part in ("encoder", "decoder", "model")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of every constant, and TorchScript of its end
        ckpt_export(
            net_id="network_def",
            filepath=str(folder / files["model"]),
            ckpt_file=str(bundle / "models" / "model.pt"),
            meta_file=str(bundle / "configs" / "metadata.json"),
            config_file=str(bundle / "configs" / "inference.json"),
            bundle_root=str(bundle),
        )
        if half:
            network.image_encoder = HalfPrecision(network.image_encoder)
            _replace_network(folder / files["model"], network)
        with torch.no_grad():
            image, embedding, points, labels = example_inputs(network)
            encoder = torch.jit.trace(fused(network.image_encoder), image, check_trace=False)
            prompts = (points, labels, *example_masks(network))
            decoder = torch.jit.trace(Decoder(network).eval(), (embedding[:1], *prompts), check_trace=False)
            # Frozen, since a trace keeps all weights of its module, the encoder's among them.
            decoder = torch.jit.freeze(decoder, optimize_numerics=False)
            encoder.save(str(folder / files["encoder"]))
            decoder.save(str(folder / files["decoder"]))
    return files


def _replace_network(file: Path, network: KDSAM) -> None:
    """Put another network into what `ckpt_export` wrote, which knows only the one that the config builds."""
    _, metadata, extra = load_net_with_metadata(str(file), more_extra_files=("inference.json",))
    configs = {name: json.dumps(json.loads(content)).encode() for name, content in extra.items()}
    scripted = convert_to_torchscript(network)
    save_net_with_metadata(
        scripted,
        str(file),
        include_config_vals=False,
        append_timestamp=False,
        meta_values=metadata,
        more_extra_files=configs,
    )
