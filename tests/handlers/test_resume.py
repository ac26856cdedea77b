# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import MeanDice
from monai.transforms import Compose, RandFlipd, RandGaussianNoised
from torch import nn

from monai_kdsam.data import SeededDataset
from monai_kdsam.handlers import BestWeightsSaver, EarlyStop, EpochSeed, ResumeHandler


class PowerFailureError(Exception):
    """The power fails."""


class Run:
    """A small training run with everything that is random in a large one: shuffling, augmentation, dropout.

    Its "validation" gives the scores of a list, one for each epoch.
    """

    def __init__(
        self,
        folder: Path,
        *,
        resume: bool = False,
        epochs: int = 4,
        scores: tuple[float, ...] = (),
        width: int = 6,
        patience: int = 0,
    ) -> None:
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(8, width), nn.BatchNorm1d(width), nn.Dropout(0.3), nn.Linear(width, 1))
        generator = torch.Generator().manual_seed(0)
        data = [{"image": torch.randn(1, 8, generator=generator)} for _ in range(10)]
        augmentation = Compose([RandFlipd("image", prob=0.5), RandGaussianNoised("image", prob=0.7, std=0.5)])
        dataset = SeededDataset(Dataset(data, augmentation), seed=11)
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=0.05)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=3 * epochs)
        self.losses: list[float] = []
        self.evaluator = Engine(lambda *_: None)
        self.evaluator.state.best_metric, self.evaluator.state.best_metric_epoch = -1.0, -1
        self.evaluator.state.key_metric_name, self.evaluator.state.metric_details = "dice", {}
        self.best = BestWeightsSaver(self.network, folder / "best.pt")
        self.state_file = folder / "run_state.pt"
        objects = {"network": self.network, "optimizer": optimizer, "lr_scheduler": scheduler}
        self.trainer = SupervisedTrainer(
            device="cpu",
            max_epochs=epochs,
            train_data_loader=DataLoader(dataset, batch_size=3, shuffle=True, drop_last=True),
            network=self.network,
            optimizer=optimizer,
            loss_function=lambda pred, _: pred.square().mean() + pred.mean(),
            prepare_batch=lambda batch, device, non_blocking, **_: (batch["image"].flatten(1), None),
            decollate=False,
        )
        EpochSeed(11, dataset).attach(self.trainer)
        self.trainer.add_event_handler(Events.ITERATION_COMPLETED, self._log, scheduler)
        if scores:
            self.trainer.add_event_handler(Events.EPOCH_COMPLETED, self._validate, scores)
        EarlyStop(self.evaluator, patience).attach(self.trainer)
        ResumeHandler(self.state_file, objects, evaluator=self.evaluator, resume=resume).attach(self.trainer)

    def _log(self, engine: Engine, scheduler) -> None:
        self.losses.append(engine.state.output["loss"].item())
        scheduler.step()

    def _validate(self, engine: Engine, scores: tuple[float, ...]) -> None:
        state, epoch = self.evaluator.state, engine.state.epoch
        state.epoch = epoch  # as MONAI's Evaluator.run and its Workflow do
        if scores[epoch - 1] > state.best_metric:
            state.best_metric, state.best_metric_epoch = scores[epoch - 1], epoch
        self.best(self.evaluator)

    def until(self, epoch: int) -> Run:
        """Run, and break off in the middle of the epoch after `epoch`."""

        def fail(engine: Engine) -> None:
            raise PowerFailureError

        later = Events.ITERATION_COMPLETED(event_filter=lambda engine, _: engine.state.epoch == epoch + 1)
        self.trainer.add_event_handler(later, fail)
        with pytest.raises(PowerFailureError):
            self.trainer.run()
        del self.losses[3 * epoch :]
        return self

    def to_the_end(self) -> Run:
        self.trainer.run()
        return self


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path) -> None:
    whole = Run(tmp_path / "whole").to_the_end()
    first = Run(tmp_path / "parts").until(2)
    second = Run(tmp_path / "parts", resume=True).to_the_end()
    assert len(whole.losses) == 4 * 3
    assert first.losses + second.losses == whole.losses
    assert len(set(whole.losses)) == len(whole.losses)
    assert same_weights(whole.network, second.network)
    states = [torch.load(run.state_file, weights_only=True) for run in (whole, second)]
    assert states[0]["epoch"] == states[1]["epoch"] == 4
    assert states[0]["iteration"] == states[1]["iteration"] == 12
    moments = [state["objects"]["optimizer"]["state"][0]["exp_avg"] for state in states]
    assert torch.equal(*moments)
    rates = [state["objects"]["lr_scheduler"]["_last_lr"] for state in states]
    assert rates[0] == rates[1]


def test_a_run_interrupted_twice_equals_an_uninterrupted_one(tmp_path) -> None:
    whole = Run(tmp_path / "whole").to_the_end()
    losses = Run(tmp_path / "parts").until(1).losses
    losses += Run(tmp_path / "parts", resume=True).until(3).losses[: 2 * 3]
    losses += Run(tmp_path / "parts", resume=True).to_the_end().losses
    assert losses == whole.losses


def test_a_run_without_resume_starts_anew_and_replaces_the_state(tmp_path) -> None:
    first = Run(tmp_path, epochs=2).to_the_end()
    second = Run(tmp_path, epochs=2).until(1)
    assert second.losses == first.losses[:3]
    assert torch.load(second.state_file, weights_only=True)["epoch"] == 1


def test_an_epoch_of_another_seed_or_number_draws_other_numbers() -> None:
    transform = RandGaussianNoised("image", prob=1.0)
    engine = Engine(lambda *_: None)

    def drawn(seed: int, epoch: int) -> tuple[float, ...]:
        dataset = SeededDataset(Dataset([{"image": torch.zeros(1, 4)}], transform), seed=seed)
        engine.state.epoch = epoch
        EpochSeed(seed, dataset)(engine)
        return (*dataset[0]["image"].flatten().tolist(), torch.rand(1).item())

    assert drawn(1, 1) == drawn(1, 1)
    assert len({drawn(seed, epoch) for seed in range(4) for epoch in range(1, 5)}) == 16


@pytest.mark.parametrize("scores", [(0.5, 0.9, 0.6, 0.7), (0.9, 0.5, 0.9, 0.8)])
def test_a_worse_model_after_a_resumption_does_not_replace_the_best(tmp_path, scores) -> None:
    first = Run(tmp_path, scores=scores).until(2)
    best = torch.load(first.best.path, weights_only=True)
    second = Run(tmp_path, resume=True, scores=scores).to_the_end()
    kept = torch.load(second.best.path, weights_only=True)
    assert all(torch.equal(value, best[name]) for name, value in kept.items())
    assert second.evaluator.state.best_metric == 0.9


def test_a_better_model_after_a_resumption_replaces_the_best(tmp_path) -> None:
    scores = (0.5, 0.7, 0.6, 0.9)
    Run(tmp_path, scores=scores).until(2)
    run = Run(tmp_path, resume=True, scores=scores).to_the_end()
    saved = copy.deepcopy(run.network)
    saved.load_state_dict(torch.load(run.best.path, weights_only=True))
    assert same_weights(saved, run.network)
    assert run.evaluator.state.best_metric_epoch == 4


@pytest.mark.parametrize("details", [True, False])
def test_a_metric_that_no_image_defines_chooses_no_weights(tmp_path, details) -> None:
    """Through MONAI's own evaluator, whose mean of nothing is 0; `details`: Dice by image is kept."""
    network = nn.Identity()
    metric = MeanDice(output_transform=lambda _: (torch.ones(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)))
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[{"image": torch.zeros(1, 1, 4, 4)}],
        network=network,
        key_val_metric={"dice": metric},
        val_handlers=[BestWeightsSaver(network, tmp_path / "best.pt")],
    )
    if not details:
        evaluator.add_event_handler(Events.EPOCH_STARTED, lambda engine: engine.state.metrics.update(dice=math.nan))
        metric.detach(evaluator)
    with pytest.raises(ValueError, match="Expected the key metric 'dice' to be defined on some validation image"):
        evaluator.run()
    assert not (tmp_path / "best.pt").exists()


def test_nothing_to_resume_is_told(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"Nothing to resume: .*run_state\.pt does not exist. Start without"):
        Run(tmp_path, resume=True).to_the_end()


def test_a_finished_run_is_told(tmp_path) -> None:
    Run(tmp_path, epochs=2).to_the_end()
    with pytest.raises(ValueError, match=r"Nothing to resume: .* finished its 2 epochs\. Ask for more `epochs`, or"):
        Run(tmp_path, epochs=2, resume=True).to_the_end()


def test_a_run_of_a_shorter_length_is_not_resumed_because_its_learning_rates_would_differ(tmp_path) -> None:
    Run(tmp_path, epochs=4).until(2)
    with pytest.raises(ValueError, match=r"learning rate is scheduled for 4 epochs, and `epochs` is now 3\. Ask for"):
        Run(tmp_path, epochs=3, resume=True).to_the_end()


@pytest.mark.parametrize(("patience", "epochs"), [(0, 6), (1, 3), (2, 4), (3, 6)])
@pytest.mark.parametrize("broken", [False, True])
def test_a_run_that_becomes_no_better_stops_where_it_would_without_a_break(tmp_path, patience, epochs, broken) -> None:
    settings = {"epochs": 6, "scores": (0.5, 0.7, 0.6, 0.7, 0.8, 0.6), "patience": patience}
    if broken:
        Run(tmp_path, **settings).until(2)
    run = Run(tmp_path, resume=broken, **settings).to_the_end()
    assert torch.load(run.state_file, weights_only=True)["epoch"] == epochs


@pytest.mark.parametrize("done", [2, 4])
def test_a_run_goes_on_for_more_epochs_at_the_learning_rates_of_the_longer_one(tmp_path, done) -> None:
    first = Run(tmp_path / "parts", epochs=4)
    first.until(done) if done < 4 else first.to_the_end()
    longer, whole = Run(tmp_path / "parts", epochs=6, resume=True).to_the_end(), Run(tmp_path / "whole", epochs=6)
    whole.to_the_end()
    assert len(longer.losses) == 3 * (6 - done)
    states = [torch.load(run.state_file, weights_only=True) for run in (longer, whole)]
    for key in ("total_steps", "last_epoch", "_last_lr"):
        assert states[0]["objects"]["lr_scheduler"][key] == states[1]["objects"]["lr_scheduler"][key]


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"not a checkpoint", lambda data: data[100:]],
    ids=["truncated", "empty", "text", "without a beginning"],
)
def test_a_damaged_state_is_told_in_one_line(tmp_path, damage) -> None:
    run = Run(tmp_path, epochs=2).to_the_end()
    run.state_file.write_bytes(damage(run.state_file.read_bytes()))
    with pytest.raises(ValueError, match=r"Cannot resume from .*run_state\.pt: .*start without `--resume") as caught:
        Run(tmp_path, resume=True).to_the_end()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [torch.zeros(3), [1, 2], {"epoch": 1}, {"objects": {}}, {"objects": None}], ids=repr
)
def test_a_file_that_is_no_state_is_told(tmp_path, content) -> None:
    run = Run(tmp_path, resume=True)
    tmp_path.joinpath("run_state.pt").parent.mkdir(exist_ok=True)
    torch.save(content, run.state_file)
    with pytest.raises(ValueError, match=r"Cannot resume from .*run_state\.pt: .*start without `--resume"):
        run.to_the_end()


def test_a_state_of_another_network_is_told(tmp_path) -> None:
    Run(tmp_path).until(2)
    with pytest.raises(ValueError, match=r"Cannot resume from .*another network"):
        Run(tmp_path, resume=True, width=7).to_the_end()
