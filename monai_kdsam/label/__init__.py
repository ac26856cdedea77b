# SPDX-License-Identifier: Apache-2.0
"""What the hosts of a bundle need beside it."""

from monai_kdsam.label.dicom_series import ClickedSliced, SeriesFilesd
from monai_kdsam.label.labels import SubmittedLabeld
from monai_kdsam.label.result_geometry import ResultGeometryd, VolumeFormatd

__all__ = [
    "ClickedSliced",
    "ResultGeometryd",
    "SeriesFilesd",
    "SubmittedLabeld",
    "VolumeFormatd",
]
