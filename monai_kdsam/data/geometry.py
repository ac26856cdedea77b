# SPDX-License-Identifier: Apache-2.0
"""Where the picture or volume in a file lies."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from monai_kdsam.data.nifti import nifti_affine
from monai_kdsam.data.paths import NIFTI_SUFFIXES, is_dicom, split_frame, suffix_of
from monai_kdsam.dicom.decoding import open_dicom
from monai_kdsam.itk import itk_affine, open_itk
from monai_kdsam.rgb import open_picture

__all__ = ["file_affine"]


def file_affine(path: str) -> NDArray[np.float64]:
    """Where a picture lies, as ITK and with it 3D Slicer places it: (4, 4), voxel to RAS millimetres.

    Picture formats without geometry lie at the origin, x to the left and y to the back, with the spacing that their
    resolution stands for.
    """
    file, _ = split_frame(path)
    if suffix_of(file) in NIFTI_SUFFIXES:
        return nifti_affine(file)
    if is_dicom(file):
        return itk_affine(open_dicom(file))
    if suffix_of(file) == ".nrrd":
        return itk_affine(open_itk(file, "NrrdImageIO"))
    with open_picture(file) as picture:
        form = "JPEG" if picture.format == "MPO" else picture.format  # a phone's JPEG with a second picture
    return itk_affine(open_itk(file, f"{form}ImageIO"))
