# SPDX-License-Identifier: Apache-2.0
"""The network, its parts and its builders."""

from monai_kdsam.networks.build import build_kdsam, build_student, build_volume_student
from monai_kdsam.networks.encoders import DeconvNeck, FineFeatures, FPNNeck, ResNetEncoder, SamNeck
from monai_kdsam.networks.kdsam import KDSAM, VolumeKDSAM
from monai_kdsam.networks.lora import add_lora
from monai_kdsam.networks.memory import EmbeddingCache, weights_checksum
from monai_kdsam.networks.parameters import frozen_parts, parameter_groups
from monai_kdsam.networks.prompt_map import draw_prompts
from monai_kdsam.networks.sam import MaskDecoder, PromptEncoder
from monai_kdsam.networks.teacher import TeacherEncoder, build_teacher
from monai_kdsam.weights.checkpoint import load_weights, save_weights
from monai_kdsam.weights.download import published_weights

__all__ = [
    "KDSAM",
    "DeconvNeck",
    "EmbeddingCache",
    "FPNNeck",
    "FineFeatures",
    "MaskDecoder",
    "PromptEncoder",
    "ResNetEncoder",
    "SamNeck",
    "TeacherEncoder",
    "VolumeKDSAM",
    "add_lora",
    "build_kdsam",
    "build_student",
    "build_teacher",
    "build_volume_student",
    "draw_prompts",
    "frozen_parts",
    "load_weights",
    "parameter_groups",
    "published_weights",
    "save_weights",
    "weights_checksum",
]
