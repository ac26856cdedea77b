# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from monai.data import MetaTensor
from PIL import Image

from monai_kdsam.data import Image2DReader
from monai_kdsam.data.geometry import file_affine
from monai_kdsam.label import ClickedSliced, ResultGeometryd, VolumeFormatd
from monai_kdsam.label.labels import read_label

OBLIQUE = np.array([[0.52, -0.3, 0, -31.5], [-0.3, -0.52, 0, 20.25], [0, 0, 2.5, 7.0], [0, 0, 0, 1]])


def save(folder, name: str) -> str:
    path = folder / name
    if name.endswith((".nii", ".nii.gz")):
        nibabel.Nifti1Image(np.zeros((12, 9, 1), np.uint8), OBLIQUE).to_filename(path)
    elif name.endswith(".dcm"):
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros((1, 9, 12), np.uint8)), str(path))
    else:
        Image.new("L", (12, 9)).save(path)
    return str(path)


def result(path: str, extension: str | None = None) -> dict:
    image = MetaTensor(torch.zeros(3, 16, 16), meta={"spatial_shape": (12, 9), "original_affine": np.eye(3)})
    data = {"image": image, "pred": torch.ones(12, 9), "image_path": path}
    return ResultGeometryd()(data | ({"result_extension": extension} if extension else {}))


@pytest.mark.parametrize(
    ("name", "asked", "extension", "shape"),
    [
        ("a.png", None, ".png", (12, 9)),
        ("a.jpg", None, ".png", (12, 9)),  # a mask must not be compressed as JPEG
        ("a.png", ".nrrd", ".nrrd", (1, 12, 9, 1)),
        ("a.nii.gz", None, ".nii.gz", (1, 12, 9, 1)),
        ("a.nii", ".png", ".png", (12, 9)),
        ("a.dcm", None, ".nrrd", (1, 12, 9, 1)),
    ],
)
def test_format_and_shape_fit_the_servers_writer(tmp_path, name, asked, extension, shape):
    data = result(save(tmp_path, name), asked)
    assert data["result_extension"] == extension
    assert tuple(data["pred"].shape) == shape
    assert tuple(data["image"].meta["spatial_shape"]) == ((12, 9) if len(shape) == 2 else (12, 9, 1))


def test_the_affine_of_a_nifti_file_is_told_to_the_writer(tmp_path):
    data = result(save(tmp_path, "a.nii.gz"))
    np.testing.assert_allclose(data["image"].meta["original_affine"], OBLIQUE, atol=1e-6)


def test_nothing_changes_outside_monai_label():
    data = {"pred": torch.ones(12, 9), "image": MetaTensor(torch.zeros(3, 16, 16))}
    assert ResultGeometryd()(data) == data


def test_a_picture_lies_where_itk_puts_it(tmp_path):
    np.testing.assert_array_equal(file_affine(save(tmp_path, "a.png")), np.diag([-1.0, -1.0, 1.0, 1.0]))


def test_a_sagittal_frame_keeps_its_orientation(tmp_path):
    image = sitk.GetImageFromArray(np.zeros((1, 9, 12), np.uint8))
    image.SetSpacing((0.4, 0.7, 3.0))
    image.SetDirection((0, 0, -1, 1, 0, 0, 0, -1, 0))
    image.SetOrigin((-12.5, 33.25, 8.0))
    sitk.WriteImage(image, str(tmp_path / "a.nii"))
    image = sitk.ReadImage(str(tmp_path / "a.nii"))
    affine = file_affine(str(tmp_path / "a.nii"))
    for index in ((0, 0, 0), (11, 8, 0)):
        ras = np.array(image.TransformIndexToPhysicalPoint(index)) * [-1, -1, 1]
        np.testing.assert_allclose((affine @ [*index, 1])[:3], ras, atol=1e-5)


def test_a_plane_without_a_third_axis_gets_its_normal(tmp_path):
    header = nibabel.Nifti1Image(np.zeros((12, 9), np.uint8), None)
    flat = OBLIQUE.copy()
    flat[:3, 2] = 0
    header.set_sform(flat, 1)
    header.to_filename(tmp_path / "a.nii")
    normal = file_affine(str(tmp_path / "a.nii"))[:3, 2]
    np.testing.assert_allclose(np.abs(normal), [0, 0, 1], atol=1e-6)


@pytest.mark.parametrize(
    ("path", "asked", "extension"),
    [
        ("v.nii.gz", None, ".nii.gz"),
        ("v.nii", None, ".nii"),
        ("series", None, ".nrrd"),
        ("cine.dcm", "", ".nrrd"),
        ("v.nii", ".nrrd", ".nrrd"),
    ],
)
def test_a_volumes_mask_gets_a_format_that_holds_it(path, asked, extension):
    data = {"pred": torch.ones(1, 2, 3, 4), "image_path": path, "result_extension": asked}
    assert VolumeFormatd()(data)["result_extension"] == extension


def test_a_volumes_mask_is_no_picture():
    data = {"pred": torch.ones(1, 2, 3, 4), "image_path": "v.nii", "result_extension": ".png"}
    with pytest.raises(ValueError, match="Expected `result_extension` of a format for volumes"):
        VolumeFormatd()(data)


@pytest.mark.parametrize(("shape", "plane"), [((1, 12, 9), (1, 2)), ((12, 1, 9), (0, 2))])
def test_a_sagittal_slice_of_a_volumes_axes_is_a_picture_and_its_mask_lies_on_it(tmp_path, shape, plane):
    """As one slice cut from a volume is stored; 3D Slicer clicks in voxels of the file."""
    path = str(tmp_path / "a.nii.gz")
    values = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    nibabel.Nifti1Image(values, OBLIQUE).to_filename(path)
    array, meta = Image2DReader().get_data((path,))
    np.testing.assert_array_equal(array[..., 0], values.squeeze())
    spacing = np.linalg.norm(OBLIQUE[:3, list(plane)], axis=0)
    np.testing.assert_allclose(np.diag(meta["affine"])[:2], -spacing, atol=1e-6)
    clicked = ClickedSliced()({"image": path, "foreground": [[7, 3, 2]], "roi": [0, 1, 2, 3, 4, 5]})
    assert clicked["foreground"] == [[(7, 3, 2)[axis] for axis in plane]]
    assert clicked["roi"][:4] == [2 * plane[0], 2 * plane[0] + 1, 2 * plane[1], 2 * plane[1] + 1]
    written = result(path)
    assert tuple(written["pred"].shape[1:]) == shape
    np.testing.assert_allclose(written["image"].meta["original_affine"], file_affine(path))
    label = str(tmp_path / "label.nii.gz")
    nibabel.Nifti1Image(values, OBLIQUE).to_filename(label)
    np.testing.assert_array_equal(read_label(label, path, array.shape[1::-1]), values.squeeze().T)
