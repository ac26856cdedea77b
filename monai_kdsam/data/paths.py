# SPDX-License-Identifier: Apache-2.0
"""Names of pictures and volumes: their formats, frames of a file, and the names of masks that are written for them."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.data.folder_layout import default_name_formatter

from monai_kdsam.errors import UserError

__all__ = [
    "DICOM_SUFFIXES",
    "NIFTI_SUFFIXES",
    "PICTURE_SUFFIXES",
    "SUFFIXES",
    "check_names",
    "format_name",
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


def _has_dicom_magic(file: Path) -> bool:
    """Whether a file holds DICOM's magic number; a DICOMDIR has it too, but no pixels, and does not count."""
    if not file.is_file() or file.name.upper() == "DICOMDIR":
        return False
    with open(file, "rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM: by its suffix, or by its magic number where the suffix is not a known one."""
    return suffix_of(path) in DICOM_SUFFIXES if suffix_of(path) in SUFFIXES else _has_dicom_magic(path)


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
    supported: list[Path] = []
    others: list[Path] = []
    for path in files:
        (supported if is_supported(path) else others).append(path)
    if others:
        shown = ", ".join(path.name for path in others[:5])
        shown += f" and {len(others) - 5} more" if len(others) > 5 else ""
        logger.warning(
            f"Passed over in {folder}, as of no format that is read (or DICOM without its preamble): {shown}."
        )
    return supported


def format_name(metadict: dict[str, Any], saver: Any) -> dict[str, Any]:
    """For MONAI's `SaveImage(output_name_formatter=...)`, which cuts off all behind the last dot, of a UID too.

    Example:
        >>> format_name({"filename_or_obj": "1.2.840.5.7"}, None)["subject"]
        '1.2.840.5.7.dcm'
        >>> format_name({"filename_or_obj": "a.png"}, None)["subject"]
        'a.png'
    """
    names = default_name_formatter(metadict, saver)
    if suffix_of(names["subject"]) not in SUFFIXES:
        names["subject"] += DICOM_SUFFIXES[0]
    return names


def check_names(items: Sequence[Mapping[str, Any]]) -> None:
    """Raise a ValueError when the masks of two images would be written to one file: a.png and a.jpg."""
    named: dict[Path, list[str]] = defaultdict(list)
    for item in items:
        path = Path(item["image"])
        named[path.parent / stem_of(path)].append(path.name)
    for place, names in named.items():
        if len(names) > 1:
            raise UserError(
                f"The masks of {' and '.join(names)} in {place.parent} would be written to one file. Rename the images."
            )
