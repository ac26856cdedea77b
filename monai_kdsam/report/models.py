# SPDX-License-Identifier: Apache-2.0
"""What is compared: anything that turns an image file and prompts into masks of the file's size."""

from __future__ import annotations

import json
import math
import shlex
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from monai_kdsam.data.picture_file import decode
from monai_kdsam.errors import UserError, UserFileError
from monai_kdsam.inferers import BundlePredictor
from monai_kdsam.picture import to_rgb
from monai_kdsam.report.fill_box import FillBox
from monai_kdsam.report.prompts import Prompt
from monai_kdsam.runtime import Predictor
from monai_kdsam.weights.sidecar import describe_weights

__all__ = ["BundleModel", "CommandModel", "EllipseModel", "ExportModel", "Model", "Prediction"]

_PATIENCE = 600.0  # seconds for one mask of a command, the start of the program included

Prediction = tuple[NDArray[np.bool_], float]
"""A mask (H, W), rows from the top, and the IoU that the model expects of it; nan if it expects none."""


class Model(Protocol):
    """Set an image once, predict for any number of prompts."""

    name: str
    takes_clicks: bool
    """Whether a click changes its masks."""

    def set_image(self, path: str) -> None:
        """The predictions that follow are about this image file."""

    def predict(self, prompts: Sequence[Prompt]) -> list[Prediction]:
        """A mask for each prompt."""

    def correct(self, prompt: Prompt) -> Prediction:
        """A mask for a prompt with more clicks than the last one had, whose answer a model may go on from."""


class BundleModel:
    """A bundle, as it is served: its own preprocessing, inferer, network and postprocessing.

    It goes on from its last answer where its inferer does (`go_on`).

    Args:
        name: in the report.
        bundle: folder of the bundle.
        overrides: of named values in its inference.json, such as `checkpoint`.

    Raises:
        FileNotFoundError: when there is no such bundle, or it has no weights.
        ValueError: when the weights are of another network.
    """

    takes_clicks = True

    def __init__(self, name: str, bundle: str | Path, **overrides: Any) -> None:
        self.name = name
        self._predictor = BundlePredictor(bundle, **overrides)
        self.about = describe_weights(self._predictor.checkpoint) if self._predictor.checkpoint else ""
        self._goes_on = getattr(self._predictor.inferer, "go_on", False)
        self._image = ""
        self._last: NDArray[np.float32] | None = None

    def set_image(self, path: str) -> None:
        """The predictions that follow are about this image file; the predictor remembers what it made of it."""
        self._image, self._last = path, None

    def predict(self, prompts: Sequence[Prompt]) -> list[Prediction]:
        """A mask for each prompt, one after the other."""
        return [self._answer(prompt, None) for prompt in prompts]

    def correct(self, prompt: Prompt) -> Prediction:
        """A mask that goes on from the last answer."""
        return self._answer(prompt, self._last if self._goes_on else None)

    def _answer(self, prompt: Prompt, last: NDArray[np.float32] | None) -> Prediction:
        points, labels = prompt
        clicks = {"foreground": points[labels == 1].tolist(), "background": points[labels == 0].tolist()}
        box = points[labels >= 2].ravel().tolist() or None
        found = self._predictor.predict(self._image, **clicks, roi=box, mask_input=last)
        self._last = found.logits
        return found.mask > 0, found.iou


class ExportModel:
    """What `python -m monai_kdsam export` wrote.

    It goes on from its last answer where its bundle does (`go_on`) and it takes one.

    Args:
        name: in the report.
        folder: of the export.

    Raises:
        UserError: when files are missing or damaged.
        ImportError: naming the package that runs them, and how to install it.
    """

    takes_clicks = True

    def __init__(self, name: str, folder: str | Path) -> None:
        self.name = name
        self._predictor = Predictor(folder)
        self.about = self._predictor.manifest.weights
        self._goes_on = self._predictor.manifest.go_on and self._predictor.manifest.mask_input
        self._last: NDArray[np.float32] | None = None

    def set_image(self, path: str) -> None:
        """Encode the picture."""
        self._predictor.set_image(to_rgb(decode(path)))
        self._last = None

    def predict(self, prompts: Sequence[Prompt]) -> list[Prediction]:
        """A mask for each prompt, one after the other."""
        return [self._answer(prompt, None) for prompt in prompts]

    def correct(self, prompt: Prompt) -> Prediction:
        """A mask that goes on from the last answer."""
        return self._answer(prompt, self._last if self._goes_on else None)

    def _answer(self, prompt: Prompt, last: NDArray[np.float32] | None) -> Prediction:
        points, labels = prompt
        clicked, boxed = (labels == 0) | (labels == 1), labels >= 2
        clicks = {"points": points[clicked], "labels": labels[clicked]} if clicked.any() else {}
        box = points[boxed].ravel() if boxed.any() else None
        mask, iou, self._last = self._predictor.predict(**clicks, box=box, mask_input=last)
        return mask > 0, iou


class EllipseModel:
    """The baseline: the ellipse inscribed in the box; without a box, in the whole image."""

    name = "filled ellipse"
    takes_clicks = False

    def __init__(self) -> None:
        self._fill = FillBox("ellipse")
        self._canvas = torch.zeros(1, 1, 1, 1)

    def set_image(self, path: str) -> None:
        """Only the size matters."""
        self._canvas = torch.zeros(1, 1, *decode(path).pixels.shape[:2])

    def predict(self, prompts: Sequence[Prompt]) -> list[Prediction]:
        """An ellipse for each prompt."""
        masks = []
        for prompt in prompts:
            points, labels = torch.from_numpy(prompt.points)[None], torch.from_numpy(prompt.labels)[None]
            masks.append((self._fill(self._canvas, points, labels)[0, 0].numpy() > 0, math.nan))
        return masks

    def correct(self, prompt: Prompt) -> Prediction:
        """The same: it has no use for clicks."""
        return self.predict([prompt])[0]


class CommandModel:
    """A program that is started once and answers prompts line by line.

    For each prompt it reads a JSON object in a line of its standard input: `image`, a path; `points`, [[x, y], ...] in
    pixels of that file; `labels`, 1 and 0 for clicks, 2 and 3 for a box's corners; none of them means automatic; and
    `mask`, the path of the PNG to write, of the image's size, 0 being background. When that is written it prints
    a JSON object in one line: `{}`, or `{"iou": 0.9}` if it expects an IoU. Other lines that it prints are ignored.

    Args:
        name: in the report.
        command: run without a shell.

    Raises:
        OSError: when the command cannot be started.
    """

    takes_clicks = True

    def __init__(self, name: str, command: str) -> None:
        self.name = name
        self._command = command
        self._image = ""
        self._folder = tempfile.TemporaryDirectory(prefix="kdsam_report")
        self._mask = Path(self._folder.name) / "mask.png"
        # Not a pipe, which a program that complains a lot would fill and then wait for ever.
        self._complaints = open(Path(self._folder.name) / "stderr", "w+b")  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                shlex.split(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._complaints, text=True
            )
        except (OSError, ValueError) as error:
            self._complaints.close()
            self._folder.cleanup()
            raise UserFileError(f"Cannot start the `command` of {name}, {command!r}: {error}.") from error

    def close(self) -> None:
        """End the program."""
        self._process.kill()
        self._process.communicate()
        self._complaints.close()
        self._folder.cleanup()

    def set_image(self, path: str) -> None:
        """The prompts that follow are about this image."""
        self._image = path

    def predict(self, prompts: Sequence[Prompt]) -> list[Prediction]:
        """A mask for each prompt.

        Raises:
            UserError: when the program ends, gives no answer, or writes no mask.
        """
        return [self._predict(prompt) for prompt in prompts]

    def correct(self, prompt: Prompt) -> Prediction:
        """A mask for the prompt; what the program keeps of its last answer is its own concern."""
        return self._predict(prompt)

    def _predict(self, prompt: Prompt) -> Prediction:
        self._mask.unlink(missing_ok=True)
        request = {"image": self._image, "points": prompt.points.tolist(), "labels": prompt.labels.tolist()}
        answer = self._ask(json.dumps(request | {"mask": str(self._mask)}))
        if not self._mask.is_file():
            raise UserError(f"The `command` of {self.name} wrote no mask of {self._image} to the path under `mask`.")
        iou = answer.get("iou")
        if iou is not None and not isinstance(iou, (int, float)):
            raise UserError(f"Expected a number under `iou` from the `command` of {self.name}, got {iou!r}.")
        return decode(self._mask, mask=True).pixels > 0, math.nan if iou is None else float(iou)

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        alarm = threading.Timer(_PATIENCE, self._process.kill)
        alarm.start()
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            for said in self._process.stdout:
                answer = _as_object(said)
                if answer is not None:
                    return answer
        except BrokenPipeError:
            pass
        finally:
            alarm.cancel()
        raise UserError(self._ending())

    def _ending(self) -> str:
        status = self._process.wait()
        self._complaints.seek(0)
        lines = self._complaints.read().decode(errors="replace").strip().splitlines()
        last = f": {lines[-1]}" if lines else "."
        return (
            f"The `command` of {self.name} ended with status {status}, or gave no answer in {_PATIENCE:.0f} s, when it "
            f"was asked about {self._image}{last}"
        )


def _as_object(line: str) -> dict[str, Any] | None:
    try:
        answer = json.loads(line)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None
