# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.transforms import Compose, RandFlipd, SpatialPadd
from numpy.random import RandomState

from monai_kdsam.transforms import FixedPromptd, RandPromptd, ValidRegiond, box_from_mask, simulate_prompts

KINDS = ("box", "center", "click", "clicks", "box+clicks", "none")
RANDOM_KINDS = ("click", "clicks", "box+clicks")
JITTER = (-0.05, 0.1)


def item(number: int = 0) -> dict[str, torch.Tensor]:
    mask = torch.zeros(1, 40, 60)
    mask[0, 5 + number : 25, 10 : 50 - number] = 1
    return {"label": mask}


def prompts(data: dict) -> list:
    return [data["points"].tolist(), data["labels"].tolist()]


@pytest.mark.parametrize("transform", [RandPromptd, FixedPromptd])
def test_a_mask_becomes_one_target_for_each_prompt(transform) -> None:
    result = transform("label", KINDS, max_clicks=4, max_background_clicks=1)(item())
    assert (result["points"].shape, result["points"].dtype) == ((6, 7, 2), torch.float32)
    assert (result["labels"].shape, result["labels"].dtype) == ((6, 7), torch.int64)
    assert (result["label"].shape, result["label"].dtype) == ((6, 40, 60), torch.float32)
    assert all(torch.equal(target, item()["label"][0]) for target in result["label"])
    assert result["labels"][-1].tolist() == [-1] * 7


def test_random_prompts_are_those_of_the_pure_function_under_the_same_generator() -> None:
    transform = RandPromptd("label", KINDS, box_jitter=JITTER)
    transform.set_random_state(3)
    result = transform(item())
    points, labels, _ = simulate_prompts(
        item()["label"][0].numpy() > 0, KINDS, rng=RandomState(3), box_jitter=JITTER, max_clicks=3
    )
    assert np.array_equal(result["points"], points)
    assert np.array_equal(result["labels"], labels)


@pytest.mark.parametrize("kind", RANDOM_KINDS)
def test_random_prompts_repeat_under_the_same_seed_and_differ_from_call_to_call(kind) -> None:
    first, second = (RandPromptd("label", [kind]) for _ in range(2))
    drawn = []
    for transform in (first, second):
        transform.set_random_state(5)
        drawn.append([prompts(transform(item())) for _ in range(4)])
    assert drawn[0] == drawn[1]
    assert all(drawn[0][0] != later for later in drawn[0][1:])


def test_random_prompts_are_seeded_through_compose() -> None:
    pipeline = Compose([RandFlipd("label", prob=0.5), RandPromptd("label", KINDS, box_jitter=JITTER)])
    results = []
    for _ in range(2):
        pipeline.set_random_state(9)
        results.append([prompts(pipeline(item())) for _ in range(3)])
    assert results[0] == results[1]


def test_fixed_prompts_are_the_same_for_a_mask_in_any_order_and_instance() -> None:
    def make() -> FixedPromptd:
        return FixedPromptd("label", KINDS, box_jitter=JITTER)

    forward, backward = make(), make()
    expected = [prompts(forward(item(n))) for n in range(4)]
    assert [prompts(backward(item(n))) for n in reversed(range(4))] == expected[::-1]
    assert expected[0] != expected[1]
    assert prompts(forward(item(0))) == expected[0]


def test_fixed_prompts_see_the_mask_and_not_how_it_is_stored() -> None:
    transform = FixedPromptd("label", KINDS, box_jitter=JITTER)
    expected, mask = prompts(transform(item())), item()["label"]
    assert prompts(transform({"label": MetaTensor(mask)})) == expected
    assert prompts(transform({"label": mask.numpy().astype(np.uint8)})) == expected


def test_fixed_prompts_are_jittered_like_random_ones() -> None:
    transform = FixedPromptd("label", ["box"], box_jitter=(0.02, 0.05))
    for number in range(10):
        exact = box_from_mask(item(number)["label"][0].numpy() > 0)
        box = transform(item(number))["points"][0, :2].numpy()
        outward = np.concatenate([exact[0] - box[0], box[1] - exact[1]])
        assert (outward >= 0.02 * 60 - 1e-4).all()
        assert (outward <= 0.05 * 60 + 1e-4).all()


def test_neither_transform_touches_the_global_generators() -> None:
    np.random.seed(0)
    torch.manual_seed(0)
    expected = np.random.rand(), torch.rand(1)
    np.random.seed(0)
    torch.manual_seed(0)
    for transform in (RandPromptd("label", KINDS), FixedPromptd("label", KINDS)):
        transform(item())
    assert (np.random.rand(), torch.rand(1)) == expected


@pytest.mark.parametrize("transform", [RandPromptd, FixedPromptd])
def test_the_item_that_comes_in_stays_as_it_is(transform) -> None:
    data = item()
    transform("label", KINDS)(data)
    assert list(data) == ["label"]
    assert torch.equal(data["label"], item()["label"])


def test_prompts_of_different_masks_make_a_batch() -> None:
    data = [item(0), item(3), {"label": torch.zeros(1, 40, 60)}]
    batch = next(iter(DataLoader(Dataset(data, RandPromptd("label", KINDS)), batch_size=3)))
    assert batch["points"].shape == (3, 6, 7, 2)
    assert batch["labels"].shape == (3, 6, 7)
    assert batch["label"].shape == (3, 6, 40, 60)
    assert (batch["labels"][2, 0] == -1).all()  # an empty mask has no box


@pytest.mark.parametrize("transform", [RandPromptd, FixedPromptd])
@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"kinds": ["box", "scribble"]}, r"`kinds` \(config: `prompts`\) to be a list among .* got \['box', 'scrib"),
        ({"kinds": []}, r"Expected `kinds` .* got \[\]"),
        ({"kinds": "box"}, r"Expected `kinds` .* got 'box'"),
        ({"target": "largest"}, "Expected `target` to be 'union' or 'component', got 'largest'"),
        ({"box_jitter": (0.1, 0.0)}, r"Expected `box_jitter` to be \(low, high\) with .* got \(0\.1, 0\.0\)"),
        ({"box_jitter": (-1.5, 0.0)}, r"Expected `box_jitter` .* got \(-1\.5, 0\.0\)"),
        ({"box_jitter": (0.1,)}, r"Expected `box_jitter` .* got \(0\.1,\)"),
        ({"box_jitter": 0.1}, r"Expected `box_jitter` .* got 0\.1"),
        ({"kinds": ["clicks"], "max_clicks": 0}, "Expected `max_clicks` to be at least 1, got 0"),
        ({"max_background_clicks": -1}, "Expected `max_background_clicks` to be at least 0, got -1"),
    ],
)
def test_a_wrong_setting_is_named(transform, settings, text) -> None:
    with pytest.raises(ValueError, match=text):
        transform("label", **settings)


@pytest.mark.parametrize("shape", [(40, 60), (2, 40, 60), (1, 40, 60, 3)])
def test_a_mask_of_another_shape_is_refused(shape) -> None:
    with pytest.raises(ValueError, match=r"Expected `label` of shape \(1, H, W\), got \("):
        RandPromptd("label")({"label": torch.zeros(shape)})


def test_the_valid_region_is_one_on_the_image_and_zero_on_its_padding() -> None:
    image = MetaTensor(torch.full((3, 4, 6), -2.0))
    data = Compose([ValidRegiond("image"), SpatialPadd(["image", "valid"], (8, 8), method="end")])({"image": image})
    expected = torch.zeros(1, 8, 8)
    expected[:, :4, :6] = 1
    assert torch.equal(torch.as_tensor(data["valid"]), expected)
    assert torch.equal(torch.as_tensor(data["image"]) == -2, (expected == 1).expand(3, -1, -1))
