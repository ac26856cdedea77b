# SPDX-License-Identifier: Apache-2.0
"""Interrupted training goes on as if nothing had happened."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.utils import set_determinism
from torch import nn

from monai_kdsam.data.seeded_dataset import SeededDataset
from monai_kdsam.errors import MissingFileError, UserError
from monai_kdsam.files import replacing
from monai_kdsam.networks import save_weights
from monai_kdsam.weights.state_dict import load_tensors

__all__ = ["BestWeightsSaver", "EpochSeed", "ResumeHandler"]

logger = logging.getLogger(__name__)


KEPT = (
    "Free disk space, or choose another `ckpt_dir` or `output_dir`; what was saved before is kept. "
    "After that, go on with `--resume True`."
)


# What a learning rate's schedule knows of its length: a run that shall be longer goes on in the longer schedule.
SCHEDULE = ("total_steps", "_schedule_phases")


class EpochSeed:
    """Seeds all randomness anew at each epoch, from the run's seed and the epoch's number.

    So the third epoch is the same whether or not the first two ran in this process. MONAI's `set_determinism` seeds a
    run; ignite's DeterministicEngine would do this, but MONAI's trainer is not one.

    Args:
        seed: the run's.
        dataset: is told the epoch. (The order of the items is a DistributedSampler's, which MONAI's trainer tells.)
    """

    def __init__(self, seed: int, dataset: SeededDataset) -> None:
        self.seed = seed
        self.dataset = dataset

    def attach(self, engine: Engine) -> None:
        """Run at the start of each of the trainer's epochs."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seed for `engine.state.epoch`."""
        seed = self.seed * 100_003 + engine.state.epoch  # apart for any two pairs of a run's length
        set_determinism(seed % 2**32)
        self.dataset.set_epoch(engine.state.epoch)


class BestWeightsSaver:
    """Writes the network's weights, see `save_weights`, whenever the evaluator's key metric is the best so far.

    As MONAI's CheckpointSaver with `key_metric_filename`, but "so far" includes the epochs before a resumption, and a
    metric that no image defines is none: MONAI's mean of nothing is 0, by which the first epoch would be the best.

    Args:
        network: whose weights are saved.
        path: of the file, replaced atomically.
        settings: beside the network's own that travel with the weights.
        about: see `save_weights`.

    Raises:
        ValueError: when the key metric is NaN, or is so for each image.
    """

    def __init__(
        self,
        network: nn.Module,
        path: str | Path,
        settings: Mapping[str, Any] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.network = network
        self.path = Path(path)
        self.settings = settings
        self.about = about

    def attach(self, engine: Engine) -> None:
        """Run after each validation."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save if this epoch is the best one."""
        state: Any = engine.state  # MONAI's engines add to ignite's
        name = state.key_metric_name
        # Details are gathered from all processes; a metric without them is judged by its value.
        found = state.metric_details.get(name, state.metrics.get(name))
        if found is not None and torch.as_tensor(found).isnan().all():
            raise UserError(
                f"Expected the key metric {name!r} to be defined on some validation image, got NaN on all of them: "
                "Dice, for one, is not where a mask is empty. Add images with foreground to the list 'validation'."
            )
        if state.best_metric_epoch == state.epoch and idist.get_rank() == 0:
            save_weights(self.network, self.path, self.settings, remedy=KEPT, about=self.about)
            logger.info("Saved %s: %s %.4f.", self.path, state.key_metric_name, state.best_metric)


class ResumeHandler:
    """Keeps the state of a training run after each epoch, and goes on from it.

    MONAI's CheckpointSaver and CheckpointLoader would do this, with `state_dict_user_keys` for the best metric so far;
    but that saver writes in place (ignite's DiskSaver with `atomic=False`), so that a run that is killed while it saves
    has nothing to go on from, and the loader knows no longer schedule. The file is no model for serving.

    Args:
        path: of the state file.
        objects: name -> anything with state_dict and load_state_dict.
        evaluator: whose best metric is part of the state.
        resume: go on from `path`; otherwise a new run starts and replaces it.

    Raises:
        FileNotFoundError: when told to resume and there is nothing to resume from.
        ValueError: when the file is damaged, or belongs to another network, to a longer run (the learning rate's
            schedule depends on the length) or to a finished one of this length.
    """

    def __init__(self, path: str | Path, objects: Mapping[str, Any], *, evaluator: Engine, resume: bool) -> None:
        self.path = Path(path)
        self.objects = dict(objects)
        self.evaluator = evaluator
        self.resume = resume

    def attach(self, engine: Engine) -> None:
        """Load when the trainer starts, save when an epoch and its validation are complete."""
        scaler = getattr(engine, "scaler", None)
        if scaler is not None:  # mixed precision on CUDA: its scale is part of the state
            self.objects["scaler"] = scaler
        if self.resume:
            engine.add_event_handler(Events.STARTED, self.load)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    def save(self, engine: Engine) -> None:
        """Write the state, in the first process."""
        if idist.get_rank() > 0:
            return
        best = {key: getattr(self.evaluator.state, key, None) for key in ("best_metric", "best_metric_epoch")}
        state = {
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "max_epochs": engine.state.max_epochs,
            "best": best,
            "objects": {name: item.state_dict() for name, item in self.objects.items()},
        }
        with replacing(self.path, KEPT) as unfinished:
            torch.save(state, unfinished)

    def load(self, engine: Engine) -> None:
        """Restore the state."""
        if not self.path.is_file():
            raise MissingFileError(f"Nothing to resume: {self.path} does not exist. Start without `--resume True`.")
        try:
            state = load_tensors(self.path)
            epoch, iteration, max_epochs = state["epoch"], state["iteration"], state["max_epochs"]
            is_longer = max_epochs is not None and engine.state.max_epochs > max_epochs
            for name, item in self.objects.items():
                stored = state["objects"][name]
                own = item.state_dict() if is_longer else {}
                item.load_state_dict(stored | {key: own[key] for key in SCHEDULE if key in own})
            best = dict(state["best"])
        except (RuntimeError, LookupError, TypeError, AttributeError, ValueError) as error:
            raise UserError(
                f"Cannot resume from {self.path}: {str(error).partition(chr(10))[0]} - "
                "it is damaged or of another network; start without `--resume True`."
            ) from error
        if max_epochs != engine.state.max_epochs and not is_longer:
            raise UserError(
                f"Cannot resume from {self.path}: its learning rate is scheduled for {max_epochs} epochs, and `epochs` "
                f"is now {engine.state.max_epochs}. Ask for as many `epochs` or more, or start without `--resume True`."
            )
        if max_epochs is not None and epoch >= max_epochs and not is_longer:
            raise UserError(
                f"Nothing to resume: {self.path} is of a run that finished its {epoch} epochs. "
                "Ask for more `epochs`, or start without `--resume True`."
            )
        if is_longer:
            logger.info("The learning rate goes on as in a run of %d epochs.", engine.state.max_epochs)
        engine.state.epoch, engine.state.iteration = epoch, iteration
        for key, value in best.items():
            setattr(self.evaluator.state, key, value)
        logger.info("Resumed from %s after epoch %d.", self.path, epoch)
