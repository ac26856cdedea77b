# SPDX-License-Identifier: Apache-2.0
"""Calls the network with the prompts that come along."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor, nn

from monai_kdsam.errors import UserError

__all__ = ["PromptedInferer", "require_finite"]


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


class PromptedInferer(Inferer):
    """MONAI's SimpleInferer for promptable networks.

    Prompts come as arguments (training, evaluation, MONAI Deploy) or in the image's metadata under `points` and
    `labels` (MONAI Label, which hands an inferer nothing but the image). Neither means automatic.

    Args:
        bfloat16: run the network under autocast to bfloat16 on any device; MONAI's engines do so on CUDA alone.
        remember: keep the embeddings of recent images in the network, for clicks on the same image.
    """

    def __init__(self, *, bfloat16: bool = False, remember: bool = False) -> None:
        super().__init__()
        self.bfloat16 = bfloat16
        self.remember = remember

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
        # The network sees a plain tensor: what it remembers must not carry one request's metadata to the next.
        image = inputs.as_subclass(Tensor)
        # Entered only when asked for: a disabled autocast would switch off the one that MONAI's engine runs on CUDA.
        precision = torch.autocast(inputs.device.type, torch.bfloat16) if self.bfloat16 else contextlib.nullcontext()
        with precision:
            if self.remember and hasattr(network, "embed") and not torch.is_grad_enabled():
                logits = network.predict(network.embed(image), **kwargs).float()  # type: ignore[operator]
                require_finite(logits)
            else:
                logits = network(image, **kwargs)
                if isinstance(logits, Mapping):  # of a correction loop, in training
                    return logits
                logits = logits.float()
        # Invertd passes over a prediction that is a plain tensor, and the mask would keep the network's frame.
        return MetaTensor(logits).copy_meta_from(inputs) if isinstance(inputs, MetaTensor) else logits

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
