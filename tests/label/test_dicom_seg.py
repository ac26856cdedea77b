# SPDX-License-Identifier: Apache-2.0
"""Needs highdicom beside pydicom 2, as the extra `label` brings them; `nox -s label` builds such an environment."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

if importlib.util.find_spec("monailabel") is None:
    reason = "MONAI Label is not installed; `nox -s label` runs these tests in an environment that has it"
    pytest.skip(reason, allow_module_level=True)

import highdicom
import pydicom
from hosts.orthanc import mr_series

from monai_kdsam.data.volume_reader import series_files
from monai_kdsam.label.dicom_seg import write_dicom_seg


def seg_of(folder, drawn, infos, change=lambda dataset: None):
    """The SEG of a mask of these values, by slice, on a generated MR series of three slices."""
    (folder / "1.2").mkdir()
    for number, dataset in enumerate(mr_series(3)):
        change(dataset)
        dataset.save_as(folder / "1.2" / f"{number}.dcm", write_like_original=False)
    series = sitk.ReadImage([str(file) for file in series_files(folder / "1.2")])
    sitk.WriteImage(series, str(folder / "1.2.nii.gz"))
    mask = np.zeros(series.GetSize()[::-1], np.uint8)
    for place, value in drawn.items():
        mask[place, 10:20, 30:50] = value
    image = sitk.GetImageFromArray(mask)
    image.CopyInformation(series)
    sitk.WriteImage(image, str(folder / "mask.nrrd"))
    written = write_dicom_seg(str(folder / "1.2"), str(folder / "mask.nrrd"), infos)
    return highdicom.seg.segread(written)


STRUCTURE, CYST = {"name": "structure"}, {"name": "cyst"}


@pytest.mark.parametrize(
    ("values", "infos", "names"),
    [
        ([1, 2], [STRUCTURE, CYST], ["structure", "cyst"]),
        ([2], [STRUCTURE, CYST], ["cyst"]),  # nothing of the first was drawn
        ([1], [CYST], ["cyst"]),
        ([7, 3], [CYST | {"value": 7}, STRUCTURE | {"value": 3}], ["structure", "cyst"]),
        # 3D Slicer numbers its list with the scribbles that it leaves out, its mask without.
        ([1, 2], [STRUCTURE | {"idx": 2}, CYST | {"idx": 3}], ["structure", "cyst"]),
        ([5, 9], None, ["structure", "structure"]),
    ],
)
def test_a_segment_has_the_name_of_its_value(tmp_path, values, infos, names):
    seg = seg_of(tmp_path, dict(enumerate(values)), infos)
    assert [segment.SegmentLabel for segment in seg.SegmentSequence] == names
    sources = [pydicom.dcmread(file).SOPInstanceUID for file in series_files(tmp_path / "1.2")]
    masks = seg.get_pixels_by_source_instance(sources[: len(values)], combine_segments=True)
    assert masks.max(axis=(1, 2)).tolist() == [sorted(values).index(value) + 1 for value in values]


@pytest.mark.parametrize("infos", [[STRUCTURE, CYST], [STRUCTURE | {"value": 1}, CYST | {"value": 2}]])
def test_a_value_without_a_name_is_told(tmp_path, infos):
    with pytest.raises(ValueError, match=r"Expected `label_info` for the values 2, 7 .* got it for 1, 2"):
        seg_of(tmp_path, {0: 2, 1: 7}, infos)


@pytest.mark.parametrize("value", [0, "7", 2.5])
def test_a_value_that_no_mask_has_is_told(tmp_path, value):
    with pytest.raises(ValueError, match="Expected `value` in `label_info` to be a whole number above 0"):
        seg_of(tmp_path, {0: 1}, [STRUCTURE | {"value": value}])


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("ISO_IR 100", "Buc^Jérôme"),
        ("ISO_IR 192", "Wang^XiaoDong=王^小東"),
    ],
)
def test_text_keeps_its_letters(tmp_path, character_set, name):
    def change(dataset):
        dataset.SpecificCharacterSet = character_set
        dataset.PatientName, dataset.ReferringPhysicianName = name, name
        dataset.StudyDescription = name.partition("=")[0]

    seg = seg_of(tmp_path, {0: 1}, [{"name": "Zyste, groß"}], change)
    assert (str(seg.PatientName), str(seg.ReferringPhysicianName)) == (name, name)
    assert seg.SegmentSequence[0].SegmentLabel == "Zyste, groß"


@pytest.mark.parametrize("date", ["19991399", "unknown", "1999", "0000-00-00"])
def test_a_date_that_is_none_is_blank(tmp_path, date):
    def change(dataset):
        dataset.add(pydicom.DataElement("PatientBirthDate", "DA", None))
        dataset["PatientBirthDate"]._value = date

    assert not seg_of(tmp_path, {0: 1}, None, change).PatientBirthDate


@pytest.mark.parametrize("thickness", [None, ""])
def test_without_a_slice_thickness_the_slices_distance_is_it(tmp_path, thickness):
    def change(dataset):
        dataset.SliceThickness = thickness
        if thickness is None:
            del dataset.SliceThickness

    shared = seg_of(tmp_path, {0: 1}, None, change).SharedFunctionalGroupsSequence[0]
    assert shared.PixelMeasuresSequence[0].SliceThickness == pytest.approx(2)
