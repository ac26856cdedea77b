# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from monai.data import MetaTensor

from monai_kdsam.data import VolumeReader
from monai_kdsam.label import ClickedSliced, ResultGeometryd, SeriesFilesd
from monai_kdsam.label.dicom_series import stored_files
from tests.dicom.test_slice_grid import write_frames

SLICES = 4


def write_slice(path: Path, position: float, frames: int = 1) -> None:
    image = sitk.GetImageFromArray(np.zeros((frames, 9, 12), np.uint8))
    image.SetOrigin((0, 0, position))
    for tag, text in {"0008|0060": "MR", "0008|0018": f"1.2.3.{ord(path.stem[0])}", "0020|000e": "1.2.3"}.items():
        image.SetMetaData(tag, text)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetFileName(str(path))
    writer.Execute(image)


@pytest.fixture
def series(tmp_path) -> str:
    """What the server has of a series: its files, named as they come, and the volume made of them."""
    (tmp_path / "1.2.3").mkdir()
    for index, name in enumerate("dbca"):
        write_slice(tmp_path / "1.2.3" / f"{name}.dcm", 2.5 * index)
    nibabel.Nifti1Image(np.zeros((12, 9, SLICES), np.uint8), np.eye(4)).to_filename(tmp_path / "1.2.3.nii.gz")
    return str(tmp_path / "1.2.3.nii.gz")


def test_files_are_in_the_order_of_their_positions(series):
    assert [file.stem for file in stored_files(series.removesuffix(".nii.gz"))] == list("dbca")


@pytest.mark.parametrize(
    ("request_", "index"),
    [
        ({"foreground": [[3, 4, 1]]}, 1),
        ({"foreground": [[3, 4, 2], [5, 6, 2]], "background": [[1, 1, 2]]}, 2),
        ({"foreground": [], "background": [[3, 4, 0]]}, 0),
        ({"foreground": None, "roi": [1, 2, 3, 4, 0, 5], "slice": 3}, 3),
        ({"foreground": [[3, 4, 1]], "slice": 3}, 1),
    ],
)
def test_the_slice_that_was_clicked_on_is_chosen(series, request_, index):
    chosen = ClickedSliced()({"image": series, **request_})
    assert Path(chosen["image"]).stem == "dbca"[index]
    assert chosen["slice"] == index


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, "has 4 slices, and this model segments one at a time.*got none"),
        ({"foreground": [[3, 4]]}, "on one slice, got none"),
        ({"foreground": [[3, 4, 1], [3, 4, 2]]}, r"on one slice, got \[1, 2\]"),
        ({"foreground": [[3, 4, 4]]}, "slice from 0 to 3, got slice 4"),
        ({"foreground": [[3, 4, -1]]}, "slice from 0 to 3, got slice -1"),
        ({"foreground": [[3, 4, "1"]]}, "slice from 0 to 3, got slice 1"),
        ({"foreground": [[3, 4, 1.5]]}, "slice from 0 to 3, got slice 1.5"),
        ({"foreground": [[3, 4, [1]]]}, r"got slice \[1\]"),
        ({"foreground": 5}, "on one slice"),
    ],
)
def test_no_slice_or_several_are_refused(series, request_, message):
    with pytest.raises(ValueError, match=message):
        ClickedSliced()({"image": series, **request_})


def test_a_converted_series_is_read_from_its_own_files_and_checked(series):
    """The NIfTI file, which ITK makes of any series, would hide a gap."""
    folder = Path(series.removesuffix(".nii.gz"))
    assert SeriesFilesd()({"image": series})["image"] == str(folder)
    (folder / "b.dcm").unlink()
    with pytest.raises(ValueError, match=r"steps from 2\.50 to 5\.00 mm"):
        VolumeReader().get_data((SeriesFilesd()({"image": series})["image"],))


@pytest.mark.parametrize(("depths", "is_told"), [([4, 2, 0], False), ([0, 4, 2, 6], True)])
def test_frames_that_clients_would_count_otherwise_are_told(tmp_path, depths, is_told):
    (tmp_path / "1.2.6").mkdir()
    for path in (tmp_path / "1.2.6" / "only.dcm", tmp_path / "a.dcm"):
        write_frames(path, depths)
        image = tmp_path / "1.2.6.nii.gz" if path.name == "only.dcm" else path
        if is_told:
            with pytest.raises(ValueError, match="not in the order of their positions"):
                SeriesFilesd()({"image": str(image)})
        else:
            assert SeriesFilesd()({"image": str(image)})["image"] == str(path)


def test_a_series_of_one_image_needs_no_slice(tmp_path):
    (tmp_path / "1.2.4").mkdir()
    write_slice(tmp_path / "1.2.4" / "only.dcm", 0)
    chosen = ClickedSliced()({"image": str(tmp_path / "1.2.4.nii.gz"), "foreground": [[3, 4]]})
    assert chosen["image"] == str(tmp_path / "1.2.4" / "only.dcm")


def test_clicks_on_other_slices_than_the_one_that_is_named_are_left_out(series):
    clicks = {"foreground": [[3, 4, 1], [5, 6, 2]], "background": [[1, 1, 3], [2, 2, 2]]}
    chosen = ClickedSliced()({"image": series, **clicks, "slice": 2})
    assert (chosen["slice"], chosen["foreground"], chosen["background"]) == (2, [[5, 6, 2]], [[2, 2, 2]])


def test_the_frame_of_a_cine_is_named(tmp_path):
    (tmp_path / "1.2.5").mkdir()
    write_slice(tmp_path / "1.2.5" / "cine.dcm", 0, frames=5)
    chosen = ClickedSliced()({"image": str(tmp_path / "1.2.5.nii.gz"), "foreground": [[3, 4, 3]]})
    assert chosen["image"] == str(tmp_path / "1.2.5" / "cine#frame3.dcm")


@pytest.mark.parametrize("name", ["photo.png", "volume.nii.gz", "folder.with.png"])
def test_any_other_path_stays_as_it_is(tmp_path, name):
    (tmp_path / "folder.with").mkdir()
    data = {"image": str(tmp_path / name), "foreground": [[1, 2]]}
    assert ClickedSliced()(data) == data


def test_the_mask_of_a_slice_lies_in_an_otherwise_empty_volume(series):
    image = MetaTensor(torch.zeros(3, 16, 16), meta={"spatial_shape": (12, 9), "original_affine": np.eye(3)})
    mask = torch.arange(108).reshape(12, 9) % 2
    result = ResultGeometryd()({"image": image, "pred": mask, "image_path": series, "slice": 2})
    volume = result["pred"]
    assert volume.shape == (1, 12, 9, SLICES)
    assert torch.equal(volume[0, ..., 2], mask)
    assert volume.sum() == mask.sum()
    assert tuple(result["image"].meta["spatial_shape"]) == (12, 9, SLICES)
