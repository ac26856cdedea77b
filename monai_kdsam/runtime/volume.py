# SPDX-License-Identifier: Apache-2.0
"""A case's volume slice by slice with exported files, with NumPy and SciPy alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from numpy.typing import NDArray

from monai_kdsam.mask_input import NOWHERE
from monai_kdsam.propagation import Prompt, prompt_from_mask, propagate
from monai_kdsam.runtime.encoded_image import EncodedImage
from monai_kdsam.runtime.npz_case import Target
from monai_kdsam.runtime.predictor import Predictor

__all__ = ["SlicePredictor", "segment_target"]

_MARGIN, _MIN_OVERLAP = 0.03, 0.2  # as the bundle of volumes has them
_MOST_SLICES = 256  # whose embeddings are kept: a GiB at 1024 pixels


class SlicePredictor:
    """Logits of any slice of one volume, for `propagate`.

    Args:
        volume: (D, H, W) or (D, H, W, 3) uint8.
        predictor: what segments; a box is answered from a close-up, as in a picture, if the predictor has them.
    """

    def __init__(self, volume: NDArray[np.uint8], predictor: Predictor) -> None:
        self.volume = volume
        self.predictor = predictor
        self._encoded: dict[int, EncodedImage] = {}

    def __call__(self, number: int, prompt: Prompt, *, carried: bool = False) -> NDArray[np.float32]:
        """Logits (H, W) of one slice.

        Args:
            number: of the slice.
            prompt: points (N, 2) and labels (N,), see `propagate`.
            carried: makes no difference here.
        """
        points, labels = prompt
        box = points[labels >= 2].ravel() if (labels >= 2).any() else None
        clicks = labels < 2
        xy, kinds = (points[clicks], labels[clicks]) if clicks.any() else (None, None)
        return self.predictor.predict(xy, kinds, box, image=self._image(number))[2]

    def _image(self, number: int) -> EncodedImage:
        """One slice; what was encoded of it serves other structures too, if it is not a close-up of one."""
        image = self._encoded.get(number)
        if image is None:
            image = self.predictor.encode(self.volume[number], whole=False)
            if not self.predictor.close_up:
                self._encoded[number] = image
                for oldest in list(self._encoded)[:-_MOST_SLICES]:
                    self._encoded.pop(oldest, None)
        return image


def segment_target(slices: SlicePredictor, target: Target, *, threads: int = 1) -> dict[int, NDArray[np.bool_]]:
    """What one label is asked for, from its prompted slices to the others.

    Nothing reaches beyond the user's box and foreground clicks: the challenges draw a box of the largest slice.

    Args:
        slices: of the volume.
        target: what is asked for.
        threads: how many directions are followed at once.

    Returns:
        masks (H, W) by slice; slices that were not reached are missing.
    """
    first, last = target.slices or (0, len(slices.volume) - 1)
    prompts = _prompts(target)
    if not prompts:
        return {}
    height, width = slices.volume.shape[1:3]
    outside = np.zeros((height, width), dtype=bool)
    if target.box is not None:
        corners = np.rint([*target.box.reshape(2, 2), *target.foreground[:, :0:-1]]).astype(int)
        (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
        outside[:] = True
        outside[top : bottom + 1, left : right + 1] = False

    def segment(number: int, prompt: Prompt, *, carried: bool = False) -> NDArray[np.float32]:
        logits = slices(number, prompt, carried=carried)
        logits[outside] = NOWHERE
        return logits

    carry = partial(prompt_from_mask, margin=_MARGIN)
    with ThreadPoolExecutor(threads) as pool:
        return propagate(
            range(first, last + 1), prompts, segment, carry=carry, min_overlap=_MIN_OVERLAP, run_all=pool.map
        )


def _prompts(target: Target) -> dict[int, Prompt]:
    """Prompts by slice: the box on its own one, and clicks."""
    found: dict[int, list[tuple[NDArray[np.float64], list[int]]]] = {}
    if target.box is not None:
        found[target.middle] = [(target.box.reshape(2, 2), [2, 3])]
    for clicks, kind in ((target.foreground, 1), (target.background, 0)):
        for z, y, x in clicks:
            found.setdefault(int(z), []).append((np.array([[x, y]]), [kind]))
    return {
        number: (np.concatenate([xy for xy, _ in each]), np.concatenate([kinds for _, kinds in each]))
        for number, each in found.items()
    }
