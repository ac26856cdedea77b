# SPDX-License-Identifier: Apache-2.0
"""Training as the network is used: a prompt, a mask, and clicks on what the mask got wrong."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from monai_kdsam.engines.click_simulation import add_corrective_click
from monai_kdsam.errors import UserError
from monai_kdsam.networks.kdsam import KDSAM

__all__ = ["CorrectionLoop", "TeacherLoop"]


class CorrectionLoop(nn.Module):
    """What a trainer trains: the network under prompts and under corrected prompts, its image encoded once.

    Args:
        network: to train.
        rounds: how often each prompt is corrected; 0 trains with the prompts as they come.
        expect_iou: return what the IoU head expects, and what is real; only where a loss takes it, since processes
            together wait for gradients of all that is returned.
        corrected: how many of an image's prompts go into the rounds, drawn anew for each batch; None for all.
        mask_share: share of the corrections that the network sees its last answer in, as a mask prompt; SAM is trained
            so (arXiv 2304.02643, appendix A). The others have nothing but the clicks.
    """

    def __init__(
        self,
        network: KDSAM,
        *,
        rounds: int = 0,
        expect_iou: bool = False,
        corrected: int | None = None,
        mask_share: float = 0.0,
    ) -> None:
        super().__init__()
        for name, value, least in (("rounds", rounds, 0), ("corrected", corrected, 1)):
            if value is not None and value < least:
                raise UserError(f"Expected `{name}` to be at least {least}, got {value}.")
        if not 0 <= mask_share <= 1:
            raise UserError(f"Expected `mask_share` to be between 0 and 1, got {mask_share}.")
        self.network = network
        self.rounds, self.expect_iou = rounds, expect_iou
        self.corrected, self.mask_share = corrected, mask_share

    def forward(
        self, image: Tensor, points: Tensor, labels: Tensor, reference: Tensor, valid: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Predict and correct.

        Args:
            image: (B, 3, S, S), see `KDSAM.encode`.
            points: (B, K, N, 2), XY pixels of the image.
            labels: (B, K, N), see `KDSAM.decode`.
            reference: what `asked` makes the wanted masks of; here (B, K, S, S), those masks.
            valid: (B, 1, S, S), 0 on padding, where nobody clicks and no mask counts; None: there is no padding.

        Returns:
            logits: (B, P, S, S), P = K * (1 + rounds) prompts, or fewer of the rounds with `corrected`.
            reference: (B, P, S, S), 0 and 1, what each of them asks for.
            valid: as it was given, unless None.
            iou, real_iou: (B, P), only with `expect_iou`.
        """
        embedding = self.network.encode(image)
        asked = self.asked(points, labels, reference, valid)
        rounds: list[dict[str, Tensor]] = []
        last: tuple[Tensor, ...] = ()
        for number in range(self.rounds + 1):
            logits, iou, small = self.network.predict_all(embedding, points, labels, *last)
            mask = logits.detach() > 0
            mask = mask if valid is None else mask & (valid > 0.5)
            rounds.append({"logits": logits, "reference": asked})
            if self.expect_iou:
                rounds[-1] |= {"iou": iou, "real_iou": overlap(mask, asked > 0.5)}
            if number == self.rounds:
                break
            if number == 0 and self.corrected is not None and self.corrected < points.shape[1]:
                rows = torch.rand(points.shape[:2], device=points.device).argsort(dim=1)[:, : self.corrected]
                points, labels, asked, small, mask = (_choose(x, rows) for x in (points, labels, asked, small, mask))
            points, labels = add_corrective_click(points, labels, mask, asked > 0.5)
            asked = self.asked(points, labels, reference, valid, asked)
            if self.mask_share:
                last = (small.detach(), torch.rand(small.shape[:2], device=small.device) < self.mask_share)
        answers = {key: torch.cat([each[key] for each in rounds], dim=1) for key in rounds[0]}
        return answers if valid is None else answers | {"valid": valid}

    def asked(
        self,
        points: Tensor,
        labels: Tensor,
        reference: Tensor,
        valid: Tensor | None,
        before: Tensor | None = None,
    ) -> Tensor:
        """The masks (B, K, S, S) that prompts ask for, the reference; with more clicks, the same as `before`."""
        return reference if before is None else before


class TeacherLoop(CorrectionLoop):
    """Prompt-in-the-loop distillation (EdgeSAM, arXiv 2312.06660): the masks asked for are a frozen teacher's.

    The teacher is given the same prompts, corrections included; `reference` is its embedding of the image.

    Args:
        network: the student.
        teacher: its own decoder decodes its embedding.
    """

    def __init__(self, network: KDSAM, teacher: KDSAM, *, rounds: int = 1) -> None:
        super().__init__(network, rounds=rounds)
        self.teacher = teacher.freeze("image_encoder", "prompt_encoder", "mask_decoder").eval()

    @torch.no_grad()
    def asked(
        self,
        points: Tensor,
        labels: Tensor,
        reference: Tensor,
        valid: Tensor | None,
        before: Tensor | None = None,
    ) -> Tensor:
        """The teacher's masks (B, K, S, S) under the prompts; `reference` is its embedding (B, 256, S/16, S/16)."""
        masks = (self.teacher.predict(reference, points, labels) > 0).float()
        return masks if valid is None else masks * valid


def _choose(rows: Tensor, chosen: Tensor) -> Tensor:
    """Of (B, K, ...) those that `chosen` (B, k) numbers: (B, k, ...)."""
    return rows[torch.arange(len(chosen), device=rows.device)[:, None], chosen]


def overlap(mask: Tensor, reference: Tensor) -> Tensor:
    """IoU of bool masks over the last two dimensions, 1 where both are empty."""
    both = (mask & reference).sum(dim=(-2, -1))
    either = (mask | reference).sum(dim=(-2, -1))
    return torch.where(either > 0, both / either.clamp_min(1), 1.0)
