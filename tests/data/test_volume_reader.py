# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from monai.transforms import LoadImaged
from PIL import Image
from scipy.spatial.transform import Rotation

from monai_kdsam.data import VolumeReader, check_volumes, list_volumes, root_of_volumes, write_slices
from monai_kdsam.data.archive import mask_path

OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = Rotation.from_euler("xyz", [20, -35, 48], degrees=True).as_matrix() * [0.6, 0.7, 2.5]
OBLIQUE[:3, 3] = (-31.5, 20.25, 7)


SHEARED = np.array([[1, 0, 0.3, 0], [0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1.0]])


def read(path):
    return VolumeReader().get_data((str(path),))


def nifti(path, values, affine=OBLIQUE):
    nibabel.Nifti1Image(values, affine).to_filename(path)
    return path


def series(folder, values, uid="1.2.3", modality="MR"):
    """A DICOM series (X, Y, Z) of sagittal slices, its files named against their order."""
    folder.mkdir(exist_ok=True)
    depth = values.shape[2]
    for k in range(depth):
        image = sitk.GetImageFromArray(values[..., k].T[None])
        image.SetSpacing((0.4, 0.7, 3.0))
        origin = (-12.5 - 3.0 * k, 33.25, 8.0)
        tags = {
            "0008|0060": modality,
            "0020|000e": uid,
            "0020|0037": r"0\1\0\0\0\-1",
            "0020|0032": "\\".join(map(str, origin)),
            "0020|0013": str(k),
            "0008|0018": f"{uid}.{k}",
        }
        for tag, text in tags.items():
            image.SetMetaData(tag, text)
        image.SetOrigin(origin)
        image.SetDirection((0, 0, -1, 1, 0, 0, 0, -1, 0))
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(folder / f"{depth - k:03}.dcm"))
        writer.Execute(image)
    return folder


def values(*shape, dtype=np.int16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 900, shape).astype(dtype)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_nifti_volume_is_read_as_it_is_stored(tmp_path, name):
    stored = values(5, 6, 7)
    array, meta = read(nifti(tmp_path / name, stored))
    np.testing.assert_array_equal(array, stored)
    np.testing.assert_allclose(meta["original_affine"], OBLIQUE, atol=1e-6)
    assert (meta["modality"], meta["original_channel_dim"]) == ("", "no_channel")


def test_a_last_axis_of_one_is_no_time(tmp_path):
    assert read(nifti(tmp_path / "a.nii.gz", values(5, 6, 7, 1)))[0].shape == (5, 6, 7)


def test_colors_as_itk_writes_them_are_colors(tmp_path):
    """Five axes, of which the fourth is time."""
    stored = values(4, 5, 6, 3, dtype=np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(stored.transpose(2, 1, 0, 3), isVector=True), str(tmp_path / "a.nii.gz"))
    assert nibabel.load(tmp_path / "a.nii.gz").shape == (4, 5, 6, 1, 3)
    np.testing.assert_array_equal(read(tmp_path / "a.nii.gz")[0], stored)


def test_a_dicom_series_is_sorted_by_position_and_lies_where_its_header_says(tmp_path):
    stored = values(8, 9, 5)
    array, meta = read(series(tmp_path / "series", stored))
    # Position along the normal (-1, 0, 0) rises with k.
    np.testing.assert_array_equal(array, stored)
    assert meta["modality"] == "MR"
    voxel, position = np.array([2, 3, 4, 1]), np.array([-12.5 - 3 * 4, 33.25 + 0.4 * 2, 8.0 - 0.7 * 3])
    np.testing.assert_allclose((meta["affine"] @ voxel)[:3], position * (-1, -1, 1), atol=1e-4)


def test_frames_of_a_cine_are_slices(real_data):
    array, meta = read(real_data / "dicom-us" / "examples_ybr_color.dcm")
    assert array.shape == (320, 240, 30, 3)
    assert (meta["modality"], meta["original_channel_dim"]) == ("US", -1)


def damaged(tmp_path):
    path = nifti(tmp_path / "whole.nii.gz", values(30, 30, 30))
    (tmp_path / "cut.nii.gz").write_bytes(path.read_bytes()[:5000])
    return tmp_path / "cut.nii.gz"


def with_nan(tmp_path):
    stored = values(4, 4, 4, dtype=np.float32)
    stored[1, 2, 3] = np.nan
    return nifti(tmp_path / "nan.nii", stored)


def two_series(tmp_path):
    folder = series(tmp_path / "two", values(4, 4, 3))
    for file in series(tmp_path / "other", values(4, 4, 3), uid="1.2.4").iterdir():
        file.rename(folder / f"other_{file.name}")
    return folder


def picture(tmp_path):
    Image.new("L", (9, 9)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def claims_too_much(tmp_path):
    header = nibabel.Nifti1Header()
    header.set_data_shape((20000, 20000, 20000))
    (tmp_path / "huge.nii").write_bytes(header.binaryblock + bytes(4))
    return tmp_path / "huge.nii"


def empty(tmp_path):
    (tmp_path / "empty.nii.gz").write_bytes(gzip.compress(b""))
    return tmp_path / "empty.nii.gz"


def flat(tmp_path):
    image = nibabel.Nifti1Image(values(5, 6, 7), None)
    image.header.set_sform(np.diag([1.0, 1, 0, 1]), code=1)
    image.to_filename(tmp_path / "flat.nii")
    return tmp_path / "flat.nii"


def empty_folder(tmp_path):
    (tmp_path / "bare").mkdir()
    return tmp_path / "bare"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (damaged, "damaged, incomplete, or no volume"),
        (empty, "damaged, incomplete, or no volume"),
        (claims_too_much, "claims 20000 x 20000 x 20000 pixels of 4 bytes, more than the 1073741824"),
        (with_nan, "contains NaN or infinite values"),
        (two_series, "files of one DICOM series, got .* with 1.2.*, 1.2"),
        (empty_folder, "files of one DICOM series, got .* with none"),
        (picture, "is no volume: .*kdsam_deepgrow_2d"),
        (lambda folder: nifti(folder / "a.nii", values(5, 6)), r"is a 2-D picture: its array is \(5, 6\)"),
        (lambda folder: nifti(folder / "a.nii", values(5, 6, 1)), r"is a 2-D picture: .*kdsam_deepgrow_2d"),
        (lambda folder: nifti(folder / "a.nii", values(5, 6, 7, 8)), r"no single volume: its array is \(5, 6, 7, 8\)"),
        (lambda folder: series(folder / "s", values(4, 5, 1)), "is a 2-D picture"),
        (lambda folder: nifti(folder / "a.nii", values(5, 6, 7, 3)), r"no single volume: its array is \(5, 6, 7, 3\)"),
        (lambda folder: nifti(folder / "a.nii", values(5, 6, 7, 2, 3)), r"no single volume: .*\(5, 6, 7, 2, 3\)"),
        (flat, "its affine is sheared or singular"),
        (lambda folder: nifti(folder / "a.nii", values(5, 6, 7), SHEARED), r"sheared or singular: \[\[1.0, 0.0, 0.3\]"),
    ],
)
def test_what_is_no_volume_is_told(tmp_path, make, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read(make(tmp_path))


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "none.nii"))):
        read(tmp_path / "none.nii")


def test_the_reason_reaches_the_user_through_monais_loader(tmp_path):
    with pytest.raises(ValueError, match="damaged, incomplete"):
        LoadImaged("image", reader=VolumeReader)({"image": str(damaged(tmp_path))})


def test_volumes_of_a_folder_are_listed_once_each(tmp_path):
    nifti(tmp_path / "b.nii.gz", values(4, 4, 4))
    series(tmp_path / "a", values(4, 4, 3))
    assert list_volumes(tmp_path) == [{"image": str(tmp_path / name)} for name in ("a", "b.nii.gz")]
    with pytest.raises(FileNotFoundError, match="Expected a folder with volumes"):
        list_volumes(tmp_path / "none")
    with pytest.raises(ValueError, match="No volume in"):
        list_volumes(empty_folder(tmp_path))


def test_the_mask_of_a_series_that_is_the_whole_dataset_lies_in_the_output_folder_too(tmp_path, monkeypatch):
    folder = series(tmp_path / "study", values(4, 4, 3))
    (folder / "below").mkdir()
    nifti(folder / "below" / "b.nii.gz", values(4, 4, 4))
    found = [mask_path(item["image"], root_of_volumes(folder), "out", ".nii.gz") for item in list_volumes(folder)]
    assert [path.as_posix() for path in found] == ["out/study_mask.nii.gz", "out/study/below/b_mask.nii.gz"]
    assert root_of_volumes(tmp_path) == str(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert mask_path("study", root_of_volumes("study"), "out", ".nii.gz") == Path("out/study_mask.nii.gz")


def test_what_has_no_pixels_is_no_volume_and_what_is_damaged_or_ambiguous_is_told(tmp_path):
    pydicom = pytest.importorskip("pydicom", reason="writes a report")
    folder = series(tmp_path / "a", values(4, 4, 3))
    report = pydicom.dcmread(next(folder.iterdir()), stop_before_pixels=True)
    report.Modality, report.SeriesInstanceUID, report.SOPInstanceUID = "SR", "1.2.9", "1.2.9.1"
    report.file_meta.MediaStorageSOPClassUID = report.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
    del report.Rows, report.Columns
    for place in (folder, tmp_path):
        report.save_as(place / "report.dcm")
    assert list_volumes(tmp_path) == [{"image": str(folder)}]
    assert read(folder)[0].shape == (4, 4, 3)
    cut = tmp_path / "cut.dcm"
    cut.write_bytes(next(folder.glob("[!r]*")).read_bytes().replace(b"\x28\x00\x10\x00", b"\x28\x00\x12\x00"))
    failed = {}
    assert check_volumes(list_volumes(tmp_path), failed) == [{"image": str(folder)}]
    assert re.match(r"Cannot read .*cut\.dcm", failed.pop(str(tmp_path)))
    assert not failed
    cut.unlink()
    both = two_series(tmp_path)
    assert check_volumes(list_volumes(tmp_path), failed) == [{"image": str(folder)}]
    assert "files of one DICOM series" in failed[str(both)]


def test_slices_of_volumes_of_one_name_would_overwrite_each_other(tmp_path):
    pairs = {
        split: [{key: nifti(tmp_path / split / f"{key}.nii.gz", values(6, 7, 3)) for key in ("image", "label")}]
        for split in ("training", "validation")
        if (tmp_path / split).mkdir() is None
    }
    with pytest.raises(ValueError, match="Expected volumes of different names, got several named image"):
        write_slices(pairs, tmp_path / "out")


def test_slices_to_train_on_are_the_volumes_own(tmp_path):
    image, label = values(6, 7, 5), np.zeros((6, 7, 5), np.uint8)
    image[0, 0, 0], image[-1, -1, -1] = 0, 10_000
    label[2, 5, 3], label[4, 1, 3] = 1, 2
    identity = np.diag([-1.0, -1, 1, 1])  # x to the left, y to the back: as pictures are
    pair = {
        "image": nifti(tmp_path / "v.nii.gz", image, identity),
        "label": nifti(tmp_path / "l.nii.gz", label, identity),
    }
    path = write_slices({"training": [pair], "test": []}, tmp_path / "out", percentiles=(0, 100))
    items = json.loads(path.read_text())["training"]
    assert [item["subject"] for item in items] == ["v"] * 5
    masks = np.stack([np.asarray(Image.open(path.parent / item["label"])) for item in items], axis=-1)
    assert sorted(map(tuple, np.argwhere(masks == 255))) == [(1, 4, 3), (5, 2, 3)]
    pixels = np.stack([np.asarray(Image.open(path.parent / item["image"])) for item in items], axis=-1)
    np.testing.assert_allclose(np.swapaxes(pixels, 0, 1), image / 10_000 * 255, atol=0.51)


def test_a_label_of_another_shape_is_told(tmp_path):
    pair = {
        "image": nifti(tmp_path / "v.nii.gz", values(6, 7, 5)),
        "label": nifti(tmp_path / "l.nii.gz", values(6, 7, 4)),
    }
    with pytest.raises(ValueError, match="Expected v and its label of one shape"):
        write_slices({"training": [pair]}, tmp_path / "out")
