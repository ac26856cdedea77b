# SPDX-License-Identifier: Apache-2.0
"""Training as the network is used: a prompt, a mask, and clicks on what the mask got wrong."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from monai_kdsam.engines.click_simulation import add_corrective_click
from monai_kdsam.networks.kdsam import KDSAM

__all__ = ["CorrectionLoop", "TeacherLoop"]


class CorrectionLoop(nn.Module):
    """What a trainer trains: the network under prompts and under corrected prompts, its image encoded once.

    Args:
        network: to train.
        rounds: how often each prompt is corrected; 0 trains with the prompts as they come.
        draws: the prompts are so many draws of each kind, kind after kind within a draw; of each kind the one with the
            worst mask is trained. TinySAM calls this hard prompt sampling (arXiv 2312.13789).
        expect_iou: return what the IoU head expects, and what is real.
    """

    def __init__(self, network: KDSAM, *, rounds: int = 0, draws: int = 1, expect_iou: bool = False) -> None:
        super().__init__()
        for name, value, least in (("rounds", rounds, 0), ("draws", draws, 1)):
            if value < least:
                raise ValueError(f"Expected `{name}` to be at least {least}, got {value}.")
        self.network = network
        self.rounds, self.draws, self.expect_iou = rounds, draws, expect_iou

    def forward(
        self, image: Tensor, points: Tensor, labels: Tensor, reference: Tensor, valid: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Predict and correct.

        Args:
            image: (B, 3, S, S), see `KDSAM.encode`.
            points: (B, K, N, 2), XY pixels of the image.
            labels: (B, K, N), see `KDSAM.decode`.
            reference: what `asked` makes the wanted masks of; here (B, K, S, S), those masks.
            valid: (B, 1, S, S), 0 on padding, where nobody clicks; None: there is no padding.

        Returns:
            logits: (B, P, S, S), P = K / draws * (1 + rounds) prompts.
            reference: (B, P, S, S), 0 and 1, what each of them asks for.
            iou, real_iou: (B, P, C), only with `expect_iou`; C is the number of masks a prompt.
        """
        embedding = self.network.encode(image)
        asked = self.asked(points, labels, reference, valid)
        if self.draws > 1:
            points, labels, asked = self._hardest(embedding, points, labels, asked)
        rounds = [self._answer(embedding, points, labels, asked)]
        for _ in range(self.rounds):
            mask = rounds[-1]["logits"].detach() > 0
            mask = mask if valid is None else mask & (valid > 0.5)
            points, labels = add_corrective_click(points, labels, mask, asked > 0.5)
            asked = self.asked_again(asked, points, labels, reference, valid)
            rounds.append(self._answer(embedding, points, labels, asked))
        return {key: torch.cat([answer[key] for answer in rounds], dim=1) for key in rounds[0]}

    def asked(self, points: Tensor, labels: Tensor, reference: Tensor, valid: Tensor | None) -> Tensor:
        """The masks (B, K, S, S) that prompts ask for: the reference."""
        return reference

    def asked_again(
        self, asked: Tensor, points: Tensor, labels: Tensor, reference: Tensor, valid: Tensor | None
    ) -> Tensor:
        """The masks that corrected prompts ask for: the same, `asked`, whatever clicks are added."""
        return asked

    def _answer(self, embedding: Tensor, points: Tensor, labels: Tensor, asked: Tensor) -> dict[str, Tensor]:
        logits, iou = self.network.predict_all(embedding, points, labels)  # (B, K, C, S, S), (B, K, C)
        real = overlap(logits.detach() > 0, asked[:, :, None] > 0.5)
        # Of several masks the best one learns, as SAM trains ambiguous prompts (arXiv 2304.02643, appendix A).
        best = real.argmax(dim=2)[:, :, None, None, None].expand(-1, -1, 1, *logits.shape[-2:])
        answer = {"logits": logits.gather(2, best)[:, :, 0], "reference": asked}
        return answer | ({"iou": iou, "real_iou": real} if self.expect_iou else {})

    @torch.no_grad()
    def _hardest(
        self, embedding: Tensor, points: Tensor, labels: Tensor, asked: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        logits = self.network.predict(embedding, points, labels)
        iou = overlap(logits > 0, asked > 0.5).unflatten(1, (self.draws, -1))
        kinds = iou.shape[2]
        chosen = iou.argmin(dim=1) * kinds + torch.arange(kinds, device=iou.device)  # (B, K)
        rows = torch.arange(len(chosen), device=iou.device)[:, None]
        return points[rows, chosen], labels[rows, chosen], asked[rows, chosen]


class TeacherLoop(CorrectionLoop):
    """Prompt-in-the-loop distillation (EdgeSAM, arXiv 2312.06660): the masks asked for are a frozen teacher's.

    The teacher is given the same prompts, corrections included; `reference` is its embedding of the image.

    Args:
        network: the student.
        teacher: its own decoder decodes its embedding.
    """

    def __init__(self, network: KDSAM, teacher: KDSAM, *, rounds: int = 1, draws: int = 1) -> None:
        super().__init__(network, rounds=rounds, draws=draws)
        self.teacher = teacher.freeze("image_encoder", "prompt_encoder", "mask_decoder").eval()

    @torch.no_grad()
    def asked(self, points: Tensor, labels: Tensor, reference: Tensor, valid: Tensor | None) -> Tensor:
        """The teacher's masks (B, K, S, S) under the prompts; `reference` is its embedding (B, 256, S/16, S/16)."""
        masks = (self.teacher.predict(reference, points, labels) > 0).float()
        return masks if valid is None else masks * valid

    def asked_again(
        self, asked: Tensor, points: Tensor, labels: Tensor, reference: Tensor, valid: Tensor | None
    ) -> Tensor:
        """The teacher's masks under the corrected prompts."""
        return self.asked(points, labels, reference, valid)


def overlap(mask: Tensor, reference: Tensor) -> Tensor:
    """IoU of bool masks over the last two dimensions, 1 where both are empty."""
    both = (mask & reference).sum(dim=(-2, -1))
    either = (mask | reference).sum(dim=(-2, -1))
    return torch.where(either > 0, both / either.clamp_min(1), 1.0)
