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
from monai_kdsam.networks import KDSAM, TeacherEncoder, build_teacher


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
    image, target = TeacherPrepareBatch(TeacherEncoder(teacher))(data, "cpu")
    with torch.no_grad():
        expected = teacher.encode(data["image"])
    assert torch.equal(image, data["image"])
    assert torch.equal(target["embedding"], expected)
    assert torch.equal(target["valid"], data["valid"])
    assert not target["embedding"].requires_grad


def test_image_and_target_are_plain_tensors_without_the_files_metadata(teacher) -> None:
    data = {key: MetaTensor(value, meta={"filename_or_obj": "a.png"}) for key, value in batch().items()}
    image, target = TeacherPrepareBatch(TeacherEncoder(teacher))(data, "cpu")
    assert all(type(value) is Tensor for value in (image, *target.values()))


def test_the_batch_goes_to_the_device_that_the_engine_names() -> None:
    image, target = TeacherPrepareBatch(nn.Identity())(batch(), "meta")
    assert {value.device.type for value in (image, *target.values())} == {"meta"}


def test_an_embedding_that_comes_along_is_the_target(teacher) -> None:
    stored = torch.rand(2, 256, 4, 4)
    _, target = TeacherPrepareBatch(None)(batch(embedding=stored), "cpu")
    assert torch.equal(target["embedding"], stored)


def test_neither_a_teacher_nor_an_embedding_is_refused() -> None:
    with pytest.raises(ValueError, match="Expected the batch to hold `embedding`, which LoadEmbeddingd adds"):
        TeacherPrepareBatch(None)(batch(), "cpu")


def test_a_batch_without_the_valid_region_is_refused(teacher) -> None:
    with pytest.raises(ValueError, match="Expected the batch to hold `valid`, which ValidRegiond adds before"):
        TeacherPrepareBatch(TeacherEncoder(teacher))({"image": batch()["image"]}, "cpu")


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
            prepare_batch=TeacherPrepareBatch(TeacherEncoder(teacher)),
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
