# SPDX-License-Identifier: Apache-2.0
"""Masks without holes, save those that a prompt asks for."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type
from numpy.typing import NDArray

from monai_kdsam.holes import fill_holes
from monai_kdsam.transforms.host_prompts import to_file_frame

__all__ = ["FillHolesd"]


class FillHolesd(MapTransform):
    """Fills the holes of pictures' masks; MONAI's `FillHolesd` would fill one with a background click in it, too.

    Args:
        keys: of masks (K, W, H) of 0 and 1 in the file's frame.
        image: key of the picture, with the prompts of `HostPromptsd` in its metadata; None fills every hole.
    """

    def __init__(self, keys: KeysCollection = "pred", *, image: Hashable | None = "image") -> None:
        super().__init__(keys)
        self.image = image

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Fill them."""
        result = dict(data)
        clicks = np.zeros((0, 2)) if self.image is None else _background_clicks(result[self.image])
        for key in self.key_iterator(result):
            filled = np.stack([fill_holes(mask, clicks) for mask in np.asarray(result[key].cpu())])
            result[key] = convert_to_dst_type(filled, dst=result[key])[0]
        return result


def _background_clicks(picture: MetaTensor) -> NDArray[np.float64]:
    points, labels = (torch.as_tensor(picture.meta[key]).cpu().numpy() for key in ("points", "labels"))
    clicks: NDArray[np.float64] = to_file_frame(points[labels == 0].astype(np.float64), picture)
    return clicks[:, ::-1]  # rows are the file's columns
