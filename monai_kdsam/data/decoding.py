# SPDX-License-Identifier: Apache-2.0
"""Decode one 2-D picture of any supported format.

Pillow decodes PNG, JPEG, BMP and TIFF, nibabel NIfTI, SimpleITK (GDCM inside) DICOM and 16-bit colour. Nothing here
knows MONAI's conventions except the affine; :class:`monai_kdsam.data.Image2DReader` does the rest.
"""

from __future__ import annotations

import logging
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from PIL import Image

from monai_kdsam.data.dicom import decode_dicom, has_dicom_magic, open_dicom, open_itk, read_frame
from monai_kdsam.data.geometry import nifti_affine, plane_of
from monai_kdsam.data.picture import Picture, no_geometry, to_mask
from monai_kdsam.errors import MissingFileError, UserError
from monai_kdsam.pixels import TooLargeError, check_size, open_picture, pillow_pixels

__all__ = [
    "SUFFIXES",
    "count_frames",
    "decode",
    "frame_path",
    "is_dicom",
    "is_supported",
    "split_frame",
    "stem_of",
    "suffix_of",
    "supported_files",
]

logger = logging.getLogger(__name__)
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
NIFTI_SUFFIXES = (".nii", ".nii.gz")
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
SUFFIXES = PICTURE_SUFFIXES + NIFTI_SUFFIXES + DICOM_SUFFIXES

FRAME = re.compile(r"#frame(\d+)(?=(\.[^.#]*)?(\.gz)?$)")
EXIF_ORIENTATION = 0x0112


def suffix_of(path: str | Path) -> str:
    """Lower-case suffix of a path, ``.nii.gz`` in one piece.

    >>> suffix_of("a/Scan.NII.GZ"), suffix_of("benign (1).png"), suffix_of("IM0001")
    ('.nii.gz', '.png', '')
    """
    name = Path(path).name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def stem_of(path: str | Path) -> str:
    """Name without its suffix, if that is a supported one: a DICOM file is often named by a UID, dots and all.

    >>> stem_of("a/Scan.NII.GZ"), stem_of("benign (1).png"), stem_of("1.2.840.5.7")
    ('Scan', 'benign (1)', '1.2.840.5.7')
    """
    name, suffix = Path(path).name, suffix_of(path)
    return name[: -len(suffix)] if suffix in SUFFIXES else name


def frame_path(file: Path, frame: int) -> Path:
    """The path that names a frame of a file, counted from 0; see :func:`split_frame`."""
    # Before the last suffix, so that a writer which cuts the suffix off keeps the frame.
    return file.with_name(f"{file.stem}#frame{frame}{file.suffix}")


def split_frame(path: str | Path) -> tuple[Path, int | None]:
    """Split a path that names a frame into the file and the 0-based frame; the frame is None where none is named.

    >>> [(file.name, frame) for file, frame in map(split_frame, ("cine#frame3.dcm", "IM0001#frame0", "a.png"))]
    [('cine.dcm', 3), ('IM0001', 0), ('a.png', None)]
    """
    path = Path(path)
    match = FRAME.search(path.name)
    # A file that really has such a name (a saved frame, say) is itself, not a frame of another.
    if match is None or path.exists():
        return path, None
    return path.with_name(FRAME.sub("", path.name)), int(match.group(1))


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM: by its suffix, or by its magic number where the suffix is not a known one."""
    return suffix_of(path) in DICOM_SUFFIXES if suffix_of(path) in SUFFIXES else has_dicom_magic(path)


def is_supported(path: str | Path) -> bool:
    """Whether a file is of a supported format, judged by its suffix or DICOM's magic number."""
    return suffix_of(path) in SUFFIXES or is_dicom(Path(path))


def supported_files(folder: Path, *, below: bool = False) -> list[Path]:
    """The files of a folder that are of a supported format, sorted; hidden ones do not count, others are logged.

    Args:
        folder: of pictures or masks.
        below: look into its subfolders too.
    """
    files = [path for path in (folder.rglob("*") if below else folder.iterdir()) if path.is_file()]
    files = sorted(p for p in files if not any(part.startswith(".") for part in p.relative_to(folder).parts))
    supported = [path for path in files if is_supported(path)]
    if others := [path.name for path in files if path not in set(supported)]:
        shown = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
        logger.warning(
            f"Passed over in {folder}, as of no format that is read (or DICOM without its preamble): {shown}."
        )
    return supported


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
        mask: give labels (H, W), see :func:`monai_kdsam.data.picture.to_mask`. The indices of a coloured palette are
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
        return _decode_nifti(file)
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


def _decode_nifti(file: Path) -> Picture:
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
