# SPDX-License-Identifier: Apache-2.0
"""The answer that a prompt goes on from, SAM's `mask_input`, as logits of the whole picture."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_kdsam.errors import UserError

__all__ = ["CELL", "NOWHERE", "check_mask_input"]

CELL = 4  # pixels of the network's input along a side of what it sees of a mask
NOWHERE = -32.0  # the logit where a close-up does not look: background, and surely so


def check_mask_input(logits: Any, height: int, width: int) -> NDArray[np.float32]:
    """The logits (height, width) as an array.

    Raises:
        UserError: when they are of another picture's size, or not finite.
    """
    array = np.asarray(logits)
    if array.shape != (height, width) or array.dtype.kind not in "uif":
        raise UserError(
            f"Expected `mask_input` to be the logits of an answer on this picture, of shape ({height}, {width}), "
            f"got {array.dtype} {array.shape}."
        )
    if not np.isfinite(array).all():
        raise UserError("Expected finite numbers in `mask_input`, got NaN or infinity among them.")
    return array.astype(np.float32)
