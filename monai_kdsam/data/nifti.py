# SPDX-License-Identifier: Apache-2.0
"""NIfTI files: where they lie in space, and the pictures that are stored in them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from monai_kdsam.errors import UserError
from monai_kdsam.itk import itk_affine, open_itk
from monai_kdsam.picture import Picture, no_geometry
from monai_kdsam.rgb import check_size

__all__ = ["decode_nifti", "nifti_affine", "plane_of"]

IN_MM = {"meter": 1000.0, "micron": 0.001}


def decode_nifti(file: Path) -> Picture:
    """Decode the one slice that a file holds, its plane laid flat; a time axis or a third one has a length of 1."""
    image: Any = nibabel.load(file)
    across, down = plane = plane_of(image.shape)
    if math.prod(image.shape[:3]) > image.shape[across] * image.shape[down]:
        raise UserError(f"a volume of shape {image.shape}: cut it into slices")
    check_size(
        file, [image.shape[axis] for axis in plane], math.prod(image.shape[3:]) * image.get_data_dtype().itemsize
    )
    pixels = np.asanyarray(image.dataobj)
    if pixels.dtype.names:
        pixels = np.stack([pixels[name] for name in pixels.dtype.names], axis=-1)
    # (X, Y, 1, 1, 3) and the like: a picture has two axes and at most its colours.
    colours = [side for side in pixels.shape[min(len(image.shape), 3) :] if side > 1]
    pixels = pixels.reshape([image.shape[axis] for axis in plane] + colours)
    in_space = nifti_affine(file)
    width, height = np.linalg.norm(in_space[:3, list(plane)], axis=0).tolist()
    # The plane of a tilted slice is laid flat, each axis as long as it is in space.
    in_plane = in_space[:2, :2] * [width, height] / np.linalg.norm(in_space[:2, :2], axis=0).clip(min=1e-9)
    affine = np.eye(3)
    affine[:2, :2], affine[:2, 2] = in_plane, in_space[:2, 3]
    axes = {nibabel.aff2axcodes(in_space)[axis] for axis in plane}
    if plane != (0, 1) or not {"R", "L"} & axes or not {"A", "P"} & axes:
        affine = no_geometry((width, height))  # a sagittal or coronal slice has no x or no y in its plane
    # A header always has a spacing; one that nobody has set is 1, without a unit or a place in space.
    header = image.header
    is_said = header["sform_code"] > 0 or header["qform_code"] > 0 or header.get_xyzt_units()[0] != "unknown"
    spacing = (width, height) if is_said or (width, height) != (1, 1) else None
    return Picture(np.swapaxes(pixels, 0, 1), affine=affine, spacing=spacing)


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
    try:
        return itk_affine(open_itk(file, "NiftiImageIO"))
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
