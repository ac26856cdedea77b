# SPDX-License-Identifier: Apache-2.0
"""Labels as annotators submit them: on the pixels of their image, or refused."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813 (its own documentation's alias)
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from numpy.typing import NDArray

from monai_kdsam.data.geometry import file_affine
from monai_kdsam.data.paths import PICTURE_SUFFIXES, suffix_of
from monai_kdsam.data.picture_file import decode
from monai_kdsam.errors import UserError
from monai_kdsam.itk import itk_affine, open_itk
from monai_kdsam.label.dicom_series import series_images
from monai_kdsam.label.result_geometry import picture_plane
from monai_kdsam.picture import label_values
from monai_kdsam.transforms.masks import clean_mask

__all__ = ["SubmittedLabeld", "check_labels", "labelled_slices", "open_label", "read_label", "slice_label"]

ITK_READERS = {".nrrd": "NrrdImageIO", ".nii": "NiftiImageIO", ".nii.gz": "NiftiImageIO"}


def read_label(label: str, image: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Read a label, whatever its format, as it lies on its image's pixels.

    A picture (PNG, BMP, TIFF) is taken pixel by pixel. A label with a geometry (NIfTI, NRRD, DICOM) must have its
    image's: 3D Slicer's and this server's own masks do, and one that was turned or mirrored would teach nonsense.

    Args:
        label: path of the label.
        image: path of its image.
        shape: (H, W) of the image.

    Returns:
        (H, W), whole numbers.

    Raises:
        ValueError: when the label is damaged, of another size, no label, or lies elsewhere than the image.
    """
    pixels = _read_nrrd(label) if suffix_of(label) == ".nrrd" else decode(label, mask=True).pixels
    if pixels.shape != shape:
        sizes = [f"{width} x {height}" for height, width in (shape, pixels.shape)]
        raise UserError(f"Expected a label of {sizes[0]} pixels, as its image, got {sizes[1]}.")
    if suffix_of(label) not in PICTURE_SUFFIXES and not _lies_on(label, image, shape):
        raise UserError(
            "Expected a label that lies on its image, but its axes or its position are other ones. "
            "Save it in the image's geometry, or as PNG, which has none."
        )
    return pixels


def open_label(path: Path) -> sitk.ImageFileReader:
    """Read the header of a label as annotators' programs write it, NRRD or NIfTI.

    Raises:
        ValueError: when it has another suffix, more pixels than `check_size` allows, or names another file, which a
            client could not read itself.
        RuntimeError: when it is damaged.
    """
    suffix = suffix_of(path)
    if suffix not in ITK_READERS:
        raise UserError(f"Expected a label in one of {', '.join(ITK_READERS)}, got {path.name}.")
    if suffix == ".nrrd":
        with open(path, "rb") as stream:
            header = [line.lower() for line in takewhile(bytes.strip, stream)]
        if any(line.startswith((b"data file", b"datafile")) for line in header):
            raise UserError(f"Expected a label in one file, but {path.name} has its pixels in another.")
    return open_itk(path, ITK_READERS[suffix])


def _read_nrrd(path: str) -> NDArray[Any]:
    try:
        pixels = sitk.GetArrayFromImage(open_label(Path(path)).Execute())
    except RuntimeError as error:
        raise UserError(f"Cannot read {Path(path).name}: it is damaged or incomplete.") from error
    if pixels.ndim not in (2, 3) or pixels.shape[:-2] not in ((), (1,)):
        raise UserError(f"Expected one slice, got an array of shape {pixels.shape}.")
    return label_values(pixels.reshape(pixels.shape[-2:]))


def _lies_on(label: str, image: str, shape: tuple[int, ...]) -> bool:
    """Whether the corners of the label are those of the image, to a tenth of a pixel."""
    planes = ((path, picture_plane(path)) for path in (label, image))
    own, reference = (file_affine(path)[:, [*plane, 3 - sum(plane), 3]] for path, plane in planes)
    if suffix_of(image) in PICTURE_SUFFIXES:
        # Its axes are known, its spacing and position are the reading program's guess.
        own, reference = (axes[:3, :2] / np.linalg.norm(axes[:3, :2], axis=0) for axes in (own, reference))
        return bool(np.allclose(own, reference, atol=1e-3))
    corners = np.array([[x, y, 0, 1] for x in (0, shape[1] - 1) for y in (0, shape[0] - 1)], dtype=np.float64).T
    moved = np.linalg.inv(reference) @ own @ corners
    return bool(np.abs(moved - corners)[:2].max() < 0.1)


def slice_label(label: str, series: str, index: int) -> NDArray[Any]:
    """One slice (H, W) of a label volume, which may hold some of the series' slices only, as a DICOM SEG does.

    Raises:
        ValueError: when the label is damaged, or does not lie on the slices of the series.
    """
    try:
        volume = open_label(Path(label)).Execute()
        reference = sitk.ImageFileReader()
        reference.SetFileName(series)
        reference.ReadImageInformation()
    except RuntimeError as error:
        raise UserError(f"Cannot read {Path(label).name}: it is damaged or incomplete.") from error
    width, height = reference.GetSize()[:2]
    pixels = np.reshape(sitk.GetArrayFromImage(volume), (-1, *volume.GetSize()[1::-1]))
    corners = np.array([[x, y, index, 1] for x in (0, width - 1) for y in (0, height - 1)], dtype=np.float64).T
    moved = np.linalg.inv(itk_affine(volume)) @ file_affine(series) @ corners
    place = round(float(moved[2, 0]))
    off = np.abs(moved - np.stack([corners[0], corners[1], np.full(4, place), corners[3]])).max()
    if pixels.shape[1:] != (height, width) or off > 0.1:
        raise UserError(
            f"Expected a label that lies on the series' slices of {width} x {height} pixels, got one of "
            f"{pixels.shape[2]} x {pixels.shape[1]} that lies {off:.1f} voxels beside them."
        )
    return label_values(pixels[place]) if 0 <= place < len(pixels) else np.zeros((height, width), np.uint8)


def _label_of(item: Mapping[Any, Any], label: str, image: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """The label of an item: of a slice of a series, see `labelled_slices`, or of an image of its own."""
    if "series" in item:
        return slice_label(label, str(item["series"]), int(item["slice"]))
    return read_label(label, image, shape)


def check_labels(items: Sequence[Mapping[Any, Any]], foreground_values: Collection[float] | None = None) -> None:
    """Look at every label before one is learned from.

    Args:
        items: dictionaries with the paths `image` and `label`.
        foreground_values: see `clean_mask`.

    Raises:
        ValueError: listing all labels that are damaged, empty, of another size than their image, or lie elsewhere.
    """
    problems = []
    for item in items:
        try:
            shape = decode(item["image"]).pixels.shape[:2]
            pixels = _label_of(item, item["label"], item["image"], shape)
            if not clean_mask(pixels[None], foreground_values=foreground_values).any():
                raise UserError("The label has no foreground. Draw the structure, or remove the label.")
        except (OSError, ValueError) as error:
            problems.append(f"{Path(item['image']).name}: {error}")
    if problems:
        shown = " ".join(problems[:5]) + (f" And {len(problems) - 5} more." if len(problems) > 5 else "")
        raise UserError(f"{len(problems)} of {len(items)} labels cannot be learned from. {shown}")


class SubmittedLabeld(MapTransform):
    """Replaces the path of a label by its pixels (1, W, H), with the geometry of its image.

    MONAI's readers give a label its own file's axes, so that a PNG label of a NIfTI image would be turned against it.

    Args:
        keys: of the label's path.
        image: key of the image, a MetaTensor (C, W, H) that was loaded from a file and not moved since.

    Raises:
        ValueError: see `read_label`.
    """

    def __init__(self, keys: KeysCollection = "label", *, image: str = "image") -> None:
        super().__init__(keys)
        self.image = image

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Load the labels."""
        result = dict(data)
        image: MetaTensor = result[self.image]
        width, height = image.shape[1:]
        for key in self.key_iterator(result):
            pixels = _label_of(data, str(result[key]), str(image.meta["filename_or_obj"]), (height, width))
            columns_first = torch.from_numpy(np.ascontiguousarray(pixels.T[None]).astype(np.float32))
            meta = {name: image.meta[name] for name in ("original_affine", "spatial_shape", "space")}
            result[key] = MetaTensor(columns_first, affine=image.affine.clone(), meta=meta)
        return result


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
