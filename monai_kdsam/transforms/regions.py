# SPDX-License-Identifier: Apache-2.0
"""What a prompt may ask for beyond the labeled structure: a closer look at it, or another region of the picture."""

from __future__ import annotations

import importlib.util
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform, SpatialCrop
from numpy.random import RandomState
from numpy.typing import NDArray
from scipy import ndimage

from monai_kdsam.errors import UserError

__all__ = ["RandCropAroundMaskd", "RandRegiond", "region_of"]

GRID = 160  # side of the picture that is segmented; twice the side takes four times as long


class RandCropAroundMaskd(RandomizableTransform, MapTransform):
    """Crop to a window around the mask's foreground, so that small structures are seen large.

    MONAI's `CropForeground` has a fixed margin, `RandSpatialCrop` knows of no mask.

    Args:
        keys: image and mask alike, channel first.
        mask_key: of the mask; an empty one is not cropped to.
        prob: how often.
        margin: the window's sides are those of the foreground's box times a draw from this range, 32 pixels at least.
        allow_missing_keys: do not raise if a key is missing.
    """

    def __init__(
        self,
        keys: KeysCollection = ("image", "label"),
        mask_key: str = "label",
        *,
        prob: float = 0.3,
        margin: tuple[float, float] = (1.2, 2.6),
        allow_missing_keys: bool = False,
    ) -> None:
        RandomizableTransform.__init__(self, prob)
        MapTransform.__init__(self, keys, allow_missing_keys)
        if not 1 <= margin[0] <= margin[1]:
            raise UserError(f"Expected `margin` to be (low, high) with 1 <= low <= high, got {tuple(margin)}.")
        self.mask_key, self.margin = mask_key, margin

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Crop the images of one item, or none of them."""
        item = dict(data)
        self.randomize(None)
        if not self._do_transform or self.mask_key not in item or not (item[self.mask_key] > 0).any():
            return item
        foreground: Any = np.asarray(item[self.mask_key] > 0).any(axis=0)
        slices = []
        for axis, size in enumerate(foreground.shape):
            used = np.unique(np.nonzero(foreground)[axis])
            length = used[-1] + 1 - used[0]
            window = min(size, max(32, round(length * self.R.uniform(*self.margin))))
            # Anywhere, as long as the structure is in it.
            first, last = max(0, used[-1] + 1 - window), min(used[0], size - window)
            start = self.R.randint(first, last + 1)
            slices.append(slice(start, start + window))
        crop = SpatialCrop(roi_slices=slices)
        for key in self.key_iterator(item):
            item[key] = crop(item[key])
        return item


class RandRegiond(RandomizableTransform, MapTransform):
    """Add a region of the picture for the prompts to ask for, whatever is labeled.

    A network that only ever learned its labels has no use for a prompt: it knows what is asked. Regions teach that a
    box means what is in it, also where that is nothing the network has a name for (ScribblePrompt, arXiv 2312.07381,
    trains with superpixels). Some of them are objects pasted into the picture (`paste_object`): a region of the picture
    fills its box up to ragged edges, an object has an outline. Without a prompt the label is meant still, as far as it
    is seen.

    Args:
        keys: of the image, (C, H, W).
        region_key: where `RandPromptd` looks for the region (1, H, W); without a region there is no such key.
        label_key: of the mask (1, H, W), which ends where an object lies over it; need not be there.
        prob: how often.
        pasted: share of the regions that are pasted objects.

    Raises:
        ValueError: on a share beyond 0 to 1, or without scikit-image.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        region_key: str = "region",
        label_key: str = "label",
        *,
        prob: float = 0.4,
        pasted: float = 0.0,
    ) -> None:
        RandomizableTransform.__init__(self, prob)
        MapTransform.__init__(self, keys)
        if not 0 <= pasted <= 1:
            raise UserError(f"Expected `pasted` (config: `pasted_share`) to be between 0 and 1, got {pasted}.")
        if importlib.util.find_spec("skimage") is None:
            raise UserError(
                "Regions (`region_share` above 0) need the package scikit-image: pip install scikit-image, or set "
                "`region_share` to 0."
            )
        self.region_key, self.label_key, self.pasted = region_key, label_key, pasted

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add a region to `data`, or none."""
        item = dict(data)
        self.randomize(None)
        if self._do_transform:
            for key in self.key_iterator(item):
                image = torch.as_tensor(item[key]).as_subclass(torch.Tensor)
                region: torch.Tensor | None
                if self.R.random_sample() < self.pasted:
                    item[key], region = paste_object(image, self.R)
                    if self.label_key in item:
                        item[self.label_key] = item[self.label_key] * (1 - region)
                else:
                    region = region_of(image, self.R)
                if region is not None:
                    item[self.region_key] = region
        return item


def region_of(image: torch.Tensor, rng: RandomState) -> torch.Tensor | None:
    """A random region of a Felzenszwalb segmentation (doi 10.1023/B:VISI.0000022288.19776.77), its holes filled.

    Args:
        image: (C, H, W), any range.
        rng: where every random number comes from.

    Returns:
        (1, H, W) of 0 and 1; None where there is no region of 0.4 to 50 % of the picture.
    """
    size = image.shape[1:]
    shrink = min(1.0, GRID / max(size))
    small = F.interpolate(image[None].float(), scale_factor=shrink, mode="bilinear", antialias=True)[0]
    low, high = small.min(), small.max()
    pixels = ((small - low) / (high - low).clamp_min(1e-6)).permute(1, 2, 0).numpy()
    areas = _segment(pixels, scale=float(10 ** rng.uniform(1.3, 3)))
    counts = np.bincount(areas.ravel()) / areas.size
    fitting = np.flatnonzero((counts >= 0.004) & (counts <= 0.5))
    if not len(fitting):
        return None
    region = ndimage.binary_fill_holes(areas == rng.choice(fitting))
    full = F.interpolate(torch.from_numpy(region)[None, None].float(), size=size, mode="bilinear", align_corners=False)
    return (full[0] > 0.5).float()


def paste_object(image: torch.Tensor, rng: RandomState) -> tuple[torch.Tensor, torch.Tensor]:
    """A picture with something in it that has an outline: a blob of its own texture, taken from elsewhere in it.

    The outline is a closed curve of a few waves around an ellipse; the texture is the picture's own, moved, mirrored
    and of another brightness and colour, brighter or darker towards the middle; the edge is from sharp to soft,
    and the object from opaque to hardly seen.

    Args:
        image: (C, H, W), of a standard deviation near 1.
        rng: where every random number comes from.

    Returns:
        The picture (C, H, W), and the object (1, H, W) of 0 and 1; its area is never 0.
    """
    channels, height, width = image.shape
    radius = min(height, width) * rng.uniform(0.05, 0.4)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    down, right = rows - rng.randint(height), columns - rng.randint(width)
    turn, flat = rng.uniform(0, 2 * np.pi), rng.uniform(0.45, 1.0)
    along, across = down * np.sin(turn) + right * np.cos(turn), (down * np.cos(turn) - right * np.sin(turn)) / flat
    angle, distance = np.arctan2(across, along), np.hypot(along, across) / radius
    waves = sum(rng.normal(0, 0.12 / n) * np.cos(n * angle + rng.uniform(0, 2 * np.pi)) for n in range(2, 7))
    inside = 1 + np.clip(waves, -0.5, 0.5) - distance  # of the outline, in radii
    cover = ndimage.gaussian_filter((inside > 0).astype(np.float32), rng.uniform(0.3, 0.06 * radius + 0.5))

    moved = (int(rng.randint(height)), int(rng.randint(width)))
    mirrored = torch.cat([image, image.flip(dims=(1,))], dim=1)  # goes on beyond the picture's border without a seam
    mirrored = torch.cat([mirrored, mirrored.flip(dims=(2,))], dim=2)
    texture = torch.roll(mirrored, moved, dims=(1, 2))[:, :height, :width]
    colour = rng.choice((-1, 1)) * rng.uniform(0.1, 0.8) + rng.normal(0, rng.choice((0.0, 0.15)), channels)
    relief = rng.normal(0, 0.4) * np.clip(inside, 0, 1)
    gain = rng.uniform(0.6, 1.2)
    texture = texture * gain + torch.from_numpy(colour[:, None, None] + relief).to(image)
    # Some are hardly seen: a network that finds no edge in a box then answers with an outline, not with the box.
    opacity = rng.uniform(0.3, 1.0) if rng.random_sample() < 0.6 else rng.uniform(0.0, 0.3)
    weight = torch.from_numpy(cover * opacity).to(image)
    return image + (texture - image) * weight, torch.from_numpy(inside > 0)[None].to(image)


def _segment(pixels: NDArray[np.float32], scale: float) -> NDArray[np.int64]:
    felzenszwalb = importlib.import_module("skimage.segmentation").felzenszwalb  # only where there are regions
    areas: NDArray[np.int64] = felzenszwalb(pixels, scale=scale, sigma=0.8, min_size=max(20, pixels.shape[0]))
    return areas
