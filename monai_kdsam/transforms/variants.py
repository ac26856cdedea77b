# SPDX-License-Identifier: Apache-2.0
"""Augmentation from a fixed number of variants of each image, so that what a teacher sees in them can be stored."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from monai.transforms import Compose, Randomizable, Transform

__all__ = ["RandVariantd"]


class RandVariantd(Randomizable, Transform):
    """Apply one of a fixed number of draws of random transforms.

    Variant 0 is the item as it is; the others are drawn from seeds that the run's seed, the image's content and the
    variant's number give, so that they are the same in every epoch, process and run. Any augmentation will do: image
    and embedding are of the very same pixels. Flipping a stored embedding instead would be cheaper and wrong, as a ViT
    with position embeddings does not see the mirror image of what it saw (docs/howto/embedding_cache.md).

    Args:
        transforms: the augmentation, dictionary transforms.
        variants: how many there are.
        seed: another seed, other variants.

    The item must have `checksum`. If it has `variant`, that one is made; otherwise one is drawn.
    """

    def __init__(self, transforms: Sequence[Callable[[dict[Hashable, Any]], Any]], *, variants: int, seed: int) -> None:
        self.augment = Compose(list(transforms))
        self.variants = variants
        self.seed = seed

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Apply a variant and add its number as `variant`."""
        variant = int(data["variant"]) if "variant" in data else int(self.R.randint(self.variants))
        result: dict[Hashable, Any] = {**data, "variant": variant}
        if variant > 0:
            self.augment.set_random_state(seed=zlib.crc32(f"{self.seed}/{data['checksum']}/{variant}".encode()))
            result = self.augment(result)
        return result
