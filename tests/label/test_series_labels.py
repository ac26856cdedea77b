# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged

from monai_kdsam.data.volume_reader import series_files
from monai_kdsam.label import SubmittedLabeld
from monai_kdsam.label.labels import check_labels, labelled_slices
from tests.dicom.test_slice_grid import EVEN, write_series


@pytest.fixture
def series(tmp_path) -> str:
    """What the server has of a series: its files, and the volume made of them."""
    folder = write_series(tmp_path / "1.2.3", EVEN)
    sitk.WriteImage(sitk.ReadImage([str(file) for file in series_files(folder)]), str(tmp_path / "1.2.3.nii.gz"))
    return str(tmp_path / "1.2.3.nii.gz")


def drawn(series: str, change=lambda label: label) -> tuple[str, np.ndarray]:
    """A label with foreground on the slices 2 and 4."""
    image = sitk.ReadImage(series)
    pixels = np.zeros(image.GetSize()[::-1], np.uint8)
    pixels[2, 1:3, 4:7], pixels[4, 3:6, 1:2] = 1, 1
    label = sitk.GetImageFromArray(pixels)
    label.CopyInformation(image)
    path = series.replace("1.2.3.nii.gz", "label.nrrd")
    sitk.WriteImage(change(label), path)
    return path, pixels


@pytest.mark.parametrize("change", [lambda label: label, lambda label: label[:, :, 2:5]], ids=["whole", "as a SEG"])
def test_the_labelled_slices_of_a_series_are_images_to_learn_from(series, change):
    label, pixels = drawn(series, change)
    items = labelled_slices([{"image": series, "label": label}, {"image": "a.png", "label": "b.png"}])
    assert [item.get("slice") for item in items] == [2, 4, None]
    assert [Path(item["image"]).name for item in items] == ["004.dcm", "002.dcm", "a.png"]
    check_labels(items[:2])
    load = Compose(
        [
            LoadImaged("image", reader="monai_kdsam.data.Image2DReader"),
            EnsureChannelFirstd("image"),
            SubmittedLabeld("label"),
        ]
    )
    for item in items[:2]:
        np.testing.assert_array_equal(load(item)["label"][0].numpy().T, pixels[item["slice"]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda label: label * 0, "no foreground"),
        (lambda label: sitk.Flip(label, [True, False, False]), "beside them"),
        (lambda label: label[1:], "beside them"),
    ],
)
def test_a_label_of_a_series_that_teaches_nonsense_is_told(series, change, message):
    label, _ = drawn(series, change)
    with pytest.raises(ValueError, match=message):
        check_labels(labelled_slices([{"image": series, "label": label}]))
