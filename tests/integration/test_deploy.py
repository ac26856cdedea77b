# SPDX-License-Identifier: Apache-2.0
"""The MONAI Deploy application on real DICOM files, read back by hand, against direct calls of the bundle.

Needs the environment of the extra `deploy`; `nox -s deploy` builds it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from PIL import Image
from pydicom.data import get_testdata_file

from monai_kdsam.__main__ import main
from monai_kdsam.bundles import copy_bundle
from monai_kdsam.export.torchscript import write_torchscript
from monai_kdsam.inferers import BundlePredictor
from monai_kdsam.networks import build_student

if importlib.util.find_spec("monai.deploy") is None:
    reason = "The MONAI Deploy App SDK is not installed; `nox -s deploy` runs these tests in an environment that has it"
    pytest.skip(reason, allow_module_level=True)

from highdicom.seg import segread

ROOT = Path(__file__).parents[2]
ULTRASOUND = "OBXXXX1A.dcm", "US1_J2KI.dcm", "US1_J2KR.dcm", "color-pl.dcm", "examples_rgb_color.dcm"
CINE = "examples_ybr_color.dcm"
# One file each of secondary capture, single and two frames, MR and CT; pydicom brings them along.
SAMPLES = "SC_rgb_jpeg_lossy_gdcm.dcm", "SC_rgb_rle_2frame.dcm", "MR_small.dcm", "CT_small.dcm"

MULTI_FRAME_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7.4"  # as pydicom's file with two frames says not


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    """Random weights: each image and prompt has a mask of its own, with holes and many parts."""
    bundle = copy_bundle(
        tmp_path_factory.mktemp("model"),
        settings={"backbone": "resnet18", "image_size": 128, "prompt_map": False, "fine_features": False},
    )
    torch.manual_seed(0)
    torch.save(build_student("resnet18", image_size=128).state_dict(), bundle / "models" / "model.pt")
    return bundle


@pytest.fixture(scope="module")
def predict(bundle) -> BundlePredictor:
    return BundlePredictor(bundle)


@pytest.fixture(scope="module")
def scripts(bundle, predict, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("torchscript")
    write_torchscript(predict.network, bundle, folder, half=False)
    return folder


@dataclass(frozen=True)
class Segmentation:
    """A DICOM segmentation, read with nothing but pydicom's parser and NumPy."""

    header: pydicom.Dataset
    masks: dict[tuple[str, int], np.ndarray]
    positions: dict[tuple[str, int], list[float]]
    folder: Path


def read_segmentation(file: Path) -> Segmentation:
    header = pydicom.dcmread(file)
    count, shape = int(header.NumberOfFrames), (header.Rows, header.Columns)
    bits = np.unpackbits(np.frombuffer(header.PixelData, np.uint8), bitorder="little")
    frames = bits[: count * shape[0] * shape[1]].reshape(count, *shape)
    assert len(header.PerFrameFunctionalGroupsSequence) == count
    masks, positions = {}, {}
    for item, frame in zip(header.PerFrameFunctionalGroupsSequence, frames, strict=True):
        (derivation,) = item.DerivationImageSequence
        (source,) = derivation.SourceImageSequence
        place = source.ReferencedSOPInstanceUID, int(source.get("ReferencedFrameNumber", 1))
        assert place not in masks
        masks[place] = frame
        if "PlanePositionSequence" in item:
            positions[place] = [float(value) for value in item.PlanePositionSequence[0].ImagePositionPatient]
    return Segmentation(header, masks, positions, file.parent)


def deploy(folder: Path, model: Path, output: Path, *options: str) -> list[Segmentation]:
    """Run the command in this process."""
    kind = "--bundle" if model.is_dir() else "--model"
    assert main(["deploy", "--input", str(folder), kind, str(model), "--output", str(output), *options]) == 0
    return [read_segmentation(file) for file in sorted(output.glob("*/*.dcm"))]


def copy_files(folder: Path, *files: str | Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="module")
def mr(real_data) -> Path:
    return real_data / "dicom-mr" / "13_HCropVolume"


@pytest.fixture(scope="module")
def images(real_data, tmp_path_factory) -> Path:
    """Images without a geometry, and single slices, all in one folder and its subfolders."""
    files = [real_data / "dicom-us" / name for name in (*ULTRASOUND, CINE)]
    folder = copy_files(tmp_path_factory.mktemp("images"), *files)
    copy_files(folder / "deeper", *(get_testdata_file(name, download=False) for name in SAMPLES))
    two_frames = pydicom.dcmread(folder / "deeper" / SAMPLES[1])
    two_frames.SOPClassUID = two_frames.file_meta.MediaStorageSOPClassUID = MULTI_FRAME_SECONDARY_CAPTURE
    two_frames.save_as(two_frames.filename)
    (folder / "notes.txt").write_text("No DICOM file, and not looked at.")
    return folder


@pytest.fixture(scope="module")
def segmented(images, bundle, tmp_path_factory) -> dict[str, Segmentation]:
    """By the name of the file that was segmented."""
    output = tmp_path_factory.mktemp("segmented") / "new" / "folder"
    found = deploy(images, bundle, output, "--segment", "polyp")
    uids = {pydicom.dcmread(file).SOPInstanceUID: file.name for file in images.rglob("*.dcm")}
    return {uids[next(iter(one.masks))[0]]: one for one in found}


@pytest.fixture(scope="module")
def series(mr, bundle, tmp_path_factory) -> Segmentation:
    (only,) = deploy(mr, bundle, tmp_path_factory.mktemp("series") / "out", "--segment", "hippocampus")
    return only


@pytest.mark.parametrize("name", [*ULTRASOUND, *SAMPLES, CINE])
def test_the_masks_of_an_image_are_those_of_a_direct_call(segmented, images, predict, name):
    (file,) = images.rglob(name)
    source, found = pydicom.dcmread(file), segmented[name]
    count = int(source.get("NumberOfFrames", 1))
    paths = [file.with_name(f"{file.stem}#frame{n}.dcm") for n in range(count)] if count > 1 else [file]
    expected = {(source.SOPInstanceUID, n): predict(path) for n, path in enumerate(paths, start=1)}
    assert any(mask.any() for mask in expected.values())
    assert set(found.masks) == {place for place, mask in expected.items() if mask.any()}
    for place, mask in found.masks.items():
        np.testing.assert_array_equal(mask, expected[place], err_msg=str(place))


@pytest.mark.parametrize("name", [*ULTRASOUND, *SAMPLES, CINE])
def test_a_segmentation_belongs_to_its_image_and_says_what_it_shows(segmented, images, name):
    (file,) = images.rglob(name)
    source, header = pydicom.dcmread(file), segmented[name].header
    assert (header.SOPClassUID, header.Modality, header.SegmentationType) == (
        "1.2.840.10008.5.1.4.1.1.66.4",
        "SEG",
        "BINARY",
    )
    assert (header.StudyInstanceUID, header.PatientID) == (source.StudyInstanceUID, source.get("PatientID", ""))
    assert header.get("FrameOfReferenceUID") == source.get("FrameOfReferenceUID")
    (referenced,) = header.ReferencedSeriesSequence
    (instance,) = referenced.ReferencedInstanceSequence
    assert referenced.SeriesInstanceUID == source.SeriesInstanceUID
    assert (instance.ReferencedSOPClassUID, instance.ReferencedSOPInstanceUID) == (
        source.SOPClassUID,
        source.SOPInstanceUID,
    )
    (segment,) = header.SegmentSequence
    (category,) = segment.SegmentedPropertyCategoryCodeSequence
    (kind,) = segment.SegmentedPropertyTypeCodeSequence
    assert (segment.SegmentLabel, segment.SegmentAlgorithmType) == ("polyp", "AUTOMATIC")
    assert (category.CodeValue, category.CodingSchemeDesignator) == ("49755003", "SCT")
    assert (kind.CodeValue, kind.CodingSchemeDesignator) == ("68496003", "SCT")


def test_the_frames_of_a_cine_are_in_order_and_each_refers_to_its_own(segmented):
    header = segmented[CINE].header
    numbers = [item.FrameContentSequence[0].TemporalPositionIndex for item in header.PerFrameFunctionalGroupsSequence]
    assert numbers == sorted(set(numbers)) == [frame for _, frame in segmented[CINE].masks]
    pointers = [item.DimensionIndexPointer for item in header.DimensionIndexSequence]
    values = [item.FrameContentSequence[0].DimensionIndexValues for item in header.PerFrameFunctionalGroupsSequence]
    assert pointers[1] == pydicom.tag.Tag("TemporalPositionIndex")
    assert [list(value) for value in values] == [[1, number] for number in numbers]


def test_a_picture_lies_beside_each_segmentation(segmented, images):
    for name, one in segmented.items():
        (file,) = images.rglob(name)
        with Image.open(one.folder / "overlay.png") as picture:
            drawn = np.asarray(picture)
        assert (drawn == (0, 255, 255)).all(axis=-1).any(), name
        if "NumberOfFrames" not in pydicom.dcmread(file):
            assert drawn.shape[:2] == (one.header.Rows, one.header.Columns)


def test_the_slices_of_a_series_lie_where_the_images_lie(series, mr, predict):
    sources = {header.SOPInstanceUID: header for header in map(pydicom.dcmread, mr.glob("*.dcm"))}
    files = {header.SOPInstanceUID: Path(header.filename) for header in sources.values()}
    expected = {uid: predict(file) for uid, file in files.items()}
    assert {uid for uid, _ in series.masks} == {uid for uid, mask in expected.items() if mask.any()}
    for (uid, _), mask in series.masks.items():
        np.testing.assert_array_equal(mask, expected[uid])
        assert series.positions[uid, 1] == [float(value) for value in sources[uid].ImagePositionPatient]
    shared, source = series.header.SharedFunctionalGroupsSequence[0], next(iter(sources.values()))
    assert series.header.FrameOfReferenceUID == source.FrameOfReferenceUID
    assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == source.ImageOrientationPatient
    assert shared.PixelMeasuresSequence[0].PixelSpacing == source.PixelSpacing
    referenced = series.header.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert {item.ReferencedSOPInstanceUID for item in referenced} == set(sources)


def test_dcmqi_reads_the_series_where_itk_puts_the_images(series, mr, tmp_path):
    """A reader in C++ that shares no code with the writer."""
    if shutil.which("segimage2itkimage") is None:
        pytest.skip("dcmqi is not installed")
    (file,) = series.folder.glob("*.dcm")
    command = ["segimage2itkimage", "--inputDICOM", file, "--outputDirectory", tmp_path, "--outputType", "nrrd"]
    subprocess.run(command, check=True, capture_output=True)
    found = sitk.ReadImage(str(tmp_path / "1.nrrd"))
    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(mr)))
    where = sitk.Resample(found, image, sitk.Transform(), sitk.sitkNearestNeighbor)
    places = {header.SOPInstanceUID: header for header in map(pydicom.dcmread, mr.glob("*.dcm"))}
    expected = np.zeros(sitk.GetArrayFromImage(image).shape, np.uint8)
    for (uid, _), mask in series.masks.items():
        position = [float(value) for value in places[uid].ImagePositionPatient]
        expected[image.TransformPhysicalPointToIndex(position)[2]] = mask
    assert expected.any()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(where) > 0, expected > 0)


def test_an_oblique_series_in_any_order_of_files(bundle, predict, tmp_path):
    """Written here, because the real series is axial: turned, unequal spacing, slices that run against the normal."""
    folder, files = tmp_path / "oblique", {}
    folder.mkdir()
    template = pydicom.dcmread(get_testdata_file("MR_small.dcm", download=False))
    row, column = np.array([0.8, 0.6, 0.0]), np.array([0.0, 0.0, -1.0])
    normal, rng = np.cross(row, column), np.random.default_rng(0)
    for number in range(5):
        template.SOPInstanceUID = template.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}"
        template.ImageOrientationPatient = [*row, *column]
        template.ImagePositionPatient = [round(value, 6) for value in (5.0, -7.0, 3.0) - 2.5 * number * normal]
        template.PixelSpacing = [0.5, 0.7]
        template.PixelData = rng.integers(0, 2000, (64, 64), dtype=np.int16).tobytes()
        files[template.SOPInstanceUID] = folder / f"{(number * 3) % 5}.dcm"
        template.save_as(files[template.SOPInstanceUID])
    (found,) = deploy(folder, bundle, tmp_path / "out")
    assert {uid for uid, _ in found.masks} == set(files)
    for (uid, _), mask in found.masks.items():
        np.testing.assert_array_equal(mask, predict(files[uid]))
        assert found.positions[uid, 1] == [float(value) for value in pydicom.dcmread(files[uid]).ImagePositionPatient]
    measures = found.header.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert (list(measures.PixelSpacing), float(measures.SpacingBetweenSlices)) == ([0.5, 0.7], 2.5)


def test_an_enhanced_multi_frame_image_keeps_the_geometry_of_its_frames(bundle, predict, tmp_path):
    image, frames = pydicom.dcmread(get_testdata_file("MR_small.dcm", download=False)), 3
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
    image.NumberOfFrames, shared, per_frame = frames, pydicom.Dataset(), [pydicom.Dataset() for _ in range(frames)]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [pydicom.Dataset()], [pydicom.Dataset()]
    shared.PixelMeasuresSequence[0].PixelSpacing = [0.5, 0.7]
    shared.PixelMeasuresSequence[0].SliceThickness = 2
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    for number, item in enumerate(per_frame):
        item.PlanePositionSequence = [pydicom.Dataset()]
        item.PlanePositionSequence[0].ImagePositionPatient = [-3, 2 * number, 40]
    image.SharedFunctionalGroupsSequence, image.PerFrameFunctionalGroupsSequence = [shared], per_frame
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(image, keyword)
    image.PixelData = np.random.default_rng(0).integers(0, 2000, (frames, 64, 64), dtype=np.int16).tobytes()
    (tmp_path / "in").mkdir()
    image.save_as(tmp_path / "in" / "enhanced.dcm")
    (found,) = deploy(tmp_path / "in", bundle, tmp_path / "out")
    assert set(found.masks) == {(image.SOPInstanceUID, number) for number in (1, 2, 3)}
    for (uid, number), mask in found.masks.items():
        np.testing.assert_array_equal(mask, predict(tmp_path / "in" / f"enhanced#frame{number - 1}.dcm"))
        assert found.positions[uid, number] == [-3, 2 * (number - 1), 40]


@pytest.mark.parametrize("plane", [{}, {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [0.3, 0.3]}])
def test_stills_that_all_say_one_position_are_images_of_their_own(bundle, predict, tmp_path, plane):
    """Four ultrasound stills of a series, and a cine that says the same."""
    stills = [pydicom.dcmread(get_testdata_file("MR_small.dcm", download=False)) for _ in range(4)]
    for number, image in enumerate(stills):
        image.PixelData = np.roll(image.pixel_array, 9 * number, axis=1).tobytes()
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}"
    cine = pydicom.dcmread(get_testdata_file("SC_rgb_rle_2frame.dcm", download=False))
    cine.SOPClassUID = cine.file_meta.MediaStorageSOPClassUID = MULTI_FRAME_SECONDARY_CAPTURE
    for number, image in enumerate([*stills, cine]):
        image.Modality, image.FrameOfReferenceUID = "US", "1.2.4"
        image.SeriesInstanceUID, image.StudyInstanceUID = stills[0].SeriesInstanceUID, stills[0].StudyInstanceUID
        for keyword in ("ImageOrientationPatient", "PixelSpacing"):
            image.pop(keyword, None)
        for keyword, value in {"ImagePositionPatient": [0, 0, 0], **plane}.items():
            setattr(image, keyword, value)
        image.save_as(copy_files(tmp_path / "in") / f"{number}.dcm")
    (tmp_path / "in" / "gone.dcm").symlink_to(tmp_path / "nowhere.dcm")  # passed over
    found = {next(iter(one.masks))[0]: one for one in deploy(tmp_path / "in", bundle, tmp_path / "out")}
    assert set(found) == {image.SOPInstanceUID for image in [*stills, cine]}
    for number, image in enumerate(stills):
        (mask,) = found[image.SOPInstanceUID].masks.values()
        np.testing.assert_array_equal(mask, predict(tmp_path / "in" / f"{number}.dcm"))
    assert len(found[cine.SOPInstanceUID].masks) == 2


def test_torchscript_gives_the_masks_of_the_bundle(segmented, images, scripts, tmp_path):
    names = ("examples_rgb_color.dcm", CINE)
    folder = copy_files(tmp_path / "two", *(images / name for name in names))
    found = deploy(folder, scripts / "model.ts", tmp_path / "out")
    expected = {place: mask for name in names for place, mask in segmented[name].masks.items()}
    masks = {place: mask for one in found for place, mask in one.masks.items()}
    assert set(masks) == set(expected)
    for place, mask in masks.items():
        np.testing.assert_array_equal(mask, expected[place])


def test_where_nothing_is_found_a_segmentation_says_so(images, mr, bundle, tmp_path):
    strict = Path(shutil.copytree(bundle, tmp_path / "strict"))
    config = strict / "configs" / "inference.json"
    config.write_text(config.read_text().replace('"threshold": 0.0', '"threshold": 1e9'))
    folder = copy_files(tmp_path / "in", images / CINE, *sorted(mr.glob("1*.dcm")))
    found = deploy(folder, strict, tmp_path / "out")
    assert len(found) == 2
    assert not any(mask.any() for one in found for mask in one.masks.values())
    assert all((one.folder / "overlay.png").is_file() for one in found)


def prompt_file(path: Path, *entries: dict) -> str:
    path.write_text(json.dumps({"prompts": entries}))
    return str(path)


@pytest.mark.parametrize("kind", ["bundle", "model.ts"])
def test_prompts_change_the_masks_as_in_a_direct_call(images, mr, bundle, scripts, predict, kind, tmp_path):
    cine, still = images / CINE, images / "US1_J2KR.dcm"
    slices = {pydicom.dcmread(file).SOPInstanceUID: file for file in mr.glob("*.dcm")}
    uids = {file: pydicom.dcmread(file).SOPInstanceUID for file in (cine, still)}
    series_uid = pydicom.dcmread(next(iter(slices.values()))).SeriesInstanceUID
    file = prompt_file(
        tmp_path / "prompts.json",
        {"sop_instance_uid": uids[cine], "frame": 7, "box": [60, 40, 250, 180]},
        {"sop_instance_uid": uids[still], "points": [[300, 200], [40, 30]], "labels": [1, 0]},
        {"series_instance_uid": series_uid, "points": [[20, 30]], "labels": [1], "box": [5, 5, 30, 45]},
        {"sop_instance_uid": min(slices), "points": [[9, 9]], "labels": [1]},
    )
    folder = copy_files(tmp_path / "in", cine, still, images / "color-pl.dcm", *slices.values())
    model = bundle if kind == "bundle" else scripts / kind
    found = deploy(folder, model, tmp_path / "out", "--prompts", file)
    masks = {place: mask for one in found for place, mask in one.masks.items()}
    expected = {
        (uids[cine], 7): predict(cine.with_name(f"{cine.stem}#frame6.dcm"), roi=[60, 40, 250, 180]),
        (uids[still], 1): predict(still, foreground=[[300, 200]], background=[[40, 30]]),
    }
    for uid, path in slices.items():
        prompt = {"foreground": [[9, 9]]} if uid == min(slices) else {"foreground": [[20, 30]], "roi": [5, 5, 30, 45]}
        expected[uid, 1] = predict(path, **prompt)
    assert set(masks) == {place for place, mask in expected.items() if mask.any()}
    for place, mask in masks.items():
        np.testing.assert_array_equal(mask, expected[place], err_msg=str(place))
    assert (masks[uids[still], 1] != predict(still)).any()
    assert {one.header.SegmentSequence[0].SegmentAlgorithmType for one in found} == {"SEMIAUTOMATIC"}


def test_dciodvfy_finds_no_error(segmented, series, images):
    validator = Path(os.environ.get("KDSAM_DEBIAN", "/"), "usr/bin/dciodvfy")
    if not validator.is_file():
        pytest.skip("dciodvfy, of the Debian package dicom3tools, is not installed")
    for one in [*segmented.values(), series]:
        (file,) = one.folder.glob("*.dcm")
        told = subprocess.run([validator, file], capture_output=True, text=True).stderr.splitlines()
        assert "Segmentation" in told
        # color-pl.dcm itself has UIDs that are none.
        assert not [line for line in told if line.startswith("Error") and "Illegal root for UID" not in line]


def command(*words: str | Path, **environment: str) -> subprocess.CompletedProcess:
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": paths} | environment
    return subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, timeout=300)


def test_the_command_as_a_user_types_it(bundle, images, tmp_path):
    folder = copy_files(tmp_path / "in", images / "examples_rgb_color.dcm")
    words = ("--input", folder, "--output", tmp_path / "out", "--bundle", bundle)
    ran = command("-m", "monai_kdsam", "deploy", *words)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("Wrote 1 DICOM segmentation to")
    assert sorted(path.suffix for path in (tmp_path / "out").glob("*/*")) == [".dcm", ".png"]


def test_told_to_end_it_keeps_nothing_and_says_so(bundle, images, tmp_path):
    """Holoscan ends as if all had been done."""
    folder = copy_files(tmp_path / "in", images / "examples_rgb_color.dcm", images / "OBXXXX1A.dcm")
    code = """
import os, signal, sys, time
from monai_kdsam.deploy.app_sdk import prepare_app_sdk
prepare_app_sdk()
from monai_kdsam.__main__ import main
from monai_kdsam.deploy import operators
draw = operators.save_overlay
def interrupted(*arguments):
    draw(*arguments)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(2)  # until holoscan has heard it
operators.save_overlay = interrupted
sys.exit(main(["deploy", *sys.argv[1:]]))
"""
    ran = command("-c", code, "--input", folder, "--output", tmp_path / "out", "--bundle", bundle)
    assert ran.returncode == 1
    # On a busy machine holoscan may leave at once, without a word; then a hidden folder is left for the next run.
    assert "error: Stopped after 1 of 2 segmentations, of which nothing is kept." in ran.stderr or not ran.stderr
    # A signal that is heard after the last mask leaves everything, never a part.
    assert len(list(tmp_path.glob("out/[!.]*/*.dcm"))) in (0, 2)


def test_a_uid_that_is_a_path_writes_nothing_outside(refusal, images, tmp_path):
    folder = copy_files(tmp_path / "in", images / "examples_rgb_color.dcm")
    image = pydicom.dcmread(folder / "examples_rgb_color.dcm")
    image["SOPInstanceUID"]._value = str(tmp_path / "outside")
    image.save_as(image.filename)
    assert "is no UID" in refusal(folder)
    assert not (tmp_path / "outside").exists()


def test_the_packaged_application_reads_its_places_from_the_environment(scripts, images, tmp_path):
    """As `monai-deploy package` lays it out: each model in a folder of its own, prompts beside the images."""
    folder = copy_files(tmp_path / "in", images / "examples_rgb_color.dcm")
    copy_files(tmp_path / "models" / "model", scripts / "model.ts")
    uid = pydicom.dcmread(folder / "examples_rgb_color.dcm").SOPInstanceUID
    prompt_file(folder / "prompts.json", {"sop_instance_uid": uid, "box": [10, 10, 200, 200]})
    places = {"INPUT": folder, "OUTPUT": tmp_path / "out", "MODEL": tmp_path / "models"}
    ran = command(ROOT / "deploy", **{f"HOLOSCAN_{name}_PATH": str(path) for name, path in places.items()})
    assert ran.returncode == 0, ran.stderr
    (file,) = (tmp_path / "out").glob("*/*.dcm")
    assert read_segmentation(file).header.SegmentSequence[0].SegmentAlgorithmType == "SEMIAUTOMATIC"


def test_the_packager_takes_the_application_s_configuration():
    """What of `monai-deploy package` needs no Docker."""
    from holoscan_cli.packager.config_reader import ApplicationConfiguration

    configuration = ApplicationConfiguration()
    configuration.read(ROOT / "deploy" / "app.yaml")
    assert configuration.title().startswith("KD SAM")


@dataclass
class Refusal:
    message: str
    output: Path


@pytest.fixture
def refusal(bundle, tmp_path, capfd):
    """Run the command in vain: one line on stderr, nothing written."""

    def run(folder: Path, *options: str | Path) -> str:
        capfd.readouterr()
        words = ["deploy", "--input", str(folder), "--output", str(tmp_path / "refused"), *map(str, options)]
        if not {"--bundle", "--model"} & set(words):
            words += ["--bundle", str(bundle)]
        assert main(words) == 1
        assert not (tmp_path / "refused").exists()
        (line,) = [line for line in capfd.readouterr().err.splitlines() if line]
        return line

    return run


def test_a_file_that_is_cut_off_is_named_and_nothing_is_written(refusal, images, tmp_path):
    whole = images / "examples_rgb_color.dcm"
    folder = copy_files(tmp_path / "cut", images / "US1_J2KR.dcm", whole)
    (folder / whole.name).write_bytes(whole.read_bytes()[:90000])
    message = refusal(folder)
    assert "examples_rgb_color.dcm" in message
    assert "damaged" in message


def test_weights_that_do_not_fit_the_bundle(refusal, bundle, images, tmp_path):
    other = shutil.copytree(bundle, tmp_path / "other")
    torch.save(build_student("resnet34", image_size=64).state_dict(), other / "models" / "model.pt")
    folder = copy_files(tmp_path / "in", images / "examples_rgb_color.dcm")
    assert "model.pt" in refusal(folder, "--bundle", other)


def test_a_torchscript_part_is_no_model(refusal, scripts, images):
    assert "has no bundle's configs inside" in refusal(images, "--model", scripts / "encoder.ts")


def test_a_torchscript_file_that_this_torch_cannot_load(refusal, scripts, images, tmp_path):
    with zipfile.ZipFile(scripts / "model.ts") as whole, zipfile.ZipFile(tmp_path / "model.ts", "w") as changed:
        for name in whole.namelist():
            is_code = "/code/" in name and name.endswith(".py")
            changed.writestr(name, b"op_version_set = 999" if is_code else whole.read(name))
    folder = copy_files(tmp_path / "in", images / "examples_rgb_color.dcm")
    assert "Cannot load" in refusal(folder, "--model", tmp_path / "model.ts")


def test_a_prompt_beside_the_image(refusal, images, tmp_path):
    folder = copy_files(tmp_path / "in", images / "examples_rgb_color.dcm")
    uid = pydicom.dcmread(folder / "examples_rgb_color.dcm").SOPInstanceUID
    file = prompt_file(tmp_path / "p.json", {"sop_instance_uid": uid, "box": [1000, 10, 2000, 200]})
    assert "Expected `box` to cover some of the image of 320 x 240 pixels" in refusal(folder, "--prompts", file)


def test_a_prompt_for_an_image_that_is_not_there(refusal, images, tmp_path):
    folder = copy_files(tmp_path / "in", images / "examples_rgb_color.dcm")
    file = prompt_file(tmp_path / "p.json", {"sop_instance_uid": "1.2.3", "box": [10, 10, 20, 20]})
    assert "1.2.3, which is not among the images" in refusal(folder, "--prompts", file)


def test_an_output_folder_that_is_in_use_is_left_as_it_is(bundle, images, tmp_path, capsys):
    (tmp_path / "kept.txt").touch()
    folder = copy_files(tmp_path / "in", images / "examples_rgb_color.dcm")
    assert main(["deploy", "--input", str(folder), "--output", str(tmp_path), "--bundle", str(bundle)]) == 1
    assert "Expected `--output` to be new or empty" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"kept.txt", "in"}


@pytest.mark.parametrize(
    ("sample", "character_set", "name"),
    [
        ("MR_small.dcm", ["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("SC_rgb_rle_2frame.dcm", "ISO_IR 100", "Buc^Jérôme"),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_names_keep_their_letters_and_odd_headers_give_a_valid_segmentation(
    bundle, tmp_path, sample, character_set, name
):
    image = pydicom.dcmread(get_testdata_file(sample, download=False))
    image.SpecificCharacterSet, image.PatientName, image.StudyDescription = character_set, name, name.partition("=")[0]
    image.PatientBirthDate = "19991399"
    if "SliceThickness" in image:
        image.SliceThickness = None
    image.save_as(copy_files(tmp_path / "in") / sample)
    (found,) = deploy(tmp_path / "in", bundle, tmp_path / "out", "--modalities", image.Modality)
    (file,) = found.folder.glob("*.dcm")
    seg = segread(file)
    assert (str(seg.PatientName), seg.PatientBirthDate) == (name, "")
    if "SliceThickness" in image:
        assert seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness > 0
