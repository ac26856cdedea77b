# SPDX-License-Identifier: Apache-2.0
"""What enters MONAI's stock trainer with a batch: a teacher's embedding as its target, or mosaics of its pictures."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from monai.engines import PrepareBatch, PrepareBatchExtraInput
from torch import Tensor, nn

from monai_kdsam.errors import UserError

__all__ = ["MosaicPrepareBatch", "PromptedTeacherPrepareBatch", "TeacherPrepareBatch"]


class TeacherPrepareBatch(PrepareBatch):
    """Pairs each image with what the teacher sees in it.

    Args:
        encoder: the teacher's, (B, 3, S, S) -> (B, 256, S/16, S/16), float32; None where batches bring the `embedding`
            along, read from a cache.

    Raises:
        ValueError: when called on a batch without `valid`, the map of the unpadded image, or without `embedding` where
            there is no encoder.
    """

    def __init__(self, encoder: nn.Module | None) -> None:
        self.encoder = encoder

    def __call__(
        self,
        batchdata: dict[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A batch with `image` (B, 3, S, S) and `valid` (B, 1, S, S) -> (image, target of the embedding losses)."""
        if "valid" not in batchdata:
            raise UserError("Expected the batch to hold `valid`, which ValidRegiond adds before the padding.")
        if self.encoder is None and "embedding" not in batchdata:
            raise UserError("Expected the batch to hold `embedding`, which LoadEmbeddingd adds, or an `encoder`.")
        # Plain tensors: the embedding has another frame than the image, so its metadata would lie.
        image, valid = (
            torch.as_tensor(batchdata[key]).as_subclass(Tensor).to(device, non_blocking=non_blocking, **kwargs)
            for key in ("image", "valid")
        )
        if self.encoder is None:
            embedding = batchdata["embedding"].to(device, non_blocking=non_blocking, **kwargs)
        else:
            embedding = self.encoder(image)
        return image, {"embedding": embedding, "valid": valid}


class PromptedTeacherPrepareBatch(TeacherPrepareBatch):
    """As `TeacherPrepareBatch`, for a `TeacherLoop`: the teacher's embedding is an argument, beside the prompts.

    Args:
        encoder: see `TeacherPrepareBatch`.
    """

    def __call__(  # type: ignore[override]
        self,
        batchdata: dict[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor, tuple[()], dict[str, Tensor]]:
        """A batch with `image`, `valid`, `label`, `points` and `labels` -> (image, label, (), the loop's arguments)."""
        image, target = super().__call__(batchdata, device, non_blocking, **kwargs)
        label, points, labels = (
            torch.as_tensor(batchdata[key]).as_subclass(Tensor).to(device, non_blocking=non_blocking)
            for key in ("label", "points", "labels")
        )
        arguments = {"points": points, "labels": labels, "reference": target["embedding"], "valid": target["valid"]}
        return image, label, (), arguments


class MosaicPrepareBatch(PrepareBatchExtraInput):
    """MONAI's `PrepareBatchExtraInput`, after some pictures of the batch were made mosaics of several.

    A mosaic has its own picture and one or three others of the batch, each at half its size, side by side or two by
    two. A prompt asks for its own picture alone, no prompt for what is labeled in all of them. Where a picture holds
    one structure, a network learns what to segment and has no use for the prompt; in a mosaic only the prompt tells.

    Args:
        extra_keys: see `PrepareBatchExtraInput`.
        share: of the batch's pictures that become mosaics.

    Raises:
        ValueError: on a share beyond 0 to 1.
    """

    def __init__(self, extra_keys: dict[str, str], *, share: float = 0.0) -> None:
        super().__init__(extra_keys)
        if not 0 <= share <= 1:
            raise UserError(f"Expected `share` (config: `mosaic_share`) to be between 0 and 1, got {share}.")
        self.share = share

    def __call__(
        self,
        batchdata: dict[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> Any:
        """A batch with `image`, `label`, `valid`, `points`, `labels` (see `CorrectionLoop`), prepared."""
        count = round(self.share * len(batchdata["image"]))
        if count and len(batchdata["image"]) > 1:
            pictures = {key: batchdata[key].to(device=device, non_blocking=non_blocking) for key in MOSAIC_KEYS}
            batchdata = batchdata | make_mosaics(pictures, count)
        return super().__call__(batchdata, device, non_blocking, **kwargs)


MOSAIC_KEYS = ("image", "label", "valid", "points", "labels")


def make_mosaics(batch: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """Make the first `count` pictures of a batch mosaics; torch's generator draws.

    Args:
        batch: image (B, 3, S, S); label (B, K, S, S), what each prompt asks for; valid (B, 1, S, S), 0 on padding;
            points (B, K, N, 2), XY pixels; labels (B, K, N), all -1 where there is no prompt.
        count: how many.

    Returns:
        All five by name, of the same shapes.
    """
    image, label, valid, points, labels = (batch[key] for key in MOSAIC_KEYS)
    half = image.shape[-1] // 2
    pictures, asked, seen = (F.avg_pool2d(x, 2) for x in (image, label, valid))
    asked, seen = (asked > 0.5).float(), (seen > 0.5).float()
    automatic = (labels < 0).all(dim=2)  # (B, K)
    # What is labeled, for those who ask for nothing: a row without a prompt in all pictures knows it.
    rows = automatic.all(dim=0)
    whole = (asked[:, rows] if rows.any() else asked).amax(dim=1, keepdim=True)
    made = {key: batch[key].clone() for key in MOSAIC_KEYS}
    places = [(0, 0), (0, half), (half, 0), (half, half)]  # row, column
    for row in range(count):
        used = [(0, 1), (0, 2), (0, 1, 2, 3), (0, 1, 2, 3)][_draw(4)]
        own = used[_draw(len(used))]
        for key in ("image", "label", "valid"):
            made[key][row] = 0
        for tile in used:
            source = row if tile == own else (row + 1 + _draw(len(image) - 1)) % len(image)
            down, right = (slice(start, start + half) for start in places[tile])
            made["image"][row, :, down, right] = pictures[source]
            made["valid"][row, :, down, right] = seen[source]
            wanted = asked[row] if tile == own else torch.zeros_like(asked[row])
            made["label"][row, :, down, right] = torch.where(automatic[row][:, None, None], whole[source], wanted)
        shift = torch.tensor(places[own][::-1]).to(points)
        made["points"][row] = (points[row] + 0.5) / 2 - 0.5 + shift
    return made


def _draw(count: int) -> int:
    return int(torch.randint(count, ()))
