# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy

import pytest
import torch
from monai.data import MetaTensor, list_data_collate
from torch import Tensor

from monai_kdsam.inferers import PromptedInferer
from monai_kdsam.inferers.volume_inferer import SliceSegmenter
from monai_kdsam.networks import KDSAM, EmbeddingCache, build_teacher
from monai_kdsam.report import FillBox

SIZE = 64
POINTS = torch.tensor([[[10.0, 12.0], [40.0, 50.0], [0.0, 0.0]], [[30.0, 20.0], [5.0, 60.0], [0.0, 0.0]]])
LABELS = torch.tensor([[2, 3, -1], [1, 0, -1]])
REMEMBER = pytest.mark.parametrize("remember", [False, True])


@pytest.fixture(scope="module")
def network() -> KDSAM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_teacher("vit_micro", image_size=SIZE).eval()


@pytest.fixture(autouse=True)
def inference(network):
    network.embeddings = EmbeddingCache()
    with torch.no_grad():
        yield


def images(seed: int = 0) -> Tensor:
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def with_prompts(image: Tensor, points: Tensor, labels: Tensor, **meta) -> MetaTensor:
    return MetaTensor(image, meta={"points": points, "labels": labels, **meta})


def plain(logits: Tensor) -> Tensor:
    return torch.as_tensor(logits).as_subclass(Tensor)


@REMEMBER
def test_prompts_from_arguments_are_those_of_a_direct_call(network, remember) -> None:
    expected = network(images(), POINTS, LABELS)
    assert not torch.allclose(expected, network(images()))
    infer = PromptedInferer(remember=remember)
    torch.testing.assert_close(infer(images(), network, POINTS, LABELS), expected)
    torch.testing.assert_close(infer(images(), network, points=POINTS, labels=LABELS), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_give_an_error_and_no_empty_mask(network, value) -> None:
    broken = copy.deepcopy(network)
    broken.mask_decoder.output_hypernetworks_mlps[0].layers[0].weight.data[0, 0] = value
    with pytest.raises(ValueError, match="The network's output is not finite, so there is no mask"):
        PromptedInferer(remember=True)(images(), broken, POINTS, LABELS)
    with pytest.raises(ValueError, match="The network's output is not finite"):
        SliceSegmenter(images()[0][..., None], broken, lambda image: image)(0, None)


@REMEMBER
def test_several_prompts_of_an_image_give_a_channel_each(network, remember) -> None:
    points, labels = POINTS.expand(2, 2, 3, 2), LABELS.expand(2, 2, 3)
    logits = PromptedInferer(remember=remember)(images(), network, points, labels)
    assert logits.shape == (2, 2, SIZE, SIZE)
    torch.testing.assert_close(logits, network(images(), points, labels))


@REMEMBER
def test_prompts_from_the_metadata_of_one_image_are_the_same(network, remember) -> None:
    image = with_prompts(images()[:1], POINTS[0], LABELS[0])  # as MONAI Label's inference hands it over
    found = PromptedInferer(remember=remember)(image, network)
    torch.testing.assert_close(plain(found), network(images()[:1], POINTS[:1], LABELS[:1]))


@REMEMBER
def test_prompts_from_the_metadata_of_a_collated_batch_are_the_same(network, remember) -> None:
    items = [{"image": with_prompts(image, *prompt)} for image, *prompt in zip(images(), POINTS, LABELS, strict=True)]
    batch = list_data_collate(items)["image"]
    assert batch.meta["points"].shape == (2, 3, 2)
    torch.testing.assert_close(
        plain(PromptedInferer(remember=remember)(batch, network)), network(images(), POINTS, LABELS)
    )


def test_arguments_go_before_metadata(network) -> None:
    image = with_prompts(images()[:1], POINTS[1], LABELS[1])
    found = PromptedInferer()(image, network, POINTS[:1], LABELS[:1])
    torch.testing.assert_close(plain(found), network(images()[:1], POINTS[:1], LABELS[:1]))


@REMEMBER
@pytest.mark.parametrize(
    "wrap",
    [lambda image: image, MetaTensor, lambda image: with_prompts(image, torch.zeros(64, 2), torch.full((64,), -1))],
    ids=["tensor", "no prompt in the metadata", "padding in the metadata"],
)
def test_no_prompt_means_automatic(network, remember, wrap) -> None:
    found = PromptedInferer(remember=remember)(wrap(images()[:1]), network)
    torch.testing.assert_close(plain(found), network(images()[:1]))


@REMEMBER
@pytest.mark.parametrize("given", [{"points": POINTS}, {"labels": LABELS}], ids=["points", "labels"])
def test_half_a_prompt_is_refused(network, remember, given) -> None:
    missing = ({"points", "labels"} - set(given)).pop()
    with pytest.raises(ValueError, match=f"Expected `points` and `labels` together, got no `{missing}`"):
        PromptedInferer(remember=remember)(images(), network, **given)


@pytest.mark.parametrize(("remember", "encodings"), [(True, 2), (False, 5)])
def test_clicks_on_an_image_that_is_remembered_cost_no_second_encoding(network, remember, encodings) -> None:
    calls = []
    hook = network.image_encoder.register_forward_hook(lambda *_: calls.append(1))
    infer = PromptedInferer(remember=remember)
    for seed, prompt in ((0, 0), (0, 1), (1, 0), (0, 0), (1, 1)):
        found = infer(images(seed)[:1], network, POINTS[prompt][None], LABELS[prompt][None])
        hooked = len(calls)
        torch.testing.assert_close(found, network(images(seed)[:1], POINTS[prompt][None], LABELS[prompt][None]))
        del calls[hooked:]
    hook.remove()
    assert len(calls) == encodings


def test_nothing_is_remembered_while_training(network) -> None:
    with torch.enable_grad():
        logits = PromptedInferer(remember=True)(images(), network)
    assert logits.requires_grad
    assert len(network.embeddings) == 0


def test_a_remembered_images_metadata_is_not_handed_to_another_of_equal_content(network) -> None:
    infer = PromptedInferer(remember=True)
    for name, points, labels in (("first.png", POINTS[0], LABELS[0]), ("second.png", POINTS[1], LABELS[1])):
        found = infer(with_prompts(images()[:1], points, labels, filename_or_obj=name), network)
        assert found.meta["filename_or_obj"] == name
        assert torch.equal(found.meta["points"], points)


def test_somebody_who_adds_a_click_goes_on_from_the_last_answer(network):
    infer, image = PromptedInferer(remember=True, go_on=True), images()[:1]
    points, labels = POINTS[:1], torch.tensor([[1, 1, 0]])
    embedding = network.encode(image)
    small = network.predict_all(embedding, points[:, :2], labels[:, :2])[2]
    afresh, goes_on = (network.predict_all(embedding, points, labels, last)[0] for last in (None, small))
    assert (afresh - goes_on).abs().max() > 1e-4

    def ask(count, who="me", infer=infer, image=image):
        about = {} if who is None else {"asked_by": who}
        return plain(infer(with_prompts(image, points[0, :count], labels[0, :count], **about), network))

    first = ask(2)
    torch.testing.assert_close(ask(3, "you"), afresh)
    torch.testing.assert_close(ask(3, None), afresh)
    torch.testing.assert_close(ask(3, image=images(1)[:1]), network(images(1)[:1], points, labels))
    torch.testing.assert_close(ask(3, infer=PromptedInferer(remember=True)), afresh)
    for _ in range(2):
        torch.testing.assert_close(ask(3), goes_on)
        torch.testing.assert_close(ask(2), first)


@REMEMBER
def test_bfloat16_is_near_and_the_output_is_float32(network, remember) -> None:
    exact = network(images(), POINTS, LABELS)
    rough = PromptedInferer(bfloat16=True, remember=remember)(images(), network, POINTS, LABELS)
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    assert (rough - exact).abs().max() < 0.05 * exact.abs().max()


@REMEMBER
def test_a_network_of_plain_tensors_is_called_alike_and_its_answer_stays_an_image(remember) -> None:
    image = with_prompts(images()[:1], POINTS[0], LABELS[0])
    infer = PromptedInferer(remember=remember)
    found = infer(image, FillBox())
    assert isinstance(found, MetaTensor)
    assert torch.equal(plain(found), FillBox()(images()[:1], POINTS[:1], LABELS[:1]))
    assert type(infer(images(), FillBox(), POINTS, LABELS)) is Tensor


@REMEMBER
def test_the_answer_is_a_metatensor_exactly_when_the_image_is_one(network, remember) -> None:
    infer = PromptedInferer(remember=remember)
    assert isinstance(infer(MetaTensor(images()), network), MetaTensor)
    assert type(infer(images(), network)) is Tensor
