# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from PIL import Image
from scipy.spatial.transform import Rotation

from monai_kdsam.data import prepare_datalist
from monai_kdsam.data.phantoms import write_phantoms
from monai_kdsam.data.picture_file import decode
from monai_kdsam.report.items import load_reference, read_split, with_units


def write_pair(folder, name, value=255):
    pixels = np.zeros((30, 40), np.uint8)
    pixels[5:15, 20:40] = value
    Image.fromarray(pixels).save(folder / f"{name}.png")
    Image.fromarray(pixels).save(folder / f"{name}_mask.png")
    return {"image": f"{name}.png", "label": f"{name}_mask.png"}


def write_list(folder, **lists):
    (folder / "list.json").write_text(json.dumps(lists))
    return folder / "list.json"


def test_only_the_asked_split_of_a_datalist_is_read(tmp_path):
    path = write_list(tmp_path, training=[write_pair(tmp_path, "a")], test=[write_pair(tmp_path, "b")])
    assert [item["image"] for item in read_split(path)] == [str(tmp_path / "b.png")]
    assert [item["image"] for item in read_split(path, "training")] == [str(tmp_path / "a.png")]
    assert load_reference(read_split(path)[0])[5:15, 20:40].all()
    assert load_reference(read_split(path)[0]).sum() == 200


def test_a_datalist_of_several_sets_names_them(tmp_path):
    pairs = [write_pair(tmp_path, name) for name in "abc"]
    path = write_list(tmp_path, test=[pairs[0] | {"source": "skin"}, pairs[1] | {"source": "breast"}, pairs[2]])
    assert [item["source"] for item in read_split(path)] == ["skin", "breast", "datalist"]
    (tmp_path / "list.csv").write_text("image,label,split,source\na.png,a_mask.png,test,skin\n")
    assert [item["source"] for item in read_split(tmp_path / "list.csv")] == ["skin"]


def test_the_split_that_training_wrote_is_read_from_wherever_its_images_lie_now(tmp_path):
    write_phantoms(tmp_path / "then", per_kind=8, size=64)
    expected = prepare_datalist({"folder": tmp_path / "then"}, tmp_path / "split.json")["test"]
    (tmp_path / "then").rename(tmp_path / "now")
    items = read_split(tmp_path / "split.json", roots={"folder": tmp_path / "now"})
    assert [item["image"] for item in items] == [item["image"].replace("/then/", "/now/") for item in expected]


def test_hc18_brings_spacing_and_official_circumference(tmp_path):
    folder = tmp_path / "training_set"
    folder.mkdir()
    rows = ["filename,pixel size(mm),head circumference (mm)"]
    for number in range(6):
        canvas = np.zeros((60, 60), np.uint8)
        canvas[10:50, 10 + number : 50] = 1
        Image.fromarray(canvas * 90 + np.random.default_rng(number).integers(0, 90, (60, 60), np.uint8)).save(
            folder / f"00{number}_HC.png"
        )
        canvas[12:48, 12 + number : 48] = 0
        Image.fromarray(canvas * 255).save(folder / f"00{number}_HC_Annotation.png")
        rows.append(f"00{number}_HC.png,0.1{number},6{number}.5")
    (tmp_path / "training_set_pixel_size_and_HC.csv").write_text("\n".join(rows) + "\n")
    prepare_datalist({"hc18": tmp_path}, tmp_path / "split.json")
    items, units = with_units(read_split(tmp_path / "split.json", roots={"hc18": tmp_path}))
    assert units == {"hc18": "mm"}
    for item in items:
        number = int(item["subject"])
        assert item["spacing"] == [0.1 + number / 100] * 2
        assert item["head_circumference"] == 60.5 + number


def test_pictures_without_spacing_are_measured_in_pixels(tmp_path, caplog):
    items = [write_pair(tmp_path, "a"), {**write_pair(tmp_path, "b"), "spacing": [0.2, 0.2]}]
    found, units = with_units(read_split(write_list(tmp_path, test=items)))
    assert units == {"datalist": "px"}
    assert [item["spacing"] for item in found] == [[1, 1], [1, 1]]
    assert "1 of 2 images of datalist have no spacing: all are measured in pixels" in caplog.text


def test_millimetres_of_a_head_without_spacing_are_a_mistake(tmp_path):
    entry = {**write_pair(tmp_path, "a"), "head_circumference": 170.0}
    with pytest.raises(ValueError, match="Expected a `spacing` for every image of datalist"):
        with_units(read_split(write_list(tmp_path, test=[entry])))


def test_the_spacing_of_a_medical_file_is_its_own(tmp_path):
    image = sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 255, (30, 40), np.uint8))
    image.SetSpacing((0.5, 0.25))
    sitk.WriteImage(image, tmp_path / "a.nii.gz")
    entry = {**write_pair(tmp_path, "a"), "image": "a.nii.gz"}
    (item,), units = with_units(read_split(write_list(tmp_path, test=[entry])))
    assert units == {"datalist": "mm"}
    assert item["spacing"] == pytest.approx([0.5, 0.25])


@pytest.mark.parametrize("angle", [0, 20, 45, 70])
@pytest.mark.parametrize("plane", ["axial", "sagittal"])
def test_the_spacing_of_a_tilted_slice_is_itks(tmp_path, plane, angle):
    turn = Rotation.from_euler("x", angle, degrees=True).as_matrix()
    axes = {"axial": np.eye(3), "sagittal": np.roll(np.eye(3), 1, axis=0)}[plane]
    image = sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 255, (1, 30, 40), np.uint8))
    image.SetSpacing((0.5, 0.25, 3))
    image.SetDirection((axes @ turn if plane == "sagittal" else turn @ axes).ravel().tolist())
    sitk.WriteImage(image, tmp_path / "a.nii.gz")
    entry = write_pair(tmp_path, "a") | {"image": "a.nii.gz"}
    (item,), units = with_units(read_split(write_list(tmp_path, test=[entry])))
    assert units == {"datalist": "mm"}
    assert item["spacing"] == pytest.approx(sitk.ReadImage(tmp_path / "a.nii.gz").GetSpacing()[:2])
    affine = decode(tmp_path / "a.nii.gz").affine
    assert np.linalg.norm(affine[:2, :2], axis=0) == pytest.approx([0.5, 0.25])


def nifti_of_1_mm(path, said):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 30), np.uint8)
    nibabel.Nifti1Image(pixels, np.eye(4) if said else None).to_filename(path)


def dicom_of_1_mm(path, said):
    image = sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 255, (30, 40), np.uint8))
    sitk.WriteImage(image, path)
    data = pydicom.dcmread(path)
    for name in ("PixelSpacing", "NominalScannedPixelSpacing", "ImagerPixelSpacing"):
        if name in data:
            del data[name]
    if said:
        data.PixelSpacing = [1, 1]
    data.save_as(path)


@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize(("name", "write"), [("a.nii", nifti_of_1_mm), ("a.dcm", dicom_of_1_mm)])
def test_a_spacing_of_1_mm_is_known_where_the_file_says_it(tmp_path, name, write, said):
    write(tmp_path / name, said)
    assert decode(tmp_path / name).spacing == ((1, 1) if said else None)
    entries = [write_pair(tmp_path, "a") | {"image": name}, write_pair(tmp_path, "b") | {"spacing": [0.5, 0.5]}]
    items, units = with_units(read_split(write_list(tmp_path, test=entries)))
    assert units == {"datalist": "mm" if said else "px"}
    assert items[0]["spacing"] == [1, 1]


def test_wrong_data_lists_are_told(tmp_path):
    path = write_list(tmp_path, training=[write_pair(tmp_path, "a")])
    with pytest.raises(ValueError, match=r"in the list 'test' of .*, got none \(training 1, validation 0, test 0\)"):
        read_split(path)
    with pytest.raises(ValueError, match="Expected `source` only"):
        read_split(path, roots={"kvasir": tmp_path})
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_split(tmp_path / "nowhere.json", roots={"kvasir": tmp_path})
    write_phantoms(tmp_path / "data", per_kind=6, size=64)
    prepare_datalist({"folder": tmp_path / "data"}, tmp_path / "split.json")
    with pytest.raises(ValueError, match=r"`source` to name folders for some of folder of .*, got none"):
        read_split(tmp_path / "split.json")
    with pytest.raises(ValueError, match="got busi"):
        read_split(tmp_path / "split.json", roots={"busi": tmp_path})
    with pytest.raises(FileNotFoundError, match="do not exist"):
        read_split(tmp_path / "split.json", roots={"folder": tmp_path})
