# SPDX-License-Identifier: Apache-2.0
"""Losses on embeddings, and their sum."""

from monai_kdsam.losses.embedding import EmbeddingMSELoss, MSSSIMLoss, masked_mse, valid_positions
from monai_kdsam.losses.perceptual import ChannelProjection, PerceptualLoss, build_vgg16
from monai_kdsam.losses.prompted_mask import PromptedMaskLoss
from monai_kdsam.losses.weighted import WeightedSumLoss

__all__ = [
    "ChannelProjection",
    "EmbeddingMSELoss",
    "MSSSIMLoss",
    "PerceptualLoss",
    "PromptedMaskLoss",
    "WeightedSumLoss",
    "build_vgg16",
    "masked_mse",
    "valid_positions",
]
