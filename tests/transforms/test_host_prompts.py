# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd, Resized, SpatialPadd
from PIL import Image

from monai_kdsam.bundles import bundle_path
from monai_kdsam.data import Image2DReader
from monai_kdsam.transforms import HostPromptsd, ResizeLongestSided, points_from_request

WIDTH, HEIGHT = 96, 60
SIDE = 64


def preprocessing(size_mode: str = "longest") -> Compose:
    """The spatial steps of the bundle's inference, without its normalization."""
    return Compose(
        [
            LoadImaged("image", reader=Image2DReader()),
            EnsureChannelFirstd("image"),
            Orientationd("image", axcodes="PL"),
            ResizeLongestSided("image", SIDE)
            if size_mode == "longest"
            else Resized("image", (SIDE, SIDE), mode="bilinear"),
            SpatialPadd("image", (SIDE, SIDE), method="end"),
            HostPromptsd("image"),
        ]
    )


def save_blob(folder: Path, x: int, y: int, suffix: str = ".png") -> str:
    """A dark picture with 5 x 5 bright pixels around (x, y)."""
    pixels = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    pixels[y - 2 : y + 3, x - 2 : x + 3] = 255
    path = folder / f"blob{suffix}"
    if suffix == ".png":
        Image.fromarray(pixels).save(path)
    else:
        nibabel.Nifti1Image(pixels.T[..., None], np.diag([-0.5, -0.5, 1.0, 1.0])).to_filename(path)
    return str(path)


def brightest(image: MetaTensor) -> list[float]:
    """XY center of mass of what is bright."""
    bright = image[0].clamp_min(0).numpy().astype(float)
    rows, columns = np.indices(bright.shape)
    return [(bright * columns).sum() / bright.sum(), (bright * rows).sum() / bright.sum()]


def found(image: MetaTensor) -> tuple[list, list]:
    """Points and labels without the padding."""
    points, labels = image.meta["points"], image.meta["labels"]
    assert (points.shape, labels.shape) == ((64, 2), (64,))
    assert (points.dtype, labels.dtype) == (torch.float32, torch.int64)
    count = int((labels >= 0).sum())
    assert (labels[count:] == -1).all()
    assert (points[count:] == 0).all()
    return points[:count].tolist(), labels[:count].tolist()


def test_the_steps_tested_here_are_the_bundles() -> None:
    config = json.loads((bundle_path() / "configs" / "inference.json").read_text())
    names = [step["_target_"].rsplit(".", 1)[-1] for step in config["preprocessing"]["transforms"]]
    assert names == [
        "LoadImaged",
        "EnsureChannelFirstd",
        "Orientationd",
        "CloseUpd",
        "ResizeLongestSided",
        "NormalizeIntensityd",
        "SpatialPadd",
        "HostPromptsd",
    ]
    orientation, padding = (config["preprocessing"]["transforms"][k] for k in (2, 6))
    assert orientation["axcodes"] == "PL"
    assert padding["method"] == "end"


@pytest.mark.parametrize("suffix", [".png", ".nii.gz"])
@pytest.mark.parametrize("size_mode", ["longest", "both"])
@pytest.mark.parametrize(("x", "y"), [(48, 30), (5, 6), (90, 6), (5, 54), (90, 54), (70, 20)])
def test_a_click_stays_on_what_was_clicked(tmp_path, suffix, size_mode, x, y) -> None:
    image = preprocessing(size_mode)({"image": save_blob(tmp_path, x, y, suffix), "foreground": [[x, y]]})["image"]
    points, labels = found(image)
    assert labels == [1]
    np.testing.assert_allclose(points[0], brightest(image), atol=0.1)


def test_points_follow_the_resizing_at_pixel_centers() -> None:
    image = MetaTensor(torch.zeros(1, WIDTH, HEIGHT), affine=np.diag([-1.0, -1.0, 1.0]))
    image.meta.update(original_affine=np.diag([-1.0, -1.0, 1.0]), spatial_shape=[WIDTH, HEIGHT])
    clicks = [[0, 0], [10, 20], [95, 59]]
    steps = [Orientationd("image", axcodes="PL"), Resized("image", SIDE, size_mode="longest"), HostPromptsd("image")]
    points, _ = found(Compose(steps)({"image": image, "foreground": clicks})["image"])
    scale = SIDE / WIDTH  # the center of pixel k is at k + 1/2
    np.testing.assert_allclose(points, (np.array(clicks) + 0.5) * scale - 0.5, atol=1e-3)


def test_a_box_frames_the_same_things_before_and_after(tmp_path) -> None:
    x, y = 70, 20
    data = {"image": save_blob(tmp_path, x, y), "roi": [x - 2, y - 2, x + 2, y + 2]}
    image = preprocessing()(data)["image"]
    points, labels = found(image)
    assert labels == [2, 3]
    np.testing.assert_allclose(np.mean(points, axis=0), brightest(image), atol=0.1)
    np.testing.assert_allclose(np.subtract(points[1], points[0]), [4 * SIDE / WIDTH] * 2, atol=1e-3)


@pytest.mark.parametrize(
    "roi",
    [
        [10, 20, 30, 50],
        [30, 50, 10, 20],
        [30, 20, 10, 50],
        [10, 50, 30, 20],
        [10, 30, 20, 50, 0, 0],
        [30, 10, 50, 20, 1, 0],
        [30, 10, 20, 50, 0, 1],
        ["10", "20", "30", "50"],
        np.array([10.0, 20.0, 30.0, 50.0]),
    ],
)
def test_a_box_may_come_as_corners_or_ranges_in_any_order(roi) -> None:
    points, labels = points_from_request({"roi": roi}, (WIDTH, HEIGHT))
    assert points.tolist() == [[10, 20], [30, 50]]
    assert labels.tolist() == [2, 3]


def test_clicks_of_both_kinds_and_a_box_go_together() -> None:
    data = {"foreground": [[1, 2], [3, 4, 0]], "background": [[5, 6]], "roi": [0, 0, 9, 9]}
    points, labels = points_from_request(data, (WIDTH, HEIGHT))
    assert points.tolist() == [[1, 2], [3, 4], [5, 6], [0, 0], [9, 9]]
    assert labels.tolist() == [1, 1, 0, 2, 3]


def test_a_box_may_end_on_the_far_edge_of_the_last_pixel() -> None:
    points, _ = points_from_request({"roi": [0, 0, WIDTH, HEIGHT]}, (WIDTH, HEIGHT))
    assert points.tolist() == [[0, 0], [WIDTH - 1, HEIGHT - 1]]


@pytest.mark.parametrize(
    "request_",
    [{}, {"foreground": [], "background": [], "roi": []}, {"foreground": None, "background": None, "roi": None}],
)
def test_no_prompt_is_all_padding(tmp_path, request_) -> None:
    assert len(points_from_request(request_, (WIDTH, HEIGHT))[1]) == 0
    image = preprocessing()({"image": save_blob(tmp_path, 30, 30), **request_})["image"]
    assert found(image) == ([], [])


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        ({"foreground": [[float("nan"), 3]]}, r"Expected finite numbers in `foreground`, got \[nan, 3\]"),
        ({"background": [[3, float("inf")]]}, r"Expected finite numbers in `background`, got \[3, inf\]"),
        ({"foreground": [["left", 3]]}, r"Expected numbers in `foreground`, got \['left', 3\]"),
        ({"foreground": [[None, 3]]}, r"Expected (finite )?numbers in `foreground`, got \[None, 3\]"),
        ({"foreground": [[[1, 2], [3]]]}, r"Expected numbers in `foreground`"),
        ({"foreground": [[1]]}, r"Expected clicks \[x, y\] in `foreground`, got \[1\]"),
        ({"foreground": [3, 4]}, r"Expected clicks \[x, y\] in `foreground`, got 3"),
        ({"foreground": [[1, 2, 3, 4]]}, r"Expected clicks \[x, y\] in `foreground`, got \[1, 2, 3, 4\]"),
        ({"foreground": 5}, r"Expected `foreground` to be a list of clicks, got 5"),
        ({"foreground": "3,4"}, r"Expected `foreground` to be a list of clicks, got '3,4'"),
        ({"foreground": [[-1, 3]]}, r"Expected `foreground` within the image of 96 x 60 pixels, got \[-1\.0, 3\.0\]"),
        ({"background": [[3, 61]]}, r"Expected `background` within the image of 96 x 60 pixels, got \[3\.0, 61\.0\]"),
        ({"roi": [-9, 5, -2, 9]}, r"Expected `roi` to cover some of the image of 96 x 60 pixels, got \[-9, 5, -2, 9\]"),
        ({"roi": [5, 5, 5, 9]}, r"Expected `roi` to be a box with an area, got \[5, 5, 5, 9\]"),
        ({"roi": [5, 9, 7, 7, 0, 0]}, r"Expected `roi` to be a box with an area"),
        ({"roi": [96, 10, 96.5, 20]}, r"Expected `roi` to cover some of the image"),
        ({"roi": [1, 2, 3]}, r"Expected `roi` to be \[x1, y1, x2, y2\] or .*, got \[1, 2, 3\]"),
        ({"roi": 7}, r"Expected `roi` to be \[x1, y1, x2, y2\] or .*, got 7"),
        ({"roi": ["a", 0, 1, 2]}, r"Expected numbers in `roi`"),
        ({"roi": [float("nan"), 0, 1, 2]}, r"Expected finite numbers in `roi`"),
        ({"foreground": [[1, 1]] * 65}, r"Expected at most 64 points in a prompt, got 65"),
        ({"foreground": [[1, 1]] * 63, "roi": [0, 0, 9, 9]}, r"Expected at most 64 points in a prompt, got 65"),
    ],
)
def test_a_wrong_request_is_named(request_, text) -> None:
    with pytest.raises(ValueError, match=text):
        points_from_request(request_, (WIDTH, HEIGHT))


@pytest.mark.parametrize("roi", [[-7, 10, 200, 64], [200, 64, -7, 10], [-7, 200, 10, 64, 0, 0]])
def test_a_box_that_reaches_beyond_the_image_is_cut_off_at_its_edges(roi) -> None:
    points, labels = points_from_request({"roi": roi}, (WIDTH, HEIGHT))
    assert points.tolist() == [[0, 10], [WIDTH - 1, HEIGHT - 1]]
    assert labels.tolist() == [2, 3]


def test_clicks_may_come_as_an_array() -> None:
    points, _ = points_from_request({"foreground": np.array([[3, 4], [5, 6]])}, (WIDTH, HEIGHT))
    assert points.tolist() == [[3, 4], [5, 6]]
