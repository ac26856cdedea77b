# SPDX-License-Identifier: Apache-2.0
"""Student image encoders: a trunk and a neck to SAM's embedding. Those on trunks of timm are in `timm_encoder`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models import ResNet

from monai_kdsam.errors import UserError
from monai_kdsam.networks.decoder_algebra import pack
from monai_kdsam.networks.sam import LayerNorm2d
from monai_kdsam.weights.imagenet import load_resnet

__all__ = [
    "RESNETS",
    "DeconvNeck",
    "FPNNeck",
    "FineFeatures",
    "NeckName",
    "ResNetEncoder",
    "SamNeck",
    "build_neck",
    "build_resnet_encoder",
]

# Channels of stages 2 to 5.
RESNETS = {
    "resnet18": (64, 128, 256, 512),
    "resnet34": (64, 128, 256, 512),
    "resnet50": (256, 512, 1024, 2048),
    "resnet101": (256, 512, 1024, 2048),
}
EMBEDDING_CHANNELS = 256
NeckName = Literal["fpn", "sam", "deconv"]


def _conv_block(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
    )


class FPNNeck(nn.Module):
    """Top-down neck on the trunk's last two stages; the default, and the paper's parameter count.

    The paper (arXiv 2501.16740) gives 26.4 M parameters and no architecture. Stage 5 is projected, doubled in size by
    a learned 2x2 deconvolution and added to the projected stage 4; three 3x3 convolutions and a 1x1 projection follow:
    with ResNet-50's 23.5 M that is 26.4 M. SAM's layer norm closes it, so the range is the teacher's from the start.

    Args:
        channels: of stage 4 (stride 16) and stage 5 (stride 32).
    """

    def __init__(self, channels: tuple[int, int]) -> None:
        super().__init__()
        width = EMBEDDING_CHANNELS
        self.lateral4 = nn.Conv2d(channels[0], width, kernel_size=1, bias=False)
        self.lateral5 = nn.Conv2d(channels[1], width, kernel_size=1, bias=False)
        self.upsample = nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)
        self.merge = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(*(_conv_block(width) for _ in range(3)))
        self.project = nn.Conv2d(width, width, kernel_size=1, bias=False)
        self.norm = LayerNorm2d(width)

    def forward(self, stage4: Tensor, stage5: Tensor) -> Tensor:
        """(B, C4, h, w) and (B, C5, h/2, w/2) -> (B, 256, h, w)."""
        merged = self.merge(self.lateral4(stage4) + self.upsample(self.lateral5(stage5)))
        return self.norm(self.project(self.blocks(merged)))


class SamNeck(nn.Module):
    """SAM's own neck (1x1, norm, 3x3, norm) after bilinear doubling of stage 5: the smallest one."""

    def __init__(self, channels: tuple[int, int]) -> None:
        super().__init__()
        width = EMBEDDING_CHANNELS
        self.reduce = nn.Sequential(nn.Conv2d(channels[1], width, kernel_size=1, bias=False), LayerNorm2d(width))
        self.refine = nn.Sequential(nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False), LayerNorm2d(width))

    def forward(self, stage4: Tensor, stage5: Tensor) -> Tensor:
        """(B, C4, h, w) and (B, C5, h/2, w/2) -> (B, 256, h, w); stage 4 gives only its size."""
        reduced = F.interpolate(self.reduce(stage5), size=stage4.shape[-2:], mode="bilinear", align_corners=False)
        return self.refine(reduced)


class DeconvNeck(nn.Module):
    """A 2x2 deconvolution of stage 5, then 3x3 and SAM's norm (26.2 M with ResNet-50)."""

    def __init__(self, channels: tuple[int, int]) -> None:
        super().__init__()
        width = EMBEDDING_CHANNELS
        self.upsample = nn.Sequential(
            nn.ConvTranspose2d(channels[1], width, kernel_size=2, stride=2, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        self.refine = nn.Sequential(nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False), LayerNorm2d(width))

    def forward(self, stage4: Tensor, stage5: Tensor) -> Tensor:
        """(B, C4, h, w) and (B, C5, h/2, w/2) -> (B, 256, h, w); stage 4 is not used."""
        return self.refine(self.upsample(stage5))


def build_neck(name: NeckName, channels: tuple[int, int]) -> nn.Module:
    """A neck by name for a trunk whose stages 4 and 5 have `channels` channels.

    Raises:
        ValueError: when the name is unknown.
    """
    necks = {"fpn": FPNNeck, "sam": SamNeck, "deconv": DeconvNeck}
    if name not in necks:
        raise UserError(f"Expected `neck` to be one of {', '.join(necks)}, got {name!r}.")
    return necks[name](channels)


class FineFeatures(nn.Module):
    """A trunk's features at a quarter and an eighth of the image, for the edges of masks.

    SAM's decoder draws a mask from an embedding at a sixteenth, so its edges are ragged. As in SAM 2 (arXiv 2408.00714,
    section 4), 1 x 1 convolutions of the finer stages are added within the decoder's upscaling. They begin at zero: a
    student that was trained without them is the same network with them. They travel as further channels of the
    embedding, the pixels of a block side by side, so that one tensor is all that hosts keep of an image.

    Args:
        channels: of the stages of stride 4 and of stride 8.
    """

    def __init__(self, channels: tuple[int, int]) -> None:
        super().__init__()
        self.quarter = nn.Conv2d(channels[0], 32, kernel_size=1)
        self.eighth = nn.Conv2d(channels[1], 64, kernel_size=1)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, quarter: Tensor, eighth: Tensor) -> Tensor:
        """(B, C2, 4h, 4w) and (B, C3, 2h, 2w) -> (B, 768, h, w)."""
        return torch.cat([pack(self.eighth(eighth), 1), pack(self.quarter(quarter), 2)], dim=1)


class ResNetEncoder(nn.Module):
    """A ResNet trunk and a neck: (B, 3, S, S) normalized image -> (B, 256, S/16, S/16) embedding.

    Args:
        trunk: a torchvision (or MONAI 2-D) ResNet; its classifier is dropped.
        neck: takes stage 4 and stage 5, see `build_neck`.
        fine: takes the stages of stride 4 and 8; its 768 channels follow those of the embedding. None for none.

    Example:
        >>> import torch
        >>> from torchvision.models import resnet18
        >>> encoder = ResNetEncoder(resnet18(), FPNNeck((256, 512)))
        >>> encoder(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 256, 4, 4])
    """

    def __init__(self, trunk: ResNet, neck: nn.Module, fine: FineFeatures | None = None) -> None:
        super().__init__()
        self.stem = nn.Sequential(trunk.conv1, trunk.bn1, trunk.relu, trunk.maxpool)
        self.layer1, self.layer2, self.layer3, self.layer4 = trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4
        self.neck = neck
        self.fine = fine

    def forward(self, image: Tensor) -> Tensor:
        """Encode (B, 3, S, S), S a multiple of 32, to (B, 256, S/16, S/16), or 1024 channels with `fine`."""
        quarter = self.layer1(self.stem(image))
        eighth = self.layer2(quarter)
        stage4 = self.layer3(eighth)
        embedding = self.neck(stage4, self.layer4(stage4))
        return embedding if self.fine is None else torch.cat([embedding, self.fine(quarter, eighth)], dim=1)


def build_resnet_encoder(
    name: str,
    *,
    neck: NeckName = "fpn",
    imagenet_weights: str | Path | None = None,
    fine_features: bool = False,
) -> ResNetEncoder:
    """An encoder by the name of a ResNet.

    Args:
        name: one of `RESNETS`.
        neck: fpn, sam or deconv.
        imagenet_weights: a checkpoint of the whole model in torchvision's layout.
        fine_features: see `FineFeatures`.

    Raises:
        ValueError: when the weights are another model's.
        FileNotFoundError: when they do not exist.
    """
    trunk, channels = getattr(torchvision.models, name)(weights=None), RESNETS[name]
    if imagenet_weights is not None:
        load_resnet(trunk, imagenet_weights, name)
    return ResNetEncoder(trunk, build_neck(neck, channels[2:]), FineFeatures(channels[:2]) if fine_features else None)
