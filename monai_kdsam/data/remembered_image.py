# SPDX-License-Identifier: Apache-2.0
"""A bounded memory of preprocessed images, so that a second click does not decode and resize the file again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any

from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from monai_kdsam.data.paths import split_frame, suffix_of
from monai_kdsam.errors import MissingFileError
from monai_kdsam.files import remembered_sha256
from monai_kdsam.networks.memory import BoundedCache

__all__ = ["RememberedImaged"]

_SHARED: dict[str, BoundedCache[MetaTensor]] = {}


class RememberedImaged(MapTransform):
    """Preprocesses a file once, and recalls the result as long as a file of the same content is asked for.

    MONAI Label calls the preprocessing at every click. MONAI's caching datasets keep items of a known list, its own
    `CacheTransformDatad` keeps an image by its path without a bound, which gives a replaced file its predecessor's
    image and an uploaded one none.

    Args:
        keys: of the paths of the images.
        transform: from {key: path} to {key: MetaTensor}; deterministic.
        request: what the transform goes by beside the path, of all that comes along with it; images are told apart by
            it, too. Nothing else of one request reaches what another one gets.
        max_bytes: what all kept images together may occupy; an image of 1024 x 1024 pixels has 12 MiB.
        shared: objects of one such text share one memory in the process, for a bundle that has options to show: MONAI
            Label builds its transforms anew at each request. It must tell apart what `transform` does differently.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        *,
        transform: Callable[[dict[Hashable, Any]], Mapping[Hashable, Any]],
        request: Callable[[Mapping[Hashable, Any]], Mapping[Hashable, Hashable]] = lambda _: {},
        max_bytes: int = 256 * 2**20,
        shared: str | None = None,
    ) -> None:
        super().__init__(keys)
        self.transform, self.request = transform, request
        memory: BoundedCache[MetaTensor] = BoundedCache(max_bytes)
        self.images = memory if shared is None else _SHARED.setdefault(shared, memory)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace paths by preprocessed images; metadata are each call's own, pixels must not be changed in place.

        Raises:
            FileNotFoundError: when there is no such file.
        """
        result = dict(data)
        for key in self.key_iterator(result):
            path = str(result[key])
            asked = dict(self.request(data))
            identity = (*self._identity(path), *asked.items())
            kept = self.images.recall(identity, partial(self._prepare, key, asked | {key: path}))
            meta = copy.deepcopy(kept.meta) | {"filename_or_obj": path}
            operations = copy.deepcopy(kept.applied_operations)
            result[key] = MetaTensor(kept.as_tensor(), meta=meta, applied_operations=operations)
        return result

    def _prepare(self, key: Hashable, asked: dict[Hashable, Any]) -> MetaTensor:
        image: MetaTensor = self.transform(asked)[key]
        return image

    @staticmethod
    def _identity(path: str) -> tuple[str, str, int | None]:
        """What decides how a file is decoded: its content, its suffix, and which of its frames is meant."""
        file, frame = split_frame(path)
        if path and file.is_dir():  # a DICOM series
            files = sorted(part for part in file.iterdir() if part.is_file())
            return " ".join(map(remembered_sha256, files)), "", None
        if not file.is_file():
            raise MissingFileError(f"There is no image file {path!r}." if path else "There is no such image.")
        return remembered_sha256(file), suffix_of(file), frame
