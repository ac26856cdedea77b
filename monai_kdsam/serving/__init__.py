# SPDX-License-Identifier: Apache-2.0
"""What the hosts of a bundle need beside it."""

from monai_kdsam.serving.dicom_series import ClickedSliced, SeriesFilesd
from monai_kdsam.serving.mask_writer import MaskWriter, check_mask_format
from monai_kdsam.serving.remembered_image import RememberedImaged
from monai_kdsam.serving.result_geometry import ResultGeometryd, VolumeFormatd
from monai_kdsam.serving.submitted_label import SubmittedLabeld

__all__ = [
    "ClickedSliced",
    "MaskWriter",
    "RememberedImaged",
    "ResultGeometryd",
    "SeriesFilesd",
    "SubmittedLabeld",
    "VolumeFormatd",
    "check_mask_format",
]
