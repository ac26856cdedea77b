# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from monai_kdsam.engines import CorrectionLoop, TeacherLoop
from monai_kdsam.engines.click_simulation import add_corrective_click
from monai_kdsam.engines.correction_loop import overlap
from monai_kdsam.networks import build_student, build_teacher

SIZE = 64


@pytest.fixture
def network():
    return build_student("resnet18", image_size=SIZE).eval()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, SIZE, SIZE, generator=generator)
    reference = torch.zeros(2, 3, SIZE, SIZE)
    reference[..., 10:40, 20:50] = 1
    points = torch.tensor([[[20.0, 10.0], [49.0, 39.0]], [[30.0, 30.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    labels = torch.tensor([[2, 3], [1, -1], [-1, -1]])
    return {
        "image": image,
        "points": points.repeat(2, 1, 1, 1),
        "labels": labels.repeat(2, 1, 1),
        "reference": reference,
    }


def test_without_rounds_it_is_the_network(network, batch):
    answer = CorrectionLoop(network)(**batch)
    assert set(answer) == {"logits", "reference"}
    assert torch.equal(answer["logits"], network(batch["image"], batch["points"], batch["labels"]))
    assert torch.equal(answer["reference"], batch["reference"])


@torch.no_grad()
def test_a_round_answers_every_prompt_again_with_a_click_on_its_error(network, batch):
    answer = CorrectionLoop(network, rounds=2)(**batch)
    assert answer["logits"].shape == answer["reference"].shape == (2, 9, SIZE, SIZE)
    assert not torch.equal(answer["logits"][:, :3], answer["logits"][:, 3:6])
    # A network that is never wrong is asked the same thing again.
    batch["reference"] = (answer["logits"][:, :3] > 0).float()
    again = CorrectionLoop(network, rounds=1)(**batch)["logits"]
    torch.testing.assert_close(again[:, :3], again[:, 3:])


def test_the_image_is_encoded_once_and_learns_from_every_round(network, batch):
    calls = []
    network.image_encoder.register_forward_hook(lambda *_: calls.append(1))
    loop = CorrectionLoop(network, rounds=1)
    loop(**batch)["logits"][:, 3:].sum().backward()
    assert len(calls) == 1
    assert all(p.grad is not None for p in network.image_encoder.parameters())


@torch.no_grad()
def test_nobody_corrects_a_mask_on_padding(network, batch):
    valid = torch.zeros(2, 1, SIZE, SIZE)  # nothing is image, so nothing can be wrong
    asked = []
    predict_all = network.predict_all
    network.predict_all = lambda embedding, points, labels: (
        asked.append(labels) or predict_all(embedding, points, labels)
    )
    nothing = torch.zeros_like(batch["reference"])
    CorrectionLoop(network, rounds=1)(**batch | {"reference": nothing}, valid=valid)
    CorrectionLoop(network, rounds=1)(**batch | {"reference": nothing})
    assert (asked[1][..., -1] == -1).all()
    assert (asked[3][..., -1] == 0).any()


def test_the_head_is_told_what_each_mask_is_worth(network, batch):
    answer = CorrectionLoop(network, rounds=1, expect_iou=True)(**batch)
    assert answer["iou"].shape == answer["real_iou"].shape == (2, 6)
    assert torch.equal(answer["real_iou"], overlap(answer["logits"] > 0, answer["reference"] > 0.5))


def test_a_student_that_is_the_teacher_agrees_with_it(batch):
    teacher = build_teacher("vit_micro", image_size=SIZE).eval()
    student = build_teacher("vit_micro", image_size=SIZE).eval()
    student.load_state_dict(teacher.state_dict())
    with torch.no_grad():
        reference = teacher.encode(batch["image"])
        answer = TeacherLoop(student, teacher)(**batch | {"reference": reference})
    assert torch.equal((answer["logits"] > 0).float(), answer["reference"])


@torch.no_grad()
def test_the_teacher_is_asked_with_the_corrected_prompt_and_nothing_is_wanted_on_padding(network, batch):
    teacher = build_teacher("vit_micro", image_size=SIZE).eval()
    valid = torch.ones(2, 1, SIZE, SIZE)
    valid[..., 32:] = 0
    embedding = teacher.encode(batch["image"])
    answer = TeacherLoop(network, teacher)(**batch | {"reference": embedding}, valid=valid)
    first = (teacher.predict(embedding, batch["points"], batch["labels"]) > 0) * valid
    mask = (network(batch["image"], batch["points"], batch["labels"]) > 0) & (valid > 0)
    corrected = add_corrective_click(batch["points"], batch["labels"], mask, first > 0.5)
    second = (teacher.predict(embedding, *corrected) > 0) * valid
    assert not torch.equal(first, second)
    assert torch.equal(answer["reference"], torch.cat([first, second], dim=1))


def test_the_teacher_stays_frozen(network):
    loop = TeacherLoop(network, build_teacher("vit_micro", image_size=SIZE)).train()
    assert not loop.teacher.image_encoder.training
    assert not any(p.requires_grad for p in loop.teacher.image_encoder.parameters())


@torch.no_grad()
def test_corrections_see_the_last_answer_as_a_mask_prompt_and_may_be_of_some_prompts_only(network, batch):
    seen, predict_all = [], network.predict_all
    network.predict_all = lambda *prompt: seen.append(prompt) or predict_all(*prompt)
    answer = CorrectionLoop(network, rounds=2, corrected=1, mask_share=1.0)(**batch)
    assert answer["logits"].shape == answer["reference"].shape == (2, 3 + 1 + 1, SIZE, SIZE)
    first, second, third = seen
    assert len(first) == 3
    assert second[4].all()
    assert second[3].shape == (2, 1, SIZE // 4, SIZE // 4)
    small = predict_all(*first)[2]  # one of the three first answers of each image
    assert all(any(torch.equal(second[3][row, 0], small[row, k]) for k in range(3)) for row in range(2))
    assert torch.equal(third[3], predict_all(*second)[2])
    seen.clear()
    CorrectionLoop(network, rounds=1)(**batch)
    assert [len(prompt) for prompt in seen] == [3, 3], "without a share no mask is given on"


@torch.no_grad()
def test_what_a_network_makes_of_padding_is_no_part_of_the_iou_that_it_learns_to_expect(network, batch):
    valid = torch.zeros(2, 1, SIZE, SIZE)
    valid[..., :40] = 1
    predict_all = network.predict_all

    def with_foreground_on_padding(*prompt):
        logits, iou, small = predict_all(*prompt)
        return logits.masked_fill(valid == 0, 9.0), iou, small

    before = CorrectionLoop(network, expect_iou=True)(**batch, valid=valid)
    network.predict_all = with_foreground_on_padding
    after = CorrectionLoop(network, expect_iou=True)(**batch, valid=valid)
    assert torch.equal(before["real_iou"], after["real_iou"])
    assert torch.equal(after["valid"], valid)


@pytest.mark.parametrize(("name", "value"), [("rounds", -1), ("corrected", 0)])
def test_impossible_numbers_are_refused(network, name, value):
    with pytest.raises(ValueError, match=f"Expected `{name}` to be at least"):
        CorrectionLoop(network, **{name: value})


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_an_impossible_share_is_refused(network, share):
    with pytest.raises(ValueError, match="Expected `mask_share` to be between 0 and 1"):
        CorrectionLoop(network, mask_share=share)


def test_two_empty_masks_overlap_fully():
    empty = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    assert overlap(empty, empty).item() == 1
    assert overlap(empty, ~empty).item() == 0
