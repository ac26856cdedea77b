# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from monai_kdsam.losses import EmbeddingMSELoss, MSSSIMLoss, masked_mse, valid_positions

LOSSES = [EmbeddingMSELoss, MSSSIMLoss]


def embeddings(grid: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 2, 256, grid, grid, generator=generator)
    return student, teacher


def image_on_the_left(grid: int = 8) -> Tensor:
    """(2, 1, S, S): the first image fills the left half of its square, the second all of it."""
    valid = torch.ones(2, 1, 16 * grid, 16 * grid)
    valid[0, :, :, 8 * grid :] = 0
    return valid


def target(teacher: Tensor, valid: Tensor) -> dict[str, Tensor]:
    return {"embedding": teacher, "valid": valid}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_student_equal_to_its_teacher_has_no_loss(loss) -> None:
    student, _ = embeddings()
    assert loss()(student, target(student.clone(), image_on_the_left())).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_student_that_differs_from_its_teacher_has_a_loss(loss) -> None:
    student, teacher = embeddings()
    assert loss()(student, target(teacher, image_on_the_left())).item() > 0.1


@pytest.mark.parametrize("loss", LOSSES)
def test_what_happens_under_the_padding_changes_nothing(loss) -> None:
    (student, teacher), valid = embeddings(), image_on_the_left()
    expected = loss()(student, target(teacher, valid))
    student[0, :, :, 4:] = 1e3
    teacher[0, :, :, 4:] = -1e3
    assert torch.equal(loss()(student, target(teacher, valid)), expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_no_gradient_reaches_padded_positions_and_some_reaches_all_others(loss) -> None:
    student, teacher = embeddings()
    student.requires_grad_()
    loss()(student, target(teacher, image_on_the_left())).backward()
    reached = student.grad.abs().sum(dim=1) > 0
    expected = torch.ones(2, 8, 8, dtype=torch.bool)
    expected[0, :, 4:] = False
    assert torch.equal(reached, expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_is_one_number_in_single_precision_whatever_autocast_made_of_the_embedding(loss) -> None:
    student, teacher = embeddings()
    value = loss()(student.bfloat16(), target(teacher.bfloat16(), image_on_the_left()))
    assert value.shape == ()
    assert value.dtype == torch.float32


@pytest.mark.parametrize("loss", LOSSES)
def test_another_shape_than_the_teachers_is_refused(loss) -> None:
    student, teacher = embeddings()
    text = r"the teacher's shape \(2, 256, 8, 8\), got \(2, 128, 8, 8\): both need the same `image_size` and 256"
    with pytest.raises(ValueError, match=text):
        loss()(student[:, :128], target(teacher, image_on_the_left()))


def test_without_padding_it_is_the_mse_of_torch() -> None:
    student, teacher = embeddings()
    ours = EmbeddingMSELoss()(student, target(teacher, torch.ones(2, 1, 128, 128)))
    torch.testing.assert_close(ours, F.mse_loss(student, teacher))


def test_with_padding_it_is_the_mse_of_torch_on_what_is_left() -> None:
    student, teacher = embeddings()
    ours = EmbeddingMSELoss()(student[:1], target(teacher[:1], image_on_the_left()[:1]))
    torch.testing.assert_close(ours, F.mse_loss(student[:1, :, :, :4], teacher[:1, :, :, :4]))


def test_every_image_weighs_the_same_however_much_it_is_padded() -> None:
    error = torch.zeros(2, 256, 8, 8)
    error[0, :, :, :4] = 1.0  # all 32 positions of the first image, none of the second one's 64
    value = EmbeddingMSELoss()(error, target(torch.zeros_like(error), image_on_the_left()))
    assert value.item() == pytest.approx(1 / 2)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_of_a_batch_is_the_mean_of_the_losses_of_its_images(loss) -> None:
    (student, teacher), valid = embeddings(), image_on_the_left()
    teacher[1] *= 7  # of another range
    each = [loss()(student[[n]], target(teacher[[n]], valid[[n]])) for n in range(2)]
    torch.testing.assert_close(loss()(student, target(teacher, valid)), torch.stack(each).mean())


def test_an_error_grows_with_its_square() -> None:
    (student, teacher), positions = embeddings(), torch.ones(2, 1, 8, 8)
    near, far = (masked_mse(teacher + step * student, teacher, positions) for step in (1, 3))
    torch.testing.assert_close(far, 9 * near)


@pytest.mark.parametrize(("columns", "positions"), [(1, 1), (16, 1), (17, 2), (64, 4)])
def test_a_position_counts_when_it_sees_any_of_the_image(columns, positions) -> None:
    valid = torch.zeros(1, 1, 64, 64)
    valid[..., :columns] = 1
    expected = torch.zeros(1, 1, 4, 4)
    expected[..., :positions] = 1
    assert torch.equal(valid_positions(valid, (4, 4)), expected)


@pytest.mark.parametrize("grid", [4, 16, 64])
def test_ms_ssim_tells_near_from_far_on_the_grids_of_64_256_and_1024_pixels(grid) -> None:
    student, teacher = embeddings(grid)
    valid = torch.ones(2, 1, 16 * grid, 16 * grid)
    same, near, far = (
        MSSSIMLoss()(torch.lerp(teacher, student, step), target(teacher, valid)).item() for step in (0.0, 0.1, 1.0)
    )
    assert same == pytest.approx(0, abs=1e-6)
    assert same < near < far <= 1


@pytest.mark.parametrize("grid", [4, 16])
def test_ms_ssim_ignores_padding_on_small_grids_too(grid) -> None:
    (student, teacher), valid = embeddings(grid), image_on_the_left(grid)
    expected = MSSSIMLoss()(student, target(teacher, valid))
    student[0, :, :, grid // 2 :] += 100
    assert torch.equal(MSSSIMLoss()(student, target(teacher, valid)), expected)


def test_ms_ssim_does_not_depend_on_the_unit_of_the_embedding() -> None:
    (student, teacher), valid = embeddings(), image_on_the_left()
    expected = MSSSIMLoss()(student, target(teacher, valid))
    torch.testing.assert_close(MSSSIMLoss()(50 * student, target(50 * teacher, valid)), expected, rtol=1e-3, atol=0)


def test_ms_ssim_of_a_constant_teacher_is_finite() -> None:
    student, _ = embeddings()
    assert MSSSIMLoss()(student, target(torch.zeros_like(student), image_on_the_left())).isfinite()
