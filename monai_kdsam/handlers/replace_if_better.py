# SPDX-License-Identifier: Apache-2.0
"""A model that has learned on must earn the place of the one that is served."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from monai_kdsam.data.splits import FEW
from monai_kdsam.errors import UserError
from monai_kdsam.files import file_sha256, write_text
from monai_kdsam.networks import save_weights
from monai_kdsam.weights.sidecar import copy_with_sidecar

__all__ = ["ReplaceIfBetter", "is_better"]

logger = logging.getLogger(__name__)
REMEDY = "Free disk space; the weights that are served are as they were."


def is_better(before: Tensor, after: Tensor) -> tuple[bool, str]:
    """Whether new weights deserve the place of the old ones.

    The mean must be higher. With fewer than 3 images, where a mean says little, no image may be worse either. An image
    whose reference is empty has no Dice, and is no judge.

    Args:
        before: (N, K), Dice of the old weights on N held-out images with K prompts; NaN where it is not defined.
        after: (N, K), of the new weights, the same images and prompts.

    Returns:
        The decision, and its reason for people.

    Example:
        >>> is_better(torch.tensor([[0.5], [0.5]]), torch.tensor([[0.4], [0.9]]))
        (False, '1 of 2 held-out images got worse, and with fewer than 3 none may')
    """
    defined = ~(before.isnan().all(dim=1) & after.isnan().all(dim=1))
    before, after, images = before[defined], after[defined], int(defined.sum())
    if not images:
        return False, "no held-out image has foreground to compare on"
    if not after.nanmean() > before.nanmean():
        return False, f"no better on {images} held-out images"
    worse = int((after.nanmean(dim=1) < before.nanmean(dim=1)).sum())
    if images < FEW and worse:
        return False, f"{worse} of {images} held-out images got worse, and with fewer than {FEW} none may"
    return True, f"better on {images} held-out images"


class ReplaceIfBetter:
    """Compares the weights after a training with those before it, and writes the new ones only if they are better.

    Only the last epoch's weights are compared: to choose the best of many epochs on the very images that they are then
    compared on would favor them. The old weights are kept as a backup, both files are replaced atomically, and the
    report, which is renewed after each epoch, holds both figures: `before` and `after` (mean Dice and that of each
    prompt), `replaced`, `reason`, and `best_metric`, the Dice of what is served now.

    Args:
        network: that is trained; its weights at the start are those of `path`.
        path: of the weights that are served.
        backup: where the weights go that are replaced.
        report: JSON file.
        evaluator: on the held-out images, with the key metric Dice by image and prompt.
        prompts: names of the prompts.
        settings: beside the network's own that travel with the weights.
        about: see `save_weights`.

    Raises:
        ValueError: in a run of several processes.
    """

    def __init__(
        self,
        network: nn.Module,
        path: str | Path,
        *,
        backup: str | Path,
        report: str | Path,
        evaluator: Engine,
        prompts: Sequence[str],
        settings: Mapping[str, Any] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.network = network
        self.settings, self.about = settings, about
        self.path, self.backup, self.report = Path(path), Path(backup), Path(report)
        self.evaluator = evaluator
        self.prompts = list(prompts)
        self._before, self._served = torch.empty(0), ""

    def attach(self, engine: Engine) -> None:
        """Measure when the trainer starts, report on each epoch, decide when it has completed the last one."""
        if idist.get_world_size() > 1:
            raise UserError("The phase `learn` is for one process: leave multi_gpu_train.yaml out.")
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.tell)
        engine.add_event_handler(Events.COMPLETED, self.decide)

    def start(self, engine: Engine) -> None:
        """Measure the weights that are served."""
        self._served = file_sha256(self.path)
        self._before = self._measure()
        self.tell(engine)

    def tell(self, engine: Engine, **decision: Any) -> None:
        """Write the report; its first three entries are those that MONAI Label's clients show."""
        before = self._summary(self._before)
        progress = {"epoch": engine.state.epoch, "total_epochs": engine.state.max_epochs, "best_metric": before["mean"]}
        write_text(self.report, json.dumps(progress | {"before": before} | decision, indent=1))

    def decide(self, engine: Engine) -> None:
        """Measure the weights that were learned, and keep or replace the served ones."""
        measured = self._measure()
        replaced, reason = is_better(self._before, measured)
        # What was not measured is not replaced: somebody has put other weights in their place since.
        if not self.path.is_file() or file_sha256(self.path) != self._served:
            replaced, reason = False, "other weights are served than at the start of the training"
        if replaced:
            copy_with_sidecar(self.path, self.backup, remedy=REMEDY)
            save_weights(self.network, self.path, self.settings, remedy=REMEDY, about=self.about)
        before, after = self._summary(self._before), self._summary(measured)
        best = (after if replaced else before)["mean"]
        ended = time.strftime("%Y-%m-%d %H:%M:%S")
        self.tell(engine, best_metric=best, after=after, replaced=replaced, reason=reason, total_time=ended)
        figures = f"Dice {before['mean']} before, {after['mean']} after"
        logger.info("%s: %s; the served weights are %s.", figures, reason, "replaced" if replaced else "kept")

    def _measure(self) -> Tensor:
        self.evaluator.run()
        state: Any = self.evaluator.state  # MONAI's engines add to ignite's
        return torch.as_tensor(state.metric_details[state.key_metric_name]).cpu().float().reshape(-1, len(self.prompts))

    def _summary(self, dice: Tensor) -> dict[str, float | None]:
        columns = {name: _number(column) for name, column in zip(self.prompts, dice.T, strict=True)}
        return {"mean": _number(dice), **columns}


def _number(dice: Tensor) -> float | None:
    """The mean as JSON has it, which knows no NaN."""
    mean = float(dice.nanmean())
    return None if math.isnan(mean) else round(mean, 4)
