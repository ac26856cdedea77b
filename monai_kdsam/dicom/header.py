# SPDX-License-Identifier: Apache-2.0
"""Headers of DICOM images: where the image lies, and what a segmentation of it copies."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from monai_kdsam.errors import UserError

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = [
    "COMPRESSION",
    "SAME_POSITION",
    "are_at_one_place",
    "checked_uid",
    "complete_header",
    "complete_thickness",
    "is_slice",
    "number_of_frames",
]

GEOMETRY = ("FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
SAME_POSITION = 1e-3  # mm

COMPRESSION = ("LossyImageCompressionRatio", "LossyImageCompressionMethod")
# What the standard wants in each image, empty or not, and anonymizers remove all the same.
PATIENT_AND_STUDY = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
)


def checked_uid(uid: str, keyword: str) -> str:
    """A UID of a file, which may name another file: digits with dots between them, 64 characters at most.

    Raises:
        ValueError: when it is something else, a path for one.

    Example:
        >>> checked_uid("1.2.840.10008.1.2", "SOPInstanceUID")
        '1.2.840.10008.1.2'
    """
    if len(uid) > 64 or not re.fullmatch(r"[0-9]+(\.[0-9]+)*", uid, re.ASCII):
        raise UserError(f"{keyword} {uid[:80]!r} is no UID, which has digits and dots, 64 at most.")
    return uid


def number_of_frames(image: Dataset) -> int:
    """1 for an image that does not say."""
    return int(image.get("NumberOfFrames") or 1)


def is_slice(image: Dataset) -> bool:
    """Whether an image is one picture that says where it lies in space."""
    return all(image.get(keyword) for keyword in GEOMETRY) and number_of_frames(image) == 1


def are_at_one_place(slices: Sequence[Dataset]) -> bool:
    """Whether several images have one position: ultrasound stills that all say (0, 0, 0) are no stack."""
    positions = np.array([image.ImagePositionPatient for image in slices], dtype=float)
    return len(slices) > 1 and bool((np.ptp(positions, axis=0) <= SAME_POSITION).all())


def complete_header(image: Dataset) -> None:
    """Give a header, in place, what a segmentation copies from it: patient and study, in today's form and in UTF-8.

    highdicom refuses images that lack an attribute which may be empty, and dates as 1994.11.05 and times as 11:20:00,
    which were valid before 1993 and are still to be accepted. What is no date or time becomes empty. Its version 0.22
    does not copy the character set in which names are written, and refuses images that do not say how they were
    compressed.
    """
    image.decode()
    image.SpecificCharacterSet = "ISO_IR 192"
    for keyword in PATIENT_AND_STUDY + COMPRESSION:
        if keyword not in image:
            setattr(image, keyword, "")
        elif keyword.endswith(("Date", "Time")):
            setattr(image, keyword, _date_or_time(keyword, str(image[keyword].value or "")))


def _date_or_time(keyword: str, text: str) -> str:
    from pydicom.valuerep import DA, TM

    kind, mark = (DA, ".") if keyword.endswith("Date") else (TM, ":")
    text = text.replace(mark, "").strip()
    try:
        kind(text)
    except (TypeError, ValueError):
        return ""
    return text


def complete_thickness(images: Sequence[Dataset]) -> None:
    """Give slices of one stack, in place, a SliceThickness where they have none: readers of segmentations want one.

    It is the distance of the slices, by their headers or their positions; 1 mm for an image that says nothing of it.
    """
    positions = [
        np.array(image.ImagePositionPatient, dtype=float) for image in images if "ImagePositionPatient" in image
    ]
    distances = [float(np.linalg.norm(other - positions[0])) for other in positions[1:]]
    between = min((round(distance, 6) for distance in distances if distance > 1e-3), default=1.0)
    for image in images:
        if not image.get("SliceThickness") and "SharedFunctionalGroupsSequence" not in image:
            image.SliceThickness = float(image.get("SpacingBetweenSlices") or between)
