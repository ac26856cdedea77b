# SPDX-License-Identifier: Apache-2.0
"""How errors are told: what a user can mend in one line, a defect with its traceback."""

from __future__ import annotations

import dis
import errno
import os
import re
import sys
from pathlib import Path
from types import TracebackType

from monai_kdsam.processes import tell_torchrun

__all__ = ["find_mistake", "report_error"]

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES}


def report_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Exception hook: what a user can mend is told in one line, without MONAI's chain of wrapping errors.

    Errors that this package raised on purpose come from its own code; anything else keeps its full traceback.
    `KDSAM_TRACEBACK=1` shows every traceback.
    """
    mistake = find_mistake(error)
    message = str(mistake) if mistake else _from_worker(_causes(error)[-1])
    if message and not os.environ.get("KDSAM_TRACEBACK"):
        sys.stderr.write(f"monai_kdsam: error: {message}\n")
        tell_torchrun(message)
    else:
        sys.__excepthook__(kind, error, trace)


def find_mistake(error: BaseException) -> BaseException | None:
    """What a user can mend, among an error and its causes.

    The first that this package raised on purpose, or a disk without room or permission, whoever met it.
    """
    kinds = (ValueError, TypeError, OSError, ArithmeticError, RuntimeError)
    return next(
        (cause for cause in _causes(error) if (isinstance(cause, kinds) and _raised_here(cause)) or _is_of_disk(cause)),
        None,
    )


def _is_ours(error: BaseException) -> bool:
    kinds = (ValueError, TypeError, OSError, ArithmeticError, RuntimeError)
    return isinstance(error, kinds) and _raised_here(error)


def _is_of_disk(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in DISK_ERRORS


def _causes(error: BaseException) -> list[BaseException]:
    """The error, what it was raised from, and so on."""
    causes = [error]
    while (following := causes[-1].__cause__ or causes[-1].__context__) is not None:
        if any(following is cause for cause in causes):
            break
        causes.append(following)
    return causes


def _from_worker(error: BaseException) -> str:
    """The message of a deliberate error of ours in a DataLoader's worker, of which only the text comes through."""
    text = str(error)
    if not re.match(r"Caught \w+ in DataLoader worker", text):
        return ""
    for link in re.split(r"\n\n(?:The above exception|During handling)[^\n]*\n\n", text):
        steps = re.findall(r'File "([^"]+)", line \d+, in \w+\n +(.+)', link)
        if steps and Path(steps[-1][0]).is_relative_to(Path(__file__).parent) and steps[-1][1].startswith("raise"):
            return re.sub(r"(?s)^.*\n(?:\w+\.)*\w*(?:Error|Exception): ", "", link).strip()
    return ""


def _raised_here(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    code = trace.tb_frame.f_code
    # A `raise` statement is deliberate; the same exception out of another operation is a defect of ours.
    on_purpose = code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    return on_purpose and Path(code.co_filename).is_relative_to(Path(__file__).parent)
