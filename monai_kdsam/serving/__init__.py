# SPDX-License-Identifier: Apache-2.0
"""What the hosts of a bundle need beside it."""

from monai_kdsam.serving.dicom_series import ClickedSliced
from monai_kdsam.serving.remembered_image import RememberedImaged
from monai_kdsam.serving.result_geometry import ResultGeometryd

__all__ = ["ClickedSliced", "RememberedImaged", "ResultGeometryd"]
