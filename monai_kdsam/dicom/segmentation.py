# SPDX-License-Identifier: Apache-2.0
"""Masks as DICOM segmentations (DICOM SEG) that refer to the images they were drawn on, written by highdicom."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from datetime import datetime

import highdicom
import numpy as np
from highdicom.seg import Segmentation, SegmentDescription
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.sr.codedict import codes

import monai_kdsam
from monai_kdsam.dicom.codes import Segment
from monai_kdsam.dicom.header import (
    COMPRESSION,
    are_at_one_place,
    complete_header,
    complete_thickness,
    is_slice,
    number_of_frames,
)
from monai_kdsam.errors import UserError

__all__ = ["make_segmentation"]

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
PLACE = ("FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient")
FUNCTIONAL_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")


def make_segmentation(
    images: Sequence[Dataset], masks: NDArray[np.uint8], segments: Sequence[Segment], description: str
) -> Dataset:
    """Make a segmentation of slices, of a multi-frame image, or of images without a place in space, cines among them.

    Args:
        images: of one series: of one frame each, or one of several. Headers are completed in place; pixels may be left
            out.
        masks: (frames, H, W), in the order of the images; 0 is background, 1 the first segment.
        segments: what the values of the masks mean. Frames without foreground are left out.
        description: of the new series.

    Raises:
        ValueError: when the slices lie in several directions, or highdicom rejects a header.
    """
    for image in images:
        complete_header(image)
    complete_thickness(images)
    is_placed = _are_placed(images)
    if is_placed and is_slice(images[0]):
        images = _as_stack(images)
    try:
        result = (_describe if is_placed else _describe_frames)(images, masks, segments)
    except (ValueError, TypeError, AttributeError, KeyError) as error:  # highdicom's, of headers that it rejects
        raise UserError(f"DICOM SEG cannot refer to {_named(images)}: {type(error).__name__}: {error}") from error
    now = datetime.now()
    result.SeriesDescription, result.SeriesDate, result.SeriesTime = description[:64], f"{now:%Y%m%d}", f"{now:%H%M%S}"
    for keyword in COMPRESSION:
        if not result.get(keyword):
            result.pop(keyword, None)
    result.SpecificCharacterSet = "ISO_IR 192"  # as the headers are now
    return result


def _named(images: Sequence[Dataset]) -> str:
    return f"series {images[0].get('SeriesInstanceUID')}"


def _are_placed(images: Sequence[Dataset]) -> bool:
    """Whether the images say where in space they lie: each, or each frame, and not all at one place."""
    groups = [item for keyword in FUNCTIONAL_GROUPS for item in (images[0].get(keyword) or [])[:1]]
    if groups:
        return bool(images[0].get("FrameOfReferenceUID")) and any("PlanePositionSequence" in item for item in groups)
    return all(map(is_slice, images)) and not are_at_one_place(images)


def _as_stack(images: Sequence[Dataset]) -> list[Dataset]:
    """Headers of slices as highdicom wants them: of one plane, whose numbers scanners write with a little noise."""
    # It would take a slice that counts its frames for several.
    slices = [_without(image, "NumberOfFrames") for image in images]
    for keyword in ("ImageOrientationPatient", "PixelSpacing"):
        values = np.array([image[keyword].value for image in images], dtype=float)
        if not np.allclose(values, values[0], 0, 1e-4):
            raise UserError(f"The slices of {_named(images)} differ in {keyword}, of which a DICOM SEG has one.")
        for image in slices:
            setattr(image, keyword, images[0][keyword].value)
    return slices


def _without(image: Dataset, *keywords: str) -> Dataset:
    """A header without some elements; it shares the others, and `copy.copy` would share even what is deleted."""
    copied = Dataset({element.tag: element for element in image if element.keyword not in keywords})
    copied.file_meta = image.file_meta
    return copied


def _describe(
    images: Sequence[Dataset], masks: NDArray[np.uint8], segments: Sequence[Segment], **others: bool
) -> Segmentation:
    return Segmentation(
        source_images=images,
        pixel_array=masks,
        segmentation_type="BINARY",
        segment_descriptions=[_description(number, segment) for number, segment in enumerate(segments, start=1)],
        series_instance_uid=highdicom.UID(),
        series_number=300,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="monai_kdsam",
        manufacturer_model_name="monai_kdsam",
        software_versions=monai_kdsam.__version__,
        device_serial_number="0",
        **others,
    )


def _description(number: int, segment: Segment) -> SegmentDescription:
    return SegmentDescription(
        segment_number=number,
        segment_label=segment.label[:64],
        segmented_property_category=segment.category,
        segmented_property_type=segment.kind,
        algorithm_type=segment.algorithm_type,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=segment.algorithm[:64], family=codes.DCM.ArtificialIntelligence, version=segment.version
        ),
    )


def _describe_frames(images: Sequence[Dataset], masks: NDArray[np.uint8], segments: Sequence[Segment]) -> Segmentation:
    """Of images without a place in space, of which highdicom describes a single frame, since it orders by position.

    Here frames are ordered by their number, DICOM's Temporal Position Index, and each refers to its source.
    """
    # What stands in for the images: a class that highdicom knows, of images with a single frame and no geometry.
    first = _without(images[0], "NumberOfFrames", "SOPClassUID", *FUNCTIONAL_GROUPS, *PLACE)
    first.SOPClassUID = SECONDARY_CAPTURE
    result = _describe([first], np.zeros_like(masks[:1]), segments, omit_empty_frames=False)
    # Required, but may be empty, where positions do not say how the image lies.
    result.PatientOrientation = images[0].get("PatientOrientation") or ""
    result.SourceImageSequence = [_referring(result.SourceImageSequence[0], image) for image in images]
    result.ReferencedSeriesSequence[0].ReferencedInstanceSequence = deepcopy(result.SourceImageSequence)
    sources = [(image, number + 1) for image in images for number in range(number_of_frames(image))]
    found = [(s, p) for s in range(1, len(segments) + 1) for p in np.flatnonzero((masks == s).any((1, 2))).tolist()]
    found = found or [(1, 0)]  # a segmentation has one frame at least
    result.SharedFunctionalGroupsSequence[0].pop("SegmentIdentificationSequence", None)  # there, where it is only one
    template = result.PerFrameFunctionalGroupsSequence[0]
    result.PerFrameFunctionalGroupsSequence = [
        _frame_item(template, segment, place, *sources[place]) for segment, place in found
    ]
    result.DimensionIndexSequence.append(_time_dimension(result.DimensionIndexSequence[0]))
    result.NumberOfFrames = len(found)
    # Bits run on from frame to frame.
    bits = np.packbits(np.stack([masks[place] == segment for segment, place in found]), bitorder="little").tobytes()
    result.PixelData = bits + b"\0" * (len(bits) % 2)
    return result


def _referring(template: Dataset, image: Dataset, frame: int | None = None) -> Dataset:
    item = deepcopy(template)
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    if number_of_frames(image) > 1 and frame is not None:
        item.ReferencedFrameNumber = frame
    return item


def _frame_item(template: Dataset, segment: int, place: int, image: Dataset, frame: int) -> Dataset:
    item = deepcopy(template)
    derivation = item.DerivationImageSequence[0]
    derivation.SourceImageSequence = [_referring(derivation.SourceImageSequence[0], image, frame)]
    item.SegmentIdentificationSequence = [Dataset()]
    item.SegmentIdentificationSequence[0].ReferencedSegmentNumber = segment
    content = item.FrameContentSequence[0]
    content.TemporalPositionIndex = place + 1
    content.DimensionIndexValues = [segment, place + 1]
    return item


def _time_dimension(first: Dataset) -> Dataset:
    dimension = deepcopy(first)
    dimension.DimensionIndexPointer = tag_for_keyword("TemporalPositionIndex")
    dimension.FunctionalGroupPointer = tag_for_keyword("FrameContentSequence")
    dimension.DimensionDescriptionLabel = "Temporal Position Index"
    return dimension
