# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, Invertd, LoadImaged, Orientationd, Resized
from PIL import Image

from monai_kdsam import files
from monai_kdsam.data import Image2DReader, RememberedImaged
from monai_kdsam.files import file_sha256


class Steps(Compose):
    """A preprocessing that counts its calls."""

    calls = 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return super().__call__(*args, **kwargs)


@pytest.fixture
def steps() -> Steps:
    load = LoadImaged("image", reader=Image2DReader())
    spatial = [
        EnsureChannelFirstd("image"),
        Orientationd("image", axcodes="PL"),
        Resized("image", 16, size_mode="longest"),
    ]
    return Steps([load, *spatial])


def save(path, seed: int) -> str:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


def test_a_file_is_prepared_once_whatever_comes_with_it(tmp_path, steps):
    remembered = RememberedImaged(transform=steps)
    path = save(tmp_path / "a.png", 0)
    expected = steps({"image": path})["image"]
    steps.calls = 0
    for clicks in ([[1, 2]], [[3, 4]]):
        found = remembered({"image": path, "foreground": clicks})
        assert found["foreground"] == clicks
        torch.testing.assert_close(found["image"], expected)
        assert torch.equal(found["image"].affine, expected.affine)
    assert steps.calls == 1


def test_a_file_is_hashed_once_and_one_that_is_written_over_with_its_time_and_size_again(tmp_path, steps, monkeypatch):
    hashed = []
    monkeypatch.setattr(files, "file_sha256", lambda file: hashed.append(file) or file_sha256(file))
    path, remembered = Path(save(tmp_path / "a.png", 0)), RememberedImaged(transform=steps)
    os.utime(path, ns=(10**18, 10**18))
    for _ in range(3):
        remembered({"image": str(path)})
    assert len(hashed) == 1
    before = steps.calls
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    os.utime(path, ns=(10**18, 10**18))
    remembered({"image": str(path)})
    assert (len(hashed), steps.calls) == (2, before + 1)


def test_equal_content_under_another_name_is_recalled_with_its_own_name(tmp_path, steps):
    remembered = RememberedImaged(transform=steps)
    names = [save(tmp_path / name, 0) for name in ("first.png", "second.png")]
    assert [remembered({"image": name})["image"].meta["filename_or_obj"] for name in names] == names
    assert steps.calls == 1


def test_a_file_that_is_replaced_is_prepared_anew(tmp_path, steps):
    remembered = RememberedImaged(transform=steps)
    first = remembered({"image": save(tmp_path / "a.png", 0)})["image"]
    second = remembered({"image": save(tmp_path / "a.png", 1)})["image"]
    assert not torch.equal(first, second)
    torch.testing.assert_close(second, steps({"image": str(tmp_path / "a.png")})["image"])


def test_what_one_request_writes_into_the_metadata_is_not_seen_by_the_next(tmp_path, steps):
    remembered, path = RememberedImaged(transform=steps), save(tmp_path / "a.png", 0)
    image = remembered({"image": path})["image"]
    image.meta["points"] = torch.ones(1)
    image.applied_operations.clear()
    again = remembered({"image": path})["image"]
    assert "points" not in again.meta
    assert len(again.applied_operations) == 2


def test_a_recalled_image_can_be_inverted_like_a_fresh_one(tmp_path, steps):
    remembered, path = RememberedImaged(transform=steps), save(tmp_path / "a.png", 0)
    invert = Invertd("pred", orig_keys="image", transform=steps, nearest_interp=False)
    results = []
    for _ in range(2):
        data = remembered({"image": path})
        results.append(invert(data | {"pred": data["image"].clone()[:1]})["pred"])
    assert results[0].shape == (1, 30, 20)
    torch.testing.assert_close(results[0], results[1])


def test_memory_is_bounded(tmp_path, steps):
    one = 3 * 11 * 16 * 4
    remembered = RememberedImaged(transform=steps, max_bytes=2 * one)
    for seed in range(4):
        remembered({"image": save(tmp_path / f"{seed}.png", seed)})
    assert len(remembered.images) == 2
    assert remembered.images.nbytes <= 2 * one


@pytest.mark.parametrize(("path", "message"), [("", "no such image"), ("nowhere.png", "no image file 'nowhere.png'")])
def test_a_file_that_is_not_there_is_named(steps, path, message):
    with pytest.raises(FileNotFoundError, match=message):
        RememberedImaged(transform=steps)({"image": path})


def test_transforms_of_one_name_share_their_memory(tmp_path, steps):
    path = save(tmp_path / "a.png", 0)
    for name, calls in (("one", 1), ("one", 1), ("other", 2)):
        RememberedImaged(transform=steps, shared=f"{tmp_path} {name}")({"image": path})
        assert steps.calls == calls


def test_a_folder_is_prepared_anew_when_one_of_its_files_changes(tmp_path):
    asked = []
    remembered = RememberedImaged(transform=lambda data: asked.append(data) or {"image": MetaTensor(torch.zeros(1))})
    for seed, calls in ((0, 1), (0, 1), (1, 2)):
        save(tmp_path / "slice.png", seed)
        remembered({"image": str(tmp_path)})
        assert len(asked) == calls
