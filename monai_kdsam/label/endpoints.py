# SPDX-License-Identifier: Apache-2.0
"""`POST /train/MODEL`, with mistakes told at once and a server that goes on answering.

MONAI Label's own runs a synchronous training inside its event loop, where no other request is answered until it has
ended, and tells of a mistake in the log of a background process alone.
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Depends, HTTPException
from fastapi.concurrency import run_in_threadpool
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.async_tasks.task import AsyncTask

from monai_kdsam.label.learning_app import is_busy
from monai_kdsam.label.tasks import LearnTask

__all__ = ["router"]

router = APIRouter(prefix="/train", tags=["Train"])


@router.post("/{model}", summary="Run Training Task for specific model")
async def api_run_model(
    model: str,
    params: dict[str, Any] | None = None,
    run_sync: bool = False,
    enqueue: bool = False,
    user: User = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN)),  # noqa: B008 - as FastAPI has it
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
