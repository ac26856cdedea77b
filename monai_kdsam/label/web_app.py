# SPDX-License-Identifier: Apache-2.0
"""MONAI Label's own web application, with answers that tell a client what was wrong, and DICOM as archives have it.

For `monailabel start_server --uvicorn_app monai_kdsam.label.web_app:app`. Without it the server answers every
mistake with "Internal Server Error", and the reason stands in its log alone; see `write_dicom_seg` for its DICOM SEG.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import itk
import monailabel.endpoints.infer
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from monailabel.app import app
from monailabel.config import settings
from monailabel.interfaces.exception import MONAILabelException
from monailabel.utils.async_tasks.task import AsyncTask
from requests import RequestException
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.middleware import Middleware
from starlette.types import ASGIApp

from monai_kdsam.errors import UserError, find_mistake
from monai_kdsam.label import endpoints
from monai_kdsam.label.app import SERVER
from monai_kdsam.label.dicom_seg import write_dicom_seg
from monai_kdsam.label.gate import Gate, check_params
from monai_kdsam.label.uploads import tidy_up

__all__ = ["app"]

# By name, as in `app`, for what is not left to an app.
monailabel.endpoints.infer.nifti_to_dicom_seg = write_dicom_seg
tidy_up()

logger = logging.getLogger(__name__)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What MONAI Label answers by 500 although the client can mend it, and what is to be mended.
MISTAKES = {
    "DICOM SEG format is not supported in a non-DICOM datastore": "Expected `output` to be image, json or all, got "
    "dicom_seg, which refers to images in a DICOMweb archive; these studies are a folder.",
    "Neither Image nor File not Session ID input is provided": "Expected `image`, `file` or `session_id`, got none.",
}
UPLOAD = re.compile(r"\btmp[a-z0-9_]{8}(\.\w+)*")  # the server's name for one
FOLDERS = re.compile(r"(?<![\w.:/-])/(?:[^/\s'\",;]+/)+")


def gate(behind: ASGIApp) -> Gate:
    """The gate, with what the command line allows; the address list of MONAI Label's own setting counts as well."""
    conf = settings.MONAI_LABEL_APP_CONF
    origins = [*conf.get("allow_origin", "").split(), *(str(url) for url in settings.MONAI_LABEL_CORS_ORIGINS)]
    return Gate(behind, origins=origins, max_upload=int(conf.get("max_upload", 2**30)))


run_task = AsyncTask.run


def run_checked_task(method: str, request: Any = None, params: Any = None, **others: Any) -> Any:
    """Start a task; what is imported in its process is not for clients to say."""
    check_params(request or {})
    check_params(params or {})
    if "bundle_path" in {**(request or {}), **(params or {})}:
        raise UserError("Expected parameters without `bundle_path`, which is the server's own.")
    return run_task(method, request=request, params=params, **others)


AsyncTask.run = staticmethod(run_checked_task)


def without_folders(text: str) -> str:
    """A message for clients, to whom the folders of this machine are no concern."""
    bundles = [file.resolve().parent for file in Path(settings.MONAI_LABEL_APP_DIR, "model").glob("*/configs")]
    known = [settings.MONAI_LABEL_STUDIES, settings.MONAI_LABEL_APP_DIR, tempfile.gettempdir(), *map(str, bundles)]
    for folder in sorted(filter(None, known), key=len, reverse=True):
        text = text.replace(f"{folder}{os.sep}", "")
    return FOLDERS.sub("", text)


def _answer(status: int, detail: str) -> JSONResponse:
    told = without_folders(detail)
    if told != detail:
        logger.warning("Answered %d: %s", status, detail)
    return JSONResponse({"detail": told}, status_code=status)


def _no_room(error: BaseException | None) -> str:
    """What was not written, if an error or one that it was raised from tells of a full disk."""
    text = ""
    while error is not None:
        text = text or str(error)
        if isinstance(error, OSError) and error.errno in FULL:
            return f"There is no room on the server's disk. {text}"
        error = error.__cause__ or error.__context__
    return ""


async def answer_mistake(request: Request, error: Exception) -> JSONResponse:
    """400 for what the client can mend, 404 for no such image, 502 for the archive's, 507; a defect is raised again."""
    if no_room := _no_room(error):
        return _answer(507, no_room)
    mistake = find_mistake(error)
    if isinstance(mistake, FileNotFoundError):
        image = request.query_params.get("image")
        return _answer(404, f"There is no image {image!r} among the studies." if image else str(mistake))
    if mistake is not None:
        image = request.query_params.get("image") or "the upload"
        return _answer(400, UPLOAD.sub(lambda _: image, str(mistake)))
    if isinstance(error, RequestException):
        return _answer(502, f"The DICOMweb server did not answer as expected: {error}")
    if isinstance(error, (ValueError, RecursionError)) and "/infer/wsi" in request.url.path:  # of its `wsi`
        return _answer(400, f"Expected JSON of another kind: {str(error)[:300]}.")
    if isinstance(error, MONAILabelException):
        return _answer(400, str(error.msg))
    raise error


async def answer_refusal(request: Request, error: HTTPException) -> JSONResponse:
    """What an endpoint answers on purpose, unless it could not take in the request for want of room."""
    no_room = _no_room(error)
    mistake = MISTAKES.get(str(error.detail), "")
    status = 507 if no_room else 400 if mistake else error.status_code
    answer = _answer(status, no_room or mistake or str(error.detail))
    answer.headers.update(error.headers or {})
    return answer


async def answer_defect(request: Request, error: Exception) -> JSONResponse:
    """500 with the error's own text; its traceback is in the server's log."""
    return _answer(500, f"The server could not do this: {type(error).__name__}: {error}")


serve_requests = app.router.lifespan_context


@asynccontextmanager
async def lifespan(server: FastAPI) -> AsyncIterator[None]:
    """The server's own, and at its end no training or scoring goes on without it."""
    os.environ[SERVER] = str(os.getpid())
    # MONAI Label writes masks by ITK, whose parts load as they are asked for: seconds that the first client waited. Not
    # beside the first requests: ITK changes the working directory and the path of modules while it loads.
    _ = itk.ImageFileWriter
    async with serve_requests(server):
        yield
    for method in ("train", "scoring"):
        AsyncTask.stop(method)


app.router.lifespan_context = lifespan
# MONAI Label's only one lets in every origin.
app.user_middleware[:] = [Middleware(gate)]
# Before the server's own routes of the same paths.
app.router.routes[:0] = endpoints.router.routes
app.add_exception_handler(AnyHTTPException, answer_refusal)
for kind in (ValueError, TypeError, OSError, ArithmeticError, RuntimeError, MONAILabelException):
    app.add_exception_handler(kind, answer_mistake)
app.add_exception_handler(Exception, answer_defect)
