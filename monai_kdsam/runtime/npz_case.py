# SPDX-License-Identifier: Apache-2.0
"""A case of the CVPR challenges: a picture or a volume in an .npz file, with a prompt for each of its labels.

`imgs` are (H, W) or (H, W, 3), or slices (D, H, W) or (D, H, W, 3), within 0 and 255. A picture has `boxes` (N, 4)
[x_min, y_min, x_max, y_max]; a volume (N, 6) [x_min, y_min, z_min, x_max, y_max, z_max], or a list of dictionaries, of
the box on a middle slice and the range of slices, and perhaps `clicks`: for each label "fg" and "bg", lists of
[z, y, x]; then `prev_pred` is the answer before the last click. All numbers are of pixels, and inclusive.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_kdsam.errors import MissingFileError, UserError
from monai_kdsam.rgb import check_size
from monai_kdsam.runtime.plain_pickle import load_plain

__all__ = ["Case", "Target", "read_case"]

_COLUMNS = {4: "x_min, y_min, x_max, y_max", 6: "x_min, y_min, z_min, x_max, y_max, z_max"}
_ON_MIDDLE = ("z_mid_x_min", "z_mid_y_min", "z_mid_x_max", "z_mid_y_max")
_READ = ["imgs", "boxes", "clicks"]
_MOST_OBJECTS = 2**22  # bytes of a pickle
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Target:
    """What one label is asked for with."""

    box: Floats | None = None  # (4,) [x_min, y_min, x_max, y_max], of a volume on the slice `middle`
    middle: int = 0
    slices: tuple[int, int] | None = None  # first and last that it reaches; None: unknown
    foreground: Floats = field(default_factory=lambda: np.zeros((0, 3)))  # (N, 3) [z, y, x]
    background: Floats = field(default_factory=lambda: np.zeros((0, 3)))


@dataclass(frozen=True, eq=False)
class Case:
    """A picture or a volume, and what is asked for in it."""

    images: NDArray[np.uint8]
    targets: list[Target]  # of label 1, 2 and so on

    @property
    def is_volume(self) -> bool:
        """Whether there are slices."""
        return self.images.ndim - (self.images.shape[-1] == 3) == 3

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W) or (D, H, W)."""
        return self.images.shape[: 3 if self.is_volume else 2]


def read_case(path: Path) -> Case:
    """Read a file.

    Raises:
        FileNotFoundError: when there is none.
        ValueError: when it is damaged, or one of its arrays is not as the challenges' files have it.
    """
    if not path.is_file():
        raise MissingFileError(f"Expected an .npz file, but there is none at {path}.")
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
            if "imgs" not in names or not names & {"boxes", "clicks"}:
                got = ", ".join(sorted(names)) or "nothing"
                raise UserError(f"Expected `imgs` and `boxes`, or `imgs` and `clicks`, got {got}.")
            return _case({name: _read(archive, name) for name in _READ if name in names})
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError, NotImplementedError) as error:
        raise UserError(f"{path} cannot be read as an .npz file: {error}.") from error


def _read(archive: zipfile.ZipFile, name: str) -> Any:
    with archive.open(f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise UserError(f"Expected `{name}` in NumPy's format 1.0 or 2.0, got {version}.")
        shape, _, dtype = _HEADERS[version](file)
        if dtype.hasobject:
            if archive.getinfo(f"{name}.npy").file_size > _MOST_OBJECTS:
                raise UserError(f"Expected `{name}` of less than {_MOST_OBJECTS} bytes of objects, got more.")
            try:
                return load_plain(file)
            except UserError as error:
                raise UserError(f"Expected `{name}` of lists, dictionaries and numbers alone: {error}.") from error
    check_size(f"`{name}`", shape, dtype.itemsize, pictures=8)
    with archive.open(f"{name}.npy") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _case(found: Mapping[str, Any]) -> Case:
    case = Case(_images(found["imgs"]), [])
    if not case.is_volume and "clicks" in found:
        raise UserError(f"Expected `clicks` with slices (D, H, W) alone, got `imgs` {case.images.shape}.")
    boxes, clicks = found.get("boxes"), found.get("clicks")
    boxed = None if boxes is None else _boxes(boxes, case)
    clicked = None if clicks is None else [_clicks(each, case, label) for label, each in enumerate(clicks, start=1)]
    if boxed is not None and clicked is not None and len(boxed) != len(clicked):
        raise UserError(f"Expected `clicks` of as many labels as `boxes` has, {len(boxed)}, got {len(clicked)}.")
    count = len(boxed if boxed is not None else clicked or [])
    given = [(boxed[row] if boxed else {}) | (clicked[row] if clicked else {}) for row in range(count)]
    return Case(case.images, [Target(**each) for each in given])


def _images(images: Any) -> NDArray[np.uint8]:
    array = np.asarray(images)
    colored = array.shape[-1:] == (3,)
    if array.dtype.kind not in "uif" or not 2 <= array.ndim - colored <= 3 or 0 in array.shape:
        shapes = "(H, W), (H, W, 3), (D, H, W) or (D, H, W, 3)"
        raise UserError(f"Expected `imgs` of shape {shapes}, got {array.dtype} {array.shape}.")
    if array.dtype == np.uint8:
        return array
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= 255):
        raise UserError(f"Expected `imgs` within 0 and 255, as the challenges prepare them, got {low} to {high}.")
    return np.rint(array).astype(np.uint8)


def _boxes(boxes: Any, case: Case) -> list[dict[str, Any]]:
    """`box`, `middle` and `slices` of each label."""
    if isinstance(boxes, list):
        if not case.is_volume and boxes:
            raise UserError("Expected `boxes` of a picture of shape (N, 4), got objects.")
        return [_box_of(each, case, label) for label, each in enumerate(boxes, start=1)]
    columns = 6 if case.is_volume else 4
    if np.size(boxes) == 0:
        return []
    if boxes.dtype.kind not in "uif" or boxes.ndim != 2 or boxes.shape[1] != columns:
        kind = f"{_COLUMNS[columns]} with `imgs` {case.images.shape}"
        raise UserError(f"Expected `boxes` (N, {columns}) of {kind}, got {boxes.dtype} {boxes.shape}.")
    if not case.is_volume:
        return [{"box": _on_slice(row, case, label)} for label, row in enumerate(boxes, start=1)]
    rows = []
    for label, row in enumerate(boxes, start=1):
        first, last = _slices(row[2], row[5], case, label)
        box = _on_slice(row[[0, 1, 3, 4]], case, label)
        rows.append({"box": box, "middle": (first + last) // 2, "slices": (first, last)})
    return rows


def _box_of(given: Any, case: Case, label: int) -> dict[str, Any]:
    wanted = ("z_min", "z_max", "z_mid", *_ON_MIDDLE)
    if not isinstance(given, dict) or not all(isinstance(given.get(name), int | float) for name in wanted):
        raise UserError(f"Expected `boxes` of label {label} with numbers {', '.join(wanted)}, got {repr(given)}.")
    first, last = _slices(given["z_min"], given["z_max"], case, label)
    box = _on_slice([given[name] for name in _ON_MIDDLE], case, label)
    return {"box": box, "middle": min(max(int(given["z_mid"]), first), last), "slices": (first, last)}


def _slices(first: float, last: float, case: Case, label: int) -> tuple[int, int]:
    depth = case.shape[0]
    if not (first <= last and last >= 0 and first < depth):
        raise UserError(f"Expected `boxes` of label {label} within slices 0 to {depth - 1}, got {first} to {last}.")
    return max(int(first), 0), min(int(last), depth - 1)


def _on_slice(box: ArrayLike, case: Case, label: int) -> Floats:
    """A box that was found to lie on the picture, cut off at its edges; one pixel has an area."""
    corners = np.asarray(box, dtype=np.float64).reshape(2, 2)
    limit = np.array([case.shape[-1] - 1, case.shape[-2] - 1])
    if not ((corners[0] <= corners[1]).all() and (corners[1] >= 0).all() and (corners[0] <= limit).all()):
        size = f"{case.shape[-1]} x {case.shape[-2]} pixels"
        raise UserError(f"Expected `boxes` of label {label} within {size}, got {corners.ravel().tolist()}.")
    half = 0.5 * (corners[0] == corners[1])
    return np.clip(np.stack([corners[0] - half, corners[1] + half]), 0, limit).ravel()


def _clicks(given: Any, case: Case, label: int) -> dict[str, Any]:
    """`foreground` and `background` of a label."""
    if not isinstance(given, dict):
        raise UserError(f"Expected `clicks` of label {label} as a dictionary of fg and bg, got {repr(given)}.")
    found = {}
    for name, key in (("foreground", "fg"), ("background", "bg")):
        rows = given.get(key, [])
        if not isinstance(rows, list) or not all(_is_click(row, case.shape) for row in rows):
            where = f"label {label}, {key}, as [z, y, x] within {case.shape}"
            raise UserError(f"Expected `clicks` of {where}, got {repr(rows)}.")
        found[name] = np.array(rows, dtype=np.float64).reshape(-1, 3)
    return found


def _is_click(row: Any, shape: tuple[int, ...]) -> bool:
    if not isinstance(row, list | tuple) or len(row) != 3:
        return False
    return all(isinstance(value, int | float) and 0 <= value < side for value, side in zip(row, shape, strict=True))
