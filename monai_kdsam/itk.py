# SPDX-License-Identifier: Apache-2.0
"""Files as ITK reads them, and 3D Slicer with it: their headers, frames and affines, these in RAS and millimetres.

SimpleITK is large (50 MB): the package imports it where it is used, so that pictures and trainings do without.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from monai_kdsam.rgb import check_size

if TYPE_CHECKING:
    import SimpleITK as sitk  # noqa: N813

__all__ = ["LPS_TO_RAS", "VOLUME", "itk_affine", "open_itk", "read_frame"]

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
VOLUME = 8  # pictures' worth of pixels


def open_itk(file: Path, image_io: str) -> sitk.ImageFileReader:
    """Read the header of a file of one format, the one that ITK's `image_io` reads.

    Raises:
        RuntimeError: when it is damaged or of another format.
        TooLargeError: see `check_size`; several frames together may have as many voxels as a volume.
    """
    import SimpleITK as sitk  # noqa: N813 (its own documentation's alias)

    reader = sitk.ImageFileReader()
    reader.SetImageIO(image_io)
    reader.SetFileName(str(file))
    reader.ReadImageInformation()
    bits = int(re.findall(r"(\d+)-bit", sitk.GetPixelIDValueAsString(reader.GetPixelID()))[0])
    itemsize = bits // 8 * reader.GetNumberOfComponents()
    check_size(file, reader.GetSize()[:2], itemsize)
    check_size(file, reader.GetSize(), itemsize, pictures=VOLUME)
    return reader


def read_frame(reader: sitk.ImageFileReader, frame: int) -> np.ndarray:
    """Decode one frame, counted from 0, of the file of `reader` as (H, W) or (H, W, C)."""
    import SimpleITK as sitk  # noqa: N813 (its own documentation's alias)

    reader.ReadImageInformation()
    size = reader.GetSize()
    if len(size) == 3:
        reader.SetExtractIndex([0, 0, frame])
        # As a slice of depth 1: ITK refuses to take the third axis off a sagittal or coronal frame.
        reader.SetExtractSize([size[0], size[1], 1])
        return sitk.GetArrayFromImage(reader.Execute())[0]
    return sitk.GetArrayFromImage(reader.Execute())


def itk_affine(image: sitk.Image | sitk.ImageFileReader) -> NDArray[np.float64]:
    """The affine (4, 4) of an image, or of the header that a reader has read; a picture lies in the plane z = 0."""
    dimension = image.GetDimension()
    in_space = min(dimension, 3)
    axes = np.reshape(image.GetDirection(), (dimension, dimension)) * np.array(image.GetSpacing())
    affine = np.eye(4)
    affine[:in_space, :in_space] = axes[:in_space, :in_space]
    affine[:in_space, 3] = image.GetOrigin()[:in_space]
    return LPS_TO_RAS @ affine
