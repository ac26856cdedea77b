# SPDX-License-Identifier: Apache-2.0
"""The teacher's embeddings on disk: written once by `embed`, read by `distill` instead of running the teacher.

A cache is a folder of safetensors files ("shards"). Each shard says in its header what its embeddings were made from,
and of which images, so there is no index beside them that could disagree with them. A shard appears under its name when
it is whole; checksums tell damage later on: one of the header, and one of each embedding with its key, type and shape,
which safetensors keeps in a table that nothing else covers.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import ignite.distributed as idist
import torch
from monai.transforms import Transform
from safetensors import SafetensorError, safe_open
from torch import Tensor

from monai_kdsam.data.layouts import Item
from monai_kdsam.data.paths import split_frame
from monai_kdsam.errors import UserError
from monai_kdsam.files import file_sha256

__all__ = [
    "EmbeddingStore",
    "LoadEmbeddingd",
    "crc32_of",
    "embedding_key",
    "header_crc32",
    "image_checksum",
    "read_header",
]

logger = logging.getLogger(__name__)
Precision = Literal["float32", "float16", "int8"]
FORMAT = 2
REDO = "Run the phase `embed` with `--verify True`, which names what is damaged and makes it anew."


class _Place(NamedTuple):
    shard: Path
    name: str
    crc32: int
    image: str


def image_checksum(path: str | Path) -> str:
    """Checksum of an image's file, with the frame where the path names one."""
    file, frame = split_frame(path)
    digest = file_sha256(file)
    return digest if frame is None else f"{digest}#{frame}"


def embedding_key(item: Mapping[Any, Any]) -> str:
    """Under which an item's embedding is kept: its image's content and the number of its variant."""
    return f"{item['checksum']}/{item['variant']}"


class EmbeddingStore:
    """A folder of embeddings that one teacher made under one preprocessing.

    Args:
        folder: of the shards.
        made_from: what the embeddings depend on besides the image, by name: the teacher's checksum, the input size,
            the preprocessing. Values are what JSON can hold.
        variants: how many augmented variants of each image it shall hold, the image as it is among them.
        precision: of embeddings that are written. float16 loses nothing that a teacher under mixed precision had, int8
            has one scale for each channel of each image; docs/howto/embedding_cache.md tells what was measured.

    Raises:
        ValueError: when a shard is damaged, or made from something else, which is named.
    """

    def __init__(
        self,
        folder: str | Path,
        made_from: Mapping[str, Any],
        *,
        variants: int = 1,
        precision: Precision = "float16",
    ) -> None:
        if precision not in get_args(Precision):
            raise UserError(
                f"Expected `embedding_precision` to be one of {', '.join(get_args(Precision))}, got {precision!r}."
            )
        if variants < 1:
            raise UserError(f"Expected `embedding_variants` to be at least 1, got {variants}.")
        self.folder = Path(folder)
        self.made_from: dict[str, Any] = json.loads(json.dumps(dict(made_from)))
        self.variants = variants
        self.precision = precision
        self._places: dict[str, _Place] = {}
        self._damaged: dict[Path, str] = {}
        self.refresh()

    def refresh(self) -> None:
        """Look at the shards anew."""
        self._places, self._damaged = {}, {}
        for shard in sorted(self.folder.glob("*.safetensors")):
            try:
                header = read_header(shard)
            except ValueError as error:
                self._damaged[shard] = str(error)
                continue
            self._check_origin(shard, header["made_from"])
            for name, entry in header["entries"].items():
                self._places[entry["key"]] = _Place(shard, name, entry["crc32"], entry["image"])

    def _check_origin(self, shard: Path, theirs: Mapping[str, Any]) -> None:
        differing = [
            f"{name} {theirs.get(name)} (now {self.made_from.get(name)})"
            for name in sorted(theirs.keys() | self.made_from.keys())
            if theirs.get(name) != self.made_from.get(name)
        ]
        if differing:
            raise UserError(
                f"The embeddings in {shard.parent} were made from something else: {', '.join(differing)}. "
                "Set that back, name another `embedding_dir`, or delete the folder and run the phase `embed` again."
            )

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        """The keys of all embeddings that are there."""
        return iter(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def read(self, key: str) -> Tensor:
        """The embedding (256, h, w) under a key, float32.

        Raises:
            KeyError: when there is none.
            ValueError: when it is damaged.
        """
        place = self._places[key]
        try:
            file = _opened(place.shard, place.shard.stat().st_ino)
            stored = file.get_tensor(place.name)
            scale = file.get_tensor(f"{place.name}.scale") if stored.dtype == torch.int8 else None
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"Cannot read the embedding of {place.image} from {place.shard}: {error}. {REDO}"
            ) from error
        if crc32_of(key, stored, scale) != place.crc32:
            raise UserError(f"The embedding of {place.image} in {place.shard} is damaged. {REDO}")
        return stored.float() if scale is None else stored.float() * scale

    def require(self, items: Sequence[Item]) -> list[Item]:
        """The items with the checksums of their images, all of which have their embeddings.

        Raises:
            ValueError: when embeddings are missing or a shard is damaged.
        """
        if self._damaged:
            raise UserError(f"Damaged: {'; '.join(self._damaged.values())}. {REDO}")
        items = _with_checksums(items)
        missing = [item for item in self._expand(items) if embedding_key(item) not in self]
        if missing:
            raise UserError(
                f"{self.folder} lacks {len(missing)} of {len(items) * self.variants} embeddings, the first of them "
                f"variant {missing[0]['variant']} of {missing[0]['image']}. Run the phase `embed` with the same "
                "settings; it makes what is missing."
            )
        return items

    def missing(self, items: Sequence[Item], *, rank: int = 0, world_size: int = 1) -> list[Item]:
        """What is to be embedded: the items, each content once in each variant that is lacking, with its `file`."""
        wanted: dict[str, Item] = {}
        for item in self._expand(_with_checksums(items)):
            wanted.setdefault(embedding_key(item), {**item, "file": item["image"]})
        # Shared out before what is there is left out: another process may have written meanwhile.
        share = list(wanted.items())[rank::world_size]
        return [item for key, item in share if key not in self]

    def _expand(self, items: Sequence[Item]) -> list[Item]:
        return [{**item, "variant": variant} for variant in range(self.variants) for item in items]

    def verify(self) -> list[str]:
        """Read everything, name what is damaged, and remove it, so that `embed` makes it anew.

        Of several processes the first one does it, and the others wait.

        Returns:
            a line for each damaged shard.
        """
        found = self._find_damage() if idist.get_rank() == 0 else {}
        for shard, message in found.items():
            logger.warning("%s It is deleted and made anew.", message)
            shard.unlink()
        idist.barrier()
        logger.info("%d embeddings verified, %d damaged shards.", len(self), len(found))
        self.refresh()
        return list(found.values())

    def _find_damage(self) -> dict[Path, str]:
        found = dict(self._damaged)
        for key, place in self._places.items():
            if place.shard in found:
                continue
            try:
                self.read(key)
            except ValueError as error:
                found[place.shard] = str(error).removesuffix(f" {REDO}")
        return found


class LoadEmbeddingd(Transform):
    """Adds the stored `embedding` (256, h, w), float32, of an item that has a `checksum` and a `variant`."""

    def __init__(self, store: EmbeddingStore) -> None:
        self.store = store

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the embedding to `data`."""
        return {**data, "embedding": self.store.read(embedding_key(data))}


@lru_cache(maxsize=256)
def _opened(shard: Path, inode: int) -> Any:
    """A memory-mapped shard; the inode tells it from a later one of the same name."""
    return safe_open(shard, "pt")


def read_header(shard: Path) -> dict[str, Any]:
    """What a shard says of itself: `made_from`, and `entries`, name -> key, image and crc32; `crc32` of both.

    Raises:
        ValueError: when it is not whole, or of another version.
    """
    try:
        with safe_open(shard, "pt") as file:
            header: dict[str, Any] = json.loads(file.metadata()["monai_kdsam"])
    except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:
        raise UserError(f"{shard} is no whole shard of embeddings ({error}).") from error
    if header.get("format") != FORMAT:
        raise UserError(f"{shard} has format {header.get('format')}, and this version reads {FORMAT}.")
    if header.get("crc32") != header_crc32(header):
        raise UserError(f"{shard} is no whole shard of embeddings (its header is damaged).")
    return header


def header_crc32(header: Mapping[str, Any]) -> int:
    """Checksum of what a shard says of itself."""
    said = {key: value for key, value in header.items() if key != "crc32"}
    return zlib.crc32(json.dumps(said, sort_keys=True).encode())


def _with_checksums(items: Sequence[Item]) -> list[Item]:
    with ThreadPoolExecutor() as pool:
        checksums = list(pool.map(image_checksum, [item["image"] for item in items]))
    return [{**item, "checksum": checksum} for item, checksum in zip(items, checksums, strict=True)]


def crc32_of(key: str, *tensors: Tensor | None) -> int:
    """Checksum of a key, and of the type, shape and content of tensors one after the other."""
    checksum = zlib.crc32(key.encode())
    for tensor in tensors:
        if tensor is not None:
            checksum = zlib.crc32(f"{tensor.dtype} {tuple(tensor.shape)}".encode(), checksum)
            checksum = zlib.crc32(tensor.contiguous().view(torch.uint8).numpy().data, checksum)
    return checksum
