# SPDX-License-Identifier: Apache-2.0
"""MONAI reader of volumes: NIfTI, DICOM series in a folder, multi-frame DICOM (a cine is a volume of frames)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from monai.config import PathLike
from monai.data import ImageReader
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple
from numpy.typing import NDArray
from tqdm import tqdm

from monai_kdsam.data.archive import root_of
from monai_kdsam.data.datalist_file import listed_images
from monai_kdsam.data.nifti import nifti_affine
from monai_kdsam.data.paths import NIFTI_SUFFIXES, check_names, is_dicom, suffix_of
from monai_kdsam.data.picture_file import count_frames
from monai_kdsam.dicom.decoding import open_dicom, padding_range
from monai_kdsam.dicom.slice_grid import slice_grid
from monai_kdsam.errors import MissingFileError, UserError
from monai_kdsam.itk import VOLUME
from monai_kdsam.rgb import TooLargeError, check_size

__all__ = ["VolumeReader", "check_volumes", "list_volumes", "root_of_volumes", "series_files"]

MODALITY = "0008|0060"
PIXEL_DATA = b"\xe0\x7f\x10\x00"  # the tag 7FE0,0010, little endian


class VolumeReader(ImageReader):
    """Read one volume as it is stored, gray (X, Y, Z) or color (X, Y, Z, 3), with the modality that a DICOM file names.

    MONAI's own readers take any array for a volume: pictures, time series, volumes with NaN, two series in a folder.
    The affine (4, 4) is in RAS and millimetres, NIfTI's own, or ITK's for DICOM: slices are sorted by their position.
    Frames of a multi-frame DICOM file are its slices.

    Files are decoded in :meth:`get_data` on purpose, as with :class:`Image2DReader`.

    Example:
        >>> from monai.transforms import LoadImaged
        >>> load = LoadImaged(keys="image", reader="monai_kdsam.data.VolumeReader")
    """

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """True: what cannot be read is told by :meth:`get_data`, with the reason."""
        return True

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> tuple[str, ...]:
        """Return the paths; :meth:`get_data` opens them."""
        return tuple(str(name) for name in ensure_tuple(data))

    def get_data(self, img: Sequence[PathLike] | PathLike) -> tuple[np.ndarray, dict]:
        """Decode what :meth:`read` returned.

        Returns:
            array (X, Y, Z) or (X, Y, Z, 3), and its metadata, among them `modality`: DICOM's, or "", and
            `padding`, the range of values that stand for no voxel, where a DICOM file names one.

        Raises:
            FileNotFoundError: there is no such file or folder.
            ValueError: it is damaged, a picture, a time series, has NaN, or is a folder of several series.
        """
        paths = ensure_tuple(img)
        if len(paths) != 1:
            raise UserError(f"Expected one file or folder per volume, got {len(paths)}: {', '.join(map(str, paths))}.")
        path = Path(paths[0])
        if not path.exists():
            raise MissingFileError(f"Expected a volume, but there is no file or folder {path}.")
        files = series_files(path) if path.is_dir() else [path]
        if not path.is_dir() and not is_dicom(path) and suffix_of(path) not in NIFTI_SUFFIXES:
            raise UserError(
                f"{path} is no volume: expected NIfTI, a folder with a DICOM series, or a multi-frame DICOM file. "
                "Pictures are segmented by the bundle kdsam_deepgrow_2d."
            )
        try:
            array, affine, about = _read_dicom(files) if is_dicom(files[0]) else _read_nifti(path)
        except TooLargeError:
            raise
        except Exception as error:  # what a decoder raises depends on the damage
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise UserError(f"Cannot read {path}: it is damaged, incomplete, or no volume ({reason}).") from error
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UserError(f"{path} contains NaN or infinite values. Replace the file or leave it out.")
        color = array.ndim == 4
        return array, {
            MetaKeys.AFFINE: affine.copy(),
            MetaKeys.ORIGINAL_AFFINE: affine.copy(),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.SPATIAL_SHAPE: np.asarray(array.shape[:3]),
            MetaKeys.ORIGINAL_CHANNEL_DIM: -1 if color else "no_channel",
            **about,
        }


def series_files(folder: Path) -> list[Path]:
    """The files of the one DICOM series in a folder, sorted by position.

    Raises:
        ValueError: when there is none, or more than one.
    """
    import SimpleITK as sitk  # noqa: N813 (its own documentation's alias)

    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        found = ", ".join(series) or "none"
        raise UserError(f"Expected a folder with the files of one DICOM series, got {folder} with {found}.")
    return [Path(name) for name in sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0])]


def list_volumes(folder: str | Path, share: tuple[int, int] | None = None) -> list[dict[str, str]]:
    """List all volumes below a folder, sorted, as items ``{"image": path}``: NIfTI files, folders of DICOM files.

    A DICOM file of several frames is a volume of its own. DICOM files without pixels, as reports are, do not count.

    Damaged ones are listed, see `check_volumes`.

    Args:
        folder: of the volumes, or a datalist that names them.
        share: as of `list_images`.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the folder holds no volume, or two whose masks would be one file.
    """
    folder = Path(folder)
    if not folder.exists():
        raise MissingFileError(f"Expected a folder with volumes, or a datalist, but there is none at {folder}.")
    volumes = sorted(listed_images(folder) if folder.is_file() else _volumes_among(folder.rglob("*")))
    if not volumes:
        raise UserError(f"No volume in {folder}. Expected NIfTI (.nii, .nii.gz) or folders of DICOM files.")
    items = [{"image": str(path)} for path in volumes]
    check_names(items)
    return items if share is None else items[share[0] :: share[1]]


def root_of_volumes(dataset: str | Path) -> str:
    """As `root_of`; of a folder that is a series itself, the folder that it lies in."""
    folder = Path(dataset)
    if folder.is_dir() and folder in _volumes_among(folder.iterdir()):
        return os.path.dirname(os.path.abspath(folder))
    return root_of(dataset)


def _volumes_among(paths: Iterable[Path]) -> set[Path]:
    files = [path for path in paths if path.is_file() and not path.name.startswith(".")]
    volumes = {path for path in files if suffix_of(path) in NIFTI_SUFFIXES}
    for path in files:
        if path not in volumes and is_dicom(path):
            with contextlib.suppress(ValueError):
                frames = _count_frames(path)
                if frames:
                    volumes.add(path if frames > 1 else path.parent)
                continue
            volumes.add(path.parent)
    return volumes


def check_volumes(items: Sequence[dict[str, str]], failed: dict[str, str]) -> list[dict[str, str]]:
    """The items whose volumes can be read; each is read once. Why the others cannot goes to `failed`, by path."""
    reader = VolumeReader()
    for item in tqdm(items, desc="checking volumes", unit="volume", disable=None):
        path = Path(item["image"])
        try:
            if path.is_dir():
                _check_grid(path)
            reader.get_data(reader.read(path))
        except (OSError, ValueError) as error:
            failed[item["image"]] = str(error)
    return [item for item in items if item["image"] not in failed]


def _check_grid(path: Path) -> None:
    """Raise where a folder is no volume, or a file in it is damaged, which GDCM would pass over."""
    for file in path.iterdir():
        if not file.name.startswith(".") and file.is_file() and is_dicom(file):
            _count_frames(file)
    try:
        slice_grid(series_files(path))
    except ValueError as error:
        raise UserError(f"{path} is no volume: {error}.") from error


def _count_frames(file: Path) -> int:
    """Frames of a DICOM file, 0 if it has no pixels."""
    try:
        return count_frames(file)
    except ValueError:
        if PIXEL_DATA in file.read_bytes():
            raise
        return 0


def _read_nifti(path: Path) -> tuple[NDArray[Any], NDArray[np.float64], dict[str, Any]]:
    image: Any = nibabel.load(path)
    # (X, Y, Z, 1), as some writers leave it, is a volume; ITK writes colors into a fifth axis, behind one for time.
    shape = (*image.shape[:3], *(side for side in image.shape[3:] if side > 1))
    check_size(path, shape, image.get_data_dtype().itemsize, pictures=VOLUME)
    _check_shape(shape, is_color=image.shape[3:] == (1, 3))
    array = np.asanyarray(image.dataobj).reshape(shape)
    if array.dtype.names:
        array = np.stack([array[name] for name in array.dtype.names[:3]], axis=-1)
    return array, nifti_affine(path), {"modality": ""}


def _read_dicom(files: list[Path]) -> tuple[NDArray[Any], NDArray[np.float64], dict[str, Any]]:
    import SimpleITK as sitk  # noqa: N813 (its own documentation's alias)

    header = open_dicom(files[0])
    shape = (*header.GetSize()[:2], max(len(files), header.GetSize()[2]))
    check_size(files[0], shape, pictures=VOLUME)
    _check_shape(shape)
    grid = slice_grid(files)
    if len(files) == 1:
        image = header.Execute()
    else:
        reader = sitk.ImageSeriesReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileNames([str(file) for file in files])
        image = reader.Execute()
    array = np.moveaxis(sitk.GetArrayFromImage(image), (0, 1, 2), (2, 1, 0))[:, :, grid.order]
    tags = {key: header.GetMetaData(key).strip() for key in header.GetMetaDataKeys()}
    padding = padding_range(tags)
    about = {"modality": tags.get(MODALITY, "")} | ({} if padding is None else {"padding": padding})
    return array, grid.affine, about


def _check_shape(shape: tuple[int, ...], is_color: bool = False) -> None:
    if len(shape) < 3 or shape[2] < 2:
        raise UserError(
            f"it is a 2-D picture: its array is {shape}; the bundle kdsam_deepgrow_2d segments pictures, and a DICOM "
            "series is named by its folder"
        )
    if len(shape) > 3 and not is_color:
        raise UserError(f"it is no single volume: its array is {shape}; cut a time series into volumes")
