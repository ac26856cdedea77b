# SPDX-License-Identifier: Apache-2.0
"""A request's box decides which part of the picture the network sees."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import BorderPad, Crop, InvertibleTransform, MapTransform
from monai.utils import TraceKeys

from monai_kdsam.close_up import check_close_up, part_of
from monai_kdsam.mask_input import NOWHERE
from monai_kdsam.transforms.host_prompts import close_up_of, to_network_frame

__all__ = ["CloseUpd"]

WINDOW = "close_up"  # where `RememberedImaged`, which hands no prompts on, puts what it found out


class _Crop(Crop):
    """MONAI's, which fills with zeros what it puts back: of a logit, even odds."""

    def inverse(self, img: MetaTensor) -> MetaTensor:
        cropped = self.pop_transform(img)[TraceKeys.EXTRA_INFO]["cropped"]
        pad = BorderPad(cropped, value=NOWHERE)
        with pad.trace_transform(False):
            return pad(img)  # type: ignore[return-value]


class CloseUpd(MapTransform, InvertibleTransform):
    """Crops a picture to the surroundings of a request's box, before it is resized to the network's input.

    Without a box the picture stays whole. Clicks and box follow by the affine (`HostPromptsd`), and `Invertd` puts the
    mask back. MONAI's crops know of no request.

    Args:
        keys: of the image, (C, rows, columns), loaded by a reader of ours; its pixels' axes may be in any order.
        margin: the part's side, in sides of the box; 0 leaves every picture whole.

    Raises:
        UserError: on another margin, or a `roi` that is no box.
    """

    def __init__(self, keys: KeysCollection = "image", *, margin: float) -> None:
        super().__init__(keys)
        self.margin = check_close_up(margin)
        self.crop = _Crop()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Crop, or record that nothing was cropped."""
        result = dict(data)
        window = data[WINDOW] if WINDOW in data else close_up_of(data, self.margin)
        for key in self.key_iterator(result):
            image: MetaTensor = result[key]
            height, width = image.shape[1:]
            part = np.array([[0, 0], [width - 1, height - 1]])
            if window is not None:
                # Columns and rows of the image as it lies now.
                corners = np.sort(to_network_frame(np.array(window, dtype=np.float64), image), axis=0)
                part = part_of(corners.round().astype(np.int64), width, height)
            slices = [slice(first, last + 1) for first, last in part.T[::-1].tolist()]
            result[key] = self.crop(image, slices=tuple(slices))
        return result

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Put what was cropped back to its place."""
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = self.crop.inverse(result[key])
        return result
