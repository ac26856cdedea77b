# SPDX-License-Identifier: Apache-2.0
"""What a request leaves in the folder for temporary files goes with its answer, whether it was served or refused.

Its JSON is looked at before.
"""

from __future__ import annotations

import inspect
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from fastapi.responses import FileResponse
from monailabel.endpoints import datastore, infer, session, wsi_infer
from starlette.background import BackgroundTask

from monai_kdsam.label.gate import read_params

__all__ = ["tidy_up"]

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
