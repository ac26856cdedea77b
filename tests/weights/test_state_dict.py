# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from monai_kdsam.weights.state_dict import load_tensors, read_state_dict

STATE = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.tensor([1.0, -1.0])}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def parallel(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{name}": value for name, value in state.items()}


# --- layouts

LAYOUTS = {
    "raw": STATE,
    "under model": {"model": STATE, "epoch": 3, "optimizer": {"state": {}}},
    "under state_dict": {"state_dict": STATE},
    "under network": {"network": STATE},
    "under model_state_dict": {"model_state_dict": STATE, "best": np.float64(0.5), "epoch": np.int64(3)},
    "data-parallel": parallel(STATE),
    "compiled": {f"_orig_mod.{name}": value for name, value in STATE.items()},
    "compiled and data-parallel": {f"_orig_mod.module.{name}": value for name, value in STATE.items()},
    "of a class around SAM": {"state_dict": {f"model.sam.{name}": value for name, value in STATE.items()}},
    "data-parallel under model": {"model": parallel(STATE), "iteration": 9},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before PyTorch 1.6"])
def test_every_layout_gives_the_same_state(tmp_path, layout, zipped) -> None:
    torch.save(LAYOUTS[layout], tmp_path / "weights.pt", _use_new_zipfile_serialization=zipped)
    assert equal(read_state_dict(tmp_path / "weights.pt"), STATE)


def test_safetensors_give_the_same_state(tmp_path) -> None:
    save_file(STATE, tmp_path / "weights.safetensors")
    assert equal(read_state_dict(tmp_path / "weights.safetensors"), STATE)
    (tmp_path / "weights.safetensors").write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"Cannot read .*weights\.safetensors as PyTorch weights"):
        read_state_dict(tmp_path / "weights.safetensors")


@pytest.mark.parametrize(
    ("content", "held"),
    [
        (torch.zeros(3), "Tensor"),
        ([torch.zeros(3)], "list"),
        ({}, "a dictionary of nothing"),
        ({"epoch": 3}, "a dictionary of epoch"),
        ({"weights": STATE, "optimizer": {}, "best_loss": np.float32(0.1)}, "a dictionary of weights, optimizer, best"),
        (dict.fromkeys(map(str, range(10)), 1), "a dictionary of 0, 1, 2, 3, 4, 5, 6, 7 and 2 more"),
    ],
)
def test_a_file_of_something_else_is_refused_and_told_by_its_keys(tmp_path, content, held) -> None:
    torch.save(content, tmp_path / "weights.pt")
    text = rf"Expected .*weights\.pt to hold a state_dict of tensors, or one under model, .*; got {held}"
    with pytest.raises(ValueError, match=text):
        read_state_dict(tmp_path / "weights.pt")


def test_a_prefix_that_not_all_names_have_belongs_to_them(tmp_path) -> None:
    state = {"model.a": STATE["layer.bias"], "b": STATE["layer.bias"]}
    torch.save(state, tmp_path / "weights.pt")
    assert equal(read_state_dict(tmp_path / "weights.pt"), state)


# --- damage


def test_a_missing_file_names_the_command_that_fetches_it(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"Run: python -m monai_kdsam download sam_vit_b --dir"):
        read_state_dict(tmp_path / "sam_vit_b_01ec64.pth")
    with pytest.raises(FileNotFoundError, match=r"It is a folder: name the file in it"):
        read_state_dict(tmp_path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    "content",
    [b"", b"<!DOCTYPE html><html>404</html>", b"PK\x03\x04 and no more", pickle.dumps({"epoch": 3}), b"\x80\x02K"],
    ids=["empty", "web page", "broken zip", "another pickle", "broken pickle"],
)
def test_a_file_that_is_no_checkpoint_is_told_in_one_line_without_the_advice_to_execute_it(tmp_path, content) -> None:
    (tmp_path / "weights.pt").write_bytes(content)
    text = r"Cannot read .*weights\.pt as PyTorch weights: .+\. If it was downloaded, it is damaged: delete it and"
    with pytest.raises(ValueError, match=text) as caught:
        read_state_dict(tmp_path / "weights.pt")
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before PyTorch 1.6"])
def test_whatever_the_damage_it_is_a_value_error(tmp_path, zipped) -> None:
    buffer, path, rng = io.BytesIO(), tmp_path / "weights.pt", random.Random(0)
    torch.save(STATE, buffer, _use_new_zipfile_serialization=zipped)
    whole, refused = buffer.getvalue(), 0
    for _ in range(150):
        data = bytearray(whole[: rng.randrange(len(whole))] if rng.random() < 0.5 else whole)
        for position in rng.sample(range(len(data)), min(3, len(data))):
            data[position] = rng.randrange(256)
        path.write_bytes(data)
        try:
            load_tensors(path)  # what is damaged beyond the tensors' own numbers is noticed
        except ValueError:
            refused += 1
    assert refused > 75


def test_every_flipped_bit_of_a_tensor_is_noticed(tmp_path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(STATE, path)
    whole = path.read_bytes()
    first = whole.index(STATE["layer.weight"].numpy().tobytes())
    for byte in range(first, first + STATE["layer.weight"].nbytes):
        path.write_bytes(whole[:byte] + bytes([whole[byte] ^ 1]) + whole[byte + 1 :])
        with pytest.raises(ValueError, match=r"its part weights/data/\d is not what was written"):
            read_state_dict(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_an_error_that_names_the_tensor(tmp_path, value) -> None:
    state = {**STATE, "layer.bias": torch.tensor([1.0, value])}
    torch.save(state, tmp_path / "sam.pt")
    with pytest.raises(ValueError, match=r"sam\.pt are not finite: layer\.bias holds NaN"):
        read_state_dict(tmp_path / "sam.pt")


class Trap:
    """An object whose unpickling writes a file."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self):
        return Path.touch, (self.sprung,)


def test_a_file_that_would_execute_something_is_refused_without_executing_it(tmp_path) -> None:
    path, sprung = tmp_path / "weights.pt", tmp_path / "sprung"
    torch.save({"model": STATE, "extra": Trap(sprung)}, path)
    with pytest.raises(ValueError, match=r"Cannot read .*weights\.pt .*: it holds other objects than tensors \(.+\)\."):
        read_state_dict(path)
    assert not sprung.exists()
    torch.load(path, weights_only=False)
    assert sprung.exists()  # the trap works; only we did not step into it
