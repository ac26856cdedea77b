# SPDX-License-Identifier: Apache-2.0
"""How prompts and images meet the network."""

from monai_kdsam.inferers.bundle import BundlePredictor, Segmentation
from monai_kdsam.inferers.prompted import PromptedInferer
from monai_kdsam.inferers.volume import VolumeInferer

__all__ = ["BundlePredictor", "PromptedInferer", "Segmentation", "VolumeInferer"]
