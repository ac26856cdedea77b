# SPDX-License-Identifier: Apache-2.0
"""Students on timm's trunks leave PyTorch as well as ours do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from monai_kdsam.bundles import copy_bundle
from monai_kdsam.export import export_bundle
from monai_kdsam.export.int8 import runner
from monai_kdsam.export.onnx import trace
from monai_kdsam.export.openvino import to_models
from monai_kdsam.networks import build_student
from monai_kdsam.networks.timm_encoder import fused

for package in ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf"):
    pytest.importorskip(package, reason=f"needs the extra `export`: {package} is not installed")


@pytest.mark.parametrize("name", ["repvit_m1", "tiny_vit_5m_224", "mobilenetv4_conv_small", "hgnetv2_b0", "resnet18"])
def test_both_runtimes_compute_what_pytorch_does_for_any_batch(name, tmp_path):
    torch.manual_seed(0)
    encoder = build_student(f"timm/{name}", image_size=64).eval().image_encoder
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    example = {"image": (torch.zeros(2, 3, 64, 64), {0: torch.export.Dim("batch")})}
    graph = trace(fused(encoder), example, ["embedding"])
    for run in (runner(graph), runner(to_models({"encoder": graph}, tmp_path)["encoder"])):
        for batch in (1, 3):
            image = torch.randn(batch, 3, 64, 64)
            with torch.no_grad():
                expected = encoder(image).numpy()
            np.testing.assert_allclose(run(image.numpy()), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("form", ["openvino", "torchscript"])
def test_a_bundle_is_exported_with_the_masks_that_it_has(form, tmp_path):
    torch.manual_seed(0)
    bundle = copy_bundle(
        tmp_path,
        settings={"backbone": "timm/mobileone_s0", "image_size": 64, "prompt_map": False, "fine_features": False},
    )
    network = build_student("timm/mobileone_s0", image_size=64)
    torch.save(network.state_dict(), bundle / "models" / "model.pt")
    _, parity = export_bundle(bundle, form)
    assert parity.holds
