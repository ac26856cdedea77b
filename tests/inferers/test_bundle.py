# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import gc

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from monai_kdsam.bundles import copy_bundle
from monai_kdsam.data import Image2DReader, VolumeReader
from monai_kdsam.data.phantoms import make_phantom
from monai_kdsam.errors import UserError
from monai_kdsam.inferers import BundlePredictor
from monai_kdsam.networks import build_student

PROMPTS = [{}, {"foreground": [[20, 30]], "background": [[50, 5]]}, {"roi": [10, 8, 60, 50]}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Both bundles with one random student, and a picture, 70 x 56."""
    folder = tmp_path_factory.mktemp("pictures")
    torch.manual_seed(0)
    weights = build_student("resnet18", image_size=64).state_dict()
    for name in ("kdsam_deepgrow_2d", "kdsam_deepgrow_3d"):
        bundle = copy_bundle(
            folder,
            name,
            settings={"backbone": "resnet18", "image_size": 64, "prompt_map": False, "fine_features": False},
        )
        torch.save(weights, bundle / "models" / "model.pt")
    Image.fromarray(make_phantom("polyp", size=80, seed=1)[0]).resize((70, 56)).save(folder / "picture.png")
    return folder


@pytest.fixture(scope="module")
def predictor(folder):
    return BundlePredictor(folder / "kdsam_deepgrow_2d")


@pytest.mark.parametrize("prompt", PROMPTS, ids=["automatic", "clicks", "box"])
def test_a_picture_in_memory_gets_the_mask_of_its_file(folder, predictor, prompt):
    picture = Image.open(folder / "picture.png")
    array = np.asarray(picture)
    expected = predictor(folder / "picture.png", **prompt)
    assert expected.shape == (56, 70)
    for image in (array, picture, torch.from_numpy(array.copy()).movedim(-1, 0)):
        assert np.array_equal(predictor(image, **prompt), expected)


def test_gray_of_16_bits_is_read_as_a_file_of_it_is(folder, predictor, tmp_path):
    gray = np.asarray(Image.open(folder / "picture.png").convert("L")).astype(np.uint16) * 200
    Image.fromarray(gray).save(tmp_path / "gray.png")
    expected = predictor(tmp_path / "gray.png")
    for image in (gray, gray[..., None], torch.from_numpy(gray.astype(np.int32)), Image.open(tmp_path / "gray.png")):
        assert np.array_equal(predictor(image), expected)


@pytest.mark.parametrize("prompt", PROMPTS, ids=["automatic", "clicks", "box"])
def test_probability_and_expected_iou_are_those_of_the_network_and_the_mask_is_where_it_is_above_a_half(folder, prompt):
    predictor = BundlePredictor(folder / "kdsam_deepgrow_2d", fill_holes=False)
    found = predictor.predict(folder / "picture.png", **prompt)
    assert np.array_equal(found.mask, predictor(folder / "picture.png", **prompt))
    assert found.probability.shape == (56, 70)
    assert ((found.probability > 0.5) == (found.mask == 1)).all()
    image = predictor.preprocessing({"image": str(folder / "picture.png"), **prompt})["image"]
    points, labels = image.meta["points"][None], image.meta["labels"][None]
    with torch.no_grad():
        embedding = predictor.network.encode(image.as_tensor()[None])
        logits, iou = predictor.network.decode(embedding, points, labels)
        # (S/4) to S, cut to what is not padding (64 x 51), to the picture
        full = torch.nn.functional.interpolate(logits, size=64, mode="bilinear")[..., :51, :]
        full = torch.nn.functional.interpolate(full, size=(56, 70), mode="bilinear").sigmoid()
    assert found.iou == pytest.approx(iou.item(), abs=1e-5)
    np.testing.assert_allclose(found.probability, full[0, 0].numpy(), atol=1e-4)


def test_holes_are_filled_but_for_those_with_a_background_click(folder, monkeypatch):
    ring = torch.full((1, 1, 64, 64), -9.0)
    ring[..., 10:40, 5:50] = 9
    ring[..., 20:30, 10:16] = ring[..., 14:18, 30:44] = -9
    masks = {}
    for fill in (True, False):
        segment = BundlePredictor(folder / "kdsam_deepgrow_2d", fill_holes=fill)
        monkeypatch.setattr(segment.network, "predict_all", lambda *_: (ring, torch.ones(1, 1), ring))
        for clicks in ((), [[14, 27]]):  # the picture is a little larger than what the network sees
            found = segment.predict(folder / "picture.png", background=clicks)
            assert np.array_equal(found.mask, segment(folder / "picture.png", background=clicks))
            masks[fill, bool(clicks)] = found.mask
    whole, plain = ndimage.binary_fill_holes(masks[False, False]), masks[False, True]
    assert (whole != plain).any(axis=0).sum() > 18
    assert np.array_equal(masks[True, False], whole)
    assert np.array_equal(masks[True, True], np.where(np.arange(70) < 25, plain, whole))


@pytest.mark.parametrize(
    ("image", "prompt", "error", "message"),
    [
        (None, {"foreground": [[200, 3]]}, ValueError, "^Expected `foreground` within the image of 70 x 56 pixels"),
        (None, {"roi": [5, 5, 5, 9]}, ValueError, "^Expected `roi` to be a box with an area"),
        ("missing.png", {}, FileNotFoundError, r"missing\.png"),
        (np.zeros((2, 3, 4, 5)), {}, ValueError, r"^Expected `image` of shape \(H, W\) or"),
        (np.full((8, 8), np.nan), {}, ValueError, "^Expected `image` of finite values"),
        (torch.zeros(8, 9, 3), {}, ValueError, r"tensor \(C, H, W\), channels first, got \(8, 9, 3\)"),
        ([1, 2], {}, TypeError, "^Expected `image` to be a path, an array, a PIL image or a tensor, got list"),
    ],
)
def test_a_mistake_is_told_as_it_was_raised(folder, predictor, image, prompt, error, message):
    with pytest.raises(error, match=message) as caught:
        predictor(folder / "picture.png" if image is None else image, **prompt)
    assert "applying transform" not in str(caught.value)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((70, 56), np.float32), r"^Expected `mask_input` .* of shape \(56, 70\), got float32 \(70, 56\)"),
        (np.full((56, 70), np.nan), "^Expected finite numbers in `mask_input`, got NaN"),
        ("text", "^Expected `mask_input` to be the logits of an answer on this picture"),
    ],
)
def test_an_answer_that_cannot_be_gone_on_from_is_refused(folder, predictor, mask, message):
    with pytest.raises(UserError, match=message):
        predictor.predict(folder / "picture.png", foreground=[[20, 30]], mask_input=mask)


@pytest.mark.parametrize(("name", "reader"), [("2d", Image2DReader), ("3d", VolumeReader)])
def test_a_second_click_reads_no_file_and_a_file_that_was_replaced_is_read_anew(
    folder, tmp_path, monkeypatch, name, reader
):
    read, get_data = [], reader.get_data
    monkeypatch.setattr(reader, "get_data", lambda self, files: read.append(files) or get_data(self, files))
    segment = BundlePredictor(folder / f"kdsam_deepgrow_{name}")
    picture = np.asarray(Image.open(folder / "picture.png").convert("L"))
    shape, file = {"2d": (70, 56, 1), "3d": (70, 56, 4)}[name], tmp_path / "image.nii"
    masks = []
    for pixels in (picture, picture, 255 - picture):
        volume = np.broadcast_to(pixels.T[..., None], shape)
        nibabel.save(nibabel.Nifti1Image(volume.astype(np.int16), np.eye(4)), file)
        masks.append(segment(file, foreground=[[20, 30, 2][: int(name[0])]]))
    assert len(read) == 2
    assert np.array_equal(masks[0], masks[1])
    assert not np.array_equal(masks[0], masks[2])


def test_a_config_that_is_damaged_is_named(tmp_path):
    config = copy_bundle(tmp_path) / "configs" / "inference.json"
    config.write_text(config.read_text()[:-3])
    with pytest.raises(UserError, match=rf"^{config} is damaged: "):
        BundlePredictor(tmp_path / "kdsam_deepgrow_2d")


def test_an_override_that_nothing_knows_is_named(folder):
    with pytest.raises(UserError, match=r"override of a setting of .*inference\.json, got 'bakbone'"):
        BundlePredictor(folder / "kdsam_deepgrow_2d", bakbone="resnet34")


def test_volumes_come_as_files_and_have_masks_alone(folder):
    volumes = BundlePredictor(folder / "kdsam_deepgrow_3d")
    with pytest.raises(ValueError, match="Expected `image` to be a path, as this bundle reads files, got ndarray"):
        volumes(np.zeros((8, 8, 3)))
    with pytest.raises(ValueError, match="Expected a bundle of pictures for `predict`"):
        volumes.predict("volume.nii.gz")


def test_an_image_that_failed_stays_in_no_memory(folder, predictor, tmp_path):
    content = (folder / "picture.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])

    def errors() -> list[object]:
        return [item for item in gc.get_objects() if issubclass(type(item), UserError)]

    known, told = errors(), []
    gc.disable()
    try:
        for image in (tmp_path / "cut.png", np.full((8, 8), np.nan)):
            with contextlib.suppress(UserError):
                predictor(image)
            told += [item for item in errors() if not any(item is other for other in known)]
        assert not told
    finally:
        gc.enable()
