# SPDX-License-Identifier: Apache-2.0
"""How prompts and images meet the network."""

from monai_kdsam.inferers.bundle_predictor import BundlePredictor, Segmentation
from monai_kdsam.inferers.prompted_inferer import PromptedInferer
from monai_kdsam.inferers.volume_inferer import VolumeInferer

__all__ = ["BundlePredictor", "PromptedInferer", "Segmentation", "VolumeInferer"]
