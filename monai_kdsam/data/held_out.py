# SPDX-License-Identifier: Apache-2.0
"""Which images of a growing collection are never learned from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from monai_kdsam.errors import UserError

__all__ = ["FEW", "hold_out"]

# With fewer images than this to compare on, a mean says little.
FEW = 3


def hold_out(images: Sequence[str], earlier: Mapping[str, bool], fraction: float) -> dict[str, bool]:
    """Choose the images that models are compared on, and never choose otherwise later.

    An image that the served model has learned from would favor it in every later comparison; so what was once held out
    stays held out, what was once learned from is learned from again, and new images fill up what is missing. At
    least 3 images are held out, but never more than half.

    Args:
        images: checksums of the labelled images, in any order; images of equal content count once.
        earlier: whether an image was held out, of those that there was a choice for.
        fraction: of the images to hold out.

    Returns:
        Whether each image is held out; those of `earlier` that have lost their label included.

    Raises:
        ValueError: with fewer than two different images, or a fraction that is none.

    Example:
        >>> sorted(hold_out(["a", "b", "c", "d"], {"a": False}, 0.2).items())
        [('a', False), ('b', True), ('c', True), ('d', False)]
    """
    if not 0 < fraction < 1:
        raise UserError(f"Expected `val_split` between 0 and 1, got {fraction}.")
    present = sorted(set(images))
    if len(present) < 2:
        raise UserError(
            "Expected labels of at least 2 different images, one to learn from and one to compare on, "
            f"got {len(present)}. Submit labels, with the tag `final`, first."
        )
    wanted = min(max(round(fraction * len(present)), FEW), len(present) // 2)
    choice = {image: earlier[image] for image in present if image in earlier}
    for image in present:
        choice.setdefault(image, sum(choice.values()) < wanted)
    # Labels may have been removed since: there must be something on either side.
    for side in (True, False):
        if side not in choice.values():
            choice[present[0]] = side
    return {**earlier, **choice}
