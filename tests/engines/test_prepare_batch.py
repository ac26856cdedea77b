# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from ignite.engine import Events
from monai.data import MetaTensor
from monai.engines import SupervisedTrainer
from torch import Tensor, nn

from monai_kdsam.engines import MosaicPrepareBatch, TeacherPrepareBatch
from monai_kdsam.engines.prepare_batch import make_mosaics
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


S = 32


def mosaic_batch():
    """Four pictures of one gray value each, whose structure is a square in the middle; the last is padded below."""
    image = torch.arange(1.0, 5.0)[:, None, None, None].expand(4, 3, S, S).clone()
    label, valid = torch.zeros(4, 2, S, S), torch.ones(4, 1, S, S)
    label[..., 8:24, 8:24] = 1
    image[3, :, 24:], valid[3, :, 24:], label[3, :, 24:] = 0, 0, 0
    points = torch.tensor([[[8.0, 8.0], [23.0, 23.0]], [[0.0, 0.0], [0.0, 0.0]]]).repeat(4, 1, 1, 1)
    labels = torch.tensor([[2, 3], [-1, -1]]).repeat(4, 1, 1)
    return {"image": image, "label": label, "valid": valid, "points": points, "labels": labels}


def test_in_a_mosaic_the_box_asks_for_its_own_picture_and_no_prompt_for_all():
    keys = ("image", "label", "valid", "points", "labels")
    for seed in range(8):
        torch.manual_seed(seed)
        batch = mosaic_batch()
        made = make_mosaics(batch, 2)
        assert {key: value.shape for key, value in made.items()} == {key: batch[key].shape for key in keys}
        for row in range(2):
            (left, top), (right, bottom) = made["points"][row, 0].tolist()
            inside = made["image"][row, 0, round(top) : round(bottom) + 1, round(left) : round(right) + 1]
            assert (inside == row + 1).all(), "the box lies on the row's own picture"
            asked, everything = made["label"][row]
            assert asked.sum() == 64
            assert asked[round(top + 0.5) : round(bottom + 0.5), round(left + 0.5) : round(right + 0.5)].all()
            tiles = 2 if made["valid"][row].sum() <= 512 else 4
            assert everything.sum() == 64 * tiles
            assert (everything >= asked).all()
            assert (made["image"][row] * (1 - made["valid"][row]) == 0).all()
        for key in keys:
            assert torch.equal(made[key][2:], batch[key][2:]), "the others stay"


def test_the_share_of_mosaics_is_of_the_batch():
    extra = {"points": "points", "labels": "labels", "reference": "label", "valid": "valid"}
    plain = MosaicPrepareBatch(extra, share=0.0)(mosaic_batch())
    assert torch.equal(plain[0], mosaic_batch()["image"])
    half = MosaicPrepareBatch(extra, share=0.5)(mosaic_batch())
    changed = [not torch.equal(a, b) for a, b in zip(half[0], plain[0], strict=True)]
    assert changed == [True, True, False, False]
    assert torch.equal(half[3]["reference"], half[1])
    with pytest.raises(ValueError, match="`mosaic_share`"):
        MosaicPrepareBatch(extra, share=2)
