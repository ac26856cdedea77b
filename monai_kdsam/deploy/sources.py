# SPDX-License-Identifier: Apache-2.0
"""Which images one DICOM segmentation covers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from monai_kdsam.data.paths import frame_path
from monai_kdsam.deploy.prompt_file import Prompts, Request, Target
from monai_kdsam.dicom.header import are_at_one_place, is_slice, number_of_frames

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["Frame", "Source", "group_sources", "with_prompts"]


@dataclass(frozen=True)
class Frame:
    """One picture: an instance, and the number of its frame, from 1."""

    instance: Dataset
    number: int

    @property
    def path(self) -> str:
        """As `Image2DReader` reads it."""
        file = Path(self.instance.filename)
        if number_of_frames(self.instance) == 1:
            return str(file)
        return str(frame_path(file, self.number - 1))


@dataclass(frozen=True)
class Source:
    """What one segmentation covers: a stack of slices, or one image with all its frames.

    Args:
        uid: Series Instance UID of a stack, SOP Instance UID of an image.
        instances: the stack's in the order of their positions, or the image alone.
        requests: the frames to segment, by their place among `frames`, with the prompt of each.
    """

    uid: str
    instances: tuple[Dataset, ...]
    requests: dict[int, Request] = field(default_factory=dict)

    @property
    def frames(self) -> list[Frame]:
        """All pictures, in order."""
        return [
            Frame(instance, number)
            for instance in self.instances
            for number in range(1, number_of_frames(instance) + 1)
        ]

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return int(self.instances[0].Rows), int(self.instances[0].Columns)


def group_sources(series: Iterable[Dataset]) -> list[Source]:
    """Sort the instances of one series into stacks of one orientation, size and spacing, and single images.

    Images that are all at one place are single images. Instances without pixels are left out.
    """
    stacks: dict[Any, list[Dataset]] = defaultdict(list)
    planes: list[np.ndarray] = []  # orientation and spacing, which scanners write with a little noise
    singles = []
    for instance in series:
        if "PixelData" not in instance:
            continue
        if is_slice(instance):
            numbers = np.array([*instance.ImageOrientationPatient, *instance.PixelSpacing], dtype=float)
            plane = next((n for n, known in enumerate(planes) if np.allclose(numbers, known, 0, 1e-4)), len(planes))
            planes += [numbers] if plane == len(planes) else []
            key = (instance.FrameOfReferenceUID, instance.Rows, instance.Columns, plane)
            stacks[key].append(instance)
            for keyword in ("ImageOrientationPatient", "PixelSpacing"):  # highdicom wants the same numbers
                setattr(instance, keyword, stacks[key][0][keyword].value)
        else:
            singles.append(instance)
    sources = []
    for stack in stacks.values():
        if are_at_one_place(stack):
            singles += stack
            continue
        sources.append(Source(stack[0].SeriesInstanceUID, tuple(sorted(stack, key=_depth))))
    for instance in sorted(singles, key=lambda single: single.filename):
        sources.append(Source(instance.SOPInstanceUID, (instance,)))
    return sources


def _depth(instance: Dataset) -> float:
    """Position of a slice along the normal of its plane, in mm."""
    row, column = np.reshape(np.array(instance.ImageOrientationPatient, dtype=float), (2, 3))
    return float(np.cross(row, column) @ np.array(instance.ImagePositionPatient, dtype=float))


def with_prompts(sources: Iterable[Source], prompts: Prompts | None) -> list[Source]:
    """Say of each source which frames are segmented: all, or with prompts those that they name.

    Returns:
        The sources of which something is segmented.

    Raises:
        ValueError: when a prompt is for no image, or not on its image.
    """
    chosen, used = [], set[Target]()
    for source in sources:
        requests: dict[int, Request] = {}
        for place, frame in enumerate(source.frames):
            if prompts is None:
                requests[place] = {}
                continue
            instance = frame.instance
            found = prompts.find(
                instance.SeriesInstanceUID, instance.SOPInstanceUID, frame.number, (instance.Columns, instance.Rows)
            )
            if found is not None:
                used.add(found[0])
                requests[place] = found[1]
        if requests:
            chosen.append(Source(source.uid, source.instances, requests))
    if prompts is not None:
        prompts.check_all_used(used)
    return chosen
