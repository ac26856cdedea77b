# SPDX-License-Identifier: Apache-2.0
"""The predictor around two tiny models whose answer is known: TorchScript, because torch is there anyway."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from monai_kdsam.files import file_sha256
from monai_kdsam.runtime import Predictor
from monai_kdsam.runtime.manifest import Manifest
from monai_kdsam.runtime.sessions import open_part

SIZE = 64
PARTS = ("encoder", "decoder")


class Encoder(nn.Module):
    """Brightness at the decoder's resolution."""

    def forward(self, image):
        return nn.functional.avg_pool2d(image.mean(dim=1, keepdim=True), 4)


class Decoder(nn.Module):
    """Bright where the image is; the "IoU" gives away where the first point lies."""

    def forward(self, embedding, points, labels):
        masks = (embedding - 0.5).expand(points.shape[0], -1, -1, -1)
        return masks, points[:, :1].sum(dim=2) + 0 * labels[:, :1]


class GoingOn(Decoder):
    """Gives the mask back that it goes on from."""

    def forward(self, embedding, points, labels, mask_input, has_mask_input):
        masks, quality = super().forward(embedding, points, labels)
        return torch.where(has_mask_input[:, None, None, None] > 0.5, mask_input, masks), quality


def write_models(folder, decoder, **settings):
    """An export of the encoder and a decoder."""
    folder.mkdir(exist_ok=True)
    example = torch.zeros(2, 3, SIZE, SIZE)
    embedding = Encoder()(example)
    prompts = [torch.zeros(2, 3, 2), torch.zeros(2, 3, dtype=torch.int64)]
    if isinstance(decoder, GoingOn):
        prompts += [torch.zeros(2, 1, SIZE // 4, SIZE // 4), torch.zeros(2)]
    torch.jit.trace(Encoder(), example).save(str(folder / "encoder.ts"))
    torch.jit.trace(decoder, (embedding[:1], *prompts)).save(str(folder / "decoder.ts"))
    Manifest(
        format="torchscript",
        precision="fp32",
        image_size=SIZE,
        pixel_mean=[0.0] * 3,
        pixel_std=[255.0] * 3,
        close_up=settings.get("close_up", 0),
        fill_holes=settings.get("fill_holes", True),
        go_on=False,
        mask_input=isinstance(decoder, GoingOn),
        files={part: f"{part}.ts" for part in PARTS},
        sha256={f"{part}.ts": file_sha256(folder / f"{part}.ts") for part in PARTS},
        weights_sha256="",
        versions={"monai_kdsam": "9.9"},
    ).write(folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    return write_models(tmp_path, Decoder())


@pytest.fixture
def predictor(folder):
    predictor = Predictor(folder, threads=1)
    predictor.set_image(half_bright(60, 30))
    return predictor


def half_bright(height, width):
    image = np.zeros((height, width), dtype=np.uint8)
    image[: height // 2] = 255
    return image


@pytest.mark.parametrize(("height", "width"), [(60, 30), (128, 256), (64, 64), (300, 200)])
def test_the_mask_lies_on_the_picture(folder, height, width):
    predictor = Predictor(folder)
    predictor.set_image(half_bright(height, width))
    mask, *_ = predictor.predict()
    assert mask.shape == (height, width)
    assert mask.dtype == np.uint8
    assert (mask != (half_bright(height, width) > 0)).mean() < 0.05


def test_points_move_to_the_frame_of_the_models(predictor):
    # 60 x 30 becomes 64 x 32; pixel centers lie at halves.
    assert predictor.predict(points=[[10, 20]])[1] == pytest.approx((10.5 + 20.5) * 64 / 60 - 1, abs=1e-4)
    assert predictor.predict(box=[20, 30, 4, 2])[1] == pytest.approx((4.5 + 2.5) * 64 / 60 - 1, abs=1e-4)
    cut = predictor.predict(box=[-7, 2, 20, 99])[1]
    assert cut == predictor.predict(box=[0, 2, 20, 59])[1]
    masks, quality, _ = predictor.predict(
        points=np.array([[[1, 1]], [[2, 2]]]), labels=[[1], [0]], box=[[0, 0, 30, 60]] * 2
    )
    assert masks.shape == (2, 60, 30)
    assert quality == pytest.approx([3 * 64 / 60 - 1, 5 * 64 / 60 - 1], abs=1e-4)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"points": [[31, 5]]}, "Expected `points` within the image of 30 x 60 pixels, got .*31"),
        ({"points": [[-1, 5]]}, "within the image of 30 x 60"),
        ({"points": [[float("nan"), 5]]}, "Expected finite numbers in `points`"),
        ({"points": [1, 2]}, r"Expected `points` of shape \(N, 2\) or \(K, N, 2\), got \(2,\)"),
        ({"points": [[1, 2, 3]]}, "Expected `points` of shape"),
        ({"points": [["a", "b"]]}, "Expected numbers in `points`"),
        ({"points": [[1, 2]], "labels": [1, 0]}, r"Expected `labels` of shape \(1,\), got \(2,\)"),
        ({"points": [[1, 2]], "labels": [2]}, "Expected `labels` among 1, 0 and -1, got .2.; a box goes into `box`"),
        ({"labels": [1]}, "Expected `points` with `labels`"),
        ({"box": [1, 2, 1, 9]}, "Expected `box` to have an area"),
        ({"box": [1, 2, 3]}, r"Expected `box` of shape \(4,\) or \(K, 4\), got \(3,\)"),
        ({"box": [1, 70, 3, 99]}, "Expected `box` to cover some of the image of 30 x 60"),
        ({"box": [[1, 2, 3, 9]], "points": [[1, 2]]}, "equally many prompts"),
        ({"box": [[1, 2, 3, 9]] * 2, "points": [[[1, 2]]]}, "equally many prompts"),
    ],
)
def test_a_prompt_that_makes_no_sense_is_refused(predictor, prompt, message):
    with pytest.raises(ValueError, match=message):
        predictor.predict(**prompt)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_models_that_give_no_numbers_give_an_error_and_no_empty_mask(predictor, value):
    predictor._decoder = lambda *_: [np.full((1, 1, SIZE // 4, SIZE // 4), value), np.ones((1, 1))]
    with pytest.raises(ValueError, match="exported models' output is not finite, so there is no mask"):
        predictor.predict()


def test_a_box_is_answered_from_a_close_up(folder):
    predictor = Predictor(folder, close_up=2)
    encoded, encode = [], predictor._encoder
    predictor._encoder = lambda image: encoded.append(image) or encode(image)
    predictor.set_image(half_bright(200, 200))
    box = [20, 90, 39, 109]
    mask, quality, logits = predictor.predict(box=box)
    # 20 pixels wide, so that 40 are seen, from 10 and 80 to 49 and 119.
    assert quality == pytest.approx((20 - 10 + 90 - 80 + 1) * 64 / 40 - 1, abs=1e-4)
    assert mask[80:100, 10:50].all()
    assert mask.sum() == 20 * 40
    assert (logits[:80] == logits[0, 0]).all()
    # Clicks and a repetition find it encoded, another box does not, and of many a few are kept.
    for more in ({"points": [[30, 100]]}, {}, {"points": [[45, 85]], "labels": [0]}):
        predictor.predict(box=box, **more)
    assert len(encoded) == 2
    assert (predictor.predict(box=box, points=[[100, 100]])[2] > -32).all()  # what holds both is all but the picture
    masks, *_ = predictor.predict(box=[box, [100, 90, 119, 109], [60, 60, 79, 79]])
    assert len(encoded) == 4
    assert masks[1, 80:100, 90:130].all()
    assert masks[2, 50:90, 50:90].all()
    assert np.array_equal(masks[0], mask)
    for left in range(0, 100, 10):
        predictor.predict(box=[left, 5, left + 20, 20])
    assert len(predictor._image.views) == 5
    # All of a picture is encoded when a prompt asks for it, if not before.
    encoded.clear()
    later = predictor.encode(half_bright(200, 200), whole=False)
    assert np.array_equal(predictor.predict(box=box, image=later)[0], mask)
    assert len(encoded) == 1
    assert predictor.predict(image=later)[0].sum() > 400
    assert len(encoded) == 2
    assert Predictor(folder).predict(box=box, image=Predictor(folder).encode(half_bright(200, 200)))[0].sum() > 400


@pytest.mark.parametrize("margin", [-1, 0.5, float("nan"), float("inf"), True])
def test_a_close_up_is_a_number_from_1_or_0(folder, margin):
    with pytest.raises(ValueError, match="Expected `close_up` to be 0, or a number from 1 on, got"):
        Predictor(folder, close_up=margin)


@pytest.mark.parametrize(("height", "width"), [(60, 30), (128, 256), (64, 64), (300, 200)])
def test_an_earlier_answer_is_seen_where_it_was_given(tmp_path, height, width):
    predictor = Predictor(write_models(tmp_path / "models", GoingOn()), close_up=2)
    predictor.set_image(half_bright(height, width))
    y, x = np.mgrid[:height, :width]
    wave = (4 * np.sin(y / height * 5) + 3 * np.cos(x / width * 4)).astype(np.float32)
    found = predictor.predict(mask_input=wave)[2]
    cell = int(4 * max(height, width) / SIZE)
    np.testing.assert_allclose(found[cell:-cell, cell:-cell], wave[cell:-cell, cell:-cell], atol=0.3)
    # In a close-up, of the part that is seen.
    box = [2, 2, 17, 17]
    np.testing.assert_allclose(predictor.predict(box=box, mask_input=wave)[2][2:18, 2:18], wave[2:18, 2:18], atol=0.1)
    both = predictor.predict(points=[[[1, 1]], [[2, 2]]], mask_input=[wave, -wave])[2]
    np.testing.assert_allclose(both, [found, -found], atol=1e-4)


def test_holes_are_filled_but_for_those_with_a_background_click(tmp_path):
    folder = write_models(tmp_path, GoingOn())
    y, x = np.mgrid[:64, :64]
    disk, *holes = (np.hypot(y - 30, x - left) < radius for left, radius in ((30, 26), (20, 5), (40, 5)))
    given = {"mask_input": np.where(disk & ~holes[0] & ~holes[1], 9.0, -9.0)}
    ask = {"points": [[20, 30], [30, 12]], "labels": [0, 1]}
    plain, filled = Predictor(folder, fill_holes=False), Predictor(folder)
    for predictor in (plain, filled):
        predictor.set_image(half_bright(64, 64))
    mask, _, logits = plain.predict(**ask, **given)
    assert np.array_equal(mask, logits > 0)
    assert ndimage.label(mask == 0)[1] == 3
    assert np.array_equal(filled.predict(**given)[0], ndimage.binary_fill_holes(mask))
    found, _, kept = filled.predict(**ask, **given)
    assert np.array_equal(found, np.where(x < 30, mask, ndimage.binary_fill_holes(mask)))
    assert np.array_equal(kept, logits)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((16, 16)), r"`mask_input` to be the logits .* of shape \(60, 30\), got float64 \(16, 16\)"),
        (np.zeros((1, 60, 30)), r"of shape \(60, 30\), got float64 \(1, 60, 30\)"),
        (np.full((60, 30), np.nan), "Expected finite numbers in `mask_input`, got NaN"),
        ("text", "Expected `mask_input` to be the logits"),
    ],
)
def test_an_earlier_answer_of_another_picture_is_refused(tmp_path, folder, mask, message):
    predictor = Predictor(write_models(tmp_path / "models", GoingOn()))
    predictor.set_image(half_bright(60, 30))
    with pytest.raises(ValueError, match=message):
        predictor.predict(mask_input=mask)
    without = Predictor(folder)
    without.set_image(half_bright(60, 30))
    with pytest.raises(ValueError, match=r"This export takes no `mask_input`: .*\(`prompt_map`\)"):
        without.predict(mask_input=np.zeros((60, 30)))


def test_without_an_image_it_says_so(folder, predictor):
    with pytest.raises(RuntimeError, match="An image must be set with `set_image` before `predict`"):
        Predictor(folder).predict()
    with pytest.raises(ValueError, match="finite"):
        predictor.set_image(np.array([[np.nan]]))
    with pytest.raises(RuntimeError, match="An image must be set"):  # not the mask of the image before
        predictor.predict()


def test_threads_with_an_image_each_get_the_masks_of_their_own(predictor):
    pictures = [half_bright(60, 30 + number) for number in range(8)]

    def segment(picture):
        image = predictor.encode(picture)
        return [predictor.predict(points=[[x, 5]], image=image) for x in range(5)]

    alone = [segment(picture) for picture in pictures]
    with ThreadPoolExecutor(4) as pool:
        for found, expected in zip(pool.map(segment, pictures), alone, strict=True):
            for (mask, quality, _), (expected_mask, expected_quality, _) in zip(found, expected, strict=True):
                np.testing.assert_array_equal(mask, expected_mask)
                assert quality == expected_quality
    assert predictor.predict()[0].shape == (60, 30)  # the image that was set


def test_pickles_go_on_with_the_image_that_was_set(predictor, folder):
    other = pickle.loads(pickle.dumps(predictor))
    np.testing.assert_array_equal(other.predict(points=[[3, 4]])[0], predictor.predict(points=[[3, 4]])[0])
    image = predictor.encode(half_bright(60, 30))
    change(folder, weights_sha256="another")
    with pytest.raises(ValueError, match="Expected `image` to be encoded by this export"):
        Predictor(folder).predict(image=image)


def change(folder, **values):
    file = folder / "kdsam.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_files_of_another_version_are_refused(folder):
    change(folder, layout=7)
    with pytest.raises(ValueError, match=r"Expected exported files of layout 4, got 7 .* written by monai_kdsam 9.9"):
        Predictor(folder)


def test_files_that_do_not_belong_together_are_refused(folder):
    with pytest.raises(FileNotFoundError, match=r"Expected `folder` with kdsam.json"):
        Predictor(folder / "nowhere")
    encoder = (folder / "encoder.ts").read_bytes()
    (folder / "encoder.ts").write_bytes(encoder[:-10])
    with pytest.raises(ValueError, match=r"encoder.ts is damaged or of another export"):
        Predictor(folder)
    (folder / "encoder.ts").unlink()
    with pytest.raises(FileNotFoundError, match=r"Expected encoder.ts beside kdsam.json"):
        Predictor(folder)
    (folder / "kdsam.json").write_text('{"layout": 4}')
    with pytest.raises(ValueError, match=r"is damaged: it has no close_up, files, format"):
        Predictor(folder)
    (folder / "kdsam.json").write_text("{")
    with pytest.raises(ValueError, match="damaged or no manifest"):
        Predictor(folder)


@pytest.mark.parametrize("package", ["onnxruntime", "openvino", "torch"])
def test_a_missing_package_is_named_with_its_command(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    form = {"onnxruntime": "onnx", "openvino": "openvino", "torch": "torchscript"}[package]
    with pytest.raises(ImportError, match=f"needs the package {package}: pip install {package}"):
        open_part(tmp_path / "encoder", form)


def test_a_file_that_the_package_cannot_load_is_named(tmp_path):
    (tmp_path / "encoder.ts").write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"torch .* cannot load .*encoder.ts"):
        open_part(tmp_path / "encoder.ts", "torchscript")
    with pytest.raises(ValueError, match="Expected `threads` to be at least 1, got 0"):
        open_part(tmp_path / "encoder.ts", "torchscript", threads=0)


@pytest.mark.parametrize(
    ("form", "package", "library"),
    [
        ("onnx", "onnxruntime", SimpleNamespace(get_available_providers=lambda: ["CPUExecutionProvider"])),
        ("openvino", "openvino", SimpleNamespace(Core=lambda: SimpleNamespace(available_devices=["CPU"]))),
        ("torchscript", "torch", SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: False))),
    ],
)
def test_without_a_gpu_it_does_not_compute_on_the_cpu_instead(form, package, library, tmp_path, monkeypatch):
    library.__version__ = "9.9"
    monkeypatch.setitem(sys.modules, package, library)
    with pytest.raises(ValueError, match=rf"Expected a GPU that {package} 9\.9 can use for `device` 'gpu'"):
        open_part(tmp_path / "encoder", form, device="gpu")
    with pytest.raises(ValueError, match=r"Expected `device` to be one of cpu, gpu, got 'cuda:0'"):
        open_part(tmp_path / "encoder", form, device="cuda:0")


@pytest.mark.parametrize(("half", "precision"), [(True, "f16"), (False, "f32")])
def test_openvino_computes_on_a_gpu_in_the_precision_of_the_export(half, precision, tmp_path, monkeypatch):
    asked = []
    core = SimpleNamespace(available_devices=["CPU", "GPU.0"], compile_model=lambda *words: asked.append(words))
    monkeypatch.setitem(sys.modules, "openvino", SimpleNamespace(Core=lambda: core, __version__="9.9"))
    open_part(tmp_path / "encoder.xml", "openvino", threads=2, device="gpu", half=half)
    ((_, device, settings),) = asked
    assert (device, settings["INFERENCE_PRECISION_HINT"]) == ("GPU", precision)


def test_a_gpu_that_onnx_runtime_cannot_start_is_no_silent_fallback(tmp_path, monkeypatch):
    session = SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"], get_inputs=list)
    library = SimpleNamespace(
        SessionOptions=SimpleNamespace,
        InferenceSession=lambda *_, **__: session,
        get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
        disable_telemetry_events=lambda: None,
        __version__="9.9",
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", library)
    with pytest.raises(ValueError, match=r"cannot load .*the CUDA provider does not start"):
        open_part(tmp_path / "encoder", "onnx", device="gpu")


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        ("monai_kdsam.runtime, monai_kdsam.predict_npz, monai_kdsam.__main__", "torch monai scipy pydicom SimpleITK"),
        ("monai_kdsam.runtime.volume", "torch monai"),
    ],
)
def test_importing_it_imports_neither_torch_nor_monai(modules, heavy):
    code = f"import sys, {modules}; print([m for m in '{heavy}'.split() if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
