# SPDX-License-Identifier: Apache-2.0
"""KD SAM: an image encoder, SAM's prompt encoder and SAM's mask decoder behind one tensor-in, tensor-out forward."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_kdsam.networks.embedding_cache import EmbeddingCache
from monai_kdsam.networks.fingerprint import Fingerprint
from monai_kdsam.networks.projection import Projection, ProjectionCache
from monai_kdsam.networks.sam import MaskDecoder, PromptEncoder, best_mask
from monai_kdsam.networks.scriptable import scriptable

__all__ = ["KDSAM"]

logger = logging.getLogger(__name__)
PARTS = ("image_encoder", "prompt_encoder", "mask_decoder")


class KDSAM(nn.Module):
    """A promptable segmentation network; student and teacher alike.

    Args:
        image_encoder: (B, 3, S, S) normalized image -> (B, 256, S/16, S/16); any module of that shape.
        prompt_encoder: SAM's, for the input size S.
        mask_decoder: SAM's.
        multimask: predict SAM's three masks of an ambiguous prompt, and choose the one that the IoU head expects most
            of. Worth it only where a training has taught that head.

    Attributes:
        settings: the scalars that a builder made it from; they travel with its weights, see `save_weights`.

    Example:
        >>> from monai_kdsam.networks import build_student
        >>> network = build_student("resnet18", image_size=64).eval()
        >>> image = torch.zeros(2, 3, 64, 64)
        >>> network(image).shape                                         # automatic: no prompt
        torch.Size([2, 1, 64, 64])
        >>> box = torch.tensor([[[8.0, 8.0], [40.0, 48.0]]]).repeat(2, 1, 1)
        >>> network(image, box, torch.tensor([[2, 3], [2, 3]])).shape    # a box is two points
        torch.Size([2, 1, 64, 64])
    """

    def __init__(
        self,
        image_encoder: nn.Module,
        prompt_encoder: PromptEncoder,
        mask_decoder: MaskDecoder,
        *,
        multimask: bool = False,
    ) -> None:
        super().__init__()
        self.multimask = multimask
        self.settings: dict[str, Any] = {}
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        self.embeddings = EmbeddingCache()
        self.projections = ProjectionCache()
        self._fingerprints = {part: Fingerprint() for part in PARTS}
        self._frozen: set[str] = set()

    @property
    def image_size(self) -> int:
        """Side S of the square input, in pixels."""
        return self.prompt_encoder.input_image_size[0]

    def encode(self, image: Tensor) -> Tensor:
        """Embed an image.

        Args:
            image: (B, 3, S, S), normalized by SAM's mean and standard deviation, padded at the bottom and right.

        Returns:
            (B, 256, S/16, S/16).

        Raises:
            ValueError: when the image has another shape.
        """
        size = self.image_size
        if image.ndim != 4 or tuple(image.shape[1:]) != (3, size, size):
            raise ValueError(f"Expected `image` of shape (B, 3, {size}, {size}), got {tuple(image.shape)}.")
        return self.image_encoder(image)

    def embed(self, image: Tensor, prepare: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """`encode` that remembers: equal content is encoded once by equal weights. For inference; never in training.

        Args:
            image: what the embedding is remembered by; the network's input, unless there is `prepare`.
            prepare: makes the network's input of the image; always the same one.
        """

        def encode(content: Tensor) -> Tensor:
            return self.encode(content if prepare is None else prepare(content))

        if self.training or torch.is_grad_enabled():
            return encode(image)
        return self.embeddings.get(image, encode, self._weights("image_encoder"))

    def project(self, embedding: Tensor) -> Projection:
        """The part of `decode` that no prompt changes, of an embedding (B, 256, S/16, S/16)."""
        return self.mask_decoder.project(embedding, *self.prompt_encoder.dense_embeddings())

    def decode(
        self, embedding: Tensor, points: Tensor | None = None, labels: Tensor | None = None, *, multimask: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Predict masks from embeddings; `project` is remembered for the next prompt on them, except in training.

        Args:
            embedding: (B, 256, S/16, S/16).
            points: (B * K, N, 2) float, XY pixels of the network's input, K prompts of the first image, K of the
                second, ...; None for no prompt.
            labels: (B * K, N): 1 foreground, 0 background, 2 box top-left, 3 box bottom-right, -1 padding.
            multimask: SAM's three masks of an ambiguous prompt instead of one.

        Returns:
            masks: (B * K, 1 or 3, S/4, S/4) logits. The one is SAM's single mask, or the best of the three as the IoU
                head expects it where the network's own `multimask` is true.
            iou: (B * K, 1 or 3), the IoU that the network expects of each.

        Raises:
            ValueError: when there are points without labels, or labels without points.
        """
        return self.decode_projected(self._projection(embedding), points, labels, multimask=multimask)

    def _projection(self, embedding: Tensor) -> Projection:
        if self.training or torch.is_grad_enabled():
            return self.project(embedding)
        return self.projections.get(embedding, self.project, self._weights("prompt_encoder", "mask_decoder"))

    def decode_projected(
        self,
        projection: Projection,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        multimask: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """`decode` of what `project` made of the embedding."""
        _check_together(points, labels)
        if points is None or labels is None:
            images, device = projection.image.shape[0], projection.image.device
            points = torch.zeros(images, 1, 2, device=device)
            labels = torch.full((images, 1), -1, device=device)
        tokens, ignored = self.prompt_encoder(points, labels)
        positions, _ = self.prompt_encoder.dense_embeddings()
        masks, iou = self.mask_decoder(projection, positions, tokens, ignored, multimask or self.multimask)
        return best_mask(masks, iou) if self.multimask and not multimask else (masks, iou)

    def _weights(self, *parts: str) -> str:
        """Checksum of the weights of these parts."""
        return "-".join(self._fingerprints[part](self.get_submodule(part)) for part in parts)

    def predict(self, embedding: Tensor, points: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """`decode` to full size: (B, K, S, S) logits for points (B, K, N, 2), K = 1 for points (B, N, 2) or None.

        Raises:
            ValueError: when points and labels do not fit the embedding or each other.
        """
        return self._full_size(self._projection(embedding), points, labels)[0][:, :, 0]

    def predict_all(self, embedding: Tensor, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What a training sees: every mask that the network chooses from, and what it expects of each.

        Args:
            embedding: (B, 256, S/16, S/16).
            points: (B, K, N, 2) or (B, N, 2), then K is 1.
            labels: (B, K, N) or (B, N).

        Returns:
            logits: (B, K, C, S, S), C = 3 with `multimask`, else 1.
            iou: (B, K, C).

        Raises:
            ValueError: see `predict`.
        """
        return self._full_size(self._projection(embedding), points, labels, multimask=self.multimask)

    def _full_size(
        self, projection: Projection, points: Tensor | None, labels: Tensor | None, *, multimask: bool = False
    ) -> tuple[Tensor, Tensor]:
        """`decode_projected` for K prompts of each image: (B, K, C, S, S) and (B, K, C)."""
        prompts = 1
        if points is not None and labels is not None:
            self._check_prompts(projection.image.shape[0], points, labels)
            if points.ndim == 4:
                prompts = points.shape[1]
                points, labels = points.flatten(0, 1), labels.flatten(0, 1)
        masks, iou = self.decode_projected(projection, points, labels, multimask=multimask)
        masks = F.interpolate(masks.float(), size=(self.image_size,) * 2, mode="bilinear", align_corners=False)
        return masks.unflatten(0, (-1, prompts)), iou.unflatten(0, (-1, prompts))

    def forward(self, image: Tensor, points: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Segment.

        Args:
            image: (B, 3, S, S), see `encode`.
            points: (B, N, 2), or (B, K, N, 2) for K prompts of each image; None means automatic.
            labels: (B, N) or (B, K, N), see `decode`.

        Returns:
            (B, 1, S, S) logits, or (B, K, S, S) where the prompts have a dimension K. Foreground is above 0.
        """
        # Not `predict`: of an embedding that nobody keeps there is nothing to remember.
        return self._full_size(self.project(self.encode(image)), points, labels)[0][:, :, 0]

    @staticmethod
    def _check_prompts(images: int, points: Tensor, labels: Tensor) -> None:
        fits = points.ndim in (3, 4) and points.shape[-1] == 2 and points.shape[0] == images
        if not fits or points.shape[:-1] != labels.shape:
            raise ValueError(
                "Expected `points` of shape (B, N, 2) or (B, K, N, 2) and `labels` of the same shape without the last "
                f"dimension, with B = {images}; got {tuple(points.shape)} and {tuple(labels.shape)}."
            )

    def freeze(self, *parts: str) -> KDSAM:
        """Take parts out of training: no gradients, and eval mode whatever `train()` says.

        Eval mode matters: a frozen ResNet whose batch norm goes on counting drifts away from the decoder that is
        being trained on it.

        Args:
            parts: among image_encoder, prompt_encoder, mask_decoder.

        Raises:
            ValueError: on another name.
        """
        for part in parts:
            if part not in PARTS:
                raise ValueError(f"Expected `parts` among {', '.join(PARTS)}, got {part!r}.")
            self.get_submodule(part).requires_grad_(False)
        self._frozen |= set(parts)
        return self.train(self.training)

    def adopt_decoder(self, teacher: KDSAM) -> KDSAM:
        """Take over the teacher's prompt encoder and mask decoder."""
        self.prompt_encoder.load_state_dict(teacher.prompt_encoder.state_dict())
        self.mask_decoder.load_state_dict(teacher.mask_decoder.state_dict())
        return self

    def train(self, mode: bool = True) -> KDSAM:
        """Set training mode, but for the frozen parts."""
        super().train(mode)
        for part in self._frozen:
            self.get_submodule(part).eval()
        return self

    def __prepare_scriptable__(self) -> nn.Module:
        """What `torch.jit.script` compiles instead."""
        return scriptable(self)


def _check_together(points: Tensor | None, labels: Tensor | None) -> None:
    if (points is None) != (labels is None):
        raise ValueError(
            f"Expected `points` and `labels` together, got no `{'points' if points is None else 'labels'}`."
        )
