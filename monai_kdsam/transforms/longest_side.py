# SPDX-License-Identifier: Apache-2.0
"""Resizing to the network's size as SAM's `ResizeLongestSide` does it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Resize, Resized
from monai.transforms.utils import scale_affine
from monai.utils import TraceKeys, convert_to_tensor
from torch import Tensor

from monai_kdsam.rgb import fit_longest, resize_pixels

__all__ = ["ResizeLongestSide", "ResizeLongestSided"]

Mode = Literal["bilinear", "nearest-exact"]


class ResizeLongestSide(Resize):
    """MONAI's `Resize` with `size_mode="longest"`, its pixels by Pillow, with which SAM was trained.

    MONAI's anti-aliasing blurs with zeros beyond the border, so that a flat picture becomes dark at its edges; it works
    on float32 at the picture's full size, and rounds the shorter side of 2000 x 5 pixels to none.

    Args:
        spatial_size: of the longer side.
        mode: "bilinear" for pictures, uint8 ones rounded to whole numbers as Pillow does, or "nearest-exact" for masks.

    Example:
        >>> ResizeLongestSide(4)(torch.full((1, 6, 8), 200, dtype=torch.uint8))[0, 0].tolist()
        [200.0, 200.0, 200.0, 200.0]
    """

    def __init__(self, spatial_size: int, mode: Mode = "bilinear") -> None:
        super().__init__(spatial_size, size_mode="longest", mode=mode)
        self.longest = spatial_size

    def __call__(self, img: Tensor, mode: Mode | None = None, **_: Any) -> Tensor:  # type: ignore[override]
        """Resize (C, H, W) to float32, as `Resize` does; the inverse is MONAI's."""
        image: Any = convert_to_tensor(img, track_meta=True)
        height, width = before = tuple(image.shape[1:])
        after = fit_longest(height, width, self.longest)
        how = mode or self.mode
        plain = image.as_subclass(Tensor)
        if how == "bilinear":
            values = torch.from_numpy(resize_pixels(plain.cpu().numpy(), *after)).to(plain.device)
        else:
            values = F.interpolate(plain[None].float(), after, mode=how)[0]
        meta = self.track_transform_meta(
            image,
            sp_size=after,
            affine=scale_affine(before, after),
            extra_info={"mode": how, "align_corners": TraceKeys.NONE, "dtype": "float32", "new_dim": 0},
            orig_size=before,
            transform_info=self.get_transform_info(),
        )
        return MetaTensor(values.float()).copy_meta_from(meta)


class ResizeLongestSided(Resized):
    """Dictionary version of `ResizeLongestSide`.

    Args:
        keys: of (C, H, W) MetaTensors.
        spatial_size: of the longer side.
        mode: one for all keys, or one for each.
        allow_missing_keys: whether items may lack some.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spatial_size: int,
        mode: Mode | Sequence[Mode] = "bilinear",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, spatial_size, "longest", mode, allow_missing_keys=allow_missing_keys)
        self.resizer = ResizeLongestSide(spatial_size)
