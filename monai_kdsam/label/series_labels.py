# SPDX-License-Identifier: Apache-2.0
"""Labels of DICOM series of several slices, slice by slice: to a network of pictures each of them is an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from monai_kdsam.label.dicom_series import series_images
from monai_kdsam.label.labels import slice_label

__all__ = ["labelled_slices"]


def labelled_slices(items: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Replace each series by its slices that have foreground; other images stay as they are.

    Args:
        items: dictionaries with the paths `image` and `label`; MONAI Label has a series as `UID.nii.gz`.

    Returns:
        Items whose `image` is the DICOM file, or the frame of one, with `series` (the path from above) and `slice`.
        A series whose label is empty or cannot be read keeps its first slice, which `check_labels` then reports.
    """
    found: list[dict[str, Any]] = []
    for item in items:
        images = series_images(item["image"])
        slices = [{**item, "image": image, "series": item["image"], "slice": k} for k, image in enumerate(images)]
        found += _with_foreground(slices) or slices[:1] or [dict(item)]
    return found


def _with_foreground(slices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    try:
        return [one for one in slices if slice_label(one["label"], one["series"], one["slice"]).any()]
    except (OSError, ValueError, RuntimeError):
        return []
