# SPDX-License-Identifier: Apache-2.0
"""The teacher's embeddings on disk: written once by `embed`, read by `distill` instead of running the teacher.

Each image and variant has a file, `WHAT_IT_WAS_MADE_FROM/CHECKSUM_OF_THE_IMAGE/VARIANT.safetensors`, which appears when
it is whole. So what is not there is missing, and there is no index that could say otherwise.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import zlib
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, get_args

import ignite.distributed as idist
import torch
from monai.transforms import Transform
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from monai_kdsam.data.layouts import Item
from monai_kdsam.data.paths import split_frame
from monai_kdsam.errors import UserError, UserFileError
from monai_kdsam.files import file_sha256, replacing, write_text

__all__ = ["EmbeddingStore", "LoadEmbeddingd", "embedding_key", "image_checksum"]

logger = logging.getLogger(__name__)
Precision = Literal["float32", "float16", "int8"]
ORIGIN = "made_from.json"
REDO = "Run the phase `embed` with `--verify True`, which names what is damaged and makes it anew."


def image_checksum(path: str | Path) -> str:
    """Checksum of an image's file, with the frame where the path names one."""
    file, frame = split_frame(path)
    digest = file_sha256(file)
    return digest if frame is None else f"{digest}#{frame}"


def embedding_key(item: Mapping[Any, Any]) -> str:
    """Under which an item's embedding is kept: its image's content and the number of its variant."""
    return f"{item['checksum']}/{item['variant']}"


class EmbeddingStore:
    """The embeddings that one teacher made under one preprocessing.

    Args:
        folder: of caches; each has a folder of its own in it, named by the hash of `made_from`.
        made_from: what the embeddings depend on besides the image, by name: the teacher's checksum, the input size,
            the preprocessing. Values are what JSON can hold.
        variants: how many augmented variants of each image it shall hold, the image as it is among them.
        precision: of embeddings that are written. float16 loses nothing that a teacher under mixed precision had, int8
            has one scale for each channel of each image; docs/howto/embedding_cache.md tells what was measured.

    Raises:
        UserError: on another precision, or fewer than one variant.
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
        self.made_from: dict[str, Any] = json.loads(json.dumps(dict(made_from)))
        origin = hashlib.sha256(json.dumps(self.made_from, sort_keys=True).encode()).hexdigest()
        self.folder = Path(folder) / origin[:16]
        self.variants = variants
        self.precision = precision

    def path(self, key: str) -> Path:
        """The file of a key, whether or not it is there."""
        return self.folder / f"{key}.safetensors"

    def keys(self) -> list[str]:
        """The keys of all embeddings that are there."""
        return [f"{path.parent.name}/{path.stem}" for path in sorted(self.folder.glob("*/*.safetensors"))]

    def write(self, key: str, image: str, embedding: Tensor) -> None:
        """Keep the embedding (256, h, w) of an image, whose path is for messages.

        Raises:
            UserError: when it is not finite.
            UserFileError: when the disk is full; what was written before is kept, and the next run goes on after it.
        """
        if not bool(torch.isfinite(embedding).all()):
            raise UserError(f"The teacher's embedding of {image} is not finite.")
        tensors = _quantize(embedding.detach().cpu(), self.precision)
        if not (self.folder / ORIGIN).exists():
            write_text(self.folder / ORIGIN, json.dumps(self.made_from, indent=1))
        about = {"image": image, "crc32": str(_crc32(key, tensors))}
        remedy = "Free disk space and run the phase `embed` again; it goes on with what is missing."
        with replacing(self.path(key), remedy) as unfinished:
            unfinished.write_bytes(save(tensors, about))  # not save_file, whose files only their owner can read

    def check_room(self, count: int, embedding: Tensor) -> None:
        """Compare what so many embeddings like this one need with the free disk.

        Raises:
            UserFileError: when they have no room.
        """
        nbytes = sum(tensor.nbytes for tensor in _quantize(embedding.cpu(), self.precision).values())
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        needed, free = count * nbytes, shutil.disk_usage(self.folder.parent).free
        logger.info("%d embeddings need %.2f GiB; %.2f GiB are free.", count, needed / 2**30, free / 2**30)
        if needed > free:
            raise UserFileError(
                f"{count} embeddings of {nbytes / 2**20:.2f} MiB need {needed / 2**30:.2f} GiB, and "
                f"{self.folder.parent} has {free / 2**30:.2f} GiB. Free disk space, name another `embedding_dir`, "
                "lower `embedding_variants`, or set `embedding_precision` to int8, which takes half of float16."
            )

    def read(self, key: str) -> Tensor:
        """The embedding (256, h, w) under a key, float32.

        Raises:
            UserError: when it is damaged, or not there.
        """
        path = self.path(key)
        try:
            with safe_open(path, "pt") as file:
                crc32 = file.metadata()["crc32"]
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if crc32 != str(_crc32(key, tensors)):
                raise ValueError("its content is another than was written")
        except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
            raise UserError(f"The embedding {path} is damaged: {error}. {REDO}") from error
        embedding = tensors["embedding"].float()
        return embedding * tensors["scale"] if "scale" in tensors else embedding

    def require(self, items: Sequence[Item]) -> list[Item]:
        """The items with the checksums of their images, all of which have their embeddings.

        Raises:
            UserError: when embeddings are missing; where the folder has a cache of something else, with what differs.
        """
        items = _with_checksums(items)
        missing = self._lacking(self._expand(items))
        if not missing:
            return items
        if differing := self._differing():
            raise UserError(
                f"The embeddings in {self.folder.parent} were made from something else: {', '.join(differing)}. "
                "Set that back, or run the phase `embed` with the same settings."
            )
        raise UserError(
            f"{self.folder} lacks {len(missing)} of {len(items) * self.variants} embeddings, the first of them "
            f"variant {missing[0]['variant']} of {missing[0]['image']}. Run the phase `embed` with the same "
            "settings; it makes what is missing."
        )

    def missing(self, items: Sequence[Item], *, rank: int = 0, world_size: int = 1) -> list[Item]:
        """What is to be embedded: the items, each content once in each variant that is lacking, with its `file`."""
        wanted: dict[str, Item] = {}
        for item in self._expand(_with_checksums(items)):
            wanted.setdefault(embedding_key(item), {**item, "file": item["image"]})
        if differing := self._differing():
            logger.warning(
                f"{self.folder.parent} has embeddings made from something else: {', '.join(differing)}. They are kept; "
                "delete what is not needed."
            )
        # Shared out before what is there is left out: another process may have written meanwhile.
        return self._lacking(list(wanted.values())[rank::world_size])

    def _expand(self, items: Sequence[Item]) -> list[Item]:
        return [{**item, "variant": variant} for variant in range(self.variants) for item in items]

    def _lacking(self, items: Sequence[Item]) -> list[Item]:
        return [item for item in items if not self.path(embedding_key(item)).is_file()]

    def _differing(self) -> list[str]:
        """Where there is no cache of these settings but others, what is different in the one most like it."""
        others = [] if self.folder.is_dir() else list(self.folder.parent.glob(f"*/{ORIGIN}"))
        differences = []
        for theirs in (json.loads(file.read_text(encoding="utf-8")) for file in others):
            names = sorted(theirs.keys() | self.made_from.keys())
            pairs = {name: (theirs.get(name), self.made_from.get(name)) for name in names}
            differences.append([f"{name} {old} (now {new})" for name, (old, new) in pairs.items() if old != new])
        return min(differences, key=len, default=[])

    def verify(self) -> list[str]:
        """Read everything, name what is damaged, and remove it, so that `embed` makes it anew.

        Of several processes the first one does it, and the others wait.

        Returns:
            a line for each damaged file.
        """
        keys, found = self.keys() if idist.get_rank() == 0 else [], []
        for key in keys:
            try:
                self.read(key)
            except UserError as error:
                found.append(str(error).removesuffix(f" {REDO}"))
                logger.warning("%s It is deleted and made anew.", found[-1])
                self.path(key).unlink()
        idist.barrier()
        logger.info("%d embeddings verified, %d damaged.", len(keys), len(found))
        return found


class LoadEmbeddingd(Transform):
    """Adds the stored `embedding` (256, h, w), float32, of an item that has a `checksum` and a `variant`."""

    def __init__(self, store: EmbeddingStore) -> None:
        self.store = store

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the embedding to `data`."""
        return {**data, "embedding": self.store.read(embedding_key(data))}


def _with_checksums(items: Sequence[Item]) -> list[Item]:
    with ThreadPoolExecutor() as pool:
        checksums = list(pool.map(image_checksum, [item["image"] for item in items]))
    return [{**item, "checksum": checksum} for item, checksum in zip(items, checksums, strict=True)]


def _quantize(embedding: Tensor, precision: Precision) -> dict[str, Tensor]:
    if precision != "int8":
        return {"embedding": embedding.to(getattr(torch, precision)).contiguous()}
    scale = embedding.float().abs().amax(dim=(1, 2), keepdim=True).clamp_min(1e-12) / 127
    return {"embedding": (embedding.float() / scale).round().to(torch.int8), "scale": scale}


def _crc32(key: str, tensors: Mapping[str, Tensor]) -> int:
    """Checksum of a key, and of the name, type, shape and content of tensors, of which safetensors has none."""
    checksum = zlib.crc32(key.encode())
    for name, tensor in sorted(tensors.items()):
        checksum = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), checksum)
        checksum = zlib.crc32(tensor.contiguous().view(torch.uint8).numpy().data, checksum)
    return checksum
