# SPDX-License-Identifier: Apache-2.0
"""Errors that a user can mend, and how they are told: in one line; a defect keeps its traceback."""

from __future__ import annotations

import difflib
import errno
import os
import re
import sys
import threading
from collections.abc import Iterable
from types import TracebackType

__all__ = [
    "ExistingFileError",
    "MissingFileError",
    "UserError",
    "UserFileError",
    "did_you_mean",
    "find_mistake",
    "report_error",
    "report_thread_error",
]

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES}


class UserError(ValueError):
    """Something that a user can mend; the message says what was expected and what came."""


class UserFileError(UserError, OSError):
    """A file or folder that cannot be read or written."""


class MissingFileError(UserFileError, FileNotFoundError):
    """A file or folder that is not there."""


class ExistingFileError(UserFileError, FileExistsError):
    """A file or folder that is there already and would be overwritten."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A sentence that names the nearest of the known words, behind a blank; nothing where none is near.

    >>> did_you_mean("epochz", ("epochs", "seed")), did_you_mean("x", ("epochs", "seed"))
    (" Did you mean 'epochs'?", '')
    """
    near = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def report_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Exception hook: what a user can mend is told in one line, without MONAI's chain of wrapping errors.

    `KDSAM_TRACEBACK=1` shows every traceback.
    """
    mistake = find_mistake(error)
    if mistake is None or os.environ.get("KDSAM_TRACEBACK"):
        sys.__excepthook__(kind, error, trace)
        return
    sys.stderr.write(f"monai_kdsam: error: {mistake}\n")
    if "torch" in sys.modules:  # which the exported students' runtime does without
        from monai_kdsam.processes import tell_torchrun

        tell_torchrun(str(mistake))


def report_thread_error(thread: threading.ExceptHookArgs) -> None:
    """Exception hook of threads: what a user can mend is told by who waits for the thread."""
    if thread.exc_value is None or find_mistake(thread.exc_value) is None or os.environ.get("KDSAM_TRACEBACK"):
        threading.__excepthook__(thread)


def find_mistake(error: BaseException) -> BaseException | None:
    """What a user can mend, among an error and its causes.

    The first `UserError`, one that a DataLoader's worker met, or a disk without room or permission.
    """
    for cause in _causes(error):
        if text := _from_worker(cause):
            return UserError(text)
        if isinstance(cause, UserError) or (isinstance(cause, OSError) and cause.errno in DISK_ERRORS):
            return cause
    return None


def _causes(error: BaseException) -> list[BaseException]:
    """The error, what it was raised from, and so on."""
    causes = [error]
    while (following := causes[-1].__cause__ or causes[-1].__context__) is not None:
        if any(following is cause for cause in causes):
            break
        causes.append(following)
    return causes


def _from_worker(error: BaseException) -> str:
    """The message of a `UserError` in a DataLoader's worker, of whose chain of errors only the text comes through."""
    text = str(error)
    if not re.match(r"Caught \w+ in DataLoader worker", text):
        return ""
    told = re.search(r"^monai_kdsam\.[\w.]+: (.*?)(?=\n\n(?:The above|During handling)|\Z)", text, re.M | re.S)
    return told[1].strip() if told else ""
