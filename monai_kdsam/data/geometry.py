# SPDX-License-Identifier: Apache-2.0
"""Where a file lies in space, as ITK reads it and 3D Slicer with it shows it: affines in RAS and millimetres."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk  # noqa: N813 (its own documentation's alias)
from numpy.typing import NDArray

from monai_kdsam.errors import UserError

__all__ = ["LPS_TO_RAS", "itk_affine", "nifti_affine", "plane_of"]

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
IN_MM = {"meter": 1000.0, "micron": 0.001}


def itk_affine(image: sitk.Image | sitk.ImageFileReader) -> NDArray[np.float64]:
    """The affine (4, 4) of an image, or of the header that a reader has read; a picture lies in the plane z = 0."""
    dimension = image.GetDimension()
    in_space = min(dimension, 3)
    axes = np.reshape(image.GetDirection(), (dimension, dimension)) * np.array(image.GetSpacing())
    affine = np.eye(4)
    affine[:in_space, :in_space] = axes[:in_space, :in_space]
    affine[:in_space, 3] = image.GetOrigin()[:in_space]
    return LPS_TO_RAS @ affine


def plane_of(shape: tuple[int, ...]) -> tuple[int, int]:
    """The axes of the one slice that a NIfTI file holds as a picture: across, then down.

    >>> plane_of((30, 20)), plane_of((30, 20, 1)), plane_of((1, 30, 20)), plane_of((30, 1, 20, 1, 3))
    ((0, 1), (0, 1), (1, 2), (0, 2))
    """
    if len(shape) > 2 and shape[2] > 1 and 1 in shape[:2]:
        return (1, 2) if shape[0] == 1 else (0, 2)
    return 0, 1


def nifti_affine(file: Path) -> NDArray[np.float64]:
    """The affine (4, 4) of a NIfTI file.

    Not nibabel's, which prefers sform to qform, makes up another one where the file has neither, and takes metres and
    micrometres for millimetres.

    Raises:
        ValueError: when its axes are not at right angles, or one has no length: no other program would show the mask
            on its image.
    """
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NiftiImageIO")
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
        return itk_affine(reader)
    except RuntimeError as error:
        header: Any = nibabel.load(file).header
        affine = _plane_affine(header)
        if affine is None:
            axes = header.get_best_affine()[:3, :3].round(4).tolist()
            raise UserError(
                f"its affine is sheared or singular: {axes}. ITK, and 3D Slicer with it, reads right angles only; "
                "resample it"
            ) from error
        return affine


def _plane_affine(header: Any) -> NDArray[np.float64] | None:
    """The affine of a plane without a third axis, as some writers leave it, with its normal; None of anything else."""
    affine = np.array(header.get_best_affine(), dtype=np.float64)
    affine[:3] *= IN_MM.get(header.get_xyzt_units()[0], 1.0)
    across, down = affine[:3, 0], affine[:3, 1]
    area = np.linalg.norm(across) * np.linalg.norm(down)
    is_plane = np.prod(header.get_data_shape()[2:]) == 1 and np.isfinite(affine).all() and area > 0
    if not is_plane or abs(across @ down) > 1e-4 * area:
        return None
    affine[:3, 2] = np.cross(across, down) / area
    return affine
