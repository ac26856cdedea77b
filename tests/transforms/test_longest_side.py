# SPDX-License-Identifier: Apache-2.0
"""Pillow, `segment_anything` and MONAI's own inverse are the oracles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Invertd, Resize
from PIL import Image
from segment_anything.utils.transforms import ResizeLongestSide as Sams

from monai_kdsam.transforms import ResizeLongestSide, ResizeLongestSided

SIZES = [(150, 200, 96), (151, 97, 32), (64, 64, 64), (20, 33, 128), (5, 400, 128), (1000, 750, 96)]


@pytest.mark.parametrize(("height", "width", "longest"), SIZES)
def test_a_picture_is_resized_as_sam_prepares_it(height, width, longest):
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    ours = ResizeLongestSide(longest)(torch.from_numpy(picture.transpose(2, 0, 1).copy()))
    assert ours.dtype == torch.float32
    assert np.array_equal(ours.permute(1, 2, 0).numpy(), Sams(longest).apply_image(picture))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
@pytest.mark.parametrize("longest", [96, 1024])
def test_a_flat_picture_stays_flat(dtype, longest):
    resized = ResizeLongestSide(longest)(torch.full((3, 500, 375), 200, dtype=dtype))
    assert resized.shape == (3, longest, longest * 3 // 4)
    assert torch.allclose(resized, torch.tensor(200.0), atol=1e-4)


def test_values_that_are_no_bytes_are_not_rounded():
    ramp = torch.linspace(-3, 3, 40)[None, None].expand(1, 30, 40).clone()
    ours = ResizeLongestSide(10)(ramp)[0].numpy()
    expected = np.asarray(Image.fromarray(ramp[0].numpy()).resize((10, 8), Image.Resampling.BILINEAR))
    assert np.array_equal(ours, expected)


@pytest.mark.parametrize("shape", [(5, 2000), (2000, 5)])
def test_the_shorter_side_keeps_a_pixel(shape):
    data = {key: MetaTensor(torch.ones(1, *shape)) for key in ("image", "label")}
    resized = ResizeLongestSided(["image", "label"], 96, mode=["bilinear", "nearest-exact"])(data)
    assert {tuple(sorted(resized[key].shape)) for key in data} == {(1, 1, 96)}


def test_masks_and_the_inverse_are_monais():
    label = MetaTensor((torch.rand(1, 75, 100) > 0.5).to(torch.uint8), affine=torch.diag(torch.tensor([2.0, 2, 1])))
    transform = ResizeLongestSided(["image", "label"], 32, ["bilinear", "nearest-exact"], allow_missing_keys=True)
    stock = Resize(32, size_mode="longest", mode="nearest-exact")(label)
    ours = transform({"label": label})["label"]
    assert torch.equal(ours, stock)
    assert torch.equal(ours.affine, stock.affine)

    data = transform({"image": MetaTensor(torch.rand(3, 75, 100))})
    logits = torch.randn(1, 24, 32)
    restored = Invertd("pred", transform, "image", nearest_interp=False)({**data, "pred": MetaTensor(logits)})["pred"]
    assert torch.equal(restored.as_tensor(), Resize((75, 100), mode="bilinear")(logits).as_tensor())
