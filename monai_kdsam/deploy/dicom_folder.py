# SPDX-License-Identifier: Apache-2.0
"""A folder of DICOM files, looked through before anything is computed."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial import cKDTree

from monai_kdsam.data.paths import is_dicom
from monai_kdsam.deploy import MODALITIES
from monai_kdsam.dicom.decoding import check_deflated
from monai_kdsam.dicom.header import SAME_POSITION, are_at_one_place, checked_uid, is_slice
from monai_kdsam.errors import MissingFileError, UserError
from monai_kdsam.rgb import TooLargeError

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["check_folder"]

logger = logging.getLogger(__name__)
NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "Modality")


def check_folder(folder: str | Path, modalities: Sequence[str] = MODALITIES) -> list[Path]:
    """The DICOM files of the folder whose modality is allowed.

    The App SDK's loader passes over a file that it cannot read, which may not happen unnoticed, so that it is an error
    here. Series of other modalities and files of other kinds are left out, which is logged.

    Raises:
        FileNotFoundError: when there is no such folder.
        ValueError: when it holds no DICOM file, or none of these modalities; when a DICOM file is damaged, has no
            preamble or UIDs that are none; when two slices of a series lie at one position, and others elsewhere.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MissingFileError(f"Expected `--input` to be a folder of DICOM files, but there is none at {folder}.")
    paths = sorted(path for path in folder.rglob("*") if not path.is_dir())
    files = [path for path in paths if path.is_file() and (is_dicom(path) or _is_bare(path))]
    if not files:
        raise UserError(f"There is no DICOM file in `--input` {folder}.")
    _tell_passed_over(sorted(set(paths) - set(files)))
    headers = {file: _read_header(file) for file in files}
    chosen = [file for file, header in headers.items() if header.Modality in modalities]
    others = sorted({str(header.Modality) for header in headers.values()} - set(modalities))
    if not chosen:
        raise UserError(
            f"Expected series of modality {', '.join(modalities)} in {folder}, got {', '.join(others)}. "
            "`--modalities` allows others."
        )
    if others:
        logger.warning("Series of modality %s are left out; `--modalities` allows others.", ", ".join(others))
    _check_uids({file: headers[file] for file in chosen})
    _check_positions({file: headers[file] for file in chosen})
    _warn_of_shared_uids({file: headers[file] for file in chosen})
    return chosen


def _read_header(file: Path) -> Dataset:
    from pydicom import dcmread

    if _is_bare(file):
        raise UserError(
            f"Cannot use {file}: it is a DICOM data set without a preamble, which the App SDK passes over. Make a file "
            "of it, with DCMTK's dcmconv for one."
        )
    try:
        check_deflated(file)
        header = dcmread(file, stop_before_pixels=True)
        missing = [keyword for keyword in NEEDED if not header.get(keyword)]
    except TooLargeError:
        raise
    except Exception as error:  # what pydicom raises depends on the damage
        raise UserError(f"Cannot read {file}: it is damaged or no DICOM file ({_first_line(error)}).") from error
    if missing:
        raise UserError(f"Cannot use {file}: it has no {missing[0]}.")
    return header


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".") or type(error).__name__


def _check_positions(headers: dict[Path, Dataset]) -> None:
    series = defaultdict(list)
    for file, header in headers.items():
        if is_slice(header):
            series[header.SeriesInstanceUID].append(file)
    for files in series.values():
        slices = [headers[file] for file in files]
        if are_at_one_place(slices):
            continue
        positions = np.array([header.ImagePositionPatient for header in slices], dtype=float)
        for one, other in sorted(cKDTree(positions).query_pairs(SAME_POSITION))[:1]:
            place = ", ".join(f"{value:g}" for value in positions[one])
            raise UserError(
                f"{files[one].name} and {files[other].name} are slices of one series at one position ({place}): put "
                "one phase or echo alone into `--input`."
            )


def _check_uids(headers: dict[Path, Dataset]) -> None:
    for file, header in headers.items():
        for keyword in (keyword for keyword in NEEDED if keyword.endswith("UID")):
            try:
                checked_uid(str(header[keyword].value), keyword)
            except ValueError as error:
                raise UserError(f"Cannot use {file}: {error}") from error


def _is_bare(file: Path) -> bool:
    """Whether a file holds a DICOM data set without the preamble that makes it a file."""
    from pydicom import dcmread

    with open(file, "rb") as stream:
        start = stream.read(8)
    # The first group, and its first element short or of a kind that is named by two letters.
    if start[:2] not in (b"\x02\x00", b"\x08\x00") or not (start[4:6].isupper() or start[6:8] == b"\0\0"):
        return False
    try:
        return "SOPClassUID" in dcmread(file, force=True, stop_before_pixels=True, specific_tags=["SOPClassUID"])
    except Exception:  # what pydicom raises of other files has no end
        return False


def _tell_passed_over(paths: list[Path]) -> None:
    if paths:
        names = ", ".join(path.name + (" (a dead link)" if not path.exists() else "") for path in paths[:5])
        more = ", ..." if len(paths) > 5 else ""
        logger.warning("Passed over, because they are no DICOM files: %d, %s%s.", len(paths), names, more)


def _warn_of_shared_uids(headers: dict[Path, Dataset]) -> None:
    files = defaultdict(list)
    for file, header in headers.items():
        files[header.SOPInstanceUID].append(file.name)
    for uid, names in files.items():
        if len(names) > 1:
            logger.warning(
                "%s have the same SOP Instance UID, %s: each is segmented, but nobody can tell to which a "
                "segmentation refers.",
                ", ".join(names),
                uid,
            )
