# SPDX-License-Identifier: Apache-2.0
"""Headers of DICOM images, as what is derived from them copies them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["complete_header"]

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


def complete_header(image: Dataset) -> None:
    """Give a header, in place, what a segmentation copies from it: patient and study, in today's form.

    highdicom refuses images that lack an attribute which may be empty, and dates as 1994.11.05 and times as 11:20:00,
    which were valid before 1993 and are still to be accepted.
    """
    for keyword in PATIENT_AND_STUDY:
        if keyword not in image:
            setattr(image, keyword, "")
        elif keyword.endswith(("Date", "Time")):
            mark = "." if keyword.endswith("Date") else ":"
            setattr(image, keyword, str(image[keyword].value or "").replace(mark, ""))
