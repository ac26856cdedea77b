# SPDX-License-Identifier: Apache-2.0
"""The oracle is segment_anything itself: same weights, same prompts, same logits."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Invertd
from PIL import Image
from segment_anything import SamPredictor
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from monai_kdsam.bundles import bundle_path
from monai_kdsam.data.phantoms import PHANTOM_KINDS, make_phantom
from monai_kdsam.networks import build_kdsam, build_student, build_teacher
from monai_kdsam.report import FillBox

SIZE = 128
CLICKS = np.array([[30.0, 40.0], [90.5, 100.0], [64.0, 20.0]])
CLICK_LABELS = np.array([1, 0, 1])
BOX = np.array([10.0, 20.0, 100.0, 110.0])


def official(network):
    """segment_anything's own model with the same weights."""
    grid = (SIZE // 16, SIZE // 16)
    sam = Sam(
        image_encoder=copy.deepcopy(network.image_encoder),
        prompt_encoder=PromptEncoder(256, grid, (SIZE, SIZE), 16),
        mask_decoder=MaskDecoder(
            transformer_dim=256, transformer=TwoWayTransformer(2, 256, 8, 2048), num_multimask_outputs=3
        ),
    )
    sam.load_state_dict(network.state_dict(), strict=True)
    return sam.eval()


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    network = build_teacher("vit_micro", image_size=SIZE).eval()
    for parameter in network.mask_decoder.parameters():
        # Fresh weights give logits near zero; spread them, so that agreement to 1e-4 means something.
        parameter.data.mul_(1.5) if parameter.ndim > 1 else None
    return network, SamPredictor(official(network))


def as_rows(rows):
    """Prompts of different lengths, padded to one tensor."""
    longest = max(len(labels) for _, labels in rows)
    points = torch.zeros(len(rows), longest, 2)
    labels = torch.full((len(rows), longest), -1)
    for row, (xy, kinds) in enumerate(rows):
        points[row, : len(kinds)] = torch.as_tensor(np.asarray(xy), dtype=torch.float32).reshape(-1, 2)
        labels[row, : len(kinds)] = torch.as_tensor(kinds)
    return points, labels


PROMPTS = {
    "one click": ({"point_coords": CLICKS[:1], "point_labels": CLICK_LABELS[:1]}, (CLICKS[:1], [1])),
    "three clicks": ({"point_coords": CLICKS, "point_labels": CLICK_LABELS}, (CLICKS, [1, 0, 1])),
    "box": ({"box": BOX}, (BOX, [2, 3])),
    "box and clicks": (
        {"point_coords": CLICKS, "point_labels": CLICK_LABELS, "box": BOX},
        (np.concatenate([CLICKS, BOX.reshape(2, 2)]), [1, 0, 1, 2, 3]),
    ),
    "nothing": ({}, (np.zeros((0, 2)), [])),
}


@pytest.mark.parametrize("multimask", [False, True])
def test_a_mixed_padded_batch_equals_sams_predictor_prompt_by_prompt(networks, multimask):
    network, predictor = networks
    picture = np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
    predictor.set_image(picture)
    points, labels = as_rows([ours for _, ours in PROMPTS.values()])
    with torch.no_grad():
        image = predictor.model.preprocess(torch.as_tensor(picture).permute(2, 0, 1)[None].float())
        embedding = network.encode(image)
        masks, iou = network.decode(embedding.expand(len(PROMPTS), -1, -1, -1), points, labels, multimask=multimask)
    for row, (name, (theirs, _)) in enumerate(PROMPTS.items()):
        logits, scores, low = predictor.predict(**theirs, multimask_output=multimask, return_logits=True)
        assert np.abs(low).max() > 0.1, "logits near zero would agree by accident"
        np.testing.assert_allclose(masks[row].numpy(), low, atol=1e-4, err_msg=name)
        np.testing.assert_allclose(iou[row].numpy(), scores, atol=1e-4, err_msg=name)
        if not multimask:
            with torch.no_grad():
                full = network(image, points[row : row + 1], labels[row : row + 1])
            np.testing.assert_allclose(full[0].numpy(), logits, atol=1e-4, err_msg=name)


@pytest.mark.parametrize(("height", "width"), [(300, 400), (700, 250)])
def test_masks_of_a_shrunk_picture_are_those_of_sams_predictor(networks, tmp_path, height, width):
    network, predictor = networks
    parser = ConfigParser()
    parser.read_config(str(bundle_path() / "configs" / "inference.json"))
    parser.update({"image_size": SIZE})
    prepare = parser.get_parsed_content("preprocessing")
    restore = Invertd("pred", prepare, "image", nearest_interp=False)
    box = np.array([0.2 * width, 0.3 * height, 0.7 * width, 0.8 * height])
    # SAM scales coordinates from the corner of the first pixel, we from its center: the same place in its numbers.
    sams_box = box + 0.5 - 0.5 * max(width, height) / SIZE
    agreement = []
    for kind, seed in itertools.product(PHANTOM_KINDS, range(2)):
        picture = Image.fromarray(make_phantom(kind, size=128, seed=seed)[0]).resize((width, height))
        picture.save(tmp_path / "image.png")
        predictor.set_image(np.asarray(picture))
        theirs = predictor.predict(box=sams_box, multimask_output=False)[0]
        data = prepare({"image": str(tmp_path / "image.png"), "roi": box.tolist()})
        image = data["image"]
        with torch.no_grad():
            logits = network(image.as_tensor()[None], image.meta["points"][None], image.meta["labels"][None])
        ours = restore({**data, "pred": MetaTensor(logits[0])})["pred"].numpy().swapaxes(1, 2) > 0
        assert 0 < theirs.mean() < 1
        agreement.append((ours & theirs).sum() / (ours | theirs).sum())
    assert np.mean(agreement) >= 0.9995, agreement


def test_padding_changes_nothing(networks):
    network, _ = networks
    image = torch.rand(1, 3, SIZE, SIZE)
    points, labels = as_rows([(CLICKS, [1, 0, 1])])
    padded = torch.cat([points, torch.full((1, 5, 2), 77.0)], 1), torch.cat([labels, torch.full((1, 5), -1)], 1)
    with torch.no_grad():
        torch.testing.assert_close(network(image, *padded), network(image, points, labels), atol=1e-5, rtol=0)


def test_no_prompt_is_all_padding(networks):
    network, _ = networks
    image = torch.rand(2, 3, SIZE, SIZE)
    with torch.no_grad():
        alone = network(image)
        torch.testing.assert_close(network(image, torch.zeros(2, 4, 2), torch.full((2, 4), -1)), alone)
        torch.testing.assert_close(network(image, torch.zeros(2, 0, 2), torch.zeros(2, 0)), alone)


def test_several_prompts_of_one_image_equal_one_call_each(networks):
    network, _ = networks
    image = torch.rand(2, 3, SIZE, SIZE)
    points, labels = as_rows([(CLICKS, [1, 0, 1]), (BOX, [2, 3])])
    together = points.expand(2, 2, -1, -1), labels.expand(2, 2, -1)
    with torch.no_grad():
        logits = network(image, *together)
        for k in range(2):
            alone = network(image, together[0][:, k], together[1][:, k])
            torch.testing.assert_close(logits[:, k : k + 1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 10, 11, 40])  # with SAM's six tokens 16 are few and 17 are many
def test_the_decoder_equals_sams_for_few_tokens_and_many(networks, count):
    network, predictor = networks
    rng = np.random.default_rng(count)
    embedding = torch.from_numpy(rng.standard_normal((1, 256, SIZE // 16, SIZE // 16))).float()
    points = torch.from_numpy(rng.uniform(0, SIZE, (1, count, 2))).float()
    labels = torch.from_numpy(rng.integers(0, 2, (1, count)))
    sam = predictor.model
    with torch.no_grad():
        sparse, dense = sam.prompt_encoder((points, labels), None, None)
        expected = sam.mask_decoder(embedding, sam.prompt_encoder.get_dense_pe(), sparse, dense, False)
        assert expected[0].abs().max() > 0.1, "logits near zero would agree by accident"
        for ours, theirs in zip(network.decode(embedding, points, labels), expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("given", ["points", "labels"])
def test_points_without_labels_are_no_prompt_that_is_passed_over(networks, given):
    network, _ = networks
    prompt = {"points": torch.zeros(1, 1, 2)} if given == "points" else {"labels": torch.ones(1, 1)}
    embedding = network.encode(torch.zeros(1, 3, SIZE, SIZE))
    for decode in (network.decode, network.predict):
        with pytest.raises(ValueError, match="Expected `points` and `labels` together, got no"):
            decode(embedding, **prompt)


def test_every_parameter_that_learns_gets_a_gradient_and_the_heads_of_other_masks_do_not_learn():
    network = build_student("resnet18", image_size=64)
    heads = network.mask_decoder.output_hypernetworks_mlps
    masks, iou, _ = network.predict_all(torch.rand(2, 256, 4, 4), torch.rand(2, 1, 2) * 64, torch.ones(2, 1))
    (masks.mean() + iou.mean()).backward()
    learning = [parameter for parameter in network.mask_decoder.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None for parameter in learning)
    assert [next(head.parameters()).requires_grad for head in heads] == [True, False, False, False]


def mixed_prompts(network, predictor, given, has_mask):
    """Our logits and SAM's for the four kinds of prompts, each with the mask prompt or without."""
    picture = np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
    predictor.set_image(picture)
    rows = list(PROMPTS.values())
    points, labels = as_rows([ours for _, ours in rows])
    with torch.no_grad():
        masks, iou = network.decode(predictor.features, points, labels, torch.from_numpy(given), has_mask)
    expected = [
        predictor.predict(
            **theirs, mask_input=mask if row_has_mask else None, multimask_output=False, return_logits=True
        )
        for (theirs, _), mask, row_has_mask in zip(rows, given, has_mask, strict=True)
    ]
    return masks.numpy(), iou.numpy(), expected


def test_mask_prompts_equal_sams_in_rows_with_and_without(networks):
    network, predictor = networks
    given = np.random.default_rng(1).normal(0, 8, (len(PROMPTS), 1, SIZE // 4, SIZE // 4)).astype(np.float32)
    has_mask = torch.tensor([True, False, True, True, False])
    masks, iou, expected = mixed_prompts(network, predictor, given, has_mask)
    for row, (_, scores, low) in enumerate(expected):
        np.testing.assert_allclose(masks[row], low, atol=1e-4)
        np.testing.assert_allclose(iou[row], scores, atol=1e-4)
    without, _, _ = mixed_prompts(network, predictor, given, torch.zeros(len(PROMPTS), dtype=torch.bool))
    assert np.abs(without - masks).max(axis=(1, 2, 3)).tolist() == pytest.approx([1, 0, 1, 1, 0], abs=1), "no effect"
    assert [np.allclose(a, b, atol=1e-5) for a, b in zip(without, masks, strict=True)] == (~has_mask).tolist()


def test_mask_prompts_of_several_images_equal_one_call_each(networks):
    network, _ = networks
    generator = torch.Generator().manual_seed(0)
    embedding, points = (torch.rand(2, *shape, generator=generator) for shape in ((256, *[SIZE // 16] * 2), (2, 1, 2)))
    mask, labels = (
        9 * torch.randn(2, 2, SIZE // 4, SIZE // 4, generator=generator),
        torch.tensor([[[1], [0]], [[0], [1]]]),
    )
    has_mask = torch.tensor([[True, False], [False, True]])
    with torch.no_grad():
        found = network.predict_all(embedding, SIZE * points, labels, mask, has_mask)
        for b, k in itertools.product(range(2), range(2)):
            one, own = slice(b, b + 1), (slice(b, b + 1), slice(k, k + 1))
            last = mask[own] if has_mask[b, k] else None
            alone = network.predict_all(embedding[one], SIZE * points[own], labels[own], last)
            for together, single in zip(found, alone, strict=True):
                torch.testing.assert_close(together[b, k], single[0, 0], atol=1e-4, rtol=0)


def test_an_earlier_answer_of_another_size_is_refused(networks):
    network, _ = networks
    embedding, click = torch.zeros(1, 256, SIZE // 16, SIZE // 16), (torch.zeros(1, 2, 1, 2), torch.ones(1, 2, 1))
    with pytest.raises(ValueError, match=r"Expected `mask` of shape \(1, 2, \d+, \d+\), got \(1, 1, 8, 8\)"):
        network.predict_all(embedding, *click, torch.zeros(1, 1, 8, 8))


def test_with_a_map_the_box_reaches_every_position_and_a_mask_without_a_prompt_counts_too():
    torch.manual_seed(0)
    network = build_student("resnet18", image_size=64, prompt_map=True).eval()
    assert network.state_dict().keys() == build_student("resnet18", image_size=64).state_dict().keys()
    embedding = torch.rand(1, 256, 4, 4)
    (points, labels), last = as_rows([(BOX / 2, [2, 3]), (np.zeros((0, 2)), [])]), torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        drawn, none = network.prompt_encoder.dense(points, labels)
        assert (drawn - none).abs().amax(dim=0).min() > 1e-4
        plain, shown = network.decode(embedding, points, labels)[0], network.decode(embedding, points, labels, last)[0]
        assert (plain - shown).abs().amax(dim=(1, 2, 3)).min() > 1e-6
        only_first = network.decode(embedding, points, labels, last, torch.tensor([True, False]))[0]
    torch.testing.assert_close(only_first, torch.stack([shown[0], plain[1]]))


def test_gradients_reach_the_encoder_through_the_decoder():
    network = build_student("resnet18", image_size=64)
    network(torch.rand(2, 3, 64, 64)).mean().backward()
    assert network.image_encoder.stem[0].weight.grad.abs().sum() > 0


def test_the_default_student_has_the_papers_26_4_million_parameters():
    encoder = build_student().image_encoder
    assert round(sum(p.numel() for p in encoder.parameters()) / 1e6, 1) == 26.4


@pytest.mark.parametrize("backbone", ["resnet18", "resnet34", "resnet50", "resnet101"])
@pytest.mark.parametrize("neck", ["fpn", "sam", "deconv"])
def test_every_student_ends_in_sams_embedding(backbone, neck):
    network = build_student(backbone, neck=neck, image_size=64).eval()
    with torch.no_grad():
        assert network.encode(torch.zeros(1, 3, 64, 64)).shape == (1, 256, 4, 4)


def test_monais_resnet_is_a_trunk_too():
    from monai.networks.nets import resnet50

    from monai_kdsam.networks import FPNNeck, ResNetEncoder

    trunk = resnet50(spatial_dims=2, n_input_channels=3, num_classes=10, conv1_t_stride=2, bias_downsample=False)
    trunk.relu = trunk.act
    network = build_kdsam(ResNetEncoder(trunk, FPNNeck((1024, 2048))), image_size=64).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 1, 64, 64)


def test_a_frozen_encoder_keeps_its_batch_norm_and_gets_no_gradient():
    network = build_student("resnet18", image_size=64).freeze("image_encoder", "prompt_encoder").train()
    before = network.image_encoder.stem[1].running_mean.clone()
    network(torch.rand(2, 3, 64, 64)).mean().backward()
    assert torch.equal(network.image_encoder.stem[1].running_mean, before)
    assert all(p.grad is None for p in network.image_encoder.parameters())
    assert network.mask_decoder.training


@pytest.mark.parametrize("drawn_and_fine", [False, True])
def test_scripted_network_equals_eager_saved_and_loaded(tmp_path, drawn_and_fine):
    settings = {"prompt_map": drawn_and_fine, "fine_features": drawn_and_fine}
    network = build_student("resnet18", image_size=64, **settings).eval()
    torch.jit.save(torch.jit.script(network), tmp_path / "model.ts")
    scripted = torch.jit.load(tmp_path / "model.ts")
    image = torch.rand(3, 3, 64, 64)
    points, labels = as_rows([(CLICKS / 2, [1, 0, 1]), (BOX / 2, [2, 3]), (np.zeros((0, 2)), [])])
    with torch.no_grad():
        torch.testing.assert_close(scripted(image), network(image))
        torch.testing.assert_close(scripted(image, points, labels), network(image, points, labels))
        many = points.expand(2, 3, -1, -1).transpose(0, 1), labels.expand(2, 3, -1).transpose(0, 1)
        torch.testing.assert_close(scripted(image, *many), network(image, *many))


def test_an_image_of_another_size_is_refused():
    network = build_student("resnet18", image_size=64)
    with pytest.raises(ValueError, match=r"Expected `image` of shape \(B, 3, 64, 64\), got \(1, 3, 32, 64\)"):
        network(torch.zeros(1, 3, 32, 64))


def test_prompts_that_do_not_fit_are_refused():
    network = build_student("resnet18", image_size=64).eval()
    image = torch.zeros(2, 3, 64, 64)
    with pytest.raises(ValueError, match="got no `labels`"):
        network(image, torch.zeros(2, 1, 2))
    with pytest.raises(ValueError, match=r"B = 2; got \(1, 1, 2\)"):
        network(image, torch.zeros(1, 1, 2), torch.zeros(1, 1))


def test_baseline_and_network_take_the_same_call():
    image, (points, labels) = torch.zeros(1, 3, 64, 64), as_rows([(BOX / 2, [2, 3])])
    assert (
        FillBox()(image, points, labels).shape == build_student("resnet18", image_size=64)(image, points, labels).shape
    )


@pytest.fixture
def counted():
    """A network, and a list that grows with each call of its encoder or of a copy's."""
    network, calls = build_student("resnet18", image_size=64).eval(), []
    network.image_encoder.register_forward_hook(lambda *_: calls.append(1))
    return network, calls


def test_equal_content_is_encoded_once(counted):
    network, calls = counted
    image, other = torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        first = network.embed(image)
        assert torch.equal(network.embed(image.clone()), first)
        assert len(calls) == 1
        assert not torch.equal(network.embed(other), first)
    assert len(calls) == 2


def test_what_was_encoded_in_bfloat16_is_not_recalled_in_float32(counted):
    network, calls = counted
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = network.encode(image)
        with torch.autocast("cpu", torch.bfloat16):
            network.embed(image)
        assert torch.equal(network.embed(image), expected)
    assert len(calls) == 3


@pytest.mark.parametrize("part", ["image_encoder", "mask_decoder"])
def test_a_copy_with_other_weights_encodes_anew_only_if_they_are_the_encoders(counted, part):
    """As MONAI Label's server does when the weights' file has changed."""
    network, calls = counted
    other = build_student("resnet18", image_size=64)
    state = network.state_dict() | {k: v for k, v in other.state_dict().items() if k.startswith(part)}
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        network.embed(image)
        fresh = copy.deepcopy(network)
        fresh.load_state_dict(state)
        assert torch.equal(fresh.embed(image), fresh.encode(image))
    assert len(calls) == (2 if part == "mask_decoder" else 3)  # one of them is the comparison's


def test_a_step_of_the_optimizer_makes_the_embeddings_of_its_encoder_old(counted):
    network, calls = counted
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        network.embed(image)
    network.train()(image).mean().backward()
    torch.optim.SGD(network.parameters(), lr=0.1).step()
    network.eval()
    with torch.no_grad():
        assert torch.equal(network.embed(image), network.encode(image))
    assert len(calls) == 4
