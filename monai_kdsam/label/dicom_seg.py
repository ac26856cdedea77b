# SPDX-License-Identifier: Apache-2.0
"""Masks of MONAI Label's clients as DICOM SEG, written by highdicom.

The server's own writer refuses images that lie nowhere in space, as ultrasound does, and gives any structure that a
client does not code the code of the spleen.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import SimpleITK as sitk  # noqa: N813 (its own documentation's alias)
from highdicom.seg import Segmentation, SegmentDescription
from highdicom.sr import CodedConcept
from pydicom.sr.codedict import codes

import monai_kdsam
from monai_kdsam.dicom.header import complete_header, complete_thickness
from monai_kdsam.errors import UserError
from monai_kdsam.label.dicom_series import CONVERTED, stored_files
from monai_kdsam.label.labels import open_label

__all__ = ["write_dicom_seg"]


def write_dicom_seg(series_dir: str, label: str, label_info: Sequence[Mapping[str, Any]] | None, **ignored: Any) -> str:
    """Write a mask as DICOM SEG that refers to the images it was drawn on.

    In the place of `monailabel.datastore.utils.convert.nifti_to_dicom_seg`, with its arguments.

    Args:
        series_dir: folder with the DICOM files of one series.
        label: mask file of the series' size, in its geometry; each value but 0 is a segment.
        label_info: `name`, `model_name`, and `segmentAttribute` with codes as dcmqi writes them, of the value that
            each names as `value`, else of 1, 2 and so on in their order. A segment without codes is coded as tissue.
        **ignored: how the server's own writer would write it.

    Returns:
        Path of a new file.

    Raises:
        ValueError: when the mask is empty, is not where the series is, has values that `label_info` does not name, or
            the series cannot be referred to.
    """
    sources = [pydicom.dcmread(file, stop_before_pixels=True) for file in stored_files(series_dir)]
    for source in sources:
        complete_header(source)
    complete_thickness(sources)
    mask = _read_mask(Path(label), Path(series_dir))
    values = np.unique(mask[mask > 0])
    if not values.size:
        raise UserError("The mask is empty: there is nothing to write as DICOM SEG.")
    infos = _infos_of(values.tolist(), label_info or [])
    segments = [_describe(number, info) for number, info in enumerate(infos, start=1)]
    # The standard numbers segments from 1 without a gap.
    numbered = np.searchsorted(np.concatenate([[0], values]), mask).astype(np.uint8)
    frames = sum(int(source.get("NumberOfFrames") or 1) for source in sources)
    if frames != len(mask):
        raise UserError(f"Expected a mask of {frames} slices, as many as the series has, got {len(mask)}.")
    segmentation = _segmentation(sources, numbered, segments, infos[0].get("model_name") or "monai_kdsam")
    segmentation.SpecificCharacterSet = "ISO_IR 192"  # as the sources' headers are now
    with tempfile.NamedTemporaryFile(suffix=".dcm", delete=False) as file:
        segmentation.save_as(file)
    return file.name


def _infos_of(values: Sequence[Any], given: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """What is said of each value of a mask; of none where nothing is said of any."""
    if not given:
        return [{} for _ in values]
    infos = {}
    for number, info in enumerate(given, start=1):
        value = info.get("value", number)
        if type(value) is not int or value < 1:
            raise UserError(f"Expected `value` in `label_info` to be a whole number above 0, got {value!r}.")
        infos[value] = info
    if not set(values) <= set(infos):
        wanted, got = (", ".join(map(str, numbers)) for numbers in (values, sorted(infos)))
        raise UserError(
            f"Expected `label_info` for the values {wanted} of the mask, got it for {got}: its entries are for the "
            "values 1, 2 and so on, or for those that they name as `value`."
        )
    return [infos[value] for value in values]


def _segmentation(
    sources: Sequence[pydicom.Dataset], numbered: np.ndarray, segments: list[SegmentDescription], name: str
) -> Segmentation:
    try:
        return Segmentation(
            source_images=sources,
            pixel_array=numbered,
            segmentation_type="BINARY",
            segment_descriptions=segments,
            series_instance_uid=highdicom.UID(),
            series_number=300,
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer="monai_kdsam",
            manufacturer_model_name="monai_kdsam",
            software_versions=monai_kdsam.__version__,
            device_serial_number="0",
            series_description=str(name)[:64],
        )
    # A cine without a position in space, or a kind of image that the standard has retired.
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"DICOM SEG cannot refer to this series: {error}") from error


def _read_mask(label: Path, series_dir: Path) -> np.ndarray:
    """(slices, rows, columns); refused where it is turned or moved against the series."""
    image = open_label(label).Execute()
    reference = sitk.ImageFileReader()
    reference.SetFileName(f"{series_dir}{CONVERTED}")
    reference.ReadImageInformation()
    size = (*reference.GetSize()[:2], reference.GetSize()[2] if reference.GetDimension() > 2 else 1)
    found = (*image.GetSize(), 1)[:3]
    if found != size:
        raise UserError(f"Expected a mask of {size} voxels, as the series has, got {found}.")
    if image.GetDimension() == reference.GetDimension() == 3:
        pairs = ((image.GetOrigin(), reference.GetOrigin()), (image.GetDirection(), reference.GetDirection()))
        if not all(np.allclose(*pair, atol=1e-2) for pair in pairs):
            raise UserError(
                f"Expected a mask where the series is, from {reference.GetOrigin()}, got one from {image.GetOrigin()} "
                "or turned."
            )
    return np.reshape(sitk.GetArrayFromImage(image), size[::-1])


def _describe(number: int, info: Mapping[str, Any]) -> SegmentDescription:
    given = info.get("segmentAttribute") or {}
    label = str(given.get("SegmentLabel") or info.get("name") or "structure")
    algorithm = str(given.get("SegmentAlgorithmName") or info.get("model_name") or "monai_kdsam")
    return SegmentDescription(
        segment_number=number,
        segment_label=label[:64],
        segmented_property_category=_code(given.get("SegmentedPropertyCategoryCodeSequence")),
        segmented_property_type=_code(given.get("SegmentedPropertyTypeCodeSequence")),
        algorithm_type=given.get("SegmentAlgorithmType") or "SEMIAUTOMATIC",
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=algorithm[:64], family=codes.DCM.ArtificialIntelligence, version=monai_kdsam.__version__
        ),
    )


def _code(given: Mapping[str, str] | None) -> CodedConcept:
    if given is None:
        return CodedConcept.from_code(codes.SCT.Tissue)
    try:
        return CodedConcept(given["CodeValue"], given["CodingSchemeDesignator"], given["CodeMeaning"])
    except KeyError as error:
        raise UserError(
            f"Expected a code with CodeValue, CodingSchemeDesignator and CodeMeaning, got {given}."
        ) from error
