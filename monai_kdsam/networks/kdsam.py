# SPDX-License-Identifier: Apache-2.0
"""KD SAM: an image encoder, SAM's prompt encoder and SAM's mask decoder behind one tensor-in, tensor-out forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_kdsam.errors import UserError
from monai_kdsam.networks.memory import AnswerMemory, EmbeddingCache, Fingerprint
from monai_kdsam.networks.sam import MaskDecoder, PromptEncoder
from monai_kdsam.networks.scriptable import ScriptableKDSAM

__all__ = ["KDSAM", "VolumeKDSAM"]

PARTS = {
    "image_encoder": "image_encoder",
    "prompt_encoder": "prompt_encoder",
    "mask_decoder": "mask_decoder",
    "iou_head": "mask_decoder.iou_prediction_head",
}


class KDSAM(nn.Module):
    """A promptable segmentation network; student and teacher alike.

    Args:
        image_encoder: (B, 3, S, S) normalized image -> (B, 256, S/16, S/16); any module of that shape. With
            `FineFeatures` there are 768 channels more.
        prompt_encoder: SAM's, for the input size S.
        mask_decoder: SAM's.

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

    has_imagenet_weights = False  # in its trunk, which a builder has put there
    began_from = ""  # weights that were loaded, see `describe_weights`

    def __init__(
        self,
        image_encoder: nn.Module,
        prompt_encoder: PromptEncoder,
        mask_decoder: MaskDecoder,
    ) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {}
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        mask_decoder.fine_features = getattr(image_encoder, "fine", None) is not None
        self.embeddings = EmbeddingCache()
        self.answers = AnswerMemory()
        self._fingerprint = Fingerprint()
        self._frozen: set[str] = set()
        # SAM has a head for each of its masks. Those that no loss reaches keep their weights: an optimizer's decay
        # would wear them away.
        for index, head in enumerate(mask_decoder.output_hypernetworks_mlps):
            head.requires_grad_(index == 0)

    @property
    def image_size(self) -> int:
        """Side S of the square input, in pixels."""
        return self.prompt_encoder.input_image_size[0]

    @property
    def prompt_map(self) -> bool:
        """Whether prompts are drawn as well as embedded as tokens, see `draw_prompts`."""
        return self.prompt_encoder.prompt_map

    def encode(self, image: Tensor) -> Tensor:
        """Embed an image.

        Args:
            image: (B, 3, S, S), normalized by SAM's mean and standard deviation, padded at the bottom and right.

        Returns:
            (B, 256, S/16, S/16), and 768 channels more of a student with fine features.

        Raises:
            ValueError: when the image has another shape.
        """
        size = self.image_size
        if image.ndim != 4 or tuple(image.shape[1:]) != (3, size, size):
            raise UserError(f"Expected `image` of shape (B, 3, {size}, {size}), got {tuple(image.shape)}.")
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
        return self.embeddings.get(image, encode, self._fingerprint(self.image_encoder))

    def decode(
        self,
        embedding: Tensor,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
        has_mask: Tensor | None = None,
        *,
        multimask: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Predict masks from embeddings.

        Args:
            embedding: (B, C, S/16, S/16), see `encode`.
            points: (B * K, N, 2) float, XY pixels of the network's input, K prompts of the first image, K of the
                second, ...; None for no prompt.
            labels: (B * K, N): 1 foreground, 0 background, 2 box top-left, 3 box bottom-right, -1 padding.
            mask: (B * K, 1, S/4, S/4), the logits of an earlier answer, SAM's mask prompt; None for none.
            has_mask: (B * K,) bool, which prompts have such a mask; None for all of them.
            multimask: SAM's three masks of an ambiguous prompt instead of one.

        Returns:
            masks: (B * K, 1 or 3, S/4, S/4) logits.
            iou: (B * K, 1 or 3), the IoU that the network expects of each.

        Raises:
            ValueError: when there are points without labels, or labels without points.
        """
        if (points is None) != (labels is None):
            missing = "points" if points is None else "labels"
            raise UserError(f"Expected `points` and `labels` together, got no `{missing}`.")
        if points is None or labels is None:
            prompts = embedding.shape[0] if mask is None else mask.shape[0]
            points = torch.zeros(prompts, 1, 2, device=embedding.device)
            labels = torch.full((prompts, 1), -1, device=embedding.device)
        tokens, ignored = self.prompt_encoder(points, labels)
        dense = self.prompt_encoder.dense(points, labels, mask, has_mask)
        positions = self.prompt_encoder.positions()
        return self.mask_decoder(embedding, positions, dense, tokens, ignored, multimask)

    def predict(self, embedding: Tensor, points: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """`decode` to full size: (B, K, S, S) logits for points (B, K, N, 2), K = 1 for points (B, N, 2) or None.

        Raises:
            ValueError: when points and labels do not fit the embedding or each other.
        """
        return self.predict_all(embedding, points, labels)[0]

    def predict_all(
        self,
        embedding: Tensor,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
        has_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`predict` with all that a training looks at.

        Args:
            embedding: (B, C, S/16, S/16), see `encode`.
            points: (B, K, N, 2), or (B, N, 2) or None, then K is 1.
            labels: (B, K, N) or (B, N).
            mask: (B, K, S/4, S/4) logits of earlier answers, see `decode`.
            has_mask: (B, K) bool.

        Returns:
            logits: (B, K, S, S).
            iou: (B, K), the IoU that the network expects.
            small: (B, K, S/4, S/4), the logits as the decoder gives them, and as it takes them back as `mask`.

        Raises:
            ValueError: see `predict`.
        """
        prompts = 1
        if points is not None and labels is not None:
            self._check_prompts(embedding.shape[0], points, labels)
            if points.ndim == 4:
                prompts = points.shape[1]
                points, labels = points.flatten(0, 1), labels.flatten(0, 1)
        if mask is not None:
            expected = (embedding.shape[0], prompts, self.image_size // 4, self.image_size // 4)
            if mask.shape != expected:
                raise UserError(f"Expected `mask` of shape {expected}, got {tuple(mask.shape)}.")
            mask = mask.flatten(0, 1)[:, None]
            has_mask = None if has_mask is None else has_mask.flatten()
        small, iou = self.decode(embedding, points, labels, mask, has_mask)  # (B * K, 1, ...)
        logits = F.interpolate(small.float(), size=(self.image_size,) * 2, mode="bilinear", align_corners=False)
        logits, iou, small = (each[:, 0].unflatten(0, (-1, prompts)) for each in (logits, iou, small))
        return logits, iou, small

    def forward(self, image: Tensor, points: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Segment.

        Args:
            image: (B, 3, S, S), see `encode`.
            points: (B, N, 2), or (B, K, N, 2) for K prompts of each image; None means automatic.
            labels: (B, N) or (B, K, N), see `decode`.

        Returns:
            (B, 1, S, S) logits, or (B, K, S, S) where the prompts have a dimension K. Foreground is above 0.
        """
        return self.predict(self.encode(image), points, labels)

    @staticmethod
    def _check_prompts(images: int, points: Tensor, labels: Tensor) -> None:
        fits = points.ndim in (3, 4) and points.shape[-1] == 2 and points.shape[0] == images
        if not fits or points.shape[:-1] != labels.shape:
            raise UserError(
                "Expected `points` of shape (B, N, 2) or (B, K, N, 2) and `labels` of the same shape without the last "
                f"dimension, with B = {images}; got {tuple(points.shape)} and {tuple(labels.shape)}."
            )

    def freeze(self, *parts: str) -> KDSAM:
        """Take parts out of training: no gradients, and eval mode whatever `train()` says.

        Eval mode matters: a frozen ResNet whose batch norm goes on counting drifts away from the decoder that is
        being trained on it.

        Args:
            parts: among image_encoder, prompt_encoder, mask_decoder, iou_head (of the mask decoder).

        Raises:
            ValueError: on another name.
        """
        for part in parts:
            if part not in PARTS:
                raise UserError(f"Expected `parts` among {', '.join(PARTS)}, got {part!r}.")
            self.get_submodule(PARTS[part]).requires_grad_(False)
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
            self.get_submodule(PARTS[part]).eval()
        return self

    def __prepare_scriptable__(self) -> nn.Module:
        """What `torch.jit.script` compiles instead."""
        return ScriptableKDSAM(self)


class VolumeKDSAM(KDSAM):
    """A `KDSAM`, weights and all, whose forward takes volumes too, and that remembers the slices of a whole one.

    MONAI judges a bundle's network by calling it with an input of metadata's shape, three spatial dimensions here.
    What serves prompts is `VolumeInferer`, through `embed` and `predict`.
    """

    def __init__(self, *parts: Any, embedding_bytes: int = 2**30) -> None:
        super().__init__(*parts)
        self.embeddings = EmbeddingCache(embedding_bytes)

    def forward(self, image: Tensor, points: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Segment images (B, 3, S, S) as `KDSAM` does, or each slice of volumes (B, 3, S, S, D) automatically.

        Returns:
            logits (B, 1, S, S), or (B, 1, S, S, D).
        """
        if image.ndim != 5:
            return super().forward(image, points, labels)
        return torch.stack([super(VolumeKDSAM, self).forward(part) for part in image.unbind(dim=-1)], dim=-1)
