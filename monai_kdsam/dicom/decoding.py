# SPDX-License-Identifier: Apache-2.0
"""DICOM pictures through SimpleITK, whose GDCM decompresses and converts palettes and YBR to RGB."""

from __future__ import annotations

import math
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info, read_partial
from pydicom.uid import DeflatedExplicitVRLittleEndian

from monai_kdsam.errors import UserError
from monai_kdsam.itk import open_itk
from monai_kdsam.picture import Picture, no_geometry
from monai_kdsam.rgb import check_size

if TYPE_CHECKING:
    import SimpleITK as sitk  # noqa: N813

__all__ = ["check_deflated", "decode_dicom", "open_dicom", "padding_range"]

PIXEL_DATA = 0x7FE00010
CHUNK = 2**20
PADDING = "0028|0120", "0028|0121"
SPACING_TAGS = {"0028|0030", "0018|1164", "0018|2010"}  # of pixels, at the imager, as scanned
EXACT_FUNCTIONS = ("LINEAR_EXACT", "SIGMOID")


def open_dicom(file: Path) -> sitk.ImageFileReader:
    """Read the header of a DICOM file; its pixels are decoded by :func:`monai_kdsam.itk.read_frame`.

    Raises:
        RuntimeError: when it is damaged or no DICOM image.
        ValueError: when it has fewer pixels than its header claims, or a picture of another size.
        TooLargeError: see `open_itk`.
    """
    check_deflated(file)
    reader = open_itk(file, "GDCMImageIO")
    _check_length(file, reader.GetSize()[:2])
    return reader


def check_deflated(file: Path) -> None:
    """Refuse a file that is compressed as a whole, header and all, and would fill the memory when it is read.

    Raises:
        TooLargeError: see `check_size`.
        zlib.error: when it is damaged.
    """
    try:
        meta = read_file_meta_info(file)
    except InvalidDicomError:  # without a preamble it cannot be deflated
        return
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    inflate, length = zlib.decompressobj(-zlib.MAX_WBITS), 0
    with open(file, "rb") as stream:
        stream.seek(144 + meta.FileMetaInformationGroupLength)  # behind preamble, magic number and that length itself
        rest = stream.read()
    while rest and not inflate.eof:
        length += len(inflate.decompress(rest, CHUNK))
        rest = inflate.unconsumed_tail
        check_size(file, (length,), 1)


def _check_length(file: Path, size: Sequence[int]) -> None:
    """Refuse uncompressed pixels that are too few: GDCM would hand out what lay in memory instead of the others.

    That it counts compressed frames itself is tested. Where these are of another `size` than the header's, it takes
    theirs; what is derived from the file, a segmentation for one, takes the header's.
    """
    lengths: list[int] = []

    def is_reached(tag: int, _: str | None, length: int) -> bool:
        if tag == PIXEL_DATA:
            lengths.append(length)
        return tag == PIXEL_DATA

    with open(file, "rb") as stream:
        header = read_partial(stream, stop_when=is_reached, force=True)
    if not lengths:
        raise UserError("it has no pixels")
    if tuple(size) != (header.Columns, header.Rows):
        claimed = f"{header.Columns} x {header.Rows}"
        raise UserError(f"its picture has {size[0]} x {size[1]} pixels, but its header claims {claimed}")
    pixels = header.Rows * header.Columns * header.get("SamplesPerPixel", 1) * int(header.get("NumberOfFrames") or 1)
    if header.PhotometricInterpretation == "YBR_FULL_422":
        pixels = pixels * 2 // 3  # two pixels share their colors
    expected = math.ceil(pixels * header.BitsAllocated / 8)
    if lengths[0] < expected:  # of compressed data it is 0xFFFFFFFF, not known
        raise UserError(f"it has {lengths[0]} of the {expected} bytes of pixels that its header claims")


def decode_dicom(file: Path, frame: int) -> Picture:
    """Decode one frame of a DICOM file: rescaled values, the spacing and the first display window of the file."""
    reader = open_dicom(file)
    header = {key: reader.GetMetaData(key).strip() for key in reader.GetMetaDataKeys()}
    spacing: tuple[float, float] | None = tuple(reader.GetSpacing()[:2])
    if spacing == (1.0, 1.0) and not SPACING_TAGS & set(header):
        spacing = _spacing_in_sequences(file)
    inverted = header.get("0028|0004") == "MONOCHROME1"
    if math.prod(reader.GetSize()[2:]) > 1:
        status = file.stat()
        pixels = _remembered_frames(file, inverted, status.st_mtime_ns, status.st_size)[frame].copy()
    else:
        pixels = _decode_frames(reader, inverted)[0]
    window = _window(header) or _window_without_padding(pixels, padding_range(header))
    affine = no_geometry(spacing or (1.0, 1.0))
    return Picture(pixels, affine=affine, spacing=spacing, window=window, inverted=inverted)


def _decode_frames(reader: sitk.ImageFileReader, inverted: bool) -> np.ndarray:
    """All frames (N, H, W) or (N, H, W, C); MONOCHROME1 as it is stored, which GDCM inverts or refuses."""
    import SimpleITK as sitk  # noqa: N813 (its own documentation's alias)

    if not inverted:
        pixels = sitk.GetArrayFromImage(reader.Execute())
        return pixels if pixels.ndim > 2 else pixels[None]
    with tempfile.TemporaryDirectory() as folder:
        data = dcmread(reader.GetFileName(), force=True)
        data.PhotometricInterpretation = "MONOCHROME2"
        copy = Path(folder, "stored.dcm")
        data.save_as(copy)
        return _decode_frames(open_dicom(copy), False)


@lru_cache(maxsize=1)
def _remembered_frames(file: Path, inverted: bool, *_: int) -> np.ndarray:
    """GDCM decodes whole files, so the frames of a cine, which are read one after the other, are decoded once."""
    return _decode_frames(open_dicom(file), inverted)


def padding_range(header: Mapping[str, str]) -> tuple[float, float] | None:
    """Least and greatest rescaled value that stands for no pixel, outside a scanner's circle for one; None without."""
    tags = [tag for tag in PADDING if tag in header]
    if PADDING[0] not in tags:
        return None
    slope, intercept = _first(header, "0028|1053", 1), _first(header, "0028|1052", 0)
    ends = [slope * _first(header, tag, 0) + intercept for tag in tags]
    return min(ends), max(ends)


def _window_without_padding(pixels: np.ndarray, padding: tuple[float, float] | None) -> tuple[float, float] | None:
    if padding is None:
        return None
    values = pixels[(pixels < padding[0]) | (pixels > padding[1])]
    if not values.size:
        return None
    low, high = np.percentile(values, [0.5, 99.5]).tolist()
    return low, high


def _first(header: Mapping[str, str], tag: str, default: float) -> float:
    return float(header.get(tag, "").split("\\")[0] or default)


def _window(header: dict[str, str]) -> tuple[float, float] | None:
    """Display range (low, high) of DICOM PS3.3 C.11.2.1.2; a sigmoid is taken for the line through its centre."""
    center, width = _first(header, "0028|1050", np.nan), _first(header, "0028|1051", np.nan)
    if not width >= 1:
        return None
    if header.get("0028|1056", "LINEAR") not in EXACT_FUNCTIONS:
        center, width = center - 0.5, width - 1
    return center - width / 2, center + width / 2


def _spacing_in_sequences(file: Path) -> tuple[float, float] | None:
    """Spacing in mm, 1 among them, that only sequences tell, which SimpleITK does not show; None where they do not.

    It is that of the pixel measures of the frames, or of the calibrated 2-D regions of ultrasound, where all agree.
    """
    groups = ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"]
    tags = ["SequenceOfUltrasoundRegions", *groups]
    data = dcmread(file, stop_before_pixels=True, specific_tags=tags, force=True)
    tissue_in_cm = {"RegionSpatialFormat": 1, "PhysicalUnitsXDirection": 3, "PhysicalUnitsYDirection": 3}
    spacings = {
        (abs(10 * region.PhysicalDeltaX), abs(10 * region.PhysicalDeltaY))
        for region in data.get("SequenceOfUltrasoundRegions") or []
        if all(region.get(name) == value for name, value in tissue_in_cm.items())
    }
    for group in [group for keyword in groups for group in data.get(keyword) or []]:
        for measures in group.get("PixelMeasuresSequence") or []:
            if len(measures.get("PixelSpacing") or []) == 2:
                spacings.add((float(measures.PixelSpacing[1]), float(measures.PixelSpacing[0])))
    return spacings.pop() if len(spacings) == 1 else None
