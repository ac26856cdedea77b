# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from monai_kdsam.data import VolumeReader, check_volumes, list_volumes
from monai_kdsam.data.paths import frame_path
from monai_kdsam.data.picture_file import decode

EVEN = [(0.0, 0.0, 2.0 * k) for k in range(6)]
AXIAL, CORONAL = (1, 0, 0, 0, 1, 0), (1, 0, 0, 0, 0, -1)


def write_series(folder, positions, directions=None, spacings=None, sizes=None, series="1.2.3"):
    """One slice a file, its pixels all k but for the last column, and its files named against their order."""
    folder.mkdir(exist_ok=True)
    for k, position in enumerate(positions):
        width, height = sizes[k] if sizes else (8, 7)
        pixels = np.full((1, height, width), k, np.int16)
        pixels[..., -1] += 50
        image = sitk.GetImageFromArray(pixels)
        row, column = np.reshape((directions or [AXIAL] * len(positions))[k], (2, 3))
        image.SetDirection(np.stack([row, column, np.cross(row, column)], axis=1).ravel().astype(float).tolist())
        image.SetSpacing((*(spacings[k] if spacings else (0.5, 0.6)), 2.0))
        if position is not None:
            image.SetOrigin(position)
        for tag, text in {"0008|0060": "MR", "0020|000e": series, "0008|0018": f"{series}.{k + 1}"}.items():
            image.SetMetaData(tag, text)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(folder / f"{len(positions) - k:03}.dcm"))
        writer.Execute(image)
    return folder


def read(path):
    return VolumeReader().get_data((str(path),))


def test_an_even_series_lies_where_each_of_its_headers_says(tmp_path):
    jitter = np.random.default_rng(0).uniform(-0.04, 0.04, (6, 3))
    array, meta = read(write_series(tmp_path / "s", (EVEN + jitter).tolist()))
    assert array[0, 0].tolist() == list(range(6))
    for k, position in enumerate(EVEN):
        np.testing.assert_allclose((meta["affine"] @ [0, 0, k, 1])[:3], np.array(position) * (-1, -1, 1), atol=0.1)
    np.testing.assert_allclose(meta["affine"] @ [1, 1, 0, 0], [-0.5, -0.6, 0, 0], atol=1e-6)


TILT = np.tan(np.radians(15))
NO_GRID = {
    "a slice is missing": ({"positions": EVEN[:3] + EVEN[4:]}, "steps from 2.00 to 4.00 mm, slice . lies .* mm off"),
    "the last but one is missing": ({"positions": EVEN[:4] + EVEN[5:]}, "steps from 2.00 to 4.00 mm"),
    "1 mm, then 5 mm": ({"positions": [(0, 0, z) for z in (0, 1, 2, 3, 8, 13)]}, "steps from 1.00 to 5.00 mm"),
    "a tilted gantry": ({"positions": [(x, z * TILT, z) for x, _, z in EVEN]}, "up to 2.68 mm .*tilted by 15.0 deg"),
    "two images a position": ({"positions": EVEN * 2}, "6 of its 12 slices share a position with another"),
    "one position": ({"positions": EVEN[:1] * 3}, "3 of its 3 slices share a position"),
    "two directions": ({"positions": EVEN, "directions": [AXIAL] * 3 + [CORONAL] * 3}, r"several directions, \[1.0"),
    "two spacings": ({"positions": EVEN, "spacings": [(0.5, 0.5)] * 5 + [(0.6, 0.6)]}, "0.5 x 0.5, 0.6 x 0.6"),
    "two sizes": ({"positions": EVEN, "sizes": [(8, 7)] * 5 + [(7, 8)]}, "differ in pixels: 7 x 8, 8 x 7"),
}


@pytest.mark.parametrize("name", NO_GRID)
def test_what_is_no_grid_is_told_with_numbers(tmp_path, name):
    given, message = NO_GRID[name]
    folder = write_series(tmp_path / "s", **given)
    with pytest.raises(ValueError, match=message):
        read(folder)
    failed = {}
    assert check_volumes(list_volumes(tmp_path), failed) == []
    assert re.search(message, failed[str(folder)])


def write_frames(path, depths, spacing=(0.6, 0.5), is_shared=True):
    """An enhanced MR image, pixels of frame k all k, its frames at these depths; each may tell the spacing."""
    pydicom = pytest.importorskip("pydicom", reason="writes the enhanced image")
    frames = sitk.GetImageFromArray(np.arange(len(depths), dtype=np.uint16).repeat(56).reshape(-1, 7, 8))
    frames.SetMetaData("0008|0060", "MR")
    sitk.WriteImage(frames, str(path))
    data = pydicom.dcmread(path)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SpacingBetweenSlices"):
        if keyword in data:
            delattr(data, keyword)

    def item(**values):
        dataset = pydicom.Dataset()
        for keyword, value in values.items():
            setattr(dataset, keyword, value)
        return pydicom.Sequence([dataset])

    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
    measures = {"PixelMeasuresSequence": item(PixelSpacing=list(spacing), SliceThickness=2)}
    shared = {"PlaneOrientationSequence": item(ImageOrientationPatient=list(AXIAL))}
    data.SharedFunctionalGroupsSequence = item(**shared, **(measures if is_shared else {}))
    data.PerFrameFunctionalGroupsSequence = [
        item(PlanePositionSequence=item(ImagePositionPatient=[3, 4, depth]), **({} if is_shared else measures))[0]
        for depth in depths
    ]
    data.save_as(path)
    return path


@pytest.mark.parametrize("is_shared", [True, False])
def test_a_spacing_of_1_mm_that_frames_tell_is_known(tmp_path, is_shared):
    file = write_frames(tmp_path / "a.dcm", [0, 2, 4], spacing=(1, 1), is_shared=is_shared)
    assert decode(frame_path(file, 1)).spacing == (1, 1)


@pytest.mark.parametrize(
    ("depths", "order"),
    [
        ([0, 2, 4, 6], [0, 1, 2, 3]),
        ([6, 4, 2, 0], [0, 1, 2, 3]),  # as the file has them, which is how clients count
        ([0, 4, 8, 2, 6], [0, 3, 1, 4, 2]),
    ],
)
def test_frames_lie_where_each_of_their_headers_says(tmp_path, depths, order):
    array, meta = read(write_frames(tmp_path / "a.dcm", depths))
    assert array[0, 0].tolist() == order
    for k, frame in enumerate(order):
        np.testing.assert_allclose((meta["affine"] @ [0, 0, k, 1])[:3], (-3, -4, depths[frame]), atol=1e-6)
    np.testing.assert_allclose(meta["affine"] @ [1, 1, 0, 0], [-0.5, -0.6, 0, 0], atol=1e-6)


@pytest.mark.parametrize(("depths", "message"), [([0, 2, 6], "2.00 to 4.00 mm"), ([0, 2, 0, 2], "2 of its 4 slices")])
def test_frames_that_are_no_grid_are_told_with_numbers(tmp_path, depths, message):
    with pytest.raises(ValueError, match=message):
        read(write_frames(tmp_path / "a.dcm", depths))
