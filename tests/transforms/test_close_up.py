# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, Invertd, LoadImaged, Orientationd, SpatialPadd
from PIL import Image

from monai_kdsam.data import Image2DReader, RememberedImaged
from monai_kdsam.transforms import CloseUpd, HostPromptsd, ResizeLongestSided, close_up_of
from monai_kdsam.transforms.host_prompts import to_file_frame, to_network_frame

SIDE = 64


def steps(margin: float = 1.5) -> Compose:
    return Compose(
        [
            LoadImaged("image", reader=Image2DReader()),
            EnsureChannelFirstd("image"),
            Orientationd("image", axcodes="PL", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
            CloseUpd("image", margin=margin),
            ResizeLongestSided("image", SIDE),
            SpatialPadd("image", (SIDE, SIDE), method="end"),
            HostPromptsd("image"),
        ]
    )


def save(folder, suffix: str, pixels: np.ndarray) -> str:
    path = folder / f"picture{suffix}"
    if suffix == ".png":
        Image.fromarray(pixels).save(path)
    else:  # its axes lie the other way round
        nibabel.Nifti1Image(pixels.T[..., None], np.diag([0.5, 0.5, 1.0, 1.0])).to_filename(path)
    return str(path)


def blob(x: int, y: int) -> np.ndarray:
    pixels = np.zeros((300, 400), dtype=np.uint8)
    pixels[y : y + 20, x : x + 40] = 255
    return pixels


@pytest.mark.parametrize("suffix", [".png", ".nii.gz"])
@pytest.mark.parametrize(("x", "y"), [(100, 80), (0, 280), (360, 0), (10, 10)])
def test_a_box_is_seen_large_and_the_mask_comes_back_to_its_place(tmp_path, suffix, x, y):
    prepare, pixels = steps(), blob(x, y)
    request = {"image": save(tmp_path, suffix, pixels), "roi": [x, y, x + 39, y + 19]}
    image = prepare(request)["image"]
    seen = image[:1].as_tensor()
    assert seen.max() == 255
    corners = image.meta["points"][:2].sort(dim=0).values
    width = corners[1, 0] - corners[0, 0] + 1
    assert 40 <= width <= 58  # of 64, where the whole picture would give it 6.4
    assert (seen > 127).sum() == pytest.approx(float(width**2 / 2), rel=0.1)
    inverted = Invertd("pred", prepare, orig_keys="image", nearest_interp=False)(
        {"image": image, "pred": MetaTensor(seen - 127).copy_meta_from(image)}
    )["pred"]
    mask = inverted[0].T.numpy() > 0
    assert mask.shape == (300, 400)
    assert (mask != (pixels > 0)).sum() < 40
    assert inverted.min() >= -127.1
    assert (inverted == -32).sum() > 100_000  # surely background


def test_what_is_seen_depends_on_the_box_and_on_clicks_beyond_its_surroundings_alone():
    box = {"roi": [100, 80, 139, 99]}
    assert close_up_of(box, 1.5) == ((90, 60), (149, 119))
    near = [{"foreground": [[120, 90]]}, {"background": [[91, 118]]}, {"roi": [139, 99, 100, 80]}]
    assert {close_up_of({**box, **more}, 1.5) for more in near} == {((90, 60), (149, 119))}
    (left, top), (right, bottom) = close_up_of({**box, "foreground": [[200, 90]]}, 1.5)
    assert left < 100 < 200 < right
    assert top < 80 < 99 < bottom
    assert close_up_of({"foreground": [[120, 90]]}, 1.5) is None
    assert close_up_of(box, 0) is None
    assert close_up_of({"roi": [0, 0, 1e300, 9]}, 1.5)[1][0] == 2**31


@pytest.mark.parametrize("request_", [{}, {"foreground": [[120, 90]]}, {"roi": [20, 20, 380, 280]}])
def test_the_whole_picture_is_seen_without_a_box_and_where_a_close_up_would_show_little_more(tmp_path, request_):
    path = save(tmp_path, ".png", blob(100, 80))
    image, whole = (steps(margin)({"image": path, **request_})["image"] for margin in (1.5, 0))
    assert torch.equal(image.as_tensor(), whole.as_tensor())
    assert torch.equal(image.meta["points"], whole.meta["points"])


def test_a_remembered_picture_is_that_of_the_same_close_up(tmp_path):
    path, prepare = save(tmp_path, ".png", blob(100, 80)), steps()
    called = []
    remembered = RememberedImaged(
        transform=lambda data: called.append(data) or prepare(data),
        request=lambda asked: {"close_up": close_up_of(asked, 1.5)},
    )
    boxes = [[100, 80, 139, 99], [100, 80, 139, 99], [300, 200, 339, 219]]
    for roi, clicks in zip(boxes, ([], [[120, 90]], []), strict=True):
        request = {"image": path, "roi": roi, "foreground": clicks}
        assert torch.equal(remembered(request)["image"].as_tensor(), prepare(request)["image"].as_tensor())
    assert [sorted(data) for data in called] == [["close_up", "image"]] * 2  # nobody's prompts


def test_the_way_back_to_the_file_is_the_inverse(tmp_path):
    request = {"image": save(tmp_path, ".nii.gz", blob(100, 80)), "roi": [100, 80, 139, 99]}
    image, points = steps()(request)["image"], np.array([[3.0, 4.0], [120.5, 90.0]])
    np.testing.assert_allclose(to_file_frame(to_network_frame(points, image), image), points, atol=1e-9)


@pytest.mark.parametrize("margin", [-1, 0.5, float("nan"), True])
def test_a_margin_is_0_or_a_number_from_1_on(margin):
    with pytest.raises(ValueError, match="Expected `close_up` to be 0, or a number from 1 on, got"):
        CloseUpd("image", margin=margin)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"roi": [1, 2, 3]}, "Expected `roi` to be"),
        ({"roi": [900, 900, 950, 950]}, "Expected `roi` to cover some of the image of 400 x 300"),
        ({"roi": [1, 2, 30, 40], "foreground": [[-5, 3]]}, "Expected `foreground` within the image of 400 x 300"),
        ({"roi": [1, 2, 30, 40], "foreground": 7}, "Expected `foreground` to be a list of clicks"),
    ],
)
def test_prompts_that_make_no_sense_are_told_as_ever(tmp_path, request_, message):
    with pytest.raises((ValueError, RuntimeError)) as caught:
        steps()({"image": save(tmp_path, ".png", blob(100, 80)), **request_})
    assert message in str(caught.value.__cause__ or caught.value)
