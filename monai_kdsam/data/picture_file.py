# SPDX-License-Identifier: Apache-2.0
"""One 2-D picture out of a file of any supported format, decoded.

Pillow decodes PNG, JPEG, BMP and TIFF, nibabel NIfTI, SimpleITK (GDCM inside) DICOM and 16-bit colour. Nothing here
knows MONAI's conventions except the affine; :class:`monai_kdsam.data.Image2DReader` does the rest.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from monai_kdsam.data.nifti import decode_nifti
from monai_kdsam.data.paths import NIFTI_SUFFIXES, frame_path, is_dicom, split_frame, suffix_of
from monai_kdsam.dicom.decoding import decode_dicom, open_dicom
from monai_kdsam.errors import MissingFileError, UserError
from monai_kdsam.itk import open_itk, read_frame
from monai_kdsam.picture import Picture, to_mask
from monai_kdsam.rgb import TooLargeError, check_size, open_picture, pillow_pixels

__all__ = ["count_frames", "decode"]

logger = logging.getLogger(__name__)
EXIF_ORIENTATION = 0x0112


def count_frames(file: Path) -> int:
    """Number of frames of a DICOM or TIFF file, 1 for the other formats."""
    try:
        if is_dicom(file):
            return int(open_dicom(file).GetSize()[2])
        if suffix_of(file) in (".tif", ".tiff"):
            with open_picture(file) as image:
                return int(getattr(image, "n_frames", 1))
    except TooLargeError:
        raise
    except Exception as error:  # what a decoder raises depends on the damage
        raise _unreadable(file, error) from error
    return 1


def decode(path: str | Path, *, mask: bool = False) -> Picture:
    """Decode one picture, or one frame of a multi-frame file.

    Args:
        path: file, or file with a frame named in its stem (``cine#frame3.dcm``).
        mask: give labels (H, W), see :func:`monai_kdsam.picture.to_mask`. The indices of a coloured palette are
            labels, not its colours.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, holds a volume, NaN, several frames of which none is named, more pixels than
            `check_size` allows, or, as a mask, no labels.
    """
    file, frame = split_frame(path)
    if not file.is_file():
        raise MissingFileError(f"Expected an image file, but there is none at {file}.")
    frames = count_frames(file)
    if frame is None and frames > 1:
        named = frame_path(file, 0).name
        raise UserError(f"{file} has {frames} frames. Name one in the path, from {named} to #frame{frames - 1}.")
    if (frame or 0) >= frames:
        raise UserError(f"{file} has {frames} frame(s), counted from 0, but frame {frame} was asked for.")
    try:
        picture = _decode_file(file, frame or 0, mask)
    except TooLargeError:
        raise
    except Exception as error:  # what a decoder raises depends on the damage
        raise _unreadable(file, error) from error
    if picture.pixels.ndim not in (2, 3) or picture.pixels.shape[2:] not in ((), (1,), (2,), (3,), (4,)):
        raise UserError(f"{file} is not a 2-D picture: its array is {picture.pixels.shape}. Cut volumes into slices.")
    if picture.pixels.dtype.kind in "fc" and not np.isfinite(picture.pixels).all():
        raise UserError(f"{file} contains NaN or infinite values. Replace the file or leave it out.")
    if mask:
        try:
            return replace(picture, pixels=to_mask(picture))
        except ValueError as error:
            raise UserError(f"{file} is no mask: {error}") from error
    return picture


def _unreadable(file: Path, error: BaseException) -> Exception:
    reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
    what = "damaged, incomplete, or no 2-D picture of a supported format"
    return UserError(f"Cannot read {file}: it is {what} ({reason[0]}). Replace it or leave it out.")


def _decode_file(file: Path, frame: int, mask: bool) -> Picture:
    if suffix_of(file) in NIFTI_SUFFIXES:
        return decode_nifti(file)
    if is_dicom(file):
        return decode_dicom(file, frame)
    return _decode_picture(file, frame, mask)


def _decode_picture(file: Path, frame: int, mask: bool) -> Picture:
    with open_picture(file, frame) as image:
        # Pillow would drop the low byte of 16-bit colour.
        sixteen_bit = ";16" in str(image.tile[0][3]) if image.tile else False
        check_size(file, image.size, len(image.getbands()) * (1 + sixteen_bit))
        image.load()
        if not sixteen_bit:
            return Picture(_pillow_array(image, mask), orientation=image.getexif().get(EXIF_ORIENTATION, 1))
        return Picture(read_frame(open_itk(file, f"{image.format}ImageIO"), frame))


def _pillow_array(image: Image.Image, mask: bool) -> np.ndarray:
    if not mask or image.mode not in ("P", "PA"):
        return pillow_pixels(image)
    colours = np.asarray(image.convert("RGB"))
    is_grey = (colours == colours[..., :1]).all()
    return colours[..., 0] if is_grey else np.asarray(image.convert("P") if image.mode == "PA" else image)
