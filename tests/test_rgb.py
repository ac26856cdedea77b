# SPDX-License-Identifier: Apache-2.0
"""The bundle's own reader is the oracle."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from monai_kdsam.data.picture_file import decode
from monai_kdsam.picture import to_rgb as bundle_rgb
from monai_kdsam.rgb import read_picture, rgb_from_array

RNG = np.random.default_rng(0)
RGBA = Image.fromarray(RNG.integers(0, 256, (12, 17, 4), dtype=np.uint8), "RGBA")


def pictures():
    for mode in ("RGB", "L", "1", "LA", "RGBA", "P"):
        yield mode, ".png", RGBA.convert(mode)
    yield "jpeg", ".jpg", RGBA.convert("RGB")
    yield "cmyk", ".jpg", RGBA.convert("CMYK")
    yield "bmp", ".bmp", RGBA.convert("RGB")
    yield "16 bit", ".png", Image.fromarray(RNG.integers(0, 4096, (12, 17)).astype(np.uint16))
    yield "float", ".tif", Image.fromarray(RNG.standard_normal((12, 17)).astype(np.float32))


@pytest.mark.parametrize(("suffix", "image"), [pytest.param(s, i, id=name) for name, s, i in pictures()])
def test_a_file_is_read_as_the_bundle_reads_it(suffix, image, tmp_path):
    path = tmp_path / f"picture{suffix}"
    image.save(path)
    assert np.array_equal(read_picture(path), bundle_rgb(decode(path)))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4, 5)), r"Expected `image` of shape \(H, W\) or \(H, W, 1 to 4\), got float64 \(4, 4, 5\)"),
        (np.zeros((0, 4)), "Expected `image` of shape"),
        (np.array([["a"]]), "Expected `image` of shape"),
        (np.array([[np.nan, 1.0]]), "Expected `image` of finite values"),
        (np.array([[np.inf, 1.0]]), "Expected `image` of finite values"),
    ],
)
def test_an_array_that_is_no_picture_is_refused(array, message):
    with pytest.raises(ValueError, match=message):
        rgb_from_array(array)


def test_a_file_that_is_no_picture_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_picture(tmp_path / "missing.png")
    damaged = tmp_path / "damaged.png"
    RGBA.save(damaged)
    damaged.write_bytes(damaged.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"Cannot read .*damaged.png as a picture"):
        read_picture(damaged)
    RGBA.convert("RGB").save(tmp_path / "two.tif", save_all=True, append_images=[RGBA.convert("RGB")])
    with pytest.raises(ValueError, match="it has 2 frames"):
        read_picture(tmp_path / "two.tif")
