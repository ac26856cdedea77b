# SPDX-License-Identifier: Apache-2.0
"""MONAI Label's app with requests looked at before anything is done with them.

A request may name an image of the studies, of a session or its own upload, and what the server can write; what it
gets is a whole mask.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import monailabel.datastore.dicom
import monailabel.interfaces.app
import SimpleITK as sitk  # noqa: N813 (its own documentation's alias)
import torch
from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.utils.async_tasks.task import AsyncTask
from monailabel.utils.async_tasks.utils import tasks
from monailabel.utils.others.generic import strtobool

from monai_kdsam.data.paths import PICTURE_SUFFIXES
from monai_kdsam.errors import MissingFileError, UserError, find_mistake
from monai_kdsam.label.active_learning import NAME, LeastSureFirst, UncertaintyScoring, unscored_images
from monai_kdsam.label.app_folder import label_folder
from monai_kdsam.label.archive import SeriesDatastore
from monai_kdsam.label.dicom_seg import write_dicom_seg
from monai_kdsam.label.gate import asked_by, check_params
from monai_kdsam.label.infer_task import CheckedInferTask, check_device
from monai_kdsam.label.learn_task import LearnTask
from monai_kdsam.label.result_geometry import default_extension
from monai_kdsam.label.studies import StudiesDatastore
from monai_kdsam.label.uploads import BoundedSessions

__all__ = ["SERVER", "CheckedApp", "is_busy", "with_learning"]

BACKGROUND = "monailabel.interfaces.utils.app"  # the module that the server starts for a training or a scoring
SERVER = "KDSAM_LABEL_SERVER"  # variable with the number of the server's process, for those that it starts

# By name, because MONAI Label 0.8.5 lets an application choose neither of them; here, because trainings, scoring and
# batches are processes that load the app alone.
monailabel.interfaces.app.DICOMWebDatastore = SeriesDatastore
monailabel.datastore.dicom.nifti_to_dicom_seg = write_dicom_seg

logger = logging.getLogger(__name__)
EXTENSIONS = (*PICTURE_SUFFIXES, ".nii", ".nii.gz", ".nrrd")
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
PICTURE_DTYPES = {".png": ("uint8", "uint16"), ".tif": ("uint8", "uint16"), ".tiff": ("uint8", "uint16")}
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
# Of the server's own programs, not of its clients: masks that are not written, another file of weights, who asks.
INTERNAL = ("skip_writer", "result_write_to_file", "image_path", "latencies", "asked_by")


class CheckedApp(MONAILabelApp):
    """What goes before MONAI Label's app; its `models` are the served bundles."""

    models: Mapping[str, str]

    def init_datastore(self) -> Datastore:
        """The store of a folder; that of an archive is chosen above."""
        if self.studies.startswith(("http://", "https://")):
            return super().init_datastore()
        images = Path(self.studies).resolve()
        labels = label_folder(images, Path(self.app_dir).parent)
        return StudiesDatastore(
            str(labels),
            images_dir="." if labels == images else str(images),
            extensions=settings.MONAI_LABEL_DATASTORE_FILE_EXT,
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
        )

    def init_infers(self) -> dict[str, InferTask]:
        """The bundles that are served."""
        return {name: CheckedInferTask(path, self.conf) for name, path in self.models.items()}

    def _load_sessions(self, load: bool = False) -> BoundedSessions | None:
        most = int(self.conf.get("max_sessions", 4 * 2**30))
        expiry = settings.MONAI_LABEL_SESSION_EXPIRY
        return BoundedSessions(settings.MONAI_LABEL_SESSION_PATH, expiry, most) if load else None

    def infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Segment an image of the studies, of a session, or an upload.

        Raises:
            FileNotFoundError: when it is none of them.
            ValueError: when the request asks for what there is not.
            OSError: when there is no room for the mask.
        """
        check_params(request)
        store = datastore or self.datastore()
        image = request.get("image")
        path = self._find_image(image, store)
        _check_request(request, path)
        # MONAI Label would take the name of an image for a path, if there is such a file where the server was started.
        # An upload has a path of its own, so that nothing that was asked of another one is gone on from.
        who = f"{asked_by()} {path}" if asked_by() else None
        checked = {**request, "image": path, "save_label": False, "asked_by": who}
        result: dict[str, Any] = super().infer(checked, store)
        _check_written(result["file"])
        if request.get("save_label") and path != image:
            tag, info = request.get("label_tag", "original"), {"model": request["model"], "params": result["params"]}
            result["label"] = store.save_label(image, result["file"], tag, info)
        return result

    def infer_wsi(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """As `infer`: no model here is for the parts of a slide."""
        return self.infer(request, datastore)

    def batch_infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """As ever, but for images that are none for the model: they are passed over, and have their `error`.

        On a machine without a GPU the default is not a division by the number of them.

        Raises:
            UserError: when all of them are.
        """
        passed_over: dict[str, BaseException] = {}

        def infer(item: dict[str, Any], store: Datastore) -> dict[str, Any]:
            try:
                return self.infer(item, store)
            except Exception as error:
                mistake = find_mistake(error)
                if not isinstance(mistake, UserError):
                    raise
                passed_over[item["image"]] = mistake
                return {"error": str(mistake)}

        multi_gpu = request.get("multi_gpu", True) and torch.cuda.is_available()
        request = {**request, "multi_gpu": multi_gpu}
        result: dict[str, Any] = self._batch_infer(request, datastore or self.datastore(), infer)
        if passed_over and len(passed_over) == len(result):
            raise UserError(f"None of {len(result)} images was segmented: {next(iter(passed_over.values()))}")
        for image, reason in passed_over.items():
            logger.warning("Passed over %s: %s", image, reason)
        return result

    def _find_image(self, image: Any, store: Datastore) -> str:
        if not isinstance(image, str):
            raise UserError(f"Expected `image` to be a name, got {type(image).__name__}.")
        # Only the server itself has uploads; what it starts in the background has images of the studies.
        if self._server_mode and os.path.isabs(image) and os.path.exists(image):
            own = [Path(tempfile.gettempdir()), *([Path(self._sessions.store_path)] if self._sessions else [])]
            if any(folder.resolve() in Path(image).resolve().parents for folder in own):
                return image
        path = str(store.get_image_uri(image))
        if not path:
            raise MissingFileError("There is no such image.")
        return path


def _check_request(request: Mapping[str, Any], path: str) -> None:
    check_device(request.get("device"))
    extension = request.get("result_extension") or default_extension(path)
    if str(extension).lower() not in EXTENSIONS:
        raise UserError(f"Expected `result_extension` among {', '.join(EXTENSIONS)}, got {extension!r}.")
    dtypes = DTYPES if extension.lower() not in PICTURE_SUFFIXES else PICTURE_DTYPES.get(extension.lower(), ("uint8",))
    if request.get("result_dtype") not in (None, *dtypes):
        raise UserError(
            f"Expected `result_dtype` for {extension} among {', '.join(dtypes)}, got {request['result_dtype']!r}."
        )
    if str(request.get("logging", "INFO")).upper() not in LEVELS:
        raise UserError(f"Expected `logging` among {', '.join(LEVELS)}, got {request['logging']!r}.")
    if request.get("model_filename") not in (None, "model.pt", ["model.pt"]):
        raise UserError(f"Expected `model_filename` to be model.pt, got {request['model_filename']!r}.")
    if request.get("mask_input") is not None:
        raise UserError(
            "Expected a request without `mask_input`: where clicks are added, the last answer is known here."
        )
    for name in INTERNAL:
        if name in request:
            raise UserError(f"Expected a request without `{name}`, which is the server's own.")


def _check_written(file: str) -> None:
    """Read a mask again: ITK says nothing when the disk is full."""
    try:
        whole = os.path.getsize(file) > 0 and sitk.ReadImage(file) is not None
    except (OSError, RuntimeError):
        whole = False
    if not whole:
        Path(file).unlink(missing_ok=True)
        raise OSError(errno.ENOSPC, "The mask could not be written whole: there is no room in the folder `--dir`")


def is_busy(method: str) -> bool:
    """Whether a task of a kind, "train" or "scoring", waits or runs in the background."""
    return any(task["status"] in ("SUBMITTED", "RUNNING") for task in tasks(method))


def with_learning(base: type[MONAILabelApp]) -> type[MONAILabelApp]:
    """Derive an app that learns from corrections and offers the least sure images first.

    Args:
        base: MONAI Label's `monaibundle` app.
    """

    # MONAI Label recognizes an app by this direct base.
    class LearningApp(CheckedApp, base, MONAILabelApp):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            spec = getattr(sys.modules["__main__"], "__spec__", None)
            if spec is not None and spec.name == BACKGROUND and hasattr(os, "nice"):
                os.nice(5)  # clicks go first
                threading.Thread(target=_end_with_server, daemon=True).start()
            super().__init__(*args, **kwargs)
            # The server would score at its start and after every request for an image, without end of the queue.
            self._auto_update_scoring = False

        def init_trainers(self) -> dict[str, TrainTask]:
            if strtobool(self.conf.get("skip_trainers", "false")):
                return {}
            learners = {name: LearnTask(path, self.conf) for name, path in self.models.items()}
            return {name: task for name, task in learners.items() if task.is_valid()}

        def init_strategies(self) -> dict[str, Strategy]:
            return {**super().init_strategies(), **({NAME: LeastSureFirst()} if self._trainers else {})}

        def init_scoring_methods(self) -> dict[str, ScoringMethod]:
            first = next(iter(self._trainers), None)
            own = {NAME: UncertaintyScoring(self.models[first])} if first else {}
            return {**super().init_scoring_methods(), **own}

        def next_sample(self, request: dict[str, Any]) -> dict[str, Any]:
            """As ever; a request for the least sure image has more images scored, one bounded run at a time."""
            check_params(request)
            found: dict[str, Any] = super().next_sample(request)
            method = self._scoring_methods.get(NAME)
            asked = request.get("strategy") == NAME and self._server_mode and method and not is_busy("scoring")
            if asked and unscored_images(self.datastore(), method.bundle):
                AsyncTask.run("scoring", request={"method": NAME})
            return found

    return LearningApp


def _end_with_server() -> None:
    """End this process when the server has ended, killed or not: nobody would know of it, nor stop it."""
    server = int(os.environ.get(SERVER, os.getppid()))
    while os.getppid() == server:
        time.sleep(0.2)
    os._exit(1)
