# SPDX-License-Identifier: Apache-2.0
"""The prompts that every image is segmented under, the same in any run."""

from __future__ import annotations

import zlib
from typing import NamedTuple

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

from monai_kdsam.mask_prompts import box_from_mask, center_click, jitter_box
from monai_kdsam.transforms.simulated_prompts import clicks_from_mask

__all__ = ["PROMPT_TITLES", "Prompt", "box_and_click", "named_prompts"]

Mask = NDArray[np.bool_]

PROMPT_TITLES = {
    "box": "exact box",
    "box_20px": "box, 0-20 px of 1024 too wide",
    "box_10pct": "box, edges off by up to 10 %",
    "box_20pct": "box, edges off by up to 20 %",
    "center_click": "one click, deepest point",
    "random_click": "one click, anywhere inside",
    "automatic": "automatic, no prompt",
}
_JITTER = {"box_10pct": 0.1, "box_20pct": 0.2}


class Prompt(NamedTuple):
    """Points (N, 2), XY pixels of the image file, and labels (N,): 1 and 0 clicks, 2 and 3 corners; N may be 0."""

    points: NDArray[np.float32]
    labels: NDArray[np.int64]


def named_prompts(reference: Mask, seed: int = 0) -> dict[str, Prompt]:
    """A prompt of each kind in `PROMPT_TITLES`; of an empty reference, only the automatic one.

    What is random is drawn from a seed made of `seed`, the mask's content and the kind's name, so it depends neither on
    the other images nor on the other kinds.

    Args:
        reference: (H, W).
        seed: another seed, other jitter and clicks.
    """
    automatic = Prompt(np.zeros((0, 2), np.float32), np.zeros(0, np.int64))
    if not reference.any():
        return {"automatic": automatic}
    content = zlib.crc32(np.packbits(reference).tobytes())
    shape, exact = (reference.shape[0], reference.shape[1]), box_from_mask(reference)
    sides = np.tile(exact[1] - exact[0] + 1, 2)  # of left, top, right, bottom
    outward = _generator(seed, content, "box_20px").uniform(0, 20 / 1024 * max(shape), size=4)
    box, click = box_and_click(reference)
    prompts = {"box": box, "box_20px": _box(jitter_box(exact, outward.tolist(), shape))}
    for name, share in _JITTER.items():
        offsets = _generator(seed, content, name).uniform(-share, share, size=4) * sides
        prompts[name] = _box(jitter_box(exact, offsets.tolist(), shape))
    random = clicks_from_mask(reference, 1, _generator(seed, content, "random_click"))
    return prompts | {
        "center_click": click,
        "random_click": _click(random),
        "automatic": automatic,
    }


def box_and_click(mask: Mask) -> tuple[Prompt, Prompt]:
    """The exact box of a mask (H, W) that is not empty, and one click at its deepest point."""
    return _box(box_from_mask(mask)), _click(center_click(mask))


def _generator(seed: int, content: int, name: str) -> RandomState:
    return RandomState(np.random.SeedSequence([seed, content, zlib.crc32(name.encode())]).generate_state(4))


def _box(corners: NDArray[np.float32]) -> Prompt:
    return Prompt(corners, np.array([2, 3]))


def _click(point: NDArray[np.float32]) -> Prompt:
    return Prompt(point, np.array([1]))
