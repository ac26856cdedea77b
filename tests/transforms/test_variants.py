# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch
from monai.transforms import RandAffined, RandFlipd, RandScaleIntensityd

from monai_kdsam.transforms import RandVariantd


def make(variants: int = 4, seed: int = 0) -> RandVariantd:
    random = [
        RandFlipd("image", prob=0.5, spatial_axis=0),
        RandAffined("image", prob=0.9, rotate_range=0.5),
        RandScaleIntensityd("image", prob=0.9, factors=0.3),
    ]
    return RandVariantd(random, variants=variants, seed=seed)


def item(**changes) -> dict:
    picture = torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(0))
    return {"image": picture, "checksum": "abc"} | changes


def test_variant_0_is_the_picture_itself() -> None:
    assert torch.equal(make()(item(variant=0))["image"], item()["image"])


def test_a_variant_is_the_same_in_any_order_and_process_and_differs_from_the_others() -> None:
    one, other = make(), make()
    forward = [torch.as_tensor(one(item(variant=n))["image"]) for n in range(4)]
    backward = [torch.as_tensor(other(item(variant=n))["image"]) for n in (3, 2, 1, 0)][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forward, backward, strict=True))
    assert all(not torch.equal(forward[n], forward[m]) for n in range(4) for m in range(n))


def test_the_picture_and_the_seed_decide_what_a_variant_looks_like() -> None:
    base = torch.as_tensor(make()(item(variant=1))["image"])
    assert not torch.equal(base, torch.as_tensor(make()(item(variant=1, checksum="xyz"))["image"]))
    assert not torch.equal(base, torch.as_tensor(make(seed=1)(item(variant=1))["image"]))


def test_without_a_number_one_is_drawn_and_told() -> None:
    transform = make()
    transform.set_random_state(seed=3)
    drawn = [transform(item())["variant"] for _ in range(40)]
    assert set(drawn) == {0, 1, 2, 3}
    transform.set_random_state(seed=3)
    result = transform(item())
    assert result["variant"] == drawn[0]
    assert torch.equal(result["image"], make()(item(variant=drawn[0]))["image"])
