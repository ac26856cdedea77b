# SPDX-License-Identifier: Apache-2.0
"""One label that is its own mirror image nowhere, in every format, on images in every format."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd
from PIL import Image

from monai_kdsam.data import Image2DReader
from monai_kdsam.data.geometry import file_affine
from monai_kdsam.label import SubmittedLabeld
from monai_kdsam.label.labels import check_labels, read_label

OBLIQUE = np.array([[0.52, -0.3, 0, -31.5], [-0.3, -0.52, 0, 20.25], [0, 0, 2.5, 7.0], [0, 0, 0, 1]])
MIRRORED = np.diag([0.7, 0.7, 2, 1.0])  # x to the right, y to the front: the array is upside down
LABEL = np.zeros((20, 30), np.uint8)
LABEL[2:9, 3:5] = LABEL[7:9, 3:14] = 1  # an L in a corner
PICTURE = np.repeat((LABEL * 200 + 20)[..., None], 3, axis=-1)  # the image shows what the label marks


def save_image(folder: Path, kind: str) -> str:
    if kind == "png":
        Image.fromarray(PICTURE).save(folder / "a.png")
        return str(folder / "a.png")
    if kind == "dicom":
        image = sitk.GetImageFromArray(PICTURE[None, ..., 0])
        image.SetSpacing((0.4, 0.7, 3.0))
        image.SetDirection((0, 1, 0, 0, 0, -1, -1, 0, 0))
        for tag, text in {"0020|0037": r"0\0\-1\1\0\0", "0020|0032": r"-12.5\33.25\8"}.items():
            image.SetMetaData(tag, text)
        sitk.WriteImage(image, str(folder / "a.dcm"))
        return str(folder / "a.dcm")
    affine = OBLIQUE if kind == "oblique" else MIRRORED
    nibabel.Nifti1Image(PICTURE[..., 0].T[..., None], affine).to_filename(folder / "a.nii.gz")
    return str(folder / "a.nii.gz")


def save_label(folder: Path, kind: str, image: str, pixels: np.ndarray = LABEL, affine=None) -> str:
    path = folder / f"label.{kind}"
    if kind == "png":
        Image.fromarray(pixels * 255).save(path)
        return str(path)
    affine = file_affine(image) if affine is None else affine
    # NIfTI first, and ITK makes NRRD of it, with the same geometry.
    nibabel.Nifti1Image(pixels.T[..., None], affine).to_filename(folder / "label.nii.gz")
    if kind == "nrrd":
        sitk.WriteImage(sitk.ReadImage(str(folder / "label.nii.gz")), str(path))
    return str(path)


def load(image: str, label: str) -> dict:
    steps = [
        LoadImaged("image", reader=Image2DReader()),
        EnsureChannelFirstd("image"),
        SubmittedLabeld("label"),
        Orientationd(("image", "label"), axcodes="PL", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
    ]
    return Compose(steps)({"image": image, "label": label})


@pytest.mark.parametrize("image", ["png", "oblique", "mirrored", "dicom"])
@pytest.mark.parametrize("label", ["png", "nii.gz", "nrrd"])
def test_a_label_lies_on_what_it_marks(tmp_path, image, label):
    file = save_image(tmp_path, image)
    data = load(file, save_label(tmp_path, label, file))
    shown = data["image"][0] > data["image"][0].float().mean()
    assert shown.sum() == LABEL.sum()
    assert torch.equal(data["label"][0] > 0, shown.as_tensor())
    if image == "png":
        np.testing.assert_array_equal(data["label"][0] > 0, LABEL)


@pytest.mark.parametrize("image", ["png", "oblique", "dicom"])
@pytest.mark.parametrize("label", ["nii.gz", "nrrd"])
@pytest.mark.parametrize("turn", [np.diag([-1.0, 1, 1, 1]), np.eye(4)[[1, 0, 2, 3]]], ids=["mirrored", "turned"])
def test_a_label_with_other_axes_is_refused(tmp_path, image, label, turn):
    file = save_image(tmp_path, image)
    path = save_label(tmp_path, label, file, affine=file_affine(file) @ turn)
    with pytest.raises(ValueError, match="lies on its image, but its axes or its position"):
        check_labels([{"image": file, "label": path}])


def test_a_label_a_pixel_away_is_refused_where_the_image_has_a_position(tmp_path):
    file, shift = save_image(tmp_path, "oblique"), np.eye(4)
    shift[0, 3] = 1
    path = save_label(tmp_path, "nii.gz", file, affine=OBLIQUE @ shift)
    with pytest.raises(ValueError, match="its position"):
        check_labels([{"image": file, "label": path}])


def test_all_problems_are_told_together(tmp_path):
    file = save_image(tmp_path, "png")
    items = []
    for name, pixels in {"turned": LABEL.T, "empty": LABEL * 0, "good": LABEL}.items():
        (tmp_path / name).mkdir()
        items.append({"image": file, "label": save_label(tmp_path / name, "png", file, pixels)})
    (tmp_path / "damaged.nrrd").write_bytes(b"NRRD0004\n")
    items.append({"image": file, "label": str(tmp_path / "damaged.nrrd")})
    with pytest.raises(ValueError, match="3 of 4 labels cannot be learned from") as caught:
        check_labels(items)
    for part in ("label of 30 x 20 pixels, as its image, got 20 x 30", "no foreground", "Cannot read damaged.nrrd"):
        assert part in str(caught.value)


def test_a_label_may_not_name_another_file(tmp_path) -> None:
    image = save_image(tmp_path, "oblique")
    label = save_label(tmp_path, "nrrd", image)
    (tmp_path / "secret.raw").write_bytes(bytes(600))
    header = Path(label).read_bytes().partition(b"\n\n")[0].replace(b"gzip", b"raw")
    Path(label).write_bytes(header + b"\ndata file: secret.raw\n\n")
    with pytest.raises(ValueError, match=r"in one file, but label\.nrrd has its pixels in another"):
        read_label(label, image, LABEL.shape)
