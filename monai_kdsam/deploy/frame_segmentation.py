# SPDX-License-Identifier: Apache-2.0
"""DICOM segmentations of images that have no geometry, frame by frame."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["describe_frames"]


def describe_frames(file: Path, source: Dataset, masks: NDArray[np.uint8]) -> None:
    """Complete a segmentation of a source's first frame to all frames that have foreground, and its references.

    highdicom gives up on several frames without a frame of reference, since it orders frames by position. Here they are
    ordered by their number in the source, DICOM's Temporal Position Index, and each refers to its source frame.

    Args:
        file: DICOM segmentation with the first frame, to be replaced.
        source: the image that it is of.
        masks: (frames, H, W) of 0 and 1.
    """
    from pydicom import dcmread
    from pydicom.pixels import pack_bits

    segmentation = dcmread(file)
    # Required, but may be empty, where positions do not say how the image lies.
    segmentation.PatientOrientation = source.get("PatientOrientation") or ""
    for element in segmentation.iterall():
        if element.keyword == "ReferencedSOPClassUID":
            element.value = source.SOPClassUID
    if len(masks) > 1:
        found = np.flatnonzero(masks.any(axis=(1, 2)))
        written = found if len(found) else np.arange(1)  # a segmentation has one frame at least
        first = segmentation.PerFrameFunctionalGroupsSequence[0]
        segmentation.PerFrameFunctionalGroupsSequence = [_frame_item(first, int(index) + 1) for index in written]
        segmentation.DimensionIndexSequence.append(_time_dimension(segmentation))
        segmentation.NumberOfFrames = len(written)
        # Bits run on from frame to frame.
        segmentation.PixelData = pack_bits(masks[written].ravel())
    segmentation.save_as(file)


def _frame_item(first: Dataset, number: int) -> Dataset:
    item = deepcopy(first)
    item.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber = number
    content = item.FrameContentSequence[0]
    content.TemporalPositionIndex = number
    content.DimensionIndexValues = [1, number]
    return item


def _time_dimension(segmentation: Dataset) -> Dataset:
    from pydicom.datadict import tag_for_keyword

    dimension = deepcopy(segmentation.DimensionIndexSequence[0])
    dimension.DimensionIndexPointer = tag_for_keyword("TemporalPositionIndex")
    dimension.FunctionalGroupPointer = tag_for_keyword("FrameContentSequence")
    dimension.DimensionDescriptionLabel = "Temporal Position Index"
    return dimension
