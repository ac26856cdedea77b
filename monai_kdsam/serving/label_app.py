# SPDX-License-Identifier: Apache-2.0
"""MONAI Label's own web application, with answers that tell a client what was wrong, and DICOM as archives have it.

For `monailabel start_server --uvicorn_app monai_kdsam.serving.label_app:app`. Without it the server answers every
mistake with "Internal Server Error", and the reason stands in its log alone; see `SeriesDatastore` and
`write_dicom_seg` for what it does with a DICOMweb server.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import monailabel.datastore.dicom
import monailabel.endpoints.infer
import monailabel.interfaces.app
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from monailabel.app import app
from monailabel.interfaces.exception import MONAILabelException
from monailabel.utils.async_tasks.task import AsyncTask
from requests import RequestException

from monai_kdsam.bundles import find_mistake
from monai_kdsam.serving import train_endpoint
from monai_kdsam.serving.dicom_seg import write_dicom_seg
from monai_kdsam.serving.pacs import SeriesDatastore

__all__ = ["app"]

# By name, because MONAI Label 0.8.5 lets an application choose neither of them.
monailabel.interfaces.app.DICOMWebDatastore = SeriesDatastore
monailabel.endpoints.infer.nifti_to_dicom_seg = write_dicom_seg
monailabel.datastore.dicom.nifti_to_dicom_seg = write_dicom_seg


def _answer(status: int, detail: str) -> JSONResponse:
    return JSONResponse({"detail": detail}, status_code=status)


def _raised_in(error: Exception) -> str:
    """The module whose statement failed."""
    *_, last = traceback.walk_tb(error.__traceback__)
    return str(last[0].f_globals["__name__"])


async def answer_mistake(request: Request, error: Exception) -> JSONResponse:
    """400 for what the client can mend, 404 for no such image, 502 for the archive's; a defect is raised again."""
    mistake = find_mistake(error)
    if isinstance(mistake, FileNotFoundError):
        image = request.query_params.get("image")
        return _answer(404, f"There is no image {image!r} among the studies." if image else str(mistake))
    if mistake is not None:
        return _answer(400, str(mistake))
    if isinstance(error, RequestException):
        return _answer(502, f"The DICOMweb server did not answer as expected: {error}")
    if isinstance(error, json.JSONDecodeError):
        return _answer(400, f"Expected `params` to be JSON, got something else: {error}.")
    if isinstance(error, MONAILabelException):
        return _answer(400, str(error.msg))
    if isinstance(error, (TypeError, ValueError)) and _raised_in(error) == monailabel.endpoints.infer.__name__:
        return _answer(400, "Expected `params` to be a JSON object, got JSON of another kind.")
    raise error


async def answer_defect(request: Request, error: Exception) -> JSONResponse:
    """500 with the error's own text; its traceback is in the server's log."""
    return _answer(500, f"The server could not do this: {type(error).__name__}: {error}")


serve_requests = app.router.lifespan_context


@asynccontextmanager
async def lifespan(server: FastAPI) -> AsyncIterator[None]:
    """The server's own, and at its end no training or scoring goes on without it."""
    async with serve_requests(server):
        yield
    for method in ("train", "scoring"):
        AsyncTask.stop(method)


app.router.lifespan_context = lifespan
# Before the server's own route of the same path.
app.router.routes[:0] = train_endpoint.router.routes
for kind in (ValueError, TypeError, OSError, ArithmeticError, RuntimeError, MONAILabelException):
    app.add_exception_handler(kind, answer_mistake)
app.add_exception_handler(Exception, answer_defect)
