# SPDX-License-Identifier: Apache-2.0
"""MONAI Label on studies in Orthanc: clicks, masks, DICOM SEG and what is saved, against direct calls of the bundle.

Needs the environment of the extra `label` and Debian's orthanc-dicomweb; `nox -s label` provides both.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
import requests
import SimpleITK as sitk  # noqa: N813

if importlib.util.find_spec("monailabel") is None:
    reason = "MONAI Label is not installed; `nox -s label` runs these tests in an environment that has it"
    pytest.skip(reason, allow_module_level=True)

import highdicom
from dicomweb_client import DICOMwebClient
from hosts.label_server import MODEL, free_port, label_command, random_bundle, running_server
from hosts.orthanc import encoded, mr_series, running_orthanc, ultrasound_still

from monai_kdsam.inferers import BundlePredictor
from monai_kdsam.label.active_learning import UncertaintyScoring
from monai_kdsam.label.archive import SeriesDatastore
from monai_kdsam.label.labels import labelled_slices

SLICE = 6
CLICK = [60, 50]
LIVER = {
    "SegmentedPropertyCategoryCodeSequence": {
        "CodeValue": "123037004",
        "CodingSchemeDesignator": "SCT",
        "CodeMeaning": "Anatomical Structure",
    },
    "SegmentedPropertyTypeCodeSequence": {
        "CodeValue": "10200004",
        "CodingSchemeDesignator": "SCT",
        "CodeMeaning": "Liver",
    },
}


@pytest.fixture(scope="module")
def still(archive):
    """A generated ultrasound picture, stored."""
    dataset = ultrasound_still()
    archive.store(dataset)
    return dataset


@pytest.fixture(scope="module")
def volume(archive):
    """A generated MR series, stored; the slices in the order of their positions."""
    datasets = mr_series()
    archive.store(*datasets)
    return datasets


@pytest.fixture(scope="module")
def server(archive, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    with running_server(random_bundle(folder, "resnet18", 256), archive.dicomweb, folder) as running:
        yield running
        assert running.process.poll() is None, "the server died on the way"


@pytest.fixture(scope="module")
def predict(server) -> BundlePredictor:
    return BundlePredictor(server.bundle)


@pytest.fixture
def direct(predict, tmp_path):
    """The mask that the bundle gives for the DICOM file itself."""

    def mask(dataset: pydicom.Dataset | Path, **prompt) -> np.ndarray:
        file = tmp_path / "direct.dcm"
        file.write_bytes(dataset.read_bytes() if isinstance(dataset, Path) else encoded(dataset))
        return predict(file, **prompt)

    return mask


def image_of(server, series: str, params: dict, folder: Path) -> sitk.Image:
    answer = server.post(series, params | {"result_extension": ".nrrd"}, output="image")
    assert answer.status_code == 200, answer.text
    (folder / "mask.nrrd").write_bytes(answer.content)
    return sitk.ReadImage(str(folder / "mask.nrrd"))


def seg_of(server, series: str, params: dict) -> highdicom.seg.Segmentation:
    answer = server.post(series, {"label_info": [{"name": "structure"}]} | params, output="dicom_seg")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/dicom"
    return highdicom.seg.segread(BytesIO(answer.content))


@pytest.mark.parametrize("prompt", [{}, {"foreground": [CLICK]}, {"foreground": [CLICK], "roi": [20, 15, 100, 90]}])
def test_an_ultrasound_picture_gets_the_mask_of_a_direct_call(server, still, direct, tmp_path, prompt):
    found = sitk.GetArrayFromImage(image_of(server, still.SeriesInstanceUID, prompt, tmp_path))
    np.testing.assert_array_equal(found[0], direct(still, **prompt))
    assert 0.02 < found.mean() < 0.98


def test_the_slice_that_is_clicked_on_is_segmented_where_it_lies(server, volume, direct, tmp_path):
    params = {"foreground": [[*CLICK, SLICE]], "background": [[90, 20, SLICE]]}
    image = image_of(server, volume[0].SeriesInstanceUID, params, tmp_path)
    found = sitk.GetArrayFromImage(image)
    np.testing.assert_array_equal(found[SLICE], direct(volume[SLICE], foreground=[CLICK], background=[[90, 20]]))
    assert not np.delete(found, SLICE, axis=0).any()
    assert image.GetSize() == (volume[0].Columns, volume[0].Rows, len(volume))
    for index in (0, SLICE):
        position = image.TransformIndexToPhysicalPoint((0, 0, index))
        np.testing.assert_allclose(position, volume[index].ImagePositionPatient, atol=1e-4)
    np.testing.assert_allclose(image.GetSpacing(), (0.7, 0.5, 2.0), atol=1e-6)


def test_the_seg_of_an_ultrasound_picture_refers_to_it(server, still, direct):
    seg = seg_of(server, still.SeriesInstanceUID, {"foreground": [CLICK]})
    assert_of_the_same_study(seg, still)
    mask = seg.get_pixels_by_source_instance([still.SOPInstanceUID], combine_segments=True)
    np.testing.assert_array_equal(mask[0], direct(still, foreground=[CLICK]))
    assert (seg.Rows, seg.Columns) == (still.Rows, still.Columns)


def test_the_seg_of_a_series_lies_on_the_slice_and_refers_to_it(server, volume, direct, tmp_path):
    seg = seg_of(server, volume[0].SeriesInstanceUID, {"foreground": [[*CLICK, SLICE]]})
    source, expected = volume[SLICE], direct(volume[SLICE], foreground=[CLICK])
    assert_of_the_same_study(seg, source)
    assert seg.FrameOfReferenceUID == source.FrameOfReferenceUID
    mask = seg.get_pixels_by_source_instance([source.SOPInstanceUID], combine_segments=True)
    np.testing.assert_array_equal(mask[0], expected)
    (frame,) = seg.PerFrameFunctionalGroupsSequence
    (drawn_on,) = frame.DerivationImageSequence[0].SourceImageSequence
    assert drawn_on.ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert frame.PlanePositionSequence[0].ImagePositionPatient == source.ImagePositionPatient
    shared = seg.SharedFunctionalGroupsSequence[0]
    assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == source.ImageOrientationPatient
    assert shared.PixelMeasuresSequence[0].PixelSpacing == source.PixelSpacing
    assert shared.PixelMeasuresSequence[0].SliceThickness == source.SliceThickness
    # A second reader: dcmqi's.
    seg.save_as(tmp_path / "seg.dcm")
    command = ["segimage2itkimage", "--inputDICOM", tmp_path / "seg.dcm", "--outputDirectory", tmp_path, "-t", "nrrd"]
    subprocess.run([str(word) for word in command], check=True, capture_output=True, timeout=120)
    image = sitk.ReadImage(str(tmp_path / "1.nrrd"))
    np.testing.assert_allclose(image.GetOrigin(), source.ImagePositionPatient, atol=1e-4)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image)[0] > 0, expected > 0)


def assert_of_the_same_study(seg, source) -> None:
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "StudyDate", "AccessionNumber"):
        assert seg[keyword].value == source[keyword].value
    assert seg.Modality == "SEG"
    assert seg.SeriesInstanceUID != source.SeriesInstanceUID
    (reference,) = seg.ReferencedSeriesSequence
    assert reference.SeriesInstanceUID == source.SeriesInstanceUID
    assert source.SOPInstanceUID in [item.ReferencedSOPInstanceUID for item in reference.ReferencedInstanceSequence]
    (segment,) = seg.SegmentSequence
    assert (segment.SegmentLabel, segment.SegmentAlgorithmType) == ("structure", "SEMIAUTOMATIC")
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"


def test_codes_that_a_client_gives_are_kept(server, still):
    info = [{"name": "liver", "segmentAttribute": LIVER}]
    (segment,) = seg_of(server, still.SeriesInstanceUID, {"foreground": [CLICK], "label_info": info}).SegmentSequence
    assert segment.SegmentLabel == "liver"
    for keyword, code in LIVER.items():
        assert segment[keyword].value[0].CodeValue == code["CodeValue"]
        assert segment[keyword].value[0].CodeMeaning == code["CodeMeaning"]


def save_label(server, series: str, content: bytes, params: dict) -> requests.Response:
    return requests.put(
        f"{server.address}/datastore/label",
        params={"image": series, "tag": "final"},
        data={"params": json.dumps(params)},
        files={"label": ("mask.nrrd", content)},
        timeout=120,
    )


def test_a_saved_label_is_found_in_the_archive_as_dicom_seg(server, archive, volume, direct, tmp_path):
    series = volume[0].SeriesInstanceUID
    image_of(server, series, {"foreground": [[*CLICK, SLICE]]}, tmp_path)
    answer = save_label(server, series, (tmp_path / "mask.nrrd").read_bytes(), {"label_info": [{"name": "cyst"}]})
    assert answer.status_code == 200, answer.text
    (found,) = archive.find("series", Modality="SEG", StudyInstanceUID=volume[0].StudyInstanceUID)
    assert answer.json()["image"] == series
    seg = highdicom.seg.Segmentation.from_dataset(archive.read(found.SeriesInstanceUID))
    assert seg.SegmentSequence[0].SegmentLabel == "cyst"
    mask = seg.get_pixels_by_source_instance([volume[SLICE].SOPInstanceUID], combine_segments=True)
    np.testing.assert_array_equal(mask[0], direct(volume[SLICE], foreground=[CLICK]))
    listed = requests.get(f"{server.address}/datastore/?output=stats", timeout=60)
    assert listed.status_code == 200, listed.text


def test_values_of_a_label_become_segments_of_their_names(server, archive, volume, tmp_path):
    """Two structures, 3 and 7, on different slices: as 3D Slicer sends a segmentation with gaps in its numbers."""
    series = volume[1].SeriesInstanceUID
    image = image_of(server, series, {"foreground": [[*CLICK, 1]]}, tmp_path)
    drawn = np.zeros(image.GetSize()[::-1], np.uint8)
    drawn[1, 10:30, 20:50], drawn[4, 60:90, 30:40] = 7, 3
    label = sitk.GetImageFromArray(drawn)
    label.CopyInformation(image)
    sitk.WriteImage(label, str(tmp_path / "drawn.nrrd"))
    before = {found.SeriesInstanceUID for found in archive.find("series", Modality="SEG")}
    info = {"label_info": [{"name": "seven", "value": 7}, {"name": "three", "value": 3}]}
    assert save_label(server, series, (tmp_path / "drawn.nrrd").read_bytes(), info).status_code == 200
    (new,) = {found.SeriesInstanceUID for found in archive.find("series", Modality="SEG")} - before
    seg = highdicom.seg.Segmentation.from_dataset(archive.read(new))
    assert [segment.SegmentLabel for segment in seg.SegmentSequence] == ["three", "seven"]
    masks = seg.get_pixels_by_source_instance([volume[k].SOPInstanceUID for k in (1, 4)], combine_segments=True)
    np.testing.assert_array_equal(masks, np.select([drawn == 3, drawn == 7], [1, 2])[[1, 4]])


def test_a_label_that_is_turned_moved_empty_or_of_another_size_is_not_saved(server, archive, volume, tmp_path):
    series = volume[0].SeriesInstanceUID
    image = image_of(server, series, {"foreground": [[*CLICK, SLICE]]}, tmp_path)
    moved = sitk.Image(image)
    moved.SetOrigin((0, 0, 0))
    wrong = {"where the series is": moved, "is empty": image * 0, "voxels": image[:, :, :3]}
    before = len(archive.find("series", Modality="SEG"))
    for message, mask in wrong.items():
        sitk.WriteImage(mask, str(tmp_path / "wrong.nrrd"))
        answer = save_label(server, series, (tmp_path / "wrong.nrrd").read_bytes(), {})
        assert answer.status_code == 400, answer.text
        assert message in answer.json()["detail"]
    assert len(archive.find("series", Modality="SEG")) == before


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "has 9 slices, and this model segments one at a time"),
        ({"foreground": [CLICK]}, "Expected clicks [x, y, slice] on one slice, got none"),
        ({"foreground": [[60, 50, 2]], "background": [[60, 50, 3]]}, "on one slice, got [2, 3]"),
        ({"foreground": [[60, 50, 9]]}, "slice from 0 to 8, got slice 9"),
        ({"foreground": [[60, 50, -1]]}, "slice from 0 to 8, got slice -1"),
    ],
)
def test_a_click_on_no_slice_is_explained(server, volume, params, message):
    answer = server.post(volume[0].SeriesInstanceUID, params)
    assert answer.status_code == 400
    assert message in answer.json()["detail"]


@pytest.mark.parametrize("series", ["1.2.3", "../../etc", "*"])
def test_a_series_that_is_not_there_is_explained(server, series):
    answer = server.post(series, {"foreground": [CLICK]})
    assert answer.status_code == 404
    assert answer.json()["detail"] == f"There is no image {series!r} among the studies."


def test_series_without_images_are_not_offered(server, archive, still, volume, tmp_path):
    archive.store(seg_of(server, still.SeriesInstanceUID, {"foreground": [CLICK]}))
    offered = SeriesDatastore(
        DICOMwebClient(archive.dicomweb), search_filter={}, cache_path=str(tmp_path)
    ).list_images()
    kinds = {found.SeriesInstanceUID: found.Modality for found in archive.find("series")}
    assert set(offered) == {series for series, kind in kinds.items() if kind in ("US", "MR")}
    assert "SEG" in kinds.values()


@pytest.mark.parametrize("name", ["US1_J2KR.dcm", "US1_UNCI.dcm", "OBXXXX1A.dcm"])
def test_real_ultrasound_gets_the_mask_of_a_direct_call(server, archive, direct, real_data, tmp_path, name):
    """Compressed by JPEG 2000, in plain RGB, and with a palette; the archive cannot decompress the first."""
    dataset = pydicom.dcmread(real_data / "dicom-us" / name)
    dataset.SeriesInstanceUID = pydicom.uid.generate_uid()  # in the file two formats of a picture share a series
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    archive.store(dataset)
    prompt = {"foreground": [[300, 250]], "roi": [200, 150, 420, 380]}
    found = sitk.GetArrayFromImage(image_of(server, dataset.SeriesInstanceUID, prompt, tmp_path))
    np.testing.assert_array_equal(found[0], direct(dataset, **prompt))
    seg = seg_of(server, dataset.SeriesInstanceUID, prompt)
    mask = seg.get_pixels_by_source_instance([dataset.SOPInstanceUID], combine_segments=True)
    np.testing.assert_array_equal(mask[0], found[0])


def test_a_real_mr_series_gets_the_mask_of_a_direct_call(server, archive, direct, real_data, tmp_path):
    files = sorted((real_data / "dicom-mr").rglob("*.dcm"), key=lambda file: int(file.stem))
    archive.store(*files)
    headers = [pydicom.dcmread(file) for file in files]
    ordered = sorted(zip(headers, files, strict=True), key=lambda pair: pair[0].ImagePositionPatient[2])
    for index in (3, 20):
        params = {"foreground": [[15, 25, index]]}
        found = sitk.GetArrayFromImage(image_of(server, headers[0].SeriesInstanceUID, params, tmp_path))
        expected = direct(ordered[index][1], foreground=[[15, 25]])
        np.testing.assert_array_equal(found[index], expected)


def test_a_cine_gets_the_mask_of_the_frame_and_its_seg_refers_to_it(server, archive, predict, real_data, tmp_path):
    file = real_data / "dicom-us" / "examples_ybr_color.dcm"
    archive.store(file)
    header = pydicom.dcmread(file, stop_before_pixels=True)
    series = header.SeriesInstanceUID
    params = {"foreground": [[150, 120, 7]]}
    found = sitk.GetArrayFromImage(image_of(server, series, params, tmp_path))
    expected = predict(file.with_name(f"{file.stem}#frame7.dcm"), foreground=[[150, 120]])
    np.testing.assert_array_equal(found[7], expected)
    seg = seg_of(server, series, params)
    assert_of_the_same_study(seg, header)
    mask = seg.get_pixels_by_source_frame(header.SOPInstanceUID, [8], combine_segments=True)
    np.testing.assert_array_equal(mask[0], expected)


def test_orthancs_own_address_in_the_place_of_dicomwebs_is_told_in_one_line(archive, server, tmp_path):
    given = {"--studies": archive.address, "--model": server.bundle, "--port": free_port(), "--dir": tmp_path / "label"}
    ended = subprocess.run(**label_command(given), capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert ended.returncode == 1
    (error,) = [line for line in ended.stderr.splitlines() if line.startswith("monai_kdsam: error:")]
    assert f"{archive.address}/studies answered 400" in error
    assert "Orthanc's address ends in /dicom-web" in error
    assert "Traceback" not in ended.stderr


def test_an_archive_that_goes_away_is_told_and_comes_back(tmp_path, server):
    """Started on its own archive, so that the others keep theirs."""
    folder = tmp_path / "server"
    with running_orthanc(tmp_path) as gone:
        first, second = ultrasound_still(seed=8), ultrasound_still(seed=9)
        gone.store(first, second)
        with running_server(server.bundle, gone.dicomweb, folder) as label:
            assert label.post(first.SeriesInstanceUID, {"foreground": [CLICK]}).status_code == 200
            gone.process.terminate()
            gone.process.wait(timeout=30)
            answer = label.post(second.SeriesInstanceUID, {"foreground": [CLICK]})
            assert answer.status_code == 502
            assert "DICOMweb server did not answer as expected" in answer.json()["detail"]
            # What was fetched before is served on.
            assert label.post(first.SeriesInstanceUID, {"foreground": [CLICK]}).status_code == 200


def test_the_last_label_of_a_series_is_learned_from_and_what_has_none_is_scored(server, archive, tmp_path):
    """The server's list of series is older than all of these."""
    labelled, other, mixed = mr_series(slices=4, seed=21), mr_series(slices=5, seed=22), mr_series(slices=2, seed=23)
    mixed[0].Rows, mixed[0].PixelData = 100, mixed[0].PixelData[: 2 * 100 * mixed[0].Columns]
    picture = ultrasound_still(seed=24)
    archive.store(*labelled, *other, *mixed, picture)
    labelled_as = {labelled[0].SeriesInstanceUID: 2, other[0].SeriesInstanceUID: 3}
    for series, last in {**labelled_as, picture.SeriesInstanceUID: 0}.items():
        for index in sorted({min(1, last), last}):
            image_of(server, series, {"foreground": [[*CLICK, index]]}, tmp_path)
            answer = save_label(server, series, (tmp_path / "mask.nrrd").read_bytes(), {})
            assert answer.status_code == 200, answer.text
    trained = requests.post(f"{server.address}/train/{MODEL}?run_sync=true", json={"max_epochs": 1}, timeout=300)
    assert trained.status_code == 200, trained.text
    # A server that begins with the archive alone learns from the same slices.
    store = SeriesDatastore(DICOMwebClient(archive.dicomweb), search_filter={}, cache_path=str(tmp_path / "new"))
    found = {Path(item["image"]).name.removesuffix(".nii.gz"): item for item in store.datalist()}
    for series, last in labelled_as.items():
        (item,) = labelled_slices([found[series]])
        assert item["slice"] == last
    unscored = mr_series(slices=3, seed=25)
    archive.store(*unscored)
    store.list_images.cache.clear()
    done = UncertaintyScoring(server.bundle)({"max_samples": 0}, store)
    assert done["left"] == 0
    assert done["executed"] > done["failed"] > 0  # the two sizes
    assert 0 < store.get_image_info(unscored[0].SeriesInstanceUID)["uncertainty"] < 1
    assert not set(labelled_as) & set(store.get_unlabeled_images())
    store._observer.stop()
