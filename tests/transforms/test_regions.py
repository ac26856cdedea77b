# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_kdsam.transforms import RandCropAroundMaskd, RandPromptd, RandRegiond
from monai_kdsam.transforms.regions import paste_object, region_of


def item(rows=slice(40, 60), columns=slice(70, 110)):
    mask = torch.zeros(1, 120, 160)
    mask[:, rows, columns] = 1
    image = torch.arange(120 * 160).reshape(1, 120, 160).float()
    return {"image": MetaTensor(image), "label": MetaTensor(mask)}


def test_a_close_up_holds_the_whole_structure_in_a_window_of_the_drawn_size():
    crop = RandCropAroundMaskd(prob=1.0, margin=(1.5, 2.5)).set_random_state(seed=0)
    starts = set()
    for _ in range(20):
        result = crop(item())
        height, width = result["label"].shape[1:]
        assert 30 <= height - 2 <= 50 or height == 32
        assert 60 <= width <= 100
        assert result["label"].sum() == 20 * 40
        first = int(result["image"][0, 0, 0])
        starts.add(first)
        rows, columns = divmod(first, 160)
        assert torch.equal(
            result["image"].as_tensor(), item()["image"].as_tensor()[:, rows : rows + height, columns : columns + width]
        )
        assert result["image"].affine[:2, 3].tolist() == [rows, columns]
    assert len(starts) > 10


def test_without_foreground_or_by_chance_nothing_is_cropped():
    empty = item(slice(0, 0))
    assert RandCropAroundMaskd(prob=1.0)(empty)["image"].shape == (1, 120, 160)
    assert RandCropAroundMaskd(prob=0.0)(item())["image"].shape == (1, 120, 160)
    corner = RandCropAroundMaskd(prob=1.0, margin=(9.0, 9.0))(item(slice(0, 5), slice(150, 160)))
    assert corner["label"].sum() == 50
    with pytest.raises(ValueError, match=r"Expected `margin` to be \(low, high\) with 1 <= low"):
        RandCropAroundMaskd(margin=(0.5, 2.0))


def disk(size=96):
    """A bright disk with a dark hole on a dark ground."""
    rows, columns = np.mgrid[:size, :size]
    distance = np.hypot(rows - 50, columns - 40)
    return torch.from_numpy(np.where((distance < 24) & (distance > 5), 200.0, 20.0)).float()[None].repeat(
        3, 1, 1
    ), distance


def test_a_region_is_what_looks_alike_with_its_holes_filled():
    picture, distance = disk()
    found = [region_of(picture, np.random.RandomState(seed)) for seed in range(8)]
    wanted = torch.from_numpy(distance < 24)
    overlap = [
        ((region[0] > 0) & wanted).sum() / ((region[0] > 0) | wanted).sum() for region in found if region is not None
    ]
    assert max(overlap) > 0.9
    assert region_of(torch.zeros(3, 64, 64), np.random.RandomState(0)) is None, "one region is all of the picture"


def test_prompts_ask_for_the_region_and_no_prompt_for_the_label():
    picture, _ = disk()
    label = torch.zeros(1, 96, 96)
    label[:, 80:90, 80:90] = 1
    with_region = RandRegiond(prob=1.0).set_random_state(seed=1)({"image": picture, "label": label})
    region = with_region["region"]
    result = RandPromptd("label", kinds=("box", "click", "none")).set_random_state(seed=0)(with_region)
    assert "region" not in result
    assert torch.equal(result["label"], torch.cat([region, region, label]))
    rows, columns = np.nonzero(region[0].numpy())
    assert result["points"][0, :2].tolist() == [[columns.min(), rows.min()], [columns.max(), rows.max()]]
    assert "region" not in RandRegiond(prob=0.0)({"image": picture})


def test_a_pasted_object_changes_the_picture_where_it_is_and_has_an_outline_of_its_own():
    picture = torch.from_numpy(np.random.RandomState(0).normal(0, 0.1, (3, 96, 128))).float()
    areas, shares = set(), []
    for seed in range(12):
        pasted, region = paste_object(picture, np.random.RandomState(seed))
        changed = (pasted - picture).abs().amax(dim=0) > 0.02
        assert pasted.dtype == picture.dtype
        assert set(region.unique().tolist()) == {0.0, 1.0}
        inside = changed[region[0] > 0].float().mean()
        assert inside > 0.8 or (pasted - picture).abs().max() < 0.4, "or it is hardly seen"
        assert changed[region[0] == 0].float().mean() < 0.3, "a soft edge reaches beyond the outline a little"
        rows, columns = np.nonzero(region[0].numpy())
        shares.append(region.sum().item() / (np.ptp(rows) + 1) / (np.ptp(columns) + 1))
        areas.add(region.sum().item())
    assert len(areas) == 12
    assert np.mean(shares) < 0.85, "an object does not fill its box"


def test_prompts_ask_for_a_pasted_object_and_the_label_ends_below_it():
    label = torch.ones(1, 96, 96)
    item = {"image": torch.rand(3, 96, 96), "label": label}
    result = RandRegiond(prob=1.0, pasted=1.0).set_random_state(seed=2)(item)
    assert not torch.equal(result["image"], item["image"])
    assert torch.equal(result["label"], 1 - result["region"])
    with pytest.raises(ValueError, match=r"Expected `pasted` \(config: `pasted_share`\) to be between 0 and 1, got 2"):
        RandRegiond(pasted=2)


def test_the_package_that_regions_need_is_missed_before_anything_is_trained(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"need the package scikit-image: pip install scikit-image, or set"):
        RandRegiond()
