# SPDX-License-Identifier: Apache-2.0
"""Masks of MONAI Label's clients as DICOM SEG.

The server's own writer refuses images that lie nowhere in space, as ultrasound does, and gives any structure that a
client does not code the code of the spleen.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk  # noqa: N813 (its own documentation's alias)

from monai_kdsam.dicom.codes import Segment, code_from
from monai_kdsam.dicom.header import number_of_frames
from monai_kdsam.dicom.segmentation import make_segmentation
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
    mask = _read_mask(Path(label), Path(series_dir))
    values = np.unique(mask[mask > 0])
    if not values.size:
        raise UserError("The mask is empty: there is nothing to write as DICOM SEG.")
    infos = _infos_of(values.tolist(), label_info or [])
    # The standard numbers segments from 1 without a gap.
    numbered = np.searchsorted(np.concatenate([[0], values]), mask).astype(np.uint8)
    frames = sum(map(number_of_frames, sources))
    if frames != len(mask):
        raise UserError(f"Expected a mask of {frames} slices, as many as the series has, got {len(mask)}.")
    description = str(infos[0].get("model_name") or "monai_kdsam")
    segmentation = make_segmentation(sources, numbered, list(map(_segment_of, infos)), description)
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


def _segment_of(info: Mapping[str, Any]) -> Segment:
    given = info.get("segmentAttribute") or {}
    return Segment(
        label=str(given.get("SegmentLabel") or info.get("name") or "structure"),
        category=code_from(given.get("SegmentedPropertyCategoryCodeSequence")),
        kind=code_from(given.get("SegmentedPropertyTypeCodeSequence")),
        algorithm=str(given.get("SegmentAlgorithmName") or info.get("model_name") or "monai_kdsam"),
        algorithm_type=given.get("SegmentAlgorithmType") or "SEMIAUTOMATIC",
    )
