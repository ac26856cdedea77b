# SPDX-License-Identifier: Apache-2.0
"""A user's mistake is told in one line, however it is wrapped; a defect keeps its traceback."""

from __future__ import annotations

import pytest
import torch

from monai_kdsam.bundles import bundle_path
from monai_kdsam.errors import report_error
from monai_kdsam.losses import WeightedSumLoss
from monai_kdsam.transforms import RandPromptd, box_from_mask


def reported(function, capsys) -> str:
    """What the exception hook writes about the error that a function raises."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the caller looks at what is written about it
        function()
    report_error(caught.type, caught.value, caught.tb)
    return capsys.readouterr().err


def wrapped(function):
    """A function whose error is wrapped twice by RuntimeErrors, as MONAI's Compose and ConfigParser do."""

    def inner() -> None:
        try:
            function()
        except Exception as error:
            raise RuntimeError("applying transform <...>") from error

    def outer() -> None:
        try:
            inner()
        except Exception as error:
            raise RuntimeError("Failed to evaluate") from error

    return outer


DELIBERATE = {
    "a ValueError": (lambda: RandPromptd("label", ["scribble"]), "Expected `kinds`"),
    "a FileNotFoundError": (lambda: bundle_path("kdsam"), "Expected a bundle among"),
    "a loss that is not finite": (
        lambda: WeightedSumLoss({"l1": torch.nn.L1Loss()}).report({"loss": float("nan")}),
        "The loss is no longer finite",
    ),
}


def full_disk() -> None:
    raise OSError(28, "No space left on device", "events.out.tfevents")


@pytest.mark.parametrize("wrap", [lambda function: function, wrapped], ids=["bare", "wrapped"])
def test_a_disk_without_room_is_told_in_one_line_whoever_meets_it(wrap, capsys) -> None:
    told = reported(wrap(full_disk), capsys)
    assert told == "monai_kdsam: error: [Errno 28] No space left on device: 'events.out.tfevents'\n"


@pytest.mark.parametrize("wrap", [lambda function: function, wrapped], ids=["bare", "wrapped"])
@pytest.mark.parametrize("name", DELIBERATE)
def test_a_deliberate_error_is_told_in_one_line(name, wrap, capsys) -> None:
    function, text = DELIBERATE[name]
    told = reported(wrap(function), capsys)
    assert told.startswith(f"monai_kdsam: error: {text}")
    assert told.count("\n") == 1


def other_code() -> None:
    raise ValueError("not ours")


@pytest.mark.parametrize("wrap", [lambda function: function, wrapped], ids=["bare", "wrapped"])
@pytest.mark.parametrize(
    ("function", "text"),
    [
        (other_code, "ValueError: not ours"),
        (lambda: box_from_mask(None), "AttributeError: 'NoneType' object has no attribute 'any'"),  # type: ignore[arg-type]
        (lambda: torch.zeros(2) + torch.zeros(3), "RuntimeError: The size of tensor a"),
    ],
    ids=["raised elsewhere", "a defect in our code", "raised by torch"],
)
def test_any_other_error_keeps_its_traceback(function, text, wrap, capsys) -> None:
    told = reported(wrap(function), capsys)
    assert "Traceback (most recent call last)" in told
    assert text in told
    assert "monai_kdsam: error" not in told


def test_a_traceback_can_be_asked_for(capsys, monkeypatch) -> None:
    monkeypatch.setenv("KDSAM_TRACEBACK", "1")
    assert "Traceback (most recent call last)" in reported(lambda: bundle_path("kdsam"), capsys)


def test_an_error_of_ours_in_a_dataloaders_worker_is_told_in_one_line_too(capsys, tmp_path):
    """Of an exception in a worker only the text of its traceback reaches the main process."""
    from monai.data import DataLoader, Dataset
    from monai.transforms import LoadImaged

    from monai_kdsam.data import Image2DReader

    (tmp_path / "broken.png").write_bytes(b"no picture")
    data = Dataset([{"image": str(tmp_path / "broken.png")}], LoadImaged("image", reader=Image2DReader()))
    with pytest.raises(RuntimeError) as error:
        list(DataLoader(data, num_workers=1))
    report_error(type(error.value), error.value, error.value.__traceback__)
    told = capsys.readouterr().err
    assert told.startswith("monai_kdsam: error: ")
    assert "broken.png" in told
    assert "Traceback" not in told
