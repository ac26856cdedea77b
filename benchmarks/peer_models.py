# SPDX-License-Identifier: Apache-2.0
"""The networks of benchmarks/peers.py with random weights: the peers' own classes, out of checkouts, and ours."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import torch
from torch import nn

from monai_kdsam.export.parts import Decoder, example_masks
from monai_kdsam.networks import build_student
from monai_kdsam.networks.timm_encoder import fused

Parts = tuple[nn.Module, nn.Module]  # encoder, decoder


@dataclass(frozen=True)
class Peer:
    """A repository whose networks are timed.

    Args:
        title: in the tables.
        repository: on GitHub.
        license: of its code.
        size: of its input in pixels, as its weights have it.
        build: encoder and decoder for a size, called with the checkout in front of the path.
        more: sizes that its code takes, too.
        absent: packages that it imports without need for these parts; they may be missing.
    """

    title: str
    repository: str
    license: str
    size: int
    build: Callable[[int], Parts]
    more: tuple[int, ...] = ()
    absent: tuple[str, ...] = ()


class BoxDecoder(nn.Module):
    """A peer's prompt encoder and mask decoder: (embedding, box (1, 4)) -> (masks, iou), one mask."""

    def __init__(self, prompt_encoder: nn.Module, mask_decoder: nn.Module, **one_mask: Any) -> None:
        super().__init__()
        self.prompt_encoder, self.mask_decoder = prompt_encoder, mask_decoder
        self.one_mask = one_mask or {"multimask_output": False}

    def forward(self, embedding: torch.Tensor, box: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sparse, dense = self.prompt_encoder(points=None, boxes=box, masks=None)
        return self.mask_decoder(
            image_embeddings=embedding,
            image_pe=self.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            **self.one_mask,
        )


def mobilesam(size: int) -> Parts:
    from mobile_sam import sam_model_registry

    sam = sam_model_registry["vit_t"]()
    return sam.image_encoder, BoxDecoder(sam.prompt_encoder, sam.mask_decoder)


def edgesam(size: int) -> Parts:
    """As its export has it (bilinear doubling), and its parallel branches fused by its own methods, which is faster."""
    from edge_sam import sam_model_registry

    sam = sam_model_registry["edge_sam"](upsample_mode="bilinear")
    _wake(sam.image_encoder)
    _fuse(sam.image_encoder)
    return sam.image_encoder, BoxDecoder(sam.prompt_encoder, sam.mask_decoder, num_multimask_outputs=1)


def _fuse(module: nn.Module) -> None:
    for name, child in module.named_children():
        if hasattr(child, "fuse"):
            child = child.fuse()
            setattr(module, name, child)
        _fuse(child)


def _wake(module: nn.Module) -> None:
    """Norms that begin with zeros, as those of residual branches, would let a runtime leave out what is before them."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.ones_(part.weight)


def nanosam(size: int) -> Parts:
    """Its decoder is MobileSAM's, a copy of which is in its repository."""
    from nanosam.mobile_sam import sam_model_registry
    from nanosam.models.timm_image_encoder import TimmImageEncoder

    sam = sam_model_registry["vit_t"]()
    encoder = TimmImageEncoder("resnet18", pretrained=False, feature_shape=(size // 16, size // 16))
    return encoder, BoxDecoder(sam.prompt_encoder, sam.mask_decoder)


def litemedsam(size: int) -> Parts:
    """Its settings stand in a script that cannot be imported, CVPR24_LiteMedSAM_infer.py, and are repeated here."""
    from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
    from tiny_vit_sam import TinyViT

    encoder = TinyViT(
        img_size=size,
        embed_dims=[64, 128, 160, 320],
        depths=[2, 2, 6, 2],
        num_heads=[2, 4, 5, 10],
        window_sizes=[7, 7, 14, 7],
        drop_path_rate=0.0,
    )
    prompt_encoder = PromptEncoder(256, image_embedding_size=(64, 64), input_image_size=(size, size), mask_in_chans=16)
    transformer = TwoWayTransformer(depth=2, embedding_dim=256, num_heads=8, mlp_dim=2048)
    return encoder, BoxDecoder(prompt_encoder, MaskDecoder(transformer_dim=256, transformer=transformer))


def efficientvit(size: int) -> Parts:
    from efficientvit.sam_model_zoo import create_efficientvit_sam_model

    sam = create_efficientvit_sam_model("efficientvit-sam-l0", pretrained=False)
    return sam.image_encoder, BoxDecoder(sam.prompt_encoder, sam.mask_decoder)


PEERS = {
    "mobilesam": Peer("MobileSAM", "ChaoningZhang/MobileSAM", "Apache-2.0", 1024, mobilesam),
    "edgesam": Peer(
        "EdgeSAM",
        "chongzhou96/EdgeSAM",
        "S-Lab 1.0, non-commercial",
        1024,
        edgesam,
        (256, 512),
        ("kornia", "loralib", "mmdet", "mmengine", "projects", "yacs"),
    ),
    "nanosam": Peer("NanoSAM, ResNet-18", "NVIDIA-AI-IOT/nanosam", "Apache-2.0", 1024, nanosam, (256, 512)),
    "litemedsam": Peer("LiteMedSAM", "bowang-lab/MedSAM", "Apache-2.0", 256, litemedsam),
    "efficientvit": Peer(
        "EfficientViT-SAM L0",
        "mit-han-lab/efficientvit",
        "Apache-2.0",
        512,
        efficientvit,
        (256, 1024),
        ("omegaconf", "onnxsim", "triton"),
    ),
}
AS_SHIPPED = {"neck": "fpn", "prompt_map": True, "fine_features": True}
# name: (title, settings of the student, sizes of its input in pixels)
OURS: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "lite0": ("ours, Lite0", {"backbone": "timm/tf_efficientnet_lite0"} | AS_SHIPPED, (256, 512, 1024)),
    "resnet50": ("ours, ResNet-50", {"backbone": "resnet50"}, (1024,)),
}
# The same student on other trunks, the peers' among them: their Dice at the same budget is benchmarks/trunks.py's.
TRUNKS = {
    "lite0": "EfficientNet-Lite0 (ours)",
    "resnet18": "ResNet-18 (NanoSAM's)",
    "repvit_m1": "RepViT-M1 (EdgeSAM's)",
    "tiny_vit_5m_224": "TinyViT-5M (MobileSAM's)",
    "efficientvit_b0": "EfficientViT-B0",
    "mobilenetv4_conv_small": "MobileNetV4-conv-small",
    "hgnetv2_b0": "HGNetV2-B0",
}
TRUNK_SIZE = 256


def backbone(trunk: str) -> str:
    """Name of a trunk in a student's settings."""
    full = {"lite0": "tf_efficientnet_lite0"}.get(trunk, trunk)
    return full if full.startswith("resnet") else f"timm/{full}"


def build(name: str, size: int, checkouts: dict[str, Path]) -> Parts:
    """Encoder and decoder by name, in eval mode.

    After MobileSAM timm's names for TinyViT mean its models: build our trunks before.
    """
    torch.manual_seed(0)
    if name == "gemm":
        parts: Parts = gemm(), nn.Identity()
    elif name in PEERS:
        with importing(checkouts[name], PEERS[name].absent):
            parts = PEERS[name].build(size)
            _wake(parts[0])
    else:
        settings = OURS[name][1] if name in OURS else {"backbone": backbone(name)} | AS_SHIPPED
        student = build_student(image_size=size, **settings)
        _wake(student.image_encoder)
        parts = fused(student.image_encoder), Decoder(student)
    for part in parts:
        part.eval()
        part.requires_grad_(False)
    return parts


def gemm() -> nn.Module:
    """Products of matrices of 4096 x 1024 and 1024 x 1024 elements, of which this CPU does as many as it can."""
    layers = [nn.Conv2d(3, 1024, 16, stride=16)]
    for _ in range(8):
        layers += [nn.Conv2d(1024, 1024, 1), nn.ReLU()]
    return nn.Sequential(*layers)


def box_inputs(name: str, size: int, decoder: nn.Module, embedding: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What a decoder is called with for one box."""
    corners = torch.tensor([[0.2 * size, 0.2 * size, 0.7 * size, 0.6 * size]])
    if name in PEERS:
        return embedding, corners
    masks = tuple(mask[:1] for mask in example_masks(decoder.network))
    return embedding, corners.reshape(1, 2, 2), torch.tensor([[2, 3]]), *(torch.zeros_like(mask) for mask in masks)


@contextmanager
def importing(checkout: Path, absent: tuple[str, ...]) -> Iterator[None]:
    """A checkout's modules come first, and are forgotten afterwards: another's may have the same names."""
    own = {path.stem for path in checkout.iterdir()}
    before = dict(sys.modules)
    for name in before:
        if name.partition(".")[0] in own:
            del sys.modules[name]
    finder = _StandIns(absent)
    sys.path.insert(0, str(checkout))
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.path.remove(str(checkout))
        sys.meta_path.remove(finder)
        for name in set(sys.modules):
            if name.partition(".")[0] in own | set(absent):
                del sys.modules[name]
        sys.modules.update(before)


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Empty modules for packages that are not installed."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in self.names:
            return None
        return importlib.util.spec_from_loader(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = ModuleType(spec.name)
        module.__getattr__ = lambda name: MagicMock(name=name)  # type: ignore[method-assign]
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass


def commit_of(checkout: Path) -> str:
    """Of a peer."""
    command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "not known"
