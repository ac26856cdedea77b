# SPDX-License-Identifier: Apache-2.0
"""Volumes, slice by slice, with the 2-D network."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import Compose
from numpy.typing import NDArray
from torch import Tensor

from monai_kdsam.errors import UserError
from monai_kdsam.inferers.prompted_inferer import answer_on
from monai_kdsam.networks import KDSAM
from monai_kdsam.propagation import Prompt, prompt_from_mask, propagate
from monai_kdsam.rgb import fit_longest

__all__ = ["SliceSegmenter", "VolumeInferer"]


class SliceSegmenter:
    """Logits of any slice of one volume; each slice is encoded once, however often it is prompted.

    Args:
        volume: (C, H, W, D) uint8, C = 1 or 3.
        network: what segments.
        prepare: from a slice (3, H, W) uint8 to the network's input (3, S, S), its longer side scaled to S, padded at
            the end.
        who: asks, see `answer_on`.
    """

    def __init__(
        self, volume: Tensor, network: KDSAM, prepare: Callable[[Tensor], Tensor], who: Hashable | None = None
    ) -> None:
        self.volume = volume
        self.network = network
        self.prepare = prepare
        self.who = who

    def __call__(self, number: int, prompt: Prompt | None, *, carried: bool = False) -> NDArray[np.float32]:
        """Logits (H, W) of one slice for a prompt in its pixels, None for automatic.

        Args:
            number: of the slice.
            prompt: points (N, 2) and labels (N,).
            carried: it comes from another slice's mask; nobody's last answer is gone on from.
        """
        picture = self.volume[..., number].contiguous()
        embedding = self.network.embed(picture, self._encodable)
        height, width = picture.shape[1:]
        used = fit_longest(height, width, self.network.image_size)
        points = labels = None
        if prompt is not None:
            ratio = np.array([used[1] / width, used[0] / height])
            xy = (np.asarray(prompt[0], dtype=np.float64) + 0.5) * ratio - 0.5
            points = torch.as_tensor(xy, dtype=torch.float32, device=embedding.device)[None]
            labels = torch.as_tensor(prompt[1], device=embedding.device)[None]
        logits = answer_on(embedding, self.network, None if carried else self.who, points, labels)
        logits = logits[..., : used[0], : used[1]]
        logits = F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)
        return logits[0, 0].float().cpu().numpy()

    def _encodable(self, picture: Tensor) -> Tensor:
        image = self.prepare(picture.expand(3, -1, -1))
        return torch.as_tensor(image).as_subclass(Tensor)[None]


class VolumeInferer(Inferer):
    """Segments a volume with the prompts in its metadata, which `VolumePromptsd` put there.

    MONAI's `SliceInferer` gives each slice of a volume to a network, without prompts. Here a prompt segments the
    slices that it is on, with propagation also those that the structure reaches from there. Without any prompt, each
    slice is segmented on its own, automatically.

    Args:
        prepare: array transforms from a slice (3, H, W) uint8 to the network's input.
        margin: see `prompt_from_mask`.
        min_overlap: see `has_ended`.
        go_on: add clicks on a slice to the last answer there of whoever asks, see `PromptedInferer`.

    Raises:
        ValueError: on a margin below 0 or an overlap outside 0 to 1.
    """

    def __init__(
        self, *, prepare: Sequence[Callable[[Any], Any]], margin: float, min_overlap: float, go_on: bool = False
    ) -> None:
        super().__init__()
        if not margin >= 0:
            raise UserError(f"Expected `margin` to be 0 or more, got {margin}.")
        if not 0 <= min_overlap <= 1:
            raise UserError(f"Expected `min_overlap` within 0 and 1, got {min_overlap}.")
        self.prepare = Compose(list(prepare))
        self.margin = margin
        self.min_overlap = min_overlap
        self.go_on = go_on

    def __call__(self, inputs: MetaTensor, network: KDSAM) -> MetaTensor:  # type: ignore[override]
        """Segment one volume.

        Args:
            inputs: (1, C, H, W, D) uint8, with `points`, `labels`, `propagate` and `bounds` in its metadata.
            network: the network.

        Returns:
            (1, 1, H, W, D) uint8 mask of 0 and 1, with the metadata of the volume.

        Raises:
            ValueError: when there is more than one volume.
        """
        if inputs.ndim != 5 or inputs.shape[0] != 1:
            raise UserError(f"Expected `inputs` of shape (1, C, H, W, D), got {tuple(inputs.shape)}.")
        volume = inputs.as_subclass(Tensor)[0]
        who = inputs.meta.get("asked_by") if self.go_on else None
        segment = SliceSegmenter(volume, network, self.prepare, who)
        prompts = prompts_by_slice(inputs.meta)
        depth = volume.shape[-1]
        if not prompts:
            masks = {number: segment(number, None) > 0 for number in range(depth)}
        elif inputs.meta["propagate"]:
            first, last = torch.as_tensor(inputs.meta["bounds"]).flatten().tolist()
            carry = partial(prompt_from_mask, margin=self.margin)
            masks = propagate(range(first, last + 1), prompts, segment, carry=carry, min_overlap=self.min_overlap)
        else:
            # What a background click alone leaves is nothing, not what the network finds beside it.
            masks = {number: segment(number, prompt) > 0 for number, prompt in prompts.items() if (prompt[1] > 0).any()}
        result = torch.zeros((1, 1, *volume.shape[1:]), dtype=torch.uint8, device=inputs.device)
        for number, mask in masks.items():
            result[0, 0, ..., number] = torch.from_numpy(mask)
        return MetaTensor(result).copy_meta_from(inputs)


def prompts_by_slice(meta: dict[str, Any]) -> dict[int, Prompt]:
    """The prompts in a volume's metadata, `points` (N, 3) [x, y, slice] and `labels` (N,), without their padding."""
    if meta.get("points") is None:
        return {}
    points = torch.as_tensor(meta["points"]).reshape(-1, 3).cpu().numpy()
    labels = torch.as_tensor(meta["labels"]).reshape(-1).cpu().numpy()
    slices = points[:, 2].round().astype(int)
    return {
        int(number): (points[chosen, :2], labels[chosen])
        for number in np.unique(slices[labels >= 0])
        if (chosen := (slices == number) & (labels >= 0)).any()
    }
