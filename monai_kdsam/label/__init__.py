# SPDX-License-Identifier: Apache-2.0
"""What the hosts of a bundle need beside it."""

from monai_kdsam.label.dicom_series import ClickedSliced, SeriesFilesd
from monai_kdsam.label.labels import SubmittedLabeld
from monai_kdsam.label.mask_writer import MaskWriter, check_mask_format
from monai_kdsam.label.remembered_image import RememberedImaged
from monai_kdsam.label.result_geometry import ResultGeometryd, VolumeFormatd

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
