# SPDX-License-Identifier: Apache-2.0
"""Each format that inference writes, read back by libraries that did not write it."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (its own documentation's alias)
import torch
from monai.data import MetaTensor
from monai.transforms import SaveImage
from PIL import Image

from monai_kdsam.data.mask_writer import PICTURES, VOLUMES, MaskWriter, check_mask_format

MASK = np.zeros((9, 12), np.uint8)  # rows, columns
MASK[2:5, 3:11] = 1


def written(folder: Path, source: Path, extension: str) -> Path:
    pred = MetaTensor(torch.from_numpy(MASK.T.copy())[None], meta={"filename_or_obj": str(source)})
    save = SaveImage(folder, "mask", check_mask_format(extension), writer=MaskWriter, separate_folder=False)
    save(pred)
    return folder / f"{source.name.split('.')[0]}_mask{extension}"


@pytest.fixture(params=["picture.png", "slice.nii.gz", "dicom.dcm"])
def source(request, tmp_path) -> Path:
    """A picture of a geometry of its own, where its format has one."""
    path = tmp_path / request.param
    if path.suffix == ".png":
        Image.new("L", (12, 9)).save(path)
        return path
    dimension = 3 if path.suffix == ".dcm" else 2
    image = sitk.GetImageFromArray(np.zeros((1, 9, 12)[3 - dimension :], np.uint8))
    image.SetSpacing((0.5, 0.25, 2.0)[:dimension])
    image.SetOrigin((10.0, -20.0, 30.0)[:dimension])
    sitk.WriteImage(image, str(path))
    return path


@pytest.mark.parametrize("extension", VOLUMES)
def test_a_mask_lies_where_its_image_lies(tmp_path, source, extension) -> None:
    path = written(tmp_path / "masks", source, extension)
    mask, image = sitk.ReadImage(str(path)), sitk.ReadImage(str(source))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), MASK[None])
    dimension = image.GetDimension()
    corners = [(0, 0, 0), (11, 8, 0)]
    for corner in corners:
        expected = image.TransformIndexToPhysicalPoint(corner[:dimension])
        np.testing.assert_allclose(mask.TransformIndexToPhysicalPoint(corner)[:dimension], expected, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(nibabel.load(path).dataobj)[..., 0].T, MASK)


@pytest.mark.parametrize("extension", PICTURES)
def test_a_mask_of_a_picture_format_has_0_and_255(tmp_path, source, extension) -> None:
    path = written(tmp_path / "masks", source, extension)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), MASK * 255)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("extension", [".jpg", "png", ".dcm", ".nrrd"])
def test_another_format_is_refused_with_those_there_are(extension) -> None:
    with pytest.raises(ValueError, match=rf"Expected `output_ext` among \.png, .*\.nii\.gz, .*got '{extension}'"):
        check_mask_format(extension)
