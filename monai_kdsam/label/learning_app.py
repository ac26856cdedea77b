# SPDX-License-Identifier: Apache-2.0
"""What MONAI Label's `monaibundle` app lacks to learn from corrections.

That app decides in its code which strategies and scoring methods there are, so the app that `python -m monai_kdsam
label` prepares derives from it. Models, datastore and requests are its own.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.utils.async_tasks.task import AsyncTask
from monailabel.utils.async_tasks.utils import tasks
from monailabel.utils.others.generic import strtobool

from monai_kdsam.label.active_learning import NAME, LeastSureFirst, UncertaintyScoring, unscored_images
from monai_kdsam.label.app import CheckedApp
from monai_kdsam.label.gate import check_params
from monai_kdsam.label.tasks import LearnTask

__all__ = ["SERVER", "is_busy", "with_learning"]

SERVER = "KDSAM_LABEL_SERVER"  # variable with the number of the server's process, for those that it starts

BACKGROUND = "monailabel.interfaces.utils.app"  # the module that the server starts for a training or a scoring


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
