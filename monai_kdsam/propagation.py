# SPDX-License-Identifier: Apache-2.0
"""Carrying a mask from slice to slice: pure functions around one that segments a slice.

Masks and logits are (H, W); prompts are points (N, 2), XY pixels of the slice, and labels (N,): 1 foreground,
0 background, 2 and 3 the corners of a box.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from monai_kdsam.mask_prompts import EIGHT_NEIGHBORS, box_from_mask, jitter_box

__all__ = ["Prompt", "has_ended", "largest_part", "prompt_from_mask", "propagate"]

Prompt = tuple[NDArray[np.float32], NDArray[np.int64]]


class Segment(Protocol):
    """Segments a slice."""

    def __call__(self, number: int, prompt: Prompt, *, carried: bool = False) -> NDArray[np.float32]:
        """Logits (H, W) for a prompt, a user's or one that was carried there from another slice's mask."""


def prompt_from_mask(mask: NDArray[np.bool_], margin: float) -> Prompt:
    """The prompt that a slice's mask is for the next slice: a box around its largest part.

    A student fills the boxes of what it has not learned, so that a wide one grows from slice to slice, and a click that
    wandered off the structure holds on to what is there.

    Args:
        mask: (H, W), not empty.
        margin: how far the box reaches beyond the mask, in fractions of the box's longer side.

    Example:
        >>> mask = np.zeros((20, 20), bool); mask[5:15, 5:15] = True
        >>> prompt_from_mask(mask, margin=0.2)[0].tolist()
        [[3.0, 3.0], [16.0, 16.0]]
    """
    mask = largest_part(mask)
    box = box_from_mask(mask)
    reach = margin * float((box[1] - box[0]).max() + 1)
    return jitter_box(box, [reach] * 4, (mask.shape[0], mask.shape[1])), np.array([2, 3])


def largest_part(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The part of a mask (H, W) that has most pixels; neighbors include diagonals."""
    parts, count = ndimage.label(mask, structure=EIGHT_NEIGHBORS)
    return parts == 1 + np.argmax(np.bincount(parts.ravel())[1:]) if count > 1 else mask


def has_ended(previous: NDArray[np.bool_], current: NDArray[np.bool_], min_overlap: float) -> bool:
    """Whether a structure does not reach the current slice: no mask, or one that is not the previous one's successor.

    Their IoU falls with a sudden change of area and with a jump alike, so that one number is enough.

    Example:
        >>> disk = np.ones((8, 8), bool)
        >>> has_ended(disk, disk, 0.5), has_ended(disk, ~disk, 0.5)
        (False, True)
    """
    union = (previous | current).sum()
    return not current.any() or bool((previous & current).sum() < min_overlap * union)


def propagate(
    slices: range,
    prompts: Mapping[int, Prompt],
    segment: Segment,
    *,
    carry: Callable[[NDArray[np.bool_]], Prompt],
    min_overlap: float,
    run_all: Callable[..., Iterable[dict[int, NDArray[np.float32]]]] = map,
) -> dict[int, NDArray[np.bool_]]:
    """Segment the prompted slices, and from them the others in both directions until the structure ends.

    A slice with a foreground click or a box is segmented by its own prompt alone. Between two of them a slice is
    reached from both sides, and the nearer side weighs more. Background clicks alone start nothing: they correct the
    slice that they are on, beside the prompt that reaches it.

    Args:
        slices: those that may be reached, without gaps; a prompt on another one segments that slice alone.
        prompts: of at least one slice.
        segment: of one slice.
        carry: the prompt that a slice's mask is for the next slice, see `prompt_from_mask`.
        min_overlap: see `has_ended`.
        run_all: `map`, or that of a pool of threads, in which `segment` is called at once for two directions.

    Returns:
        masks by slice; slices that were not reached are missing.
    """
    positive = sorted(number for number, (_, labels) in prompts.items() if (labels > 0).any())
    logits = {number: segment(number, prompts[number]) for number in positive}
    seeds = [number for number in positive if number in slices]

    def follow(start: int, numbers: Iterable[int]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        mask = logits[start] > 0
        for number in numbers:
            if not mask.any():
                return
            points, labels = carry(mask)
            if number in prompts:
                points = np.concatenate([points, prompts[number][0]])
                labels = np.concatenate([labels, prompts[number][1]])
            found = segment(number, (points, labels), carried=True)
            if has_ended(mask, found > 0, min_overlap):
                return
            mask = found > 0
            yield number, found

    gaps = list(pairwise(seeds))
    ways: list[tuple[int, Iterable[int]]] = []
    for first, second in gaps:
        ways += [(first, range(first + 1, second)), (second, range(second - 1, first, -1))]
    if seeds:
        ways += [(seeds[-1], range(seeds[-1] + 1, slices.stop)), (seeds[0], range(seeds[0] - 1, slices.start - 1, -1))]
    found = list(run_all(lambda way: dict(follow(*way)), ways))
    reached: dict[int, NDArray[np.float32]] = {}
    for (first, second), upward, downward in zip(gaps, found[:-2:2], found[1:-2:2], strict=True):
        reached |= _blended(upward, downward, first, second)
    for outward in found[-2:]:
        reached |= outward
    return {number: values > 0 for number, values in (logits | reached).items()}


def _blended(
    upward: dict[int, NDArray[np.float32]], downward: dict[int, NDArray[np.float32]], first: int, second: int
) -> dict[int, NDArray[np.float32]]:
    """Logits of both directions, weighted by their nearness; of one where the other did not arrive."""
    both = upward | downward
    for number in upward.keys() & downward.keys():
        weight = (number - first) / (second - first)
        # As probabilities, of which none can outvote the other by sheer size; above 0 is foreground again.
        mean = (1 - weight) * np.tanh(upward[number] / 2) + weight * np.tanh(downward[number] / 2)
        both[number] = mean.astype(np.float32)
    return both
