# SPDX-License-Identifier: Apache-2.0
"""Masks in the geometry of the file that was segmented, for MONAI Label's writer."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import nibabel
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from monai_kdsam.data.geometry import file_affine
from monai_kdsam.data.nifti import plane_of
from monai_kdsam.data.paths import NIFTI_SUFFIXES, PICTURE_SUFFIXES, split_frame, suffix_of
from monai_kdsam.errors import UserError

__all__ = ["ResultGeometryd", "VolumeFormatd", "default_extension", "picture_plane"]


def picture_plane(path: str) -> tuple[int, int]:
    """The axes of a file's array that are the picture's x and y: not the first two of a NIfTI file (1, Y, Z)."""
    return plane_of(_nifti_shape(path))


def _nifti_shape(path: str) -> tuple[int, ...]:
    """Of a NIfTI file; () of any other picture."""
    if suffix_of(path) not in NIFTI_SUFFIXES:
        return ()
    try:
        header: Any = nibabel.load(path)
    except Exception as error:  # what a damaged file raises depends on the damage
        raise UserError(f"Cannot read {path}: it is damaged, incomplete, or no NIfTI file ({error}).") from error
    return tuple(header.shape)


def _in_volume(mask: torch.Tensor, path: str, index: int | None) -> torch.Tensor:
    """A mask (W, H) as the only slice of a volume of its file's axes, or as one of a volume that is empty otherwise."""
    shape = _nifti_shape(path)
    if index is None or len(shape) < 3 or shape[2] == 1:
        return mask.unsqueeze(3 - sum(plane_of(shape)))
    volume = mask.new_zeros((*mask.shape, shape[2]))
    volume[..., index] = mask
    return volume


class ResultGeometryd(MapTransform):
    """The last postprocessing step: gives MONAI Label's writer a mask that lies where the image does.

    That writer drops the affine of a 2-D array, and takes its format from the image's name, which would compress a
    mask as JPEG or make it a DICOM file without a patient. So the mask becomes a slice of a volume with the file's
    affine where the format has a geometry (of a series the slice that `ClickedSliced` chose; the others are empty), and
    the default formats are PNG for pictures, NIfTI for NIfTI, NRRD for DICOM. Anywhere but in MONAI Label, which is
    known by its `image_path`, nothing changes.

    Args:
        keys: of the mask, (W, H).
        image: key of the image, a MetaTensor whose metadata the server reads.
    """

    def __init__(self, keys: KeysCollection = "pred", *, image: str = "image") -> None:
        super().__init__(keys)
        self.image = image

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Reshape masks to (1, W, H, slices) and tell the image's metadata, unless the result is a PNG or the like."""
        result = dict(data)
        path = result.get("image_path")
        if path is None:
            return result
        result["result_extension"] = result.get("result_extension") or default_extension(path)
        if result["result_extension"].lower() in PICTURE_SUFFIXES:
            return result
        for key in self.key_iterator(result):
            result[key] = _in_volume(result[key], path, result.get("slice"))[None]
            shape = tuple(result[key].shape[1:])
            result[self.image].meta.update(spatial_shape=shape, original_affine=file_affine(path))
        return result


class VolumeFormatd(MapTransform):
    """The last postprocessing step for volumes: the format of the mask, NIfTI for NIfTI and NRRD for DICOM.

    MONAI Label's writer would take it from the image's name, of which a folder has no suffix; the geometry is the
    image's by its affine. Anywhere but in MONAI Label, which is known by its `image_path`, nothing changes.

    Args:
        keys: of the mask, (1, X, Y, Z).

    Raises:
        ValueError: when a format of pictures is asked for.
    """

    def __init__(self, keys: KeysCollection = "pred") -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Name the format."""
        result = dict(data)
        path = result.get("image_path")
        if path is not None:
            result["result_extension"] = extension = result.get("result_extension") or default_extension(path)
            if str(extension).lower() in PICTURE_SUFFIXES:
                raise UserError(
                    f"Expected `result_extension` of a format for volumes, .nii.gz or .nrrd, got {extension}."
                )
        return result


def default_extension(path: str) -> str:
    """Suffix of the mask of an image: PNG for pictures, NIfTI for NIfTI, NRRD for DICOM."""
    suffix = suffix_of(split_frame(path)[0])
    if suffix in PICTURE_SUFFIXES:
        return ".png"
    return suffix if suffix in NIFTI_SUFFIXES else ".nrrd"
