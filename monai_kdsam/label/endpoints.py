# SPDX-License-Identifier: Apache-2.0
"""The requests that train and that exchange weights, in the place of MONAI Label's own.

`POST /train/MODEL` tells mistakes at once, and the server goes on answering: the original runs a synchronous training
inside the event loop, and tells of a mistake in the log of a background process alone. `PUT` and `DELETE /model/MODEL`
are refused unless the server was started with `--allow-model-upload`: the original copy whatever comes over the
bundle's weights, and take the file away.
"""

from __future__ import annotations

import asyncio
import copy
import shutil
import tempfile
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, HTTPException, UploadFile
from fastapi.concurrency import run_in_threadpool
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.async_tasks.task import AsyncTask
from monailabel.utils.others.generic import file_checksum, strtobool

from monai_kdsam.label.app import is_busy
from monai_kdsam.label.learn_task import LearnTask
from monai_kdsam.networks import load_weights
from monai_kdsam.weights.sidecar import copy_with_sidecar

__all__ = ["router"]

router = APIRouter()
REMEDY = "Free disk space; the weights that are served are as they were."
ADMIN = RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN)


@router.post("/train/{model}", tags=["Train"], summary="Run Training Task for specific model")
async def api_run_model(
    model: str,
    params: dict[str, Any] | None = None,
    run_sync: bool = False,
    enqueue: bool = False,
    user: User = Depends(ADMIN),  # noqa: B008 - as FastAPI has it
) -> dict[str, Any]:
    """Start a training in the background; with `run_sync` answer when it has ended, with its report."""
    app = app_instance()
    task = app._trainers.get(model)
    if task is None:
        raise HTTPException(404, f"There is no model {model!r} that can be trained.")
    if isinstance(task, LearnTask):
        await run_in_threadpool(task.check, params or {}, app.datastore())
    if is_busy("train") and not enqueue:
        raise HTTPException(429, "A training is running already. Wait for its end, or stop it with DELETE /train.")
    if isinstance(task, LearnTask) and not is_busy("train"):
        with task.alone():
            pass
    running, detail = AsyncTask.run("train", request={"model": model}, params=params, enqueue=enqueue)
    if running is None:
        raise HTTPException(429, detail)
    if not run_sync:
        return dict(running)
    while running["status"] in ("SUBMITTED", "RUNNING"):
        await asyncio.sleep(0.2)
    return _result(running, task)


def _result(ended: dict[str, Any], task: Any) -> dict[str, Any]:
    report: dict[str, Any] = task.stats()
    if ended["status"] == "DONE":
        return report
    if ended["status"] == "STOPPED":
        raise HTTPException(409, "The training was stopped; the served weights are as they were.")
    reason = report.get("error") or " ".join(list(ended["details"])[-1:])
    raise HTTPException(400 if report.get("is_mistake") else 500, f"The training failed: {reason}")


@router.put("/model/{model}", tags=["Model"], summary="Replace the weights of a model")
async def api_update_model(model: str, file: UploadFile, user: User = Depends(ADMIN)) -> dict[str, Any]:  # noqa: B008
    """Exchange the weights by verified ones; those before are kept as models/previous.pt."""
    if not strtobool(settings.MONAI_LABEL_APP_CONF.get("allow_model_upload", "false")):
        raise HTTPException(403, "This server takes no weights; start it with `--allow-model-upload` to let it.")
    task = app_instance()._infers.get(model)
    if task is None:
        raise HTTPException(404, f"There is no model {model!r}.")
    with tempfile.NamedTemporaryFile(suffix=".pt") as uploaded:
        shutil.copyfileobj(file.file, uploaded)
        uploaded.flush()
        load_weights(copy.deepcopy(task.network), uploaded.name)
        target = Path(task.path[0]).resolve()
        if target.is_file():
            copy_with_sidecar(target, target.with_name("previous.pt"), remedy=REMEDY)
        copy_with_sidecar(uploaded.name, target, remedy=REMEDY)
    return {"checksum": file_checksum(target), "modified_time": int(target.stat().st_mtime)}


@router.delete("/model/{model}", tags=["Model"], summary="Refused")
async def api_delete_model(model: str, user: User = Depends(ADMIN)) -> None:  # noqa: B008 - as FastAPI has it
    """Tell that weights are not deleted from afar."""
    raise HTTPException(403, "This server deletes no weights: that is done where they lie.")
