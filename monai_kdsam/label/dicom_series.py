# SPDX-License-Identifier: Apache-2.0
"""The DICOM files behind an image of MONAI Label's DICOMweb store, and the one that a client clicked on."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms import MapTransform

from monai_kdsam.data.paths import frame_path, is_dicom
from monai_kdsam.data.picture_file import count_frames
from monai_kdsam.data.volume_reader import series_files
from monai_kdsam.dicom.slice_grid import slice_grid
from monai_kdsam.errors import UserError
from monai_kdsam.label.result_geometry import picture_plane

__all__ = ["ClickedSliced", "SeriesFilesd", "series_images", "stored_files"]

CONVERTED = ".nii.gz"
CLICKS = ("foreground", "background")


def stored_files(folder: str | Path) -> list[Path]:
    """DICOM files of a folder: one, or the slices of one series in the order that ITK, and with it the server, has."""
    files = [file for file in Path(folder).iterdir() if file.is_file()]
    return files if len(files) < 2 else series_files(Path(folder))


def _dicom_folder(path: str) -> Path | None:
    """The folder with the DICOM files of which the server has made a volume; None of any other path."""
    folder = Path(path.removesuffix(CONVERTED))
    return folder if path.endswith(CONVERTED) and folder.is_dir() else None


def series_images(path: str) -> list[str]:
    """The slices or frames, as `Image2DReader` reads them, of a volume that the server made; [] of any other path."""
    folder = _dicom_folder(path)
    if folder is None:
        return []
    files = stored_files(folder)
    frames = count_frames(files[0]) if len(files) == 1 else 1
    return [str(frame_path(files[0], frame)) for frame in range(frames)] if frames > 1 else list(map(str, files))


class SeriesFilesd(MapTransform):
    """Goes from the volume that MONAI Label makes of a DICOM series, as even as it may not be, to the series itself.

    `VolumeReader` then checks that it is a grid, and knows its modality. Any other path stays as it is.

    Args:
        keys: of the path of the image.

    Raises:
        ValueError: when the frames of a file are not in the order of their positions, in which its clients see them.
    """

    def __init__(self, keys: KeysCollection = "image") -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace paths of converted series."""
        result = dict(data)
        for key in self.key_iterator(result):
            path = Path(str(result[key]))
            folder = _dicom_folder(str(path))
            if folder is not None:
                files = stored_files(folder)
                path = files[0] if len(files) == 1 else folder
                result[key] = str(path)
            if path.is_file() and is_dicom(path) and (np.diff(slice_grid([path]).order) < 0).any():
                raise UserError(
                    f"The frames of {path.name} are not in the order of their positions, but clients count them as "
                    "they are stored. Sort them into a series first."
                )
        return result


class ClickedSliced(MapTransform):
    """Goes from the volume that MONAI Label makes of a DICOM series to the slice or frame that was clicked on.

    The server converts a series to `UID.nii.gz` and keeps the DICOM files in the folder `UID` beside it. They know
    what the NIfTI file does not: the display window, the calibration of ultrasound, which values are inverted. Clients
    of a 2-D model (3D Slicer and OHIF alike) put the slice into the third coordinate of their clicks. Any
    other path stays as it is.

    Args:
        keys: of the path of the image; `slice` is set to the slice's index beside it.
    """

    def __init__(self, keys: KeysCollection = "image") -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace paths of converted series.

        Raises:
            ValueError: when the clicks are on several slices, on none of several, or on one that is not there.
        """
        result = dict(data)
        for key in self.key_iterator(result):
            folder = _dicom_folder(str(result[key]))
            if folder is None:
                _move_into_plane(result, str(result[key]))
                continue
            images = series_images(str(result[key]))
            index = _clicked_slice(data, len(images))
            result |= {"slice": index} | {name: _on_slice(data[name], index) for name in CLICKS if name in data}
            result[key] = images[index]
        return result


def _move_into_plane(request: dict[Hashable, Any], path: str) -> None:
    """Give prompts in voxels of a NIfTI file (1, Y, Z) the coordinates of its picture, in place."""
    plane = picture_plane(path) if Path(path).is_file() else (0, 1)
    if plane == (0, 1):
        return
    for key in ("foreground", "background"):
        clicks = request.get(key)
        if isinstance(clicks, (list, tuple)):
            request[key] = [[click[axis] for axis in plane] if _has(click, 3) else click for click in clicks]
    if _has(request.get("roi"), 6):
        pairs = np.reshape(request["roi"], (3, 2))
        request["roi"] = [*pairs[plane[0]].tolist(), *pairs[plane[1]].tolist(), 0, 0]


def _has(value: Any, count: int) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == count


def _on_slice(clicks: Any, index: int) -> Any:
    """Those of a request's clicks that are on a slice."""
    if not isinstance(clicks, (list, tuple)):
        return clicks
    return [click for click in clicks if not isinstance(click, (list, tuple)) or len(click) < 3 or click[2] == index]


def _clicked_slice(data: Mapping[Hashable, Any], slices: int) -> int:
    """The slice of a request, counted from 0."""
    if slices == 1:
        return 0
    given = [data.get(key) for key in CLICKS]
    clicks = [click for clicks in given if isinstance(clicks, (list, tuple)) for click in clicks]
    indices = [click[2] for click in clicks if isinstance(click, (list, tuple)) and len(click) == 3]
    # 3D Slicer names the slice, and has nothing else to do so when its user drew a box alone.
    if not indices and data.get("slice") is not None:
        indices = [data["slice"]]
    different = [index for position, index in enumerate(indices) if index not in indices[:position]]
    if len(different) > 1 and data.get("slice") in different:  # it sends the clicks on other slices, too
        different = [data["slice"]]
    if len(different) != 1:
        raise UserError(
            f"The series has {slices} slices, and this model segments one at a time. "
            f"Expected clicks [x, y, slice] on one slice, got {different or 'none with a slice'}."
        )
    if not isinstance(different[0], (int, float)) or different[0] not in range(slices):
        raise UserError(f"Expected clicks on a slice from 0 to {slices - 1}, got slice {different[0]}.")
    return int(different[0])
