# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from ignite.engine import Events
from monai.data import MetaTensor
from monai.engines import SupervisedTrainer
from torch import Tensor, nn

from monai_kdsam.engines import TeacherPrepareBatch
from monai_kdsam.losses import EmbeddingMSELoss
from monai_kdsam.networks import KDSAM, build_kdsam, build_teacher


@pytest.fixture
def teacher() -> KDSAM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_teacher("vit_micro", image_size=64)


def batch(**changes) -> dict[str, Tensor]:
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return {"image": image, "valid": torch.ones(2, 1, 64, 64)} | changes


def test_the_target_is_what_the_teacher_sees(teacher) -> None:
    data = batch()
    image, target = TeacherPrepareBatch(teacher)(data, "cpu")
    with torch.no_grad():
        expected = teacher.encode(data["image"])
    assert torch.equal(image, data["image"])
    assert torch.equal(target["embedding"], expected)
    assert torch.equal(target["valid"], data["valid"])
    assert not target["embedding"].requires_grad


def test_image_and_target_are_plain_tensors_without_the_files_metadata(teacher) -> None:
    data = {key: MetaTensor(value, meta={"filename_or_obj": "a.png"}) for key, value in batch().items()}
    image, target = TeacherPrepareBatch(teacher)(data, "cpu")
    assert all(type(value) is Tensor for value in (image, *target.values()))


def test_the_batch_goes_to_the_device_that_the_engine_names(teacher) -> None:
    prepare = TeacherPrepareBatch(teacher)
    prepare.get_target = lambda image, batchdata: image
    image, target = prepare(batch(), "meta")
    assert {value.device.type for value in (image, *target.values())} == {"meta"}


class DropoutEncoder(nn.Module):
    """An encoder that answers differently in training mode, and counts in its batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 256, 16, stride=16), nn.BatchNorm2d(256), nn.Dropout(0.5))

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image)


def test_a_teacher_in_training_mode_is_frozen_and_put_into_eval_mode() -> None:
    teacher = build_kdsam(DropoutEncoder(), image_size=64).train()
    prepare = TeacherPrepareBatch(teacher)
    counted = teacher.image_encoder.layers[1].running_mean.clone()
    first, second = (prepare(batch(), "cpu")[1]["embedding"] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(teacher.image_encoder.layers[1].running_mean, counted)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_a_teacher_told_to_train_still_answers_in_eval_mode() -> None:
    teacher = build_kdsam(DropoutEncoder(), image_size=64)
    prepare = TeacherPrepareBatch(teacher)
    expected = prepare(batch(), "cpu")[1]["embedding"]
    teacher.train()
    assert not any(part.training for part in teacher.image_encoder.modules())
    assert torch.equal(prepare(batch(), "cpu")[1]["embedding"], expected)


def test_a_batch_without_the_valid_region_is_refused(teacher) -> None:
    with pytest.raises(ValueError, match="Expected the batch to hold `valid`, which ValidRegiond adds before"):
        TeacherPrepareBatch(teacher)({"image": batch()["image"]}, "cpu")


def test_the_stock_trainer_distills_with_it_and_a_teacher_learns_nothing_from_itself(teacher) -> None:
    student = build_teacher("vit_micro", image_size=64)
    student.load_state_dict(teacher.state_dict())
    before = {name: value.clone() for name, value in teacher.state_dict().items()}

    def losses(network: nn.Module) -> list[float]:
        found = []
        trainer = SupervisedTrainer(
            device="cpu",
            max_epochs=3,
            train_data_loader=[batch()],
            network=network,
            optimizer=torch.optim.SGD(network.parameters(), lr=1e-3),
            loss_function=EmbeddingMSELoss(),
            prepare_batch=TeacherPrepareBatch(teacher),
            decollate=False,
        )
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED, lambda engine: found.append(engine.state.output["loss"].item())
        )
        trainer.run()
        return found

    assert losses(student.image_encoder) == pytest.approx([0, 0, 0], abs=1e-10)
    with torch.no_grad():
        for parameter in student.image_encoder.parameters():
            parameter.mul_(1.2)
    falling = losses(student.image_encoder)
    assert falling[0] > falling[1] > falling[2] > 0
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
