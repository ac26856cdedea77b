# SPDX-License-Identifier: Apache-2.0
"""What clients upload: sessions within their folder and within bounds, and what goes with its answer.

A request leaves nothing in the folder for temporary files, whether it was served or refused; its JSON is looked at
first.
"""

from __future__ import annotations

import inspect
import lzma
import os
import re
import shutil
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path, PurePosixPath
from typing import Any

from fastapi import HTTPException
from fastapi.responses import FileResponse
from monailabel.endpoints import datastore, infer, session, wsi_infer
from monailabel.utils.sessions import SessionInfo, Sessions
from starlette.background import BackgroundTask

from monai_kdsam.errors import UserError
from monai_kdsam.label.gate import read_params

__all__ = ["BoundedSessions", "tidy_up"]

DAMAGED = (zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, RuntimeError)


class BoundedSessions(Sessions):
    """Sessions that are named by UUIDs, keep archives where they are unpacked, and hold no more than they may.

    Args:
        path: folder.
        expiry: seconds for which a session that nobody uses is kept.
        max_bytes: what all sessions together may hold.
    """

    def __init__(self, path: str, expiry: int, max_bytes: int) -> None:
        super().__init__(path, expiry)
        self.max_bytes = max_bytes

    def get_session(self, session_id: str, update_ts: bool = True, fetch_cache: bool = True) -> SessionInfo | None:
        """A session, if there is one of that name; nothing else is a path of the folder."""
        found: SessionInfo | None = (
            super().get_session(session_id, update_ts, fetch_cache) if _is_id(session_id) else None
        )
        return found

    def remove_expired(self) -> int:
        """Remove what nobody has used for long, and what no longer is a session."""
        root = Path(self.store_path)
        found = {path.name: self.get_session(path.name, False, False) for path in root.glob("*") if _is_id(path.name)}
        now = time.time()
        old = [name for name, info in found.items() if info is None or info.last_access_ts + info.expiry < now]
        for name in old:
            self.remove_session(name)
        return len(old)

    def add_session(
        self, data_file: str, expiry: int = 0, uncompress: bool = False, session_id: str | None = None
    ) -> tuple[str, SessionInfo]:
        """Take a file or a folder over as a session.

        Raises:
            ValueError: when an archive is damaged or has members that are no files of its own folder.
            HTTPException: 413, when sessions would hold more than they may.
        """
        self.remove_expired()
        room = self.max_bytes - _size(Path(self.store_path))
        if uncompress and Path(data_file).is_file():
            folder = tempfile.mkdtemp()
            _unpack(data_file, folder, room)
            data_file = folder
        if _size(Path(data_file)) > room:
            raise HTTPException(413, _full())
        added: tuple[str, SessionInfo] = super().add_session(data_file, expiry, session_id=session_id)
        return added


def _is_id(name: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", name) is not None


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.rglob("*") if f.is_file())


def _full() -> str:
    return "The sessions hold as much as they may; `--max-sessions` sets the limit. Try again when some have expired."


def _unpack(archive: str, folder: str, room: int) -> None:
    try:
        with tarfile.open(archive) if tarfile.is_tarfile(archive) else zipfile.ZipFile(archive) as opened:
            left = room
            for name, size in _members(opened):
                if PurePosixPath(name).is_absolute() or {"..", ""} & set(re.split(r"[/\\]", name.rstrip("/"))):
                    raise UserError(f"Expected an archive of files in its own folder, got {name[:200]!r} in it.")
                left -= size
                if left < 0:
                    raise HTTPException(413, _full())
            if isinstance(opened, tarfile.TarFile) and hasattr(tarfile, "data_filter"):  # since 3.10.12, 3.11.4
                opened.extraction_filter = tarfile.data_filter
            opened.extractall(folder)
    except DAMAGED as error:
        raise UserError(f"Expected a ZIP or tar archive, got one that is none or damaged: {error}.") from error


def _members(archive: Any) -> Iterator[tuple[str, int]]:
    """Names and sizes; they are looked at one by one, so that a bomb is left before it is read to its end."""
    if isinstance(archive, zipfile.ZipFile):
        yield from ((member.filename, member.file_size) for member in archive.infolist())
        return
    for member in archive:
        if not (member.isreg() or member.isdir()):
            raise UserError(f"Expected an archive of files and folders, got the link or device {member.name[:200]!r}.")
        yield member.name, member.size


# What MONAI Label's endpoints call. None of these waits for anything: what is new after a call was made by it.
CALLED = {
    datastore: (
        *("add_image", "save_label", "update_image_info", "update_label_info"),
        *("download_image", "download_label", "download_dataset"),
    ),
    infer: ("run_inference",),
    session: ("create_session",),
    wsi_infer: ("run_wsi_inference",),
}


def tidy_up() -> None:
    """Have the requests that write temporary files remove them, and refuse JSON that is none.

    In MONAI Label uploads of requests that fail stay where they are, and so does each DICOM SEG and each archive of the
    data set that was sent.
    """
    for module, names in CALLED.items():
        for name in names:
            setattr(module, name, _without_leftovers(getattr(module, name)))


def _without_leftovers(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def answer(*args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(function).bind(*args, **kwargs).arguments
        for name in {"params", "info"} & set(given):
            read_params(given[name], name)
        folder = Path(tempfile.gettempdir())
        before, found = set(os.listdir(folder)), None
        try:
            found = function(*args, **kwargs)
        finally:
            new = [folder / name for name in set(os.listdir(folder)) - before]
            if isinstance(found, FileResponse):  # which is yet to be read
                found.background = BackgroundTask(_remove, new)
            else:
                _remove(new)
        return found

    return answer


def _remove(paths: list[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
