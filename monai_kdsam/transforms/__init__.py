# SPDX-License-Identifier: Apache-2.0
"""Masks and prompts, as pure functions and as MONAI dictionary transforms."""

from monai_kdsam.mask_prompts import box_from_mask, center_click, jitter_box
from monai_kdsam.transforms.close_up import CloseUpd
from monai_kdsam.transforms.holes import FillHolesd
from monai_kdsam.transforms.host_prompts import HostPromptsd, VolumePromptsd, close_up_of, points_from_request
from monai_kdsam.transforms.longest_side import ResizeLongestSide, ResizeLongestSided
from monai_kdsam.transforms.masks import CleanMaskd
from monai_kdsam.transforms.prompt_transforms import FixedPromptd, RandPromptd, ValidRegiond
from monai_kdsam.transforms.regions import RandCropAroundMaskd, RandRegiond
from monai_kdsam.transforms.simulated_prompts import clicks_from_mask, simulate_prompts
from monai_kdsam.transforms.slicing import GrayValuesd, SlicesLastd
from monai_kdsam.transforms.variants import RandVariantd

__all__ = [
    "CleanMaskd",
    "CloseUpd",
    "FillHolesd",
    "FixedPromptd",
    "GrayValuesd",
    "HostPromptsd",
    "RandCropAroundMaskd",
    "RandPromptd",
    "RandRegiond",
    "RandVariantd",
    "ResizeLongestSide",
    "ResizeLongestSided",
    "SlicesLastd",
    "ValidRegiond",
    "VolumePromptsd",
    "box_from_mask",
    "center_click",
    "clicks_from_mask",
    "close_up_of",
    "jitter_box",
    "points_from_request",
    "simulate_prompts",
]
