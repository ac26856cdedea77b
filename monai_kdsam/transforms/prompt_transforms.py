# SPDX-License-Identifier: Apache-2.0
"""MONAI's dictionary wrappers of the prompt functions."""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable
from monai.utils import convert_to_tensor
from numpy.random import RandomState
from torch import Tensor

from monai_kdsam.errors import UserError
from monai_kdsam.transforms.simulated_prompts import PROMPT_KINDS, PromptKind, simulate_prompts

__all__ = ["FixedPromptd", "RandPromptd", "ValidRegiond"]


class _Promptd(MapTransform):
    """Replaces a mask by the targets of K simulated prompts, and adds the prompts."""

    def __init__(
        self,
        keys: KeysCollection = "label",
        kinds: Sequence[PromptKind] = ("box",),
        *,
        box_jitter: tuple[float, float] = (0.0, 0.0),
        box_size_jitter: float = 0.0,
        max_clicks: int = 3,
        max_background_clicks: int = 2,
        target: Literal["union", "component"] = "union",
    ) -> None:
        super().__init__(keys)
        if isinstance(kinds, str) or not kinds or not set(kinds) <= set(PROMPT_KINDS):
            raise UserError(f"Expected `kinds` (config: `prompts`) to be a list among {PROMPT_KINDS}, got {kinds!r}.")
        if target not in ("union", "component"):
            raise UserError(f"Expected `target` to be 'union' or 'component', got {target!r}.")
        if np.shape(box_jitter) != (2,) or not -1 <= box_jitter[0] <= box_jitter[1] <= 1:
            raise UserError(f"Expected `box_jitter` to be (low, high) with -1 <= low <= high <= 1, got {box_jitter}.")
        if not 0 <= box_size_jitter <= 1:
            raise UserError(f"Expected `box_size_jitter` to be between 0 and 1, got {box_size_jitter}.")
        for name, count, least in (
            ("max_clicks", max_clicks, 1),
            ("max_background_clicks", max_background_clicks, 0),
        ):
            if count < least:
                raise UserError(f"Expected `{name}` to be at least {least}, got {count}.")
        self.kinds = tuple(kinds)
        self.settings: dict[str, Any] = {
            "box_jitter": tuple(box_jitter),
            "box_size_jitter": box_size_jitter,
            "max_clicks": max_clicks,
            "max_background_clicks": max_background_clicks,
            "target": target,
        }

    def _prompt(self, data: Mapping[Hashable, Any], key: Hashable, rng: RandomState) -> dict[Hashable, Any]:
        mask = data[key]
        if mask.ndim != 3 or mask.shape[0] != 1:
            raise UserError(f"Expected `{key!s}` of shape (1, H, W), got {tuple(mask.shape)}.")
        foreground = np.asarray(mask[0]) > 0.5
        result = dict(data)
        region = result.pop("region", None)
        region = None if region is None else np.asarray(region[0]) > 0.5
        points, labels, targets = simulate_prompts(foreground, self.kinds, rng=rng, region=region, **self.settings)
        result[key] = convert_to_tensor(targets, dtype=torch.float32)
        result["points"], result["labels"] = torch.from_numpy(points), torch.from_numpy(labels)
        return result


class RandPromptd(Randomizable, _Promptd):
    """Simulate a user's prompts anew at each call, for training.

    Replaces the mask (1, H, W) under the key by targets (K, H, W) and adds `points` (K, N, 2), XY pixels, and `labels`
    (K, N); arguments and kinds are those of `simulate_prompts`. MONAI has guidance for DeepGrow and DeepEdit (one click
    a time as image channels), but no boxes or point lists. An item's `region`, see `RandRegiond`, is what they ask for.

    Raises:
        ValueError: on an unknown kind or setting, or a mask of another shape.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add prompts to `data`."""
        result = dict(data)
        for key in self.key_iterator(result):
            result = self._prompt(result, key, self.R)
        return result


class FixedPromptd(_Promptd):
    """The same prompts for the same mask in any run, order or process, for validation and evaluation.

    As `RandPromptd`, but what is random about a box or a click is drawn from a seed that the mask itself gives.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add prompts to `data`."""
        result = dict(data)
        for key in self.key_iterator(result):
            content = np.packbits(np.asarray(result[key]) > 0.5).tobytes()
            result = self._prompt(result, key, RandomState(zlib.crc32(content)))
        return result


class ValidRegiond(MapTransform):
    """Adds a map of ones (1, H, W) under `valid_key`: padded together with the image, it tells image from padding."""

    def __init__(self, keys: KeysCollection = "image", valid_key: str = "valid") -> None:
        super().__init__(keys)
        self.valid_key = valid_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the map to `data`."""
        result = dict(data)
        for key in self.key_iterator(result):
            image: Tensor = result[key]
            result[self.valid_key] = torch.ones_like(image[:1])
        return result
