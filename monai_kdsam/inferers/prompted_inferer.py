# SPDX-License-Identifier: Apache-2.0
"""Calls the network with the prompts that come along."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor, nn

from monai_kdsam.errors import UserError
from monai_kdsam.networks import KDSAM

__all__ = ["PromptedInferer", "answer_on", "require_finite"]


def require_finite(logits: Tensor) -> None:
    """Raise where a network's output is no number: thresholded, it would be an empty mask like any other.

    Raises:
        ValueError: with the likely reasons.
    """
    if not logits.isfinite().all():
        raise UserError(
            "The network's output is not finite, so there is no mask: its weights hold NaN or infinity, or its "
            "precision is too low for this image. Load other weights, or run it in float32."
        )


def answer_on(
    embedding: Tensor, network: KDSAM, who: Hashable | None, points: Tensor | None = None, labels: Tensor | None = None
) -> Tensor:
    """The logits (B, K, S, S) of `KDSAM.predict`, going on from the last answer where somebody adds clicks.

    Args:
        embedding: of `KDSAM.embed`.
        network: the network, which remembers the answers.
        who: asks, about one image by one prompt; None for nobody whose answers would be remembered.
        points: see `KDSAM.predict`.
        labels: see `KDSAM.predict`.

    Raises:
        ValueError: when the network's output is not finite.
    """
    if who is None or points is None or labels is None:
        logits = network.predict(embedding, points, labels).float()
        require_finite(logits)
        return logits
    before = network.answers.before(who, embedding, points, labels)
    logits, _, small = network.predict_all(embedding, points, labels, before)
    require_finite(logits)
    network.answers.keep(who, embedding, points, labels, before, small)
    return logits.float()


class PromptedInferer(Inferer):
    """MONAI's SimpleInferer for promptable networks.

    Prompts come as arguments (training, evaluation, MONAI Deploy) or in the image's metadata under `points` and
    `labels` (MONAI Label, which hands an inferer nothing but the image). Neither means automatic.

    Args:
        bfloat16: run the network under autocast to bfloat16 on any device; MONAI's engines do so on CUDA alone.
        remember: keep the embeddings of recent images in the network, for clicks on the same image.
        go_on: with `remember`, add clicks to the last answer of whoever asks, see `AnswerMemory`: MONAI Label puts
            the client into the image's metadata, under `asked_by`.
    """

    def __init__(self, *, bfloat16: bool = False, remember: bool = False, go_on: bool = False) -> None:
        super().__init__()
        self.bfloat16 = bfloat16
        self.remember = remember
        self.go_on = go_on

    def __call__(  # type: ignore[override]
        self,
        inputs: Tensor,
        network: nn.Module,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor | Mapping[str, Tensor]:
        """Segment (B, 3, S, S) images; see `KDSAM.forward` for the prompts and the result.

        The metadata of a single image (N, 2), and of a collated batch (B, N, 2), are both understood.

        Raises:
            ValueError: with `remember`, which is for serving, when the network's output is not finite.
        """
        if points is None and labels is None:
            points, labels = self.prompts_of(inputs)
        if points is not None or labels is not None:
            kwargs.update(points=points, labels=labels)
        with self._precision(inputs):
            if self.remember and hasattr(network, "embed") and not torch.is_grad_enabled():
                who = getattr(inputs, "meta", {}).get("asked_by") if self.go_on else None
                embedding = network.embed(_plain(inputs))  # type: ignore[operator]
                logits = answer_on(embedding, network, who, **kwargs)  # type: ignore[arg-type]
            else:
                logits = network(_plain(inputs), **kwargs)
                if isinstance(logits, Mapping):  # of a correction loop, in training
                    return logits
                logits = logits.float()
        return _as_described(logits, inputs)

    @torch.no_grad()
    def answer(self, inputs: MetaTensor, network: KDSAM, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What a call gives in serving, with all that the network says.

        Args:
            inputs: (1, 3, S, S), with prompts in its metadata.
            network: the network.
            mask: (1, 1, S/4, S/4), see `KDSAM.predict_all`.

        Returns:
            logits (1, 1, S, S), and the IoU (1, 1) that the network expects.

        Raises:
            ValueError: when the network's output is not finite.
        """
        with self._precision(inputs):
            mask = None if mask is None else mask.to(inputs.device)
            logits, iou, _ = network.predict_all(network.embed(_plain(inputs)), *self.prompts_of(inputs), mask)
        require_finite(logits)
        return _as_described(logits.float(), inputs), iou

    def _precision(self, inputs: Tensor) -> contextlib.AbstractContextManager[Any]:
        # Entered only when asked for: a disabled autocast would switch off the one that MONAI's engine runs on CUDA.
        return torch.autocast(inputs.device.type, torch.bfloat16) if self.bfloat16 else contextlib.nullcontext()

    @staticmethod
    def prompts_of(inputs: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """`points` (B, N, 2) and `labels` (B, N) in an image's metadata; None where it has none."""
        found = [getattr(inputs, "meta", {}).get(key) for key in ("points", "labels")]
        if found[0] is None or found[1] is None:
            return None, None
        points, labels = (torch.as_tensor(value) for value in found)
        if points.ndim == 2:
            points, labels = points[None], labels[None]
        # Metadata have a fixed length, and every column of padding would cost the decoder time.
        used = (labels >= 0).flatten(0, -2).any(dim=0)
        used[0] = True
        return points[..., used, :].to(inputs.device), labels[..., used].to(inputs.device)


def _plain(image: Tensor) -> Tensor:
    """What the network sees: what it remembers must not carry one request's metadata to the next."""
    return image.as_subclass(Tensor)


def _as_described(logits: Tensor, image: Tensor) -> Tensor:
    """Invertd passes over a prediction that is a plain tensor, and the mask would keep the network's frame."""
    return MetaTensor(logits).copy_meta_from(image) if isinstance(image, MetaTensor) else logits
