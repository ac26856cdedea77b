# SPDX-License-Identifier: Apache-2.0
"""Files: written whole or not at all, and told apart by their content."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import math
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from monai_kdsam.errors import UserError, UserFileError

__all__ = [
    "ROOM",
    "check_writable",
    "file_sha256",
    "is_unicode",
    "remembered_sha256",
    "replacing",
    "scratch_folder",
    "within",
    "write_text",
    "write_texts",
]


# Seconds. Nobody writes for so long; a number of a process says nothing on a disk that several machines share.
LEFTOVER_AGE = 3600.0
_swept: dict[Path, float] = {}
ROOM = "Free some space or name a writable folder."


@contextlib.contextmanager
def replacing(path: Path, remedy: str) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` once the block has ended well.

    Its content is on the disk before it does, so that a power cut does not leave a file of the right name and wrong
    content. The name is hidden and has the machine's name and the process's number: two processes never write to one
    file. What killed processes left is removed when it is older than `LEFTOVER_AGE`.

    Args:
        path: of the file; its folder is created.
        remedy: a sentence for the error message: what the user can do.

    Raises:
        OSError: when the disk is full or the folder is not writable; the old file is kept.
    """
    # A name may have 255 bytes.
    stored = os.fsencode(path.name)  # which may be no UTF-8
    name = path.name if len(stored) < 160 else hashlib.sha256(stored).hexdigest()
    unfinished = path.with_name(f".{name}.{platform.node()}-{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        with open(unfinished, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        _remove_leftovers(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        # torch reports a full disk as a RuntimeError, safetensors as an error of its own.
        if isinstance(error, (OSError, RuntimeError)) or type(error).__name__ == "SafetensorError":
            reason = getattr(error, "strerror", None) or error
            raise UserFileError(f"Cannot write {path}: {reason}. {remedy}") from error
        raise


def write_text(path: Path, text: str) -> Path:
    """Write a file, in UTF-8, at once or not at all."""
    write_texts({path: text})
    return path


def write_texts(texts: Mapping[Path, str]) -> None:
    """Write files that belong together: all of them are whole on the disk before the first one is replaced."""
    with contextlib.ExitStack() as stack:
        for path, text in texts.items():
            unfinished = stack.enter_context(replacing(path, ROOM))
            # A file's name that is no UTF-8 may be in it.
            unfinished.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


def check_writable(folder: Path, name: str) -> None:
    """Raise an OSError if no file can be made in a folder, which is created: before the hours of work, not after.

    Args:
        folder: to look at.
        name: of the setting that says so, for the message.
    """
    probe = folder / f".{platform.node()}-{os.getpid()}.probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserFileError(f"Cannot write to `{name}` {folder}: {error.strerror}. Choose another one.") from error


@contextlib.contextmanager
def scratch_folder(parent: Path, name: str) -> Iterator[Path]:
    """A hidden folder for what is not finished yet, removed at the end; what is finished is moved out of it.

    It is locked as long as this process lives. What killed processes have left of this name is removed at the start.

    Args:
        parent: its folder, which is created.
        name: part of its name.

    Raises:
        OSError: when the disk is full or the folder is not writable.
    """
    import fcntl  # not on Windows, where only the prediction from exported files is expected to run

    try:
        parent.mkdir(parents=True, exist_ok=True)
        for leftover in parent.glob(f".{glob.escape(name)}.*.part"):
            with contextlib.suppress(OSError), _opened(leftover) as abandoned:
                fcntl.flock(abandoned, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(leftover)
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=f".{name}."))
    except OSError as error:
        raise UserFileError(f"Cannot write to {parent}: {error.strerror}. {ROOM}") from error
    try:
        with _opened(folder) as lock:
            with contextlib.suppress(OSError):  # not every network disk has locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            folder = folder.rename(folder.with_name(f"{folder.name}.part"))  # only now others may look at it
            yield folder
    except Exception as error:
        # What is full is told in many ways: torch and OpenVINO raise errors of other kinds, some when they read again.
        is_full = shutil.disk_usage(parent).free < 2**20
        if is_full or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            reason = os.strerror(errno.ENOSPC) if is_full else getattr(error, "strerror", error)
            raise UserFileError(f"Cannot write to {parent}: {reason}. {ROOM}") from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def is_unicode(name: str) -> bool:
    """Whether a file's name can be told to clients and stored in a list; those of old disks may have other bytes."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def within(folder: Path, name: str) -> Path:
    """The path in a folder of a name that came from outside.

    Raises:
        ValueError: when it leads out of the folder.
    """
    path = folder / name
    if folder.resolve() not in path.resolve().parents:
        raise UserError(f"Expected a name in {folder}, got {name!r}, which leads out of it.")
    return path


def _remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed have left, once in a while: a folder may have 100 000 files."""
    if time.monotonic() - _swept.get(folder, -math.inf) < LEFTOVER_AGE:
        return
    _swept[folder] = time.monotonic()
    for leftover in folder.glob(".*.part"):
        with contextlib.suppress(OSError):  # another process was faster; or a folder, see `scratch_folder`
            if time.time() - leftover.stat().st_mtime > LEFTOVER_AGE:
                leftover.unlink()


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file in hexadecimal, read piece by piece.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def remembered_sha256(path: str | Path) -> str:
    """`file_sha256` of a file that is not read again as long as its times, size and place on the disk are the same."""
    status = os.stat(path)
    if time.time() - status.st_mtime < 2:  # what has just been written may be written again within the clock's grain
        return file_sha256(path)
    return _sha256_at(os.path.abspath(path), (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino))


@lru_cache(maxsize=4096)
def _sha256_at(path: str, state: tuple[int, ...]) -> str:
    return file_sha256(path)
