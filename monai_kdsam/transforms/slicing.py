# SPDX-License-Identifier: Apache-2.0
"""Volumes as stacks of pictures: which axis is cut, how its slices lie, and how voxel values become gray values."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import (
    InvertibleTransform,
    MapTransform,
    Orientation,
    ScaleIntensity,
    ScaleIntensityRange,
    Transform,
)
from nibabel.orientations import io_orientation
from numpy.typing import NDArray

from monai_kdsam.errors import UserError

__all__ = ["GrayValuesd", "SlicesLastd", "through_plane_axis"]

Axis = Literal["acquisition", "axial", "coronal", "sagittal"]
# Rows, columns and slices as radiologists see them: patient's left at the right of the picture, head or front up.
PLANES = {"sagittal": "IPL", "coronal": "ILP", "axial": "PLS"}
LABELS = (("L", "R"), ("P", "A"), ("I", "S"))
AIR_HU = -500


def through_plane_axis(affine: NDArray[Any]) -> int:
    """The array axis across the acquired slices: the one whose voxel spacing is the odd one out, else the last.

    The largest spacing would not do: thin slices are closer together than the pixels in them.

    Example:
        >>> through_plane_axis(np.diag([3.0, 0.9, 0.9, 1])), through_plane_axis(np.diag([0.9, 0.9, 0.6, 1]))
        (0, 2)
    """
    x, y, z = np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :3], axis=0)
    differences = [abs(np.log(y / z)), abs(np.log(x / z)), abs(np.log(x / y))]
    # Headers are rounded: spacings within a hundredth are one.
    return max(axis for axis in range(3) if differences[axis] <= min(differences) + 0.01)


class SlicesLastd(MapTransform, InvertibleTransform):
    """MONAI's `Orientation` to (C, rows, columns, slices), cut across an axis that may be each volume's own.

    Slices lie as the 2-D bundle's pictures do: axial with the front up and the patient's left at the right.

    Args:
        keys: of volumes, MetaTensors (C, X, Y, Z).
        axis: across which to cut: axial, coronal, sagittal (for an oblique volume the nearest), or the acquisition's.

    Raises:
        ValueError: on another axis.
    """

    def __init__(self, keys: KeysCollection, axis: Axis = "acquisition") -> None:
        super().__init__(keys)
        if axis not in ("acquisition", *PLANES):
            raise UserError(f"Expected `axis` to be acquisition, {', '.join(PLANES)}, got {axis!r}.")
        self.axis = axis
        self.orientations = {plane: Orientation(axcodes=codes, labels=LABELS) for plane, codes in PLANES.items()}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Reorient volumes."""
        result = dict(data)
        for key in self.key_iterator(result):
            affine = np.asarray(result[key].affine, dtype=np.float64)
            plane: str = self.axis
            if plane == "acquisition":
                plane = list(PLANES)[int(io_orientation(affine)[through_plane_axis(affine), 0])]
            result[key] = self.orientations[plane](result[key])
        return result

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Give volumes the axes that they had.

        MONAI's own inverse concludes the axes from the affine's codes, of which a volume that lies askew by 45 degrees
        has more than one.
        """
        result = dict(data)
        for key in self.key_iterator(result):
            volume: MetaTensor = result[key]
            original = torch.as_tensor(volume.meta["original_affine"], dtype=torch.float64)
            steps = torch.linalg.solve(original[:3, :3], volume.affine[:3, :3].double()).round()
            axes = steps.abs().argmax(dim=1)
            signs = steps[torch.arange(3), axes]
            restored = volume.as_tensor().permute(0, *(1 + axes).tolist())
            restored = restored.flip([1 + axis for axis in range(3) if signs[axis] < 0]).contiguous()
            result[key] = MetaTensor(restored, meta={**volume.meta, "affine": original})
        return result


class GrayValuesd(MapTransform):
    """Voxel values to uint8 in 0 to 255, as the network's pictures have them: CT by a window, all else by percentiles.

    MONAI's `ScaleIntensityRange`, its range chosen by what the volume is.

    Args:
        keys: of volumes, MetaTensors (C, ...), with DICOM's modality in their metadata where it is known.
        modality: "ct", "other", or "auto": DICOM's word, and for NIfTI, which has none, CT is what holds whole numbers
            of which some are below -500, as air is in Hounsfield units.
        level: center of the CT window.
        width: of the CT window.
        percentiles: of all values of the volume but DICOM's padding, that become 0 and 255; where they are equal, as in
            a volume that is nearly all background, its least and greatest value do.

    Raises:
        ValueError: on another modality, or a window or percentiles without a width.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        modality: Literal["auto", "ct", "other"] = "auto",
        level: float = 40,
        width: float = 400,
        percentiles: tuple[float, float] = (0.5, 99.5),
    ) -> None:
        super().__init__(keys)
        if modality not in ("auto", "ct", "other"):
            raise UserError(f"Expected `modality` to be auto, ct or other, got {modality!r}.")
        if not width > 0:
            raise UserError(f"Expected `width` of the window to be above 0, got {width}.")
        low, high = percentiles
        if not 0 <= low < high <= 100:
            raise UserError(f"Expected `percentiles` to rise within 0 and 100, got {percentiles}.")
        self.modality = modality
        self.window = ScaleIntensityRange(level - width / 2, level + width / 2, 0, 255, clip=True, dtype=np.float32)
        self.percentiles = [low, high]
        self.extremes = ScaleIntensity(0, 255, dtype=np.float32)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Scale volumes."""
        result = dict(data)
        for key in self.key_iterator(result):
            # Halves go up, as in the 2-D bundle's pictures.
            scaled: MetaTensor = self._scale_of(result[key])(result[key])
            result[key] = (scaled + 0.5).to(torch.uint8)
        return result

    def _scale_of(self, volume: MetaTensor) -> Transform:
        if self._is_ct(volume):
            return self.window
        values = volume.numpy()
        if "padding" in volume.meta:  # what stands for no voxel is dark, however much of it there is
            least, greatest = volume.meta["padding"]
            inside = values[(values < least) | (values > greatest)]
            values = inside if inside.size else values
        low, high = np.percentile(values, self.percentiles).tolist()
        return ScaleIntensityRange(low, high, 0, 255, clip=True, dtype=np.float32) if low < high else self.extremes

    def _is_ct(self, volume: MetaTensor) -> bool:
        if self.modality != "auto":
            return self.modality == "ct"
        modality = volume.meta.get("modality", "")
        return modality == "CT" if modality else bool(volume.min() < AIR_HU and (volume == volume.round()).all())
