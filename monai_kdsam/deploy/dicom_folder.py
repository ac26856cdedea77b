# SPDX-License-Identifier: Apache-2.0
"""A folder of DICOM files, looked through before anything is computed."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from monai_kdsam.data.decoding import is_dicom
from monai_kdsam.data.dicom import check_deflated
from monai_kdsam.deploy import MODALITIES
from monai_kdsam.pixels import TooLargeError

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["check_folder"]

logger = logging.getLogger(__name__)
NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "Modality")


def check_folder(folder: str | Path, modalities: Sequence[str] = MODALITIES) -> list[Path]:
    """The DICOM files of the folder whose modality is allowed.

    The App SDK's loader passes over a file that it cannot read, and keeps one of several slices at one position:
    neither may happen unnoticed, so both are errors here. Series of other modalities are left out, which is logged.

    Raises:
        FileNotFoundError: when there is no such folder.
        ValueError: when it holds no DICOM file, or none of these modalities; when a DICOM file is damaged; when two
            slices of a series lie at one position.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"Expected `--input` to be a folder of DICOM files, but there is none at {folder}.")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and is_dicom(path))
    if not files:
        raise ValueError(f"There is no DICOM file in `--input` {folder}.")
    headers = {file: _read_header(file) for file in files}
    chosen = [file for file, header in headers.items() if header.Modality in modalities]
    others = sorted({str(header.Modality) for header in headers.values()} - set(modalities))
    if not chosen:
        raise ValueError(
            f"Expected series of modality {', '.join(modalities)} in {folder}, got {', '.join(others)}. "
            "`--modalities` allows others."
        )
    if others:
        logger.warning("Series of modality %s are left out; `--modalities` allows others.", ", ".join(others))
    _check_positions({file: headers[file] for file in chosen})
    _warn_of_shared_uids({file: headers[file] for file in chosen})
    return chosen


def _read_header(file: Path) -> Dataset:
    from pydicom import dcmread

    try:
        check_deflated(file)
        header = dcmread(file, stop_before_pixels=True)
        missing = [keyword for keyword in NEEDED if not header.get(keyword)]
    except TooLargeError:
        raise
    except Exception as error:  # what pydicom raises depends on the damage
        raise ValueError(f"Cannot read {file}: it is damaged or no DICOM file ({_first_line(error)}).") from error
    if missing:
        raise ValueError(f"Cannot use {file}: it has no {missing[0]}.")
    return header


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".") or type(error).__name__


def _check_positions(headers: dict[Path, Dataset]) -> None:
    taken: dict[tuple[str, ...], Path] = {}
    for file, header in headers.items():
        position = header.get("ImagePositionPatient")
        if position is None:
            continue
        place = (header.SeriesInstanceUID, *(f"{float(value):g}" for value in position))
        if place in taken:
            raise ValueError(
                f"{taken[place].name} and {file.name} are slices of one series at one position "
                f"({', '.join(place[1:])}): put one phase or echo alone into `--input`."
            )
        taken[place] = file


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
