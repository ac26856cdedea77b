# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import monai_kdsam
from monai_kdsam.files import LEFTOVER_AGE, replacing, scratch_folder, within, write_texts


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


def test_of_a_killed_process_the_next_one_removes_the_folder_and_of_a_living_one_not(tmp_path) -> None:
    code = f"""
        import os, signal
        from pathlib import Path
        from monai_kdsam.files import scratch_folder
        with scratch_folder(Path({str(tmp_path)!r}), "export") as folder:
            (folder / "half").write_text("")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(code)]).returncode == -signal.SIGKILL
    (killed,) = tmp_path.iterdir()
    with scratch_folder(tmp_path, "export") as first, scratch_folder(tmp_path, "export") as second:
        assert not killed.exists()
        assert {first, second} == set(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OSError, match=r"Cannot write to .*file: .*name a writable folder"),
        scratch_folder(tmp_path / "file", "export"),
    ):
        pytest.fail("there is no such folder")
    with pytest.raises(OSError, match=r"Cannot write to .*: No space left"), scratch_folder(tmp_path, "export"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(PermissionError, match="of an input"), scratch_folder(tmp_path, "export"):
        raise PermissionError(errno.EACCES, "of an input")


@pytest.mark.parametrize("name", ["../b", "/b", "..", ".", "a/../../b", "link/b"])
def test_a_name_from_outside_leads_nowhere_else(tmp_path, name) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    assert within(folder, "1.2.3") == folder / "1.2.3"
    with pytest.raises(ValueError, match="which leads out of it"):
        within(folder, name)


def test_what_killed_processes_left_is_removed_and_what_another_one_writes_now_is_not(tmp_path) -> None:
    path = tmp_path / "model.pt"
    left, writing = tmp_path / ".model.pt.1.part", tmp_path / ".model.pt.2.part"
    for file in (left, writing):
        file.write_text("half")
    os.utime(left, (time.time() - LEFTOVER_AGE - 1,) * 2)
    write(path, "new")
    assert not left.exists()
    assert writing.exists()


def test_names_that_are_no_unicode_are_written(tmp_path) -> None:
    name = os.fsdecode(b"Gr\xf6\xdfe.csv")
    write_texts({tmp_path / name: f"ü,{name}"})
    assert (tmp_path / name).read_text(encoding="utf-8") == "ü,Gr\\udcf6\\udcdfe.csv"


def test_files_that_belong_together_are_replaced_together_or_not_at_all(tmp_path, monkeypatch) -> None:
    table, page = tmp_path / "cases.csv", tmp_path / "report.html"
    write_texts({table: "old table\r\n", page: "old page"})

    def full(self, text, *args, write=Path.write_text, **kwargs):
        if "page" in text:
            raise OSError(28, "No space left on device")
        return write(self, text, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match=r"Cannot write .*report\.html: No space left on device\. Free some space"):
            write_texts({table: "new table", page: "new page"})
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {
        "cases.csv": b"old table\r\n",
        "report.html": b"old page",
    }


# Who writes a file otherwise, and why no old content can be lost by it.
OWN_WAY = {
    "files.py": "is the way",
    "weights/download.py": "appends to a part of a download, which is renamed when it is whole",
    "processes.py": "torchrun's file of errors, at the end of a process that failed",
}


def test_what_replaces_a_file_writes_beside_it_first() -> None:
    opening = re.compile(r"""open\([^)]*["'][wax]b?["']|(?<!unfinished)(?<!part)\.write_(?:text|bytes)\(""")
    package = Path(monai_kdsam.__file__).parent
    found = {
        f"{file.relative_to(package)}:{number}"
        for file in package.rglob("*.py")
        if file.relative_to(package).as_posix() not in OWN_WAY
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if opening.search(line)
    }
    assert found == set()
