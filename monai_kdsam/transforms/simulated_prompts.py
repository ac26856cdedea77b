# SPDX-License-Identifier: Apache-2.0
"""Prompts computed from reference masks: pure functions, all randomness drawn from the generator that is passed in.

Masks are (H, W), rows from the top; coordinates are XY pixels of that array, whole numbers being pixel centers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray
from scipy import ndimage

from monai_kdsam.mask_prompts import EIGHT_NEIGHBORS, Mask, Points, box_from_mask, center_click, jitter_box

__all__ = ["PROMPT_KINDS", "clicks_from_mask", "simulate_prompts"]

PromptKind = Literal["box", "center", "click", "clicks", "box+clicks", "none"]
PROMPT_KINDS = ("box", "center", "click", "clicks", "box+clicks", "none")


def clicks_from_mask(mask: Mask, count: int, rng: RandomState) -> Points:
    """(count, 2) random foreground pixels, fewer if the mask has fewer."""
    candidates = np.argwhere(mask)
    chosen = rng.permutation(len(candidates))[:count] if len(candidates) < count else _draw(len(candidates), count, rng)
    return candidates[chosen][:, ::-1].astype(np.float32)


def _draw(population: int, count: int, rng: RandomState) -> NDArray[np.int64]:
    """`count` different numbers below `population`, without permuting all of them."""
    chosen: set[int] = set()
    while len(chosen) < count:
        chosen.add(int(rng.randint(population)))
    return np.array(sorted(chosen), dtype=np.int64)


def background_around(mask: Mask, margin: float) -> Mask:
    """The background within `margin` pixels of the mask, where a user would click to correct it."""
    if not mask.any():
        return ~mask
    distance = ndimage.distance_transform_edt(~mask)
    return (distance > 0) & (distance <= margin)


def one_component(mask: Mask, rng: RandomState) -> Mask:
    """One random connected component (8-neighborhood) of the mask; the mask itself where it is empty."""
    components, count = ndimage.label(mask, structure=EIGHT_NEIGHBORS)
    return components == rng.randint(1, count + 1) if count > 1 else mask


def simulate_prompts(
    mask: Mask,
    kinds: Sequence[PromptKind],
    *,
    rng: RandomState,
    box_jitter: tuple[float, float] = (0.0, 0.0),
    box_size_jitter: float = 0.0,
    max_clicks: int = 3,
    max_background_clicks: int = 2,
    target: Literal["union", "component"] = "union",
    region: Mask | None = None,
) -> tuple[Points, NDArray[np.int64], Mask]:
    """Simulate one prompt of each kind for a reference mask.

    Kinds: `box`; `center`, the deepest point; `click`, one random foreground point; `clicks`, one or more foreground
    and any number of background points; `box+clicks`, both; `none`, automatic. An empty mask has no box and no
    foreground: there a prompt of clicks is one background click, and a box becomes no prompt.

    Args:
        mask: (H, W) bool.
        kinds: K kinds of prompt.
        rng: where every random number comes from.
        box_jitter: each edge moves outward by a uniform draw from this range, in fractions of the image's longer side.
        box_size_jitter: beyond that each edge moves in or out by up to a share of the box's own side; the share is
            drawn for each box between 0 and this, so that there are careful and careless ones.
        max_clicks: most foreground clicks of `clicks`.
        max_background_clicks: most background clicks of `clicks`.
        target: with several lesions, a prompt means their `union`, or a random connected `component`; without a
            prompt the target is the union always.
        region: (H, W) bool, asked for instead of the mask by all prompts but `none`; not empty. None asks for the mask.

    Returns:
        points: (K, N, 2) float32, N = 2 + max_clicks + max_background_clicks, and never less than 2.
        labels: (K, N) int64, -1 where a row is padded.
        targets: (K, H, W) bool, what each prompt asks for.
    """
    length = 2 + max_clicks + max_background_clicks
    points = np.zeros((len(kinds), length, 2), dtype=np.float32)
    labels = np.full((len(kinds), length), -1, dtype=np.int64)
    asked = region if region is not None else one_component(mask, rng) if target == "component" else mask
    targets = np.stack([mask if kind == "none" else asked for kind in kinds])
    for row, kind in enumerate(kinds):
        prompt: list[tuple[Points, int]] = []
        if "box" in kind and asked.any():
            prompt += _box(asked, rng, box_jitter, box_size_jitter)
        if kind in ("clicks", "box+clicks"):
            prompt += _clicks(asked, rng, max_clicks, max_background_clicks)
        elif kind in ("center", "click"):
            prompt.append(_one_click(asked, kind, rng))
        filled = 0
        for xy, label in prompt:
            points[row, filled : filled + len(xy)] = xy
            labels[row, filled : filled + len(xy)] = label
            filled += len(xy)
    return points, labels, targets


def _box(mask: Mask, rng: RandomState, jitter: tuple[float, float], size_jitter: float) -> list[tuple[Points, int]]:
    exact = box_from_mask(mask)
    offsets = rng.uniform(*jitter, size=4) * max(mask.shape)
    if size_jitter:
        share = rng.uniform(0, size_jitter)
        offsets += rng.uniform(-share, share, size=4) * np.tile(exact[1] - exact[0] + 1, 2)
    box = jitter_box(exact, offsets, (mask.shape[0], mask.shape[1]))
    return [(box[:1], 2), (box[1:], 3)]


def _one_click(mask: Mask, kind: PromptKind, rng: RandomState) -> tuple[Points, int]:
    if not mask.any():
        return clicks_from_mask(~mask, 1, rng), 0
    return (center_click(mask) if kind == "center" else clicks_from_mask(mask, 1, rng)), 1


def _clicks(mask: Mask, rng: RandomState, foreground: int, background: int) -> list[tuple[Points, int]]:
    inside = rng.randint(1, foreground + 1) if mask.any() else 0
    outside = rng.randint(0, background + 1) if mask.any() else min(1, background)
    around = background_around(mask, margin=0.1 * max(mask.shape))
    return [(clicks_from_mask(mask, inside, rng), 1), (clicks_from_mask(around, outside, rng), 0)]
