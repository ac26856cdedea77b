# SPDX-License-Identifier: Apache-2.0
"""The encoders that benchmarks/latency.py measures: ours by name, and the peers' written after their repositories."""

from __future__ import annotations

import re

FORMS = {
    "torch": "PyTorch fp32",
    "ort": "ONNX Runtime fp32",
    "ov": "OpenVINO fp32",
    "ov_bf16": "OpenVINO bf16",
    "ort_int8": "ONNX Runtime INT8",
    "ov_int8": "OpenVINO INT8",
}
Cases = dict[str, tuple[str, int, tuple[str, ...]]]
PEERS = ("mobilesam", "edgesam", "nanosam")
# name: (title, side in pixels, forms); names of ours are BACKBONE_SIDE_NECK
ENCODERS: Cases = {
    "resnet50_1024": ("ours, ResNet-50, 1024 px", 1024, tuple(FORMS)),
    "resnet50_512": ("ours, ResNet-50, 512 px", 512, tuple(FORMS)),
    "resnet18_1024": ("ours, ResNet-18, 1024 px", 1024, tuple(FORMS)),
    "resnet50_1024_sam": ("ours, ResNet-50, 1024 px, neck `sam`", 1024, ("ov_int8",)),
    "resnet50_1024_deconv": ("ours, ResNet-50, 1024 px, neck `deconv`", 1024, ("ov_int8",)),
    "resnet18_1024_sam": ("ours, ResNet-18, 1024 px, neck `sam`", 1024, ("ov_int8",)),
    "mobilesam": ("MobileSAM, TinyViT-5M", 1024, tuple(FORMS)),
    "edgesam": ("EdgeSAM, RepViT-M1", 1024, tuple(FORMS)),
    "nanosam": ("NanoSAM, ResNet-18", 1024, tuple(FORMS)),
    "vit_b": ("SAM, ViT-B", 1024, ("torch",)),
}
# Trunks that a student could have, ours and timm's; `latency.py --trunks` measures them.
TRUNKS = {
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "repvit_m1": "RepViT-M1",
    "mobilenetv4_conv_small": "MobileNetV4-conv-small",
    "mobilenetv4_conv_medium": "MobileNetV4-conv-medium",
    "hgnetv2_b0": "HGNetV2-B0",
    "hgnetv2_b1": "HGNetV2-B1",
    "lcnet_100": "PP-LCNet-1.0",
    "mobileone_s1": "MobileOne-s1",
    "repvgg_a0": "RepVGG-A0",
    "efficientnet_lite0": "EfficientNet-Lite0",
    "starnet_s1": "StarNet-S1",
    "fastvit_t8": "FastViT-T8",
    "ghostnetv2_100": "GhostNetV2-1.0",
    "repvit_m1_1": "RepViT-M1.1",
    "tiny_vit_5m_224": "TinyViT-5M",
}
TRUNK_FORMS = ("ort", "ov", "ov_int8")


def trunk_cases(names: list[str], variants: list[str]) -> Cases:
    """What is measured to choose a trunk: the peers, and the candidates with each SIDE_NECK."""
    cases = {name: (*ENCODERS[name][:2], TRUNK_FORMS) for name in PEERS}
    for variant in variants:
        side, neck = int(variant.partition("_")[0]), variant.partition("_")[2]
        forms = TRUNK_FORMS if variant == "1024_sam" else ("ov_int8",)
        cases |= {f"{name}_{variant}": (f"{TRUNKS[name]}, {side} px, neck `{neck}`", side, forms) for name in names}
    return cases


def build_encoder(name: str):
    """The encoder in eval mode, and the side of its input in pixels."""
    import torch

    torch.manual_seed(0)
    if name in PEERS:
        return {"mobilesam": mobilesam, "edgesam": edgesam, "nanosam": nanosam}[name]().eval(), 1024
    if name in ("vit_b", "vit_h"):
        from monai_kdsam.networks import build_teacher

        return build_teacher(name, image_size=1024).eval().image_encoder, 1024
    from monai_kdsam.networks import build_student
    from monai_kdsam.networks.timm_encoder import fused

    backbone, size, neck = re.fullmatch(r"(.+)_(\d+)(?:_(\w+))?", name).groups()
    backbone = backbone if backbone.startswith("resnet") else f"timm/{backbone}"
    student = build_student(backbone, image_size=int(size), neck=neck or "fpn")
    return fused(student.eval().image_encoder), int(size)


def sam_neck(channels: int):
    """The neck that SAM, MobileSAM and EdgeSAM end with."""
    from torch import nn

    from monai_kdsam.networks.sam import LayerNorm2d

    convolutions = nn.Conv2d(channels, 256, 1, bias=False), nn.Conv2d(256, 256, 3, padding=1, bias=False)
    return nn.Sequential(convolutions[0], LayerNorm2d(256), convolutions[1], LayerNorm2d(256))


def mobilesam():
    import timm
    from torch import nn

    trunk = timm.create_model("tiny_vit_5m_224", pretrained=False, features_only=True, out_indices=(3,))
    # MobileSAM keeps the last stage at stride 16.
    trunk.stages_3.downsample.conv2.conv.stride = (1, 1)

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk, self.neck = trunk, sam_neck(320)

        def forward(self, image):
            return self.neck(self.trunk(image)[0])

    return Encoder()


def edgesam():
    import timm
    import torch.nn.functional as F
    from timm.utils.model import reparameterize_model
    from torch import nn

    trunk = timm.create_model("repvit_m1", pretrained=False, features_only=True, out_indices=(2, 3))

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk = reparameterize_model(trunk.eval())
            self.lateral = nn.ModuleList(nn.Conv2d(width, 256, 1, bias=False) for width in (192, 384))
            self.neck = sam_neck(256)

        def forward(self, image):
            fine, coarse = (lateral(x) for lateral, x in zip(self.lateral, self.trunk(image), strict=True))
            return self.neck(fine + F.interpolate(coarse, scale_factor=2, mode="bilinear"))

    return Encoder()


def nanosam():
    import timm
    import torch
    from torch import nn

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk = timm.create_model("resnet18", pretrained=False, features_only=True, out_indices=(4,))
            layers = [nn.Conv2d(512, 256, 3, padding=1), nn.GELU()]
            for _ in range(2):
                layers += [nn.Conv2d(256, 256, 3, padding=1), nn.GELU()]
            layers += [nn.ConvTranspose2d(256, 256, 3, stride=2, padding=1, output_padding=1), nn.GELU()]
            self.neck = nn.Sequential(*layers, nn.Conv2d(256, 256, 1))
            self.positions = nn.Parameter(1e-5 * torch.randn(1, 256, 64, 64))

        def forward(self, image):
            return self.neck(self.trunk(image)[0]) + self.positions

    return Encoder()
