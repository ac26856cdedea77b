# SPDX-License-Identifier: Apache-2.0
"""Every format and precision is exported, run by the light runtime, and compared with PyTorch."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import challenge
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from monai_kdsam.__main__ import main
from monai_kdsam.bundles import copy_bundle, shipped_bundle
from monai_kdsam.data.phantoms import write_phantoms
from monai_kdsam.export import export_bundle
from monai_kdsam.export import onnx as to_onnx
from monai_kdsam.export.int8 import MaskAgreement, quantize, runner
from monai_kdsam.export.openvino import join, to_models, write_openvino
from monai_kdsam.export.parity import LEAST_IOU, mask_iou
from monai_kdsam.inferers import BundlePredictor
from monai_kdsam.networks import build_kdsam, build_student
from monai_kdsam.runtime import Predictor
from monai_kdsam.runtime.sessions import open_part

for package in ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf"):
    pytest.importorskip(package, reason=f"needs the extra `export`: {package} is not installed; `nox -s export` has it")

CHOICES = [(form, precision) for form in ("onnx", "openvino") for precision in LEAST_IOU]
CHOICES += [("torchscript", "fp32"), ("torchscript", "fp16")]


@pytest.fixture(scope="session")
def graphs(bundle):
    """The float32 graphs, which PyTorch's exporter takes half a minute for."""
    return to_onnx.to_graphs(BundlePredictor(bundle).network)


@pytest.fixture(scope="session")
def exported(bundle, graphs, tmp_path_factory):
    """Folder of each (format, precision)."""
    pictures = bundle.parent / "phantoms" / "images"
    folders = {}
    with pytest.MonkeyPatch.context() as patch:
        # A copy, because the graph is changed by what follows.
        patch.setattr(to_onnx, "to_graphs", lambda network: {name: copy(graph) for name, graph in graphs.items()})
        for form, precision in CHOICES:
            folder = tmp_path_factory.mktemp("exported") / f"{form}_{precision}"
            calibration = pictures if precision == "int8" else None
            folders[form, precision] = export_bundle(
                bundle, form, precision=precision, calibration=calibration, output=folder
            )
    return folders


def copy(graph):
    other = type(graph)()
    other.CopyFrom(graph)
    return other


@pytest.fixture
def picture(bundle):
    return str(bundle.parent / "phantoms" / "images" / "polyp_001.png")


def iou(a, b):
    return (a & b).sum() / max((a | b).sum(), 1)


@pytest.mark.parametrize("choice", CHOICES, ids="-".join)
def test_the_masks_are_those_of_the_bundle(choice, exported, bundle, picture):
    predictor, network = Predictor(exported[choice][0]), BundlePredictor(bundle)
    predictor.set_image(picture)
    width, height = Image.open(picture).size
    box, click = [0.2 * width, 0.3 * height, 0.9 * width, 0.8 * height], [0.5 * width, 0.5 * height]
    for ours, theirs in (
        ({}, {}),
        ({"box": box}, {"roi": box}),
        ({"points": [click]}, {"foreground": [click]}),
        (
            {"points": [click, [3, 4]], "labels": [1, 0], "box": box},
            {"foreground": [click], "background": [[3, 4]], "roi": box},
        ),
    ):
        mask, quality, _ = predictor.predict(**ours)
        expected = network(picture, **theirs)
        assert mask.shape == expected.shape == (height, width)
        assert expected.any()
        assert iou(mask, expected) >= 1 - 3 * (1 - LEAST_IOU[choice[1]])
        assert np.isfinite(quality)


@pytest.mark.parametrize("form", ["onnx", "openvino", "torchscript"])
def test_threads_get_the_answers_that_one_gets(form, exported, bundle):
    predictor = Predictor(exported[form, "fp32"][0], threads=1)
    pictures = [bundle.parent / "phantoms" / "images" / f"{kind}_001.png" for kind in ("polyp", "breast_lesion")]
    asked = [(number % 2, [[20 + 5 * (number // 4 % 12), 30 + 25 * (number % 4)]]) for number in range(64)]
    images = [predictor.encode(picture) for picture in pictures]
    alone = [predictor.predict(points=click, image=images[picture]) for picture, click in asked]
    assert len({quality for _, quality, _ in alone}) > 30  # a foreign answer would be seen
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(predictor.encode, pictures * 4))
        together = pool.map(lambda one: predictor.predict(points=one[1], image=images[one[0]]), asked)
        for (mask, quality, _), (expected, expected_quality, _) in zip(together, alone, strict=True):
            np.testing.assert_array_equal(mask, expected)
            assert quality == expected_quality


def test_a_challenges_case_takes_little_memory_and_time_with_its_start(exported, tmp_path, capsys):
    made = {case.kind: case for case in challenge.generated()}
    small = {kind: case for kind, case in made.items() if "512 x 512" in kind}
    for kind, case in small.items():
        if case.labels.ndim == 3:
            case = case._replace(images=case.images[40:60], labels=case.labels[40:60])
        model = ["--model", str(exported["onnx", "fp32"][0]), "--threads", "1"]
        labels, answer = challenge.ask(case, tmp_path, model, boxes=challenge.boxes(case))
        with capsys.disabled():
            sys.stdout.write(f"\n{kind} ({case.labels.shape}): {answer.seconds:.2f} s, {answer.mebibytes:.0f} MiB")
        assert labels.shape == case.labels.shape
        assert labels.dtype == np.uint8
        assert 0 < answer.mebibytes < 500


def test_without_room_for_it_an_export_does_not_begin(bundle, tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)._replace(free=2**25)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(OSError, match=r"An export needs \d+ MiB in .*, where 32 are free\. Free some space"):
        export_bundle(bundle, "torchscript", output=tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("choice", CHOICES, ids="-".join)
def test_the_manifest_tells_what_was_measured(choice, exported):
    folder, parity = exported[choice]
    content = json.loads((folder / "kdsam.json").read_text())
    assert (content["format"], content["precision"], content["image_size"]) == (*choice, 128)
    assert content["parity"]["prompted_mean"] == pytest.approx(np.mean(parity.prompted), abs=1e-5)
    assert content["parity"]["prompted_masks"] >= 6
    assert content["weights"].startswith("model.pt has no card")
    assert {file.name for file in folder.iterdir()} == {*content["sha256"], "kdsam.json"}


@pytest.mark.parametrize("choice", CHOICES, ids="-".join)
def test_numbers_of_images_prompts_and_points_are_free(choice, exported, bundle):
    folder, _ = exported[choice]
    encoder, decoder, model = (
        open_part(folder / Predictor(folder).manifest.files[part], choice[0])
        for part in ("encoder", "decoder", "model")
    )
    network = BundlePredictor(bundle).network
    rng = np.random.default_rng(0)
    for images, prompts, count in ((1, 1, 1), (1, 1, 5), (3, 2, 2), (1, 2, 20)):
        image = rng.standard_normal((images, 3, 128, 128)).astype(np.float32)
        points = rng.uniform(0, 128, (prompts, count, 2)).astype(np.float32)
        labels = rng.integers(-1, 4, (prompts, count))
        (embedding,) = encoder(image)
        assert embedding.shape == (images, 256, 8, 8)
        assert model(image)[0].shape == (images, 1, 128, 128)
        masks, quality = decoder(embedding[-1:], points, labels)
        with torch.no_grad():
            expected = network.decode(*map(torch.from_numpy, (embedding[-1:], points, labels)))
        assert np.allclose(masks, expected[0], atol=1e-3 * expected[0].abs().max().item())
        assert np.allclose(quality, expected[1], atol=1e-3)


def random_prompts(channels):
    """A random embedding, and nine prompts of three points."""
    rng = np.random.default_rng(0)
    embedding = rng.standard_normal((1, channels, 4, 4)).astype(np.float32)
    points, labels = rng.uniform(0, 64, (9, 3, 2)).astype(np.float32), rng.integers(-1, 4, (9, 3))
    return tuple(map(torch.from_numpy, (embedding, points, labels)))


@pytest.fixture(scope="session")
def drawn_and_fine(tmp_path_factory):
    """A network whose prompts are drawn and whose masks see finer features, and its decoder in both formats."""
    torch.manual_seed(0)
    network = build_student("resnet18", image_size=64, prompt_map=True, fine_features=True).eval()
    folder = tmp_path_factory.mktemp("drawn")
    graphs = to_onnx.to_graphs(network)
    write_openvino(to_models(graphs, folder), folder, half=False)
    to_onnx.write_onnx(graphs, folder)
    return network, folder


@pytest.mark.parametrize(("form", "file"), [("onnx", "decoder.onnx"), ("openvino", "decoder.xml")])
def test_the_exported_decoder_is_the_networks_of_drawn_prompts_and_earlier_answers(drawn_and_fine, form, file):
    network, folder = drawn_and_fine
    embedding, points, labels = random_prompts(channels=1024)
    mask, has_mask = 9 * torch.randn(len(points), 1, 16, 16), torch.arange(len(points)) % 2
    with torch.no_grad():
        expected = network.decode(embedding, points, labels, mask, has_mask > 0)
    mask[0] = torch.nan  # which nobody looks at
    inputs = (embedding, points, labels, mask, has_mask.float())
    found = open_part(folder / file, form)(*(part.numpy() for part in inputs))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert np.allclose(ours, theirs, atol=1e-3 * theirs.abs().max().item())


@pytest.mark.parametrize(("form", "file"), [("onnx", "model.onnx"), ("openvino", "model.xml")])
def test_the_image_only_model_of_it_takes_any_number_of_images(drawn_and_fine, form, file):
    network, folder = drawn_and_fine
    for count in (1, 3):
        images = torch.randn(count, 3, 64, 64)
        with torch.no_grad():
            expected = network(images)
        assert np.allclose(open_part(folder / file, form)(images.numpy())[0], expected, atol=1e-3)


def test_an_export_sees_boxes_and_earlier_answers_as_the_bundle_does(tmp_path):
    torch.manual_seed(0)
    network = {"backbone": "resnet18", "image_size": 64, "prompt_map": True, "fine_features": True}
    bundle = copy_bundle(tmp_path, settings=network)
    torch.save(build_student(**network).state_dict(), bundle / "models" / "model.pt")
    exported, _ = export_bundle(bundle, "torchscript", output=tmp_path / "exported")
    served, light = BundlePredictor(bundle), Predictor(exported)
    picture = np.random.default_rng(0).integers(0, 256, (150, 200, 3)).astype(np.uint8)
    light.set_image(picture)
    y, x = np.mgrid[:150, :200]
    masks = (None, (20 * np.sin(x / 9) * np.cos(y / 7)).astype(np.float32))
    for box, clicks in (([20, 30, 69, 49], []), ([120, 3, 199, 55], [[150, 20]]), (None, [[30, 40]])):
        prompt = ({"box": box} if box else {}) | ({"points": clicks} if clicks else {})
        ours = [light.predict(**prompt, mask_input=mask) for mask in masks]
        theirs = [served.predict(picture, roi=box, foreground=clicks, mask_input=mask) for mask in masks]
        assert max(np.mean(one[0] != other.mask) for one, other in zip(ours, theirs, strict=True)) < 0.001
        assert (theirs[0].mask != (theirs[0].logits > 0)).any() == (not clicks), "no holes, which both fill"
        ours, theirs = [one[2] for one in ours], [other.logits for other in theirs]
        for one, other in zip(ours, theirs, strict=True):
            # Random weights hardly care for a mask, but far more than the two differ.
            assert np.abs(ours[0] - ours[1]).max() > 20 * np.abs(one - other).max()
            assert (other[100:, :20] == -32).all() == (box is not None)
    with pytest.raises(
        ValueError, match=r"Expected `mask_input` to be the logits .* \(150, 200\), got float32 \(16, 16\)"
    ):
        served.predict(picture, mask_input=np.zeros((16, 16), np.float32))


def test_several_prompts_in_one_call_are_the_single_ones(exported, picture):
    predictor = Predictor(exported["onnx", "fp32"][0])
    predictor.set_image(picture)
    boxes = [[5, 6, 60, 70], [30, 20, 100, 90]]
    masks, quality, _ = predictor.predict(box=boxes)
    singles = [predictor.predict(box=box) for box in boxes]
    assert np.array_equal(masks, [mask for mask, *_ in singles])
    assert np.allclose(quality, [value for _, value, _ in singles], atol=1e-5)


def size(folder, part="encoder"):
    return sum(file.stat().st_size for file in folder.glob(f"{part}*"))


@pytest.mark.parametrize("form", ["onnx", "openvino", "torchscript"])
def test_the_decoder_has_none_of_the_encoders_weights(form, exported):
    assert size(exported[form, "fp32"][0], "decoder") < 4.3e6 * 4


@pytest.mark.parametrize("form", ["onnx", "openvino", "torchscript"])
def test_fp16_is_half_of_the_encoder(form, exported):
    assert size(exported[form, "fp16"][0]) < 0.55 * size(exported[form, "fp32"][0])


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_int8_is_a_quarter_of_the_encoder(form, exported, graphs, tmp_path):
    """Of all layers in 8 bits; a student whose masks suffer from them keeps some in float32."""
    images = list(np.random.default_rng(0).standard_normal((3, 1, 3, 128, 128)).astype(np.float32))
    models = {name: copy(graph) for name, graph in graphs.items()}
    if form == "openvino":
        models = to_models(models, tmp_path)
    models["encoder"] = quantize(models["encoder"], images, lambda encode: 1.0, least=1.0)
    if form == "openvino":
        write_openvino(models, tmp_path, half=False)
    else:
        to_onnx.write_onnx(models, tmp_path)
    whole = size(exported[form, "fp32"][0])
    assert size(tmp_path) < 0.35 * whole
    assert size(exported[form, "int8"][0]) < whole


def test_the_image_only_model_in_8_bits_is_encoder_and_head_one_after_the_other(tmp_path):
    """Of the student that ships, whose tokens are as many as their channels: libraries may mix these up."""
    predictor = BundlePredictor(shipped_bundle(), device="cpu")
    folder = write_phantoms(tmp_path / "phantoms", per_kind=1, size=256) / "images"
    images = [predictor.preprocessing({"image": str(path)})["image"].numpy()[None] for path in folder.iterdir()]
    models = to_models(to_onnx.to_graphs(predictor.network), tmp_path)
    models["encoder"] = quantize(models["encoder"], images, lambda encode: 1.0, least=1.0)
    encode, head, whole = map(runner, (models["encoder"], models["head"], join(models["encoder"], models["head"])))
    for image in images:
        assert mask_iou(whole(image) > 0, head(encode(image)) > 0) > 0.99


def test_the_torchscript_model_carries_the_configs_that_hosts_read(exported):
    for precision in ("fp32", "fp16"):
        extra = {"metadata.json": "", "inference.json": ""}
        torch.jit.load(str(exported["torchscript", precision][0] / "model.ts"), _extra_files=extra)
        assert json.loads(extra["inference.json"])["image_size"] == 128
        assert "network_data_format" in json.loads(extra["metadata.json"])


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_a_layer_that_8_bits_hurt_stays_in_float32(form, tmp_path):
    """One channel is a thousand times as large as the others: rounded to 8 bits with it, they vanish."""
    encoder = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.ReLU(), nn.Conv2d(8, 256, 4, stride=4))
    with torch.no_grad():
        encoder[0].weight[0] *= 1000
        encoder[0].bias[0] *= 1000
        encoder[2].weight[:, 0] /= 1000
        encoder[2].weight *= 30  # so that the masks depend on the picture
    network = build_kdsam(encoder, image_size=64).eval()
    images = [np.random.default_rng(seed).standard_normal((1, 3, 64, 64)).astype(np.float32) for seed in range(3)]
    box = torch.tensor([[[[10.0, 10.0], [50.0, 40.0]]]])
    agreement = MaskAgreement(network, images, [(box, torch.tensor([[[2, 3]]]))] * 3)
    assert agreement(lambda image: encoder(torch.from_numpy(image)).detach().numpy()) == 1

    batch = torch.export.Dim("batch")
    graph = to_onnx.trace(encoder, {"image": (torch.zeros(2, 3, 64, 64), {0: batch})}, ["embedding"])
    model = graph if form == "onnx" else to_models({"encoder": graph}, tmp_path)["encoder"]
    assert agreement(runner(quantize(model, images, agreement, least=0.0))) < 0.95
    assert agreement(runner(quantize(model, images, agreement, least=0.98))) >= 0.98


def test_masks_that_differ_fail_the_export_and_leave_nothing(bundle, tmp_path, monkeypatch):
    """A bundle whose preprocessing is not the runtime's: the mean is edited in one place only."""
    edited = tmp_path / "kdsam_deepgrow_2d"
    shutil.copytree(bundle, edited)
    config = json.loads((edited / "configs" / "inference.json").read_text())
    config["preprocessing"]["transforms"][5]["subtrahend"] = [0.0, 0.0, 0.0]
    (edited / "configs" / "inference.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"The masks of torchscript fp32 differ too much.*preprocessing"):
        export_bundle(edited, "torchscript")
    assert [file.name for file in (edited / "models").iterdir()] == ["model.pt"]


def test_the_command_writes_beside_the_weights_and_tells_the_numbers(bundle, tmp_path, capsys):
    copied = tmp_path / "kdsam_deepgrow_2d"
    shutil.copytree(bundle, copied)
    pictures = str(bundle.parent / "phantoms" / "images")
    command = ["export", "--bundle", str(copied), "--format", "torchscript", "--images", pictures]
    assert main(command) == 0
    assert "torchscript fp32: IoU with PyTorch: prompted masks mean 1.0000" in capsys.readouterr().out
    assert main(command) == 0  # again, over the first
    assert (copied / "models" / "torchscript_fp32" / "kdsam.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "onnx", "--precision", "int8"], "Expected `calibration`, a folder of pictures"),
        (["--format", "torchscript", "--precision", "int8", "--calibration", "."], "fp32 or fp16 for torchscript"),
        (["--format", "onnx", "--precision", "int8", "--calibration", "nowhere"], "no.* nowhere|none at nowhere"),
        (["--format", "torchscript", "--output", "."], "Expected `output` to be new, empty or an earlier export"),
        (["--format", "torchscript", "--bundle", "nowhere"], "Expected a bundle with configs/inference.json"),
    ],
)
def test_a_mistake_on_the_command_line_gets_one_line(arguments, message, bundle, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "something").touch()
    assert main(["export", "--bundle", str(bundle), *arguments]) == 1
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert len(error.strip().splitlines()) == 1


def test_the_runtime_predicts_without_torch(exported, picture):
    code = f"""
import sys
for name in ("torch", "monai", "scipy", "torchvision"):
    sys.modules[name] = None  # an import of it raises
from monai_kdsam.runtime import Predictor
for folder in {[str(exported[form, "fp32"][0]) for form in ("onnx", "openvino")]!r}:
    predictor = Predictor(folder)
    predictor.set_image({picture!r})
    mask, quality, _ = predictor.predict(points=[[60, 50]])
    print(int(mask.sum()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    sizes = [int(line) for line in done.stdout.split()]
    predictor = Predictor(exported["torchscript", "fp32"][0])
    predictor.set_image(picture)
    assert sizes == pytest.approx([predictor.predict(points=[[60, 50]])[0].sum()] * 2, rel=1e-3)


def test_the_python_of_the_documentation_runs(exported, picture, tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "docs" / "howto" / "export.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(exported["openvino", "int8"][0], "openvino_int8")
    for name in ("image.png", "other.png"):
        Image.open(picture).resize((256, 256)).save(name)
    names: dict = {}
    exec(code, names)
    assert names["masks"].shape == (2, 256, 256)
    assert names["ious"].shape == (2,)


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_depthwise_convolutions_and_the_first_block_of_them_stay_in_float32(form, tmp_path):
    """One of its channels is a thousand times as large as the others, which 8 bits would lose."""
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 8, 4, stride=4),
        nn.Conv2d(8, 8, 1, groups=8),
        nn.Conv2d(8, 8, 1),
        nn.Conv2d(8, 8, 4, stride=4),
    )
    encoder = nn.Sequential(*layers)
    with torch.no_grad():
        encoder[1].weight[0] *= 1000
        encoder[1].bias[0] *= 1000
        encoder[2].weight[:, 0] /= 1000
    images = [np.random.default_rng(seed).standard_normal((1, 3, 64, 64)).astype(np.float32) for seed in range(3)]
    graph = to_onnx.trace(encoder, {"image": (torch.zeros(1, 3, 64, 64), {})}, ["embedding"])
    model = graph if form == "onnx" else to_models({"encoder": graph}, tmp_path)["encoder"]
    expected = encoder(torch.from_numpy(images[0])).detach().numpy()
    found = runner(quantize(model, images, lambda encode: 1.0, least=1.0))(images[0])
    assert 0 < np.abs(found - expected).mean() < 0.25 * np.abs(expected).mean()
