# SPDX-License-Identifier: Apache-2.0
"""The perceptual term of KD SAM: distance of embeddings in the features of a frozen VGG16."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import vgg16

from monai_kdsam.errors import UserError
from monai_kdsam.losses.embedding import enlarge, valid_positions, without_fine
from monai_kdsam.weights.state_dict import read_state_dict

__all__ = ["ChannelProjection", "PerceptualLoss", "build_vgg16"]

logger = logging.getLogger(__name__)
# Index after the last ReLU of each block of torchvision's VGG16 `features`.
VGG16_LAYERS = {"relu1_2": 4, "relu2_2": 9, "relu3_3": 16, "relu4_3": 23, "relu5_3": 30}


class ChannelProjection(nn.Module):
    """Maps a pair of 256-channel embeddings to two RGB-like pictures, both by the same fixed linear map.

    The paper does not say how a VGG, which takes three channels, is to see 256 (arXiv 2501.16740; our assumption).
    Three orthonormal directions drawn from a fixed seed keep distances as well as any three directions chosen without
    data can; the picture is then standardized by the teacher's mean and standard deviation, as ImageNet's pictures
    are for a VGG. Replace it by any module of the same call.

    Args:
        channels: of the embedding.
        seed: of the directions.
    """

    directions: Tensor

    def __init__(self, channels: int = 256, seed: int = 0) -> None:
        super().__init__()
        noise = torch.randn(channels, 3, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("directions", torch.linalg.qr(noise).Q.t()[:, :, None, None].contiguous())

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 256, h, w) twice -> (B, 3, h, w) twice, the teacher's with mean 0 and standard deviation 1."""
        ours, theirs = F.conv2d(student, self.directions), F.conv2d(teacher, self.directions)
        mean = theirs.mean(dim=(2, 3), keepdim=True)
        deviation = theirs.std(dim=(2, 3), keepdim=True).clamp_min(1e-6)
        return (ours - mean) / deviation, (theirs - mean) / deviation


def build_vgg16(weights: str | Path | None, last_layer: str = "relu3_3") -> nn.Sequential:
    """A frozen VGG16 up to a layer.

    Args:
        weights: torchvision's ImageNet checkpoint (`python -m monai_kdsam download vgg16`), or None for random
            weights, whose features still respond to edges and texture but carry no semantics.
        last_layer: relu1_2, relu2_2, relu3_3, relu4_3 or relu5_3.

    Raises:
        FileNotFoundError: naming the command that fetches the weights.
        ValueError: on an unknown layer or a file that holds something else.
    """
    if last_layer not in VGG16_LAYERS:
        raise UserError(f"Expected `last_layer` to be one of {', '.join(VGG16_LAYERS)}, got {last_layer!r}.")
    if weights is None:
        logger.warning("The perceptual loss runs on a VGG16 with random weights.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the same random features in every run, without touching the run's own generator
            features = vgg16(weights=None).features
    else:
        state = {k.removeprefix("features."): v for k, v in read_state_dict(weights).items() if "features." in k}
        with torch.device("meta"):
            features = vgg16(weights=None).features
        try:
            features.load_state_dict(state, assign=True)
        except RuntimeError as error:
            raise UserError(f"Expected the VGG16 weights of torchvision in {weights}: {error}") from error
    return features[: VGG16_LAYERS[last_layer]].eval().requires_grad_(False)


class PerceptualLoss(nn.Module):
    """Mean squared distance between VGG16 features of student and teacher embedding (L_P of arXiv 2501.16740).

    MONAI's PerceptualLoss compares images and downloads its networks; here the inputs are embeddings and the weights
    a file. Layers, normalization and the mapping to three channels are our assumptions, and arguments.

    Args:
        features: a frozen sequential network on (B, 3, h, w), see `build_vgg16`.
        mapping: two embeddings -> two pictures of three channels.
        layers: after which modules of `features` to compare; their distances are averaged. None: the last one.

    Raises:
        ValueError: when `features` has no such layer.
    """

    def __init__(
        self, features: nn.Sequential, mapping: nn.Module | None = None, *, layers: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.features = features
        self.mapping = ChannelProjection() if mapping is None else mapping
        self.layers = frozenset([len(features) - 1] if layers is None else layers)
        if not self.layers or not self.layers <= set(range(len(features))):
            raise UserError(f"Expected `layers` to be indices from 0 to {len(features) - 1}, got {layers}.")

    def train(self, mode: bool = True) -> PerceptualLoss:
        """The features stay in eval mode."""
        super().train(mode)
        self.features.eval()
        return self

    def forward(self, pred: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """A scalar.

        Args:
            pred: (B, 256, h, w), the student's embedding.
            target: `embedding` (B, 256, h, w), the teacher's; `valid` (B, 1, S, S), 1 on the image, 0 on padding.
        """
        pred = without_fine(pred, target["embedding"])
        positions = valid_positions(target["valid"], (pred.shape[2], pred.shape[3]))
        pictures = self.mapping(pred.float() * positions, target["embedding"].float() * positions)
        ours, theirs = (enlarge(picture) for picture in pictures)
        loss = ours.new_zeros(())
        for index, layer in enumerate(self.features):
            ours = layer(ours)
            with torch.no_grad():
                theirs = layer(theirs)
            if index in self.layers:
                loss = loss + (ours - theirs).square().mean()  # a new tensor: a ReLU that follows works in place
        return loss / len(self.layers)
