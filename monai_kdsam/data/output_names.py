# SPDX-License-Identifier: Apache-2.0
"""Names of the masks that are written for images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.data.folder_layout import default_name_formatter

from monai_kdsam.data.decoding import DICOM_SUFFIXES, SUFFIXES, stem_of, suffix_of
from monai_kdsam.errors import UserError

__all__ = ["check_names", "format_name"]


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
