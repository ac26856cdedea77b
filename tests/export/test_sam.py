# SPDX-License-Identifier: Apache-2.0
"""Files of segment_anything's layout: its numbers with its weights, its names and shapes with the shipped one."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.utils.onnx import SamOnnxModel

from monai_kdsam.bundles import copy_bundle
from monai_kdsam.data.phantoms import write_phantoms
from monai_kdsam.export import export_bundle
from monai_kdsam.export.parity import mask_iou
from monai_kdsam.export.sam import SamInput, decoder_graph
from monai_kdsam.export.sam_parity import host_picture
from monai_kdsam.inferers import BundlePredictor
from monai_kdsam.networks import build_kdsam
from monai_kdsam.runtime import Predictor

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason=f"needs the extra `export`: {package} is not installed; `nox -s export` has it")

SIZE = 256


@pytest.fixture(scope="session")
def shipped(tmp_path_factory):
    """The bundle whose student ships, whose prompts are drawn and whose masks see finer features, and its files."""
    bundle = copy_bundle(tmp_path_factory.mktemp("sam"))
    folder, parity = export_bundle(bundle, "sam")
    assert parity.holds
    assert folder == bundle / "models" / "sam_fp32"
    return bundle, folder


@pytest.fixture(scope="session")
def sessions(shipped):
    """Part to session."""
    import onnxruntime

    return {file.stem: onnxruntime.InferenceSession(str(file)) for file in shipped[1].glob("*.onnx")}


def prompt(points, labels, size=(300, 400), mask=None):
    return {
        "point_coords": np.array([points], np.float32),
        "point_labels": np.array([labels], np.float32),
        "mask_input": np.full((1, 1, 256, 256), np.nan, np.float32) if mask is None else mask,
        "has_mask_input": np.array([mask is not None], np.float32),
        "orig_im_size": np.array(size, np.float32),
    }


def picture(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.float32)


def test_names_and_shapes_are_those_of_segment_anything(sessions):
    def told(values):
        return {value.name: value.shape for value in values}

    assert told(sessions["encoder"].get_inputs()) == {"input_image": ["image_height", "image_width", 3]}
    assert told(sessions["encoder_normalized"].get_inputs()) == {"x": [1, 3, 1024, 1024]}
    assert told(sessions["encoder_browser"].get_inputs()) == {"input_image": [1, 3, 1024, 1024]}
    for part in ("encoder", "encoder_normalized", "encoder_browser"):
        assert told(sessions[part].get_outputs()) == {"image_embeddings": [1, 256, 64, 64]}
    assert told(sessions["decoder"].get_inputs()) == {
        "image_embeddings": [1, 256, 64, 64],
        "point_coords": [1, "num_points", 2],
        "point_labels": [1, "num_points"],
        "mask_input": [1, 1, 256, 256],
        "has_mask_input": [1],
        "orig_im_size": [2],
    }
    outputs = told(sessions["decoder"].get_outputs())
    assert list(outputs) == ["masks", "iou_predictions", "low_res_masks"]
    assert outputs["masks"][:2] == [1, 1]
    assert outputs["low_res_masks"] == [1, 1, 256, 256]


@pytest.mark.parametrize(
    ("form", "longest"), [("pixels", 1024), ("pixels", 2048), ("pixels", 512), ("normalized", 1024)]
)
@pytest.mark.parametrize("size", [64, 96, 1024])
def test_a_picture_becomes_what_pillow_makes_of_it(size, form, longest):
    """Smooth, so that kinds of averages hardly differ; its edges and the padding are where they are."""
    y, x = np.mgrid[: longest * 11 // 16, :longest] * 1024 / longest / 90
    pixels = (np.array([200, 150, 40]) * (0.6 + 0.4 * np.sin(x + y)[..., None])).round().astype(np.uint8)
    mean, std = [100.0, 110.0, 120.0], [50.0, 60.0, 70.0]
    height = 704 * size // 1024
    resized = np.asarray(Image.fromarray(pixels).resize((size, height), Image.Resampling.BILINEAR))
    expected = np.zeros((1, 3, size, size))
    expected[0, :, :height] = ((resized - np.array(mean)) / std).transpose(2, 0, 1)
    given = pixels.astype(np.float32) if form == "pixels" else host_picture(pixels, form)
    found = SamInput(size, mean, std, form)(torch.from_numpy(given)).numpy()
    assert np.abs(found - expected).max() < 2.5 / min(std)  # gray values


def test_the_runtime_says_whose_files_they_are(shipped):
    with pytest.raises(ValueError, match=r"files for programs that know SAM .* wants an export without `--layout`"):
        Predictor(shipped[1])
    manifest = json.loads((shipped[1] / "kdsam.json").read_text())
    assert (manifest["format"], manifest["layout"], manifest["close_up"]) == ("sam", "sam", 0)


@pytest.mark.parametrize("size", [(300, 400), (1024, 1024), (40, 7)])
def test_the_decoder_is_the_networks_in_a_frame_of_1024_pixels(shipped, sessions, size):
    network = BundlePredictor(shipped[0]).network
    embedding = np.random.default_rng(0).standard_normal((1, 1024, SIZE // 16, SIZE // 16)).astype(np.float32)
    packed = np.zeros((1, 256, 64, 64), np.float32)
    packed.ravel()[: embedding.size] = embedding.ravel()
    mask = 9 * torch.randn(1, 1, SIZE // 4, SIZE // 4, generator=torch.Generator().manual_seed(0))
    given = F.interpolate(mask, (256, 256), mode="nearest").numpy()
    for points, labels, earlier in (
        ([[9, 9], [0, 0]], [1, -1], None),
        ([[100, 200], [700, 500]], [2, 3], None),
        ([[300, 400], [1, 2], [100, 200], [700, 500]], [1, 0, 2, 3], given),
    ):
        seen = (torch.tensor([points]) + 0.5) * SIZE / 1024 - 0.5
        with torch.no_grad():
            logits, iou = network.decode(
                torch.from_numpy(embedding), seen, torch.tensor([labels]), None if earlier is None else mask
            )
        found = sessions["decoder"].run(None, {"image_embeddings": packed, **prompt(points, labels, size, earlier)})
        height, width = (round(side * SIZE / max(size)) for side in size)
        inner = F.interpolate(logits, (SIZE, SIZE), mode="bilinear")[..., :height, :width]
        expected = F.interpolate(inner, size, mode="bilinear"), iou, F.interpolate(logits, (256, 256), mode="bilinear")
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.shape == theirs.shape
            assert np.allclose(ours, theirs, atol=1e-4 * theirs.abs().max().item())


@pytest.mark.parametrize("size", [(1500, 2000), (203, 300)])
def test_a_picture_of_another_size_is_fitted_inside_the_file(shipped, sessions, size):
    bundle, given = BundlePredictor(shipped[0]), picture(*size)
    settings = json.loads((shipped[1] / "kdsam.json").read_text())
    fit = SamInput(SIZE, settings["pixel_mean"], settings["pixel_std"], "pixels")
    with torch.no_grad():
        expected = bundle.network.encode(fit(torch.from_numpy(given))).flatten().numpy()
    found = sessions["encoder"].run(None, {"input_image": given})[0].ravel()[: expected.size]
    assert np.allclose(found, expected, atol=1e-3 * np.abs(expected).max())


def test_padding_and_a_mask_that_is_not_meant_change_nothing(sessions):
    (embedding,) = sessions["encoder"].run(None, {"input_image": picture(684, 1024)})

    def masks(points, labels, **changed):
        given = prompt(points, labels) | changed
        return sessions["decoder"].run(None, {"image_embeddings": embedding, **given})[0]

    click = masks([[500, 400]], [1])
    assert np.isfinite(click).all()
    padded = masks([[500, 400], [0, 0], [np.nan, 3], [7, 7]], [1, -1, -1, -1])
    np.testing.assert_allclose(padded, click, atol=1e-5)
    zeros = np.zeros((1, 1, 256, 256), np.float32)
    for has_mask_input in (0, -1):  # osam's way to say no is -1
        found = masks([[500, 400]], [1], mask_input=zeros, has_mask_input=np.array([has_mask_input], np.float32))
        np.testing.assert_array_equal(found, click)


def test_a_mask_of_another_size_is_refused_by_its_name(sessions):
    given = {"image_embeddings": np.zeros((1, 256, 64, 64), np.float32)}
    with pytest.raises(Exception, match="mask_input"):
        sessions["decoder"].run(None, given | prompt([[5, 4]], [1], mask=np.zeros((1, 1, 64, 64), np.float32)))


def test_the_corners_of_a_box_come_in_any_order(sessions):
    (embedding,) = sessions["encoder_browser"].run(None, {"input_image": np.full((1, 3, 1024, 1024), 0.5, np.float32)})
    found = [
        sessions["decoder"].run(None, {"image_embeddings": embedding, **prompt(points, labels)})[0]
        for points, labels in (
            ([[100, 200], [700, 500], [300, 300]], [2, 3, 1]),
            ([[700, 500], [100, 200], [300, 300]], [2, 3, 1]),
            ([[300, 300], [100, 500], [700, 200]], [1, 2, 3]),
        )
    ]
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=1e-5)


@pytest.fixture(scope="session")
def official():
    """segment_anything's model for ONNX, and our decoder's session with the same weights."""
    import onnxruntime

    torch.manual_seed(0)
    encoder = ImageEncoderViT(img_size=1024, embed_dim=16, depth=1, num_heads=1)
    transformer = TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
    sam = Sam(
        encoder,
        PromptEncoder(256, (64, 64), (1024, 1024), mask_in_chans=16),
        MaskDecoder(transformer_dim=256, transformer=transformer),
    ).eval()
    network = build_kdsam(encoder, image_size=1024).eval()
    network.prompt_encoder.load_state_dict(sam.prompt_encoder.state_dict())
    network.mask_decoder.load_state_dict(sam.mask_decoder.state_dict())
    session = onnxruntime.InferenceSession(decoder_graph(network, 256).SerializeToString())
    return SamOnnxModel(sam, return_single_mask=False), session


@pytest.mark.parametrize(
    ("points", "labels", "size", "has_mask"),
    [
        ([[500, 375], [0, 0]], [1, -1], (684, 1024), False),  # a click, and the padding that hosts put behind it
        ([[425, 600], [700, 875]], [2, 3], (1500, 2250), False),
        ([[575, 750], [425, 600], [700, 875]], [0, 2, 3], (300, 200), True),
        ([[500, 375], [30, 40], [1000, 2], [0, 0]], [1, 0, 1, -1], (1024, 1024), True),
    ],
)
def test_with_sams_weights_the_numbers_are_segment_anythings(official, points, labels, size, has_mask):
    sam, session = official
    assert [value.name for value in session.get_inputs()] == list(inspect.signature(sam.forward).parameters)
    rng = np.random.default_rng(0)
    mask = 5 * rng.standard_normal((1, 1, 256, 256)).astype(np.float32)
    given = prompt(points, labels, size, mask) | {"has_mask_input": np.array([has_mask], np.float32)}
    given["image_embeddings"] = rng.standard_normal((1, 256, 64, 64)).astype(np.float32)
    expected = sam(**{name: torch.from_numpy(value) for name, value in given.items()})
    for ours, theirs in zip(session.run(None, given), expected, strict=True):
        first = theirs[:, :1].numpy()  # SAM's mask of several prompts, which ours is
        assert ours.shape == first.shape
        assert np.abs(ours - first).max() < 1e-4 * max(np.abs(first).max(), 1)


@pytest.fixture(scope="session")
def asked(shipped):
    """A picture, a box and a click in it, and the bundle's mask of each."""
    generated = write_phantoms(shipped[0].parent / "phantoms", per_kind=1, size=400)
    file = sorted((generated / "images").glob("polyp*"))[0]
    y, x = np.nonzero(np.array(Image.open(generated / "masks" / file.name)))
    box, click = [x.min(), y.min(), x.max(), y.max()], [int(np.median(x)), int(np.median(y))]
    bundle = BundlePredictor(shipped[0], close_up=0, fill_holes=False)
    masks = bundle(str(file), roi=box), bundle(str(file), foreground=[click])
    return np.array(Image.open(file).convert("RGB")), box, click, masks


def check(found, expected, least):
    assert found.shape == expected.shape
    assert expected.any()
    assert mask_iou(found, expected) > least


@pytest.mark.parametrize("encoder", ["encoder", "encoder_normalized"])
def test_samexporter_finds_the_bundles_masks(shipped, asked, encoder):
    host = pytest.importorskip("samexporter.sam_onnx", reason="`nox -s export` has it")
    pixels, box, click, masks = asked
    session = host.SegmentAnythingONNX(str(shipped[1] / f"{encoder}.onnx"), str(shipped[1] / "decoder.onnx"))
    embedding = session.encode(np.ascontiguousarray(pixels[..., ::-1]))  # OpenCV's order
    for mark, expected in (
        ({"type": "rectangle", "data": box}, masks[0]),
        ({"type": "point", "data": click, "label": 1}, masks[1]),
    ):
        check(session.predict_masks(embedding, [mark])[0, 0] > 0, expected, 0.9)


def test_osam_finds_the_bundles_masks_by_what_the_documentation_says(shipped, asked, monkeypatch):
    osam = pytest.importorskip("osam", reason="`nox -s export` has it")
    monkeypatch.chdir(shipped[0] / "models")
    monkeypatch.setattr(osam.apis, "registered_model_types", list(osam.apis.registered_model_types))
    text = (Path(__file__).parents[2] / "docs" / "howto" / "sam_hosts.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(code, {})
    pixels, box, click, masks = asked
    for points, labels, expected in (([box[:2], box[2:]], [2, 3], masks[0]), ([click], [1], masks[1])):
        given = osam.types.Prompt(points=np.array(points, np.float32), point_labels=np.array(labels))
        answer = osam.apis.generate(osam.types.GenerateRequest(model="sam:100m", image=pixels, prompt=given))
        (one,) = answer.annotations
        found = np.zeros(pixels.shape[:2], bool)
        area = one.bounding_box
        found[area.ymin : area.ymax + 1, area.xmin : area.xmax + 1] = one.mask
        check(found, expected, 0.9)
