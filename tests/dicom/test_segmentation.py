# SPDX-License-Identifier: Apache-2.0
"""DICOM SEG as pydicom's parser and NumPy read it, and dciodvfy; needs highdicom, as MONAI Label and Deploy do."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("highdicom", reason="`nox -s label` and `nox -s deploy` bring highdicom")

import pydicom
from hosts.orthanc import mr_series, ultrasound_still
from pydicom.data import get_testdata_file

from monai_kdsam.dicom.codes import Segment, code_from, segment_named
from monai_kdsam.dicom.segmentation import make_segmentation

MULTI_FRAME_ULTRASOUND = "1.2.840.10008.5.1.4.1.1.3.1"
SEGMENTS = [segment_named("lesion"), Segment("cyst", code_from(None), code_from(None), algorithm_type="SEMIAUTOMATIC")]


def written(images, masks, folder, segments=SEGMENTS) -> pydicom.Dataset:
    """A segmentation in which dciodvfy, where it is there, finds no error, as pydicom reads it."""
    make_segmentation(images, masks, segments, "test").save_as(folder / "seg.dcm")
    validator = Path(os.environ.get("KDSAM_DEBIAN", "/"), "usr/bin/dciodvfy")
    if validator.is_file():
        told = subprocess.run([validator, folder / "seg.dcm"], capture_output=True, text=True).stderr.splitlines()
        assert "Segmentation" in told
        assert not [line for line in told if line.startswith("Error")]
    return pydicom.dcmread(folder / "seg.dcm")


def found_in(header) -> dict[tuple[int, str, int], np.ndarray]:
    """Masks by segment, SOP Instance UID and frame of their source."""
    count, shape = int(header.NumberOfFrames), (header.Rows, header.Columns)
    bits = np.unpackbits(np.frombuffer(header.PixelData, np.uint8), bitorder="little")
    found, shared = {}, header.SharedFunctionalGroupsSequence[0]
    masks = bits[: count * np.prod(shape)].reshape(count, *shape)
    for item, mask in zip(header.PerFrameFunctionalGroupsSequence, masks, strict=True):
        (source,) = item.DerivationImageSequence[0].SourceImageSequence
        (segment,) = (item if "SegmentIdentificationSequence" in item else shared).SegmentIdentificationSequence
        place = source.ReferencedSOPInstanceUID, int(source.get("ReferencedFrameNumber", 1))
        assert found.setdefault((segment.ReferencedSegmentNumber, *place), mask) is mask
        assert source.ReferencedSOPClassUID == header.SourceImageSequence[0].ReferencedSOPClassUID
    return found


def drawn(*shape: int) -> np.ndarray:
    """Both segments, the second on two frames; the first frame is empty. 8 divides no frame."""
    masks = np.zeros(shape, np.uint8)
    masks[1, 3:9, 5:20] = 1
    masks[1:3, 12:15, 1:4] = 2
    return masks


def cine(frames: int = 4):
    image = ultrasound_still()
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = MULTI_FRAME_ULTRASOUND
    image.NumberOfFrames = frames
    return image


def compressed(image):
    """With loss, and it is not said how, as real cines have it."""
    image.LossyImageCompression = "01"
    return image


def with_place(image, **elements):
    for keyword, value in {"FrameOfReferenceUID": "1.2.4", "ImagePositionPatient": [0, 0, 0], **elements}.items():
        setattr(image, keyword, value)
    return image


def stills(**elements):
    """Pictures of one series, without a place or all at one."""
    images = [ultrasound_still() for _ in range(4)]
    for image in images:
        image.SeriesInstanceUID, image.StudyInstanceUID = images[0].SeriesInstanceUID, images[0].StudyInstanceUID
        if elements:
            with_place(image, **elements)
    return images


@pytest.mark.parametrize(
    "images",
    [
        pytest.param(lambda: [cine()], id="cine"),
        pytest.param(lambda: [compressed(cine())], id="compressed cine"),
        pytest.param(lambda: [with_place(cine())], id="cine with a frame of reference"),
        pytest.param(stills, id="stills"),
        pytest.param(
            lambda: stills(ImageOrientationPatient=[1, 0, 0, 0, 1, 0], PixelSpacing=[1, 1]), id="at one place"
        ),
    ],
)
def test_frames_without_a_place_refer_to_their_own_source(tmp_path, images):
    images = images()
    masks = drawn(4, images[0].Rows, images[0].Columns)
    header = written(images, masks, tmp_path)
    places = [(image.SOPInstanceUID, n + 1) for image in images for n in range(int(image.get("NumberOfFrames") or 1))]
    found = found_in(header)
    assert set(found) == {(1, *places[1]), (2, *places[1]), (2, *places[2])}
    for (segment, *place), mask in found.items():
        np.testing.assert_array_equal(mask, masks[places.index(tuple(place))] == segment)
    referenced = header.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert [item.ReferencedSOPInstanceUID for item in referenced] == [image.SOPInstanceUID for image in images]
    values = [item.FrameContentSequence[0].DimensionIndexValues for item in header.PerFrameFunctionalGroupsSequence]
    assert [list(value) for value in values] == [[1, 2], [2, 2], [2, 3]]
    assert [segment.SegmentAlgorithmType for segment in header.SegmentSequence] == ["AUTOMATIC", "SEMIAUTOMATIC"]


def test_a_picture_keeps_the_size_of_its_pixels(tmp_path):
    image = ultrasound_still()
    image.PixelSpacing = [0.25, 0.5]
    header = written([image], drawn(3, image.Rows, image.Columns)[1:2], tmp_path)
    assert header.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing == [0.25, 0.5]
    assert len(found_in(header)) == 2


def test_where_nothing_is_drawn_one_empty_frame_says_so(tmp_path):
    image = cine()
    found = found_in(written([image], np.zeros((4, image.Rows, image.Columns), np.uint8), tmp_path, SEGMENTS[:1]))
    assert [mask.any() for mask in found.values()] == [False]


def test_slices_that_count_their_frame_lie_where_they_say(tmp_path):
    images = mr_series(4)
    for number, image in enumerate(images):
        image.NumberOfFrames = 1
        # As scanners write it, on both sides of a digit.
        image.ImageOrientationPatient = [0.8, 0.6, number % 2 * 2e-7, 0, 0, -1]
    masks = drawn(4, images[0].Rows, images[0].Columns)
    header = written(images, masks, tmp_path)
    found, uids = found_in(header), [image.SOPInstanceUID for image in images]
    assert set(found) == {(1, uids[1], 1), (2, uids[1], 1), (2, uids[2], 1)}
    for (segment, uid, _), mask in found.items():
        np.testing.assert_array_equal(mask, masks[uids.index(uid)] == segment)
    for item in header.PerFrameFunctionalGroupsSequence:
        uid = item.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        assert item.PlanePositionSequence[0].ImagePositionPatient == images[uids.index(uid)].ImagePositionPatient


@pytest.mark.parametrize(
    ("keyword", "value"), [("ImageOrientationPatient", [1, 0, 0, 0, 1, 0]), ("PixelSpacing", [0.5, 0.8])]
)
def test_slices_of_two_planes_are_told(keyword, value):
    images = mr_series(3)
    setattr(images[1], keyword, value)
    with pytest.raises(ValueError, match=f"differ in {keyword}"):
        make_segmentation(images, drawn(3, images[0].Rows, images[0].Columns), SEGMENTS, "test")


def test_a_header_that_highdicom_rejects_is_told():
    image = pydicom.dcmread(get_testdata_file("MR_small.dcm", download=False))
    del image.StudyInstanceUID
    with pytest.raises(ValueError, match=r"DICOM SEG cannot refer to series .*StudyInstanceUID"):
        make_segmentation([image], np.ones((1, 64, 64), np.uint8), SEGMENTS[:1], "test")
