# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from monai_kdsam.networks import TeacherEncoder, build_kdsam, build_teacher, weights_checksum


class NoisyEncoder(nn.Module):
    """An encoder that answers differently in training mode, and counts in its batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 256, 16, stride=16), nn.BatchNorm2d(256), nn.Dropout(0.5))

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image)


def test_it_sees_what_the_teacher_sees_without_a_graph() -> None:
    teacher = build_teacher("vit_micro", image_size=64)
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = teacher.eval().encode(image)
    seen = TeacherEncoder(teacher)(image)
    assert torch.equal(seen, expected)
    assert not seen.requires_grad


def test_a_teacher_stays_in_eval_mode_and_counts_nothing() -> None:
    encoder = TeacherEncoder(build_kdsam(NoisyEncoder(), image_size=64))
    before = weights_checksum(encoder)
    image = torch.rand(2, 3, 64, 64)
    first = encoder.train()(image)
    assert torch.equal(first, encoder(image))
    assert weights_checksum(encoder) == before
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_autocast_answers_in_float32_and_nearly_the_same() -> None:
    teacher = build_teacher("vit_micro", image_size=64)
    image = torch.rand(2, 3, 64, 64)
    exact, rough = TeacherEncoder(teacher)(image), TeacherEncoder(teacher, autocast=torch.bfloat16)(image)
    assert rough.dtype == torch.float32
    assert not torch.equal(exact, rough)
    torch.testing.assert_close(rough, exact, rtol=0, atol=0.1)


def test_the_checksum_is_of_the_weights_and_nothing_else() -> None:
    one, other = nn.Linear(3, 2), nn.Linear(3, 2)
    assert weights_checksum(one) != weights_checksum(other)
    other.load_state_dict(one.state_dict())
    assert weights_checksum(one) == weights_checksum(other)
    assert weights_checksum(one) != weights_checksum(nn.Sequential(other))  # other names


def test_a_teacher_of_medsams_kind_sees_each_image_by_its_own_range_and_padding_as_black():
    """As MedSAM's own inference: (image - min) / max(max - min, 1e-8), then the encoder."""
    teacher = build_teacher("vit_micro", image_size=64, preprocessing="medsam").eval()
    plain = build_teacher("vit_micro", image_size=64).eval()
    plain.load_state_dict(teacher.state_dict())
    generator = torch.Generator().manual_seed(0)
    pictures = [
        torch.randint(low, high, (3, 40, 64), generator=generator).float() for low, high in ((90, 140), (3, 250))
    ]
    expected, given = torch.zeros(2, 3, 64, 64), torch.zeros(2, 3, 64, 64)
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    for number, picture in enumerate(pictures):
        low, high = picture.min(), picture.max()
        expected[number, :, :40] = (picture - low) / (high - low).clip(min=1e-8)
        given[number, :, :40] = (picture - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        torch.testing.assert_close(teacher.encode(given), plain.encode(expected), atol=1e-4, rtol=1e-4)
        assert teacher.encode(torch.zeros(1, 3, 64, 64)).isfinite().all()
    assert teacher.settings["preprocessing"] == "medsam"
    with pytest.raises(ValueError, match="Expected `preprocessing` to be sam or medsam, got 'imagenet'"):
        build_teacher("vit_micro", preprocessing="imagenet")
