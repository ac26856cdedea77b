# SPDX-License-Identifier: Apache-2.0
"""Whether the slices of a DICOM series, or the frames of a file, are an even grid of voxels, by their own positions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread

from monai_kdsam.dicom.decoding import open_dicom
from monai_kdsam.errors import UserError
from monai_kdsam.itk import LPS_TO_RAS, itk_affine

__all__ = ["SliceGrid", "slice_grid"]

TOLERANCE_MM = 0.1
POSITION = "0020|0032"


class SliceGrid(NamedTuple):
    """Slices as a volume.

    Args:
        order: of the slices given, by their place in the volume.
        affine: (4, 4) in RAS and millimetres, columns before rows.
    """

    order: NDArray[np.int64]
    affine: NDArray[np.float64]


def slice_grid(files: list[Path]) -> SliceGrid:
    """The grid of a series with one slice a file, or of the frames of one file.

    Frames of which each has a position, as in enhanced MR and CT, are checked like slices; for others, those of a cine
    among them, ITK's reading of the file counts.

    Raises:
        ValueError: when it is none, with the numbers that tell why: slices without a position, of several sizes,
            spacings or directions, several at one position, missing, at uneven steps, or shifted in their plane as by
            a tilted gantry.
    """
    if len(files) == 1:
        return _frame_grid(files[0])
    headers = [open_dicom(file) for file in files]
    bare = [file.name for file, header in zip(files, headers, strict=True) if not header.HasMetaDataKey(POSITION)]
    if bare:
        raise UserError(
            f"{len(bare)} of {len(files)} files, as {bare[0]}, say no position in space; the bundle kdsam_deepgrow_2d "
            "segments them as pictures"
        )
    _check_one("pixels", [header.GetSize()[:2] for header in headers])
    axes = np.array([np.reshape(header.GetDirection(), (3, 3)) for header in headers])
    return _fit(
        np.array([header.GetOrigin() for header in headers]),
        np.concatenate([axes[:, :, 0], axes[:, :, 1]], axis=1),
        np.array([header.GetSpacing()[:2] for header in headers]),
    )


def _frame_grid(file: Path) -> SliceGrid:
    header = open_dicom(file)
    as_itk_reads_it = SliceGrid(np.arange(header.GetSize()[2]), itk_affine(header))
    keywords = ["PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"]
    data = dcmread(file, stop_before_pixels=True, specific_tags=keywords, force=True)
    groups, shared = data.get(keywords[0]) or [], (data.get(keywords[1]) or [{}])[0]
    positions, directions, spacings = (
        [_value(sequence, keyword, (group, shared)) for group in groups]
        for sequence, keyword in (
            ("PlanePositionSequence", "ImagePositionPatient"),
            ("PlaneOrientationSequence", "ImageOrientationPatient"),
            ("PixelMeasuresSequence", "PixelSpacing"),
        )
    )
    if not groups or None in positions or None in directions or None in spacings:
        return as_itk_reads_it
    # DICOM names the distance of rows first.
    return _fit(np.array(positions), np.array(directions), np.array(spacings)[:, ::-1])


def _value(sequence: str, keyword: str, groups: Iterable[Any]) -> list[float] | None:
    """The numbers of an attribute that stands in a frame's own group, or in the one that all frames share."""
    for group in groups:
        items = group.get(sequence)
        if items and items[0].get(keyword):
            return [float(number) for number in items[0].get(keyword)]
    return None


def _check_one(what: str, sides: Sequence[Any]) -> None:
    found = sorted({tuple(round(float(side), 4) for side in pair) for pair in sides})
    if len(found) > 1:
        listed = ", ".join(f"{width:g} x {height:g}" for width, height in found[:3])
        raise UserError(f"its slices differ in {what}: {listed}")


def _fit(positions: NDArray[np.float64], directions: NDArray[np.float64], spacings: NDArray[np.float64]) -> SliceGrid:
    """Lay an even grid through positions (N, 3) and directions (N, 6) in LPS, with (N, 2) mm a pixel."""
    _check_one("mm a pixel", spacings.tolist())
    turned = np.abs(directions - directions[0]).max(axis=1)
    if turned.max() > 1e-3:
        first, other = (directions[k].round(3).tolist() for k in (0, int(turned.argmax())))
        raise UserError(f"its slices lie in several directions, {first} and {other}: put each into a folder of its own")
    row, column = directions[0].reshape(2, 3)
    normal = np.cross(row, column)
    depths = positions @ normal
    steps = np.diff(depths)
    # A file's own order is kept where it is one, forwards or backwards: clients count its frames so.
    in_order = (steps > 0).all() or (steps < 0).all()
    order = np.arange(len(depths)) if in_order else np.argsort(depths, kind="stable")
    _check_even(positions[order], normal)
    step = (depths[order[-1]] - depths[order[0]]) / (len(order) - 1) if len(order) > 1 else 1.0
    affine = np.eye(4)
    affine[:3, :3] = np.stack([row * spacings[0, 0], column * spacings[0, 1], normal * step], axis=1)
    affine[:3, 3] = positions[order[0]]
    return SliceGrid(order, LPS_TO_RAS @ affine)


def _check_even(positions: NDArray[np.float64], normal: NDArray[np.float64]) -> None:
    """Compare sorted positions (N, 3) with those of an even grid across the slices."""
    depths = positions @ normal
    steps = np.abs(np.diff(depths))
    if (same := int((steps < 1e-3).sum())) > 0:
        place = depths[int(steps.argmin())]
        raise UserError(
            f"{same + 1 if same == len(steps) else same} of its {len(depths)} slices share a position with another, "
            f"the first at {place:.2f} mm: put one phase, echo or direction alone into a folder"
        )
    count = len(depths)
    mean = (depths[-1] - depths[0]) / max(count - 1, 1)
    grid = positions[0] + np.arange(count)[:, None] * mean * normal
    off = positions - grid
    across = np.abs(off @ normal)
    sideways = np.linalg.norm(off - np.outer(off @ normal, normal), axis=1)
    allowed = min(TOLERANCE_MM, abs(mean) / 4)
    if across.max() > allowed:
        raise UserError(
            f"its slices are no even grid: steps from {steps.min():.2f} to {steps.max():.2f} mm, slice "
            f"{int(across.argmax())} lies {across.max():.2f} mm off; add what is missing, or resample it"
        )
    if sideways.max() > allowed:
        angle = np.degrees(np.arctan2(sideways[-1], abs(depths[-1] - depths[0])))
        raise UserError(
            f"its slices are shifted in their plane by up to {sideways.max():.2f} mm (a gantry tilted by {angle:.1f} "
            "degrees?): resample it to right angles"
        )
