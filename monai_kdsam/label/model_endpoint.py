# SPDX-License-Identifier: Apache-2.0
"""`PUT` and `DELETE /model/MODEL`: refused, unless the server was started with `--allow-model-upload`.

MONAI Label's own copy whatever comes over the bundle's weights, and take the file away.
"""

from __future__ import annotations

import copy
import shutil
import tempfile
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, HTTPException, UploadFile
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.others.generic import file_checksum, strtobool

from monai_kdsam.networks import load_weights
from monai_kdsam.weights.sidecar import copy_with_sidecar

__all__ = ["router"]

router = APIRouter(prefix="/model", tags=["Model"])
REMEDY = "Free disk space; the weights that are served are as they were."
ADMIN = RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN)


@router.put("/{model}", summary="Replace the weights of a model")
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


@router.delete("/{model}", summary="Refused")
async def api_delete_model(model: str, user: User = Depends(ADMIN)) -> None:  # noqa: B008 - as FastAPI has it
    """Tell that weights are not deleted from afar."""
    raise HTTPException(403, "This server deletes no weights: that is done where they lie.")
