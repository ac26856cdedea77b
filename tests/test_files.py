# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from monai_kdsam.files import LEFTOVER_AGE, replacing


def write(path: Path, content: str, error: BaseException | None = None) -> None:
    with replacing(path, "Free disk space.") as unfinished:
        unfinished.write_text(content)
        if error is not None:
            raise error


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("unexpected pos 64 vs 0")])
def test_a_write_that_fails_halfway_keeps_the_old_file_and_leaves_nothing_behind(tmp_path, error) -> None:
    path = tmp_path / "model.pt"
    write(path, "old")
    with pytest.raises(
        OSError, match=r"Cannot write .*model\.pt: .*(No space left|unexpected pos).* Free disk space\."
    ):
        write(path, "half", error)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]


def test_an_interruption_keeps_the_old_file_and_stays_an_interruption(tmp_path) -> None:
    path = tmp_path / "model.pt"
    write(path, "old")
    with pytest.raises(KeyboardInterrupt):
        write(path, "half", KeyboardInterrupt())
    assert path.read_text() == "old"


def test_an_error_of_the_content_is_not_blamed_on_the_disk(tmp_path) -> None:
    with pytest.raises(ValueError, match="three masks"):
        write(tmp_path / "model.pt", "half", ValueError("three masks"))


def test_a_folder_that_cannot_be_made_is_told(tmp_path) -> None:
    (tmp_path / "models").write_text("a file where the folder should be")
    with pytest.raises(OSError, match=r"Cannot write .*model\.pt: "):
        write(tmp_path / "models" / "model.pt", "new")


def test_a_write_makes_its_folder_and_replaces_what_was_there(tmp_path) -> None:
    path = tmp_path / "new" / "models" / "model.pt"
    for content in ("one", "two"):
        write(path, content)
    assert path.read_text() == "two"


def test_what_killed_processes_left_is_removed_and_what_another_one_writes_now_is_not(tmp_path) -> None:
    path = tmp_path / "model.pt"
    left, writing = tmp_path / ".model.pt.1.part", tmp_path / ".model.pt.2.part"
    for file in (left, writing):
        file.write_text("half")
    os.utime(left, (time.time() - LEFTOVER_AGE - 1,) * 2)
    write(path, "new")
    assert not left.exists()
    assert writing.exists()
