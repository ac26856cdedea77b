# SPDX-License-Identifier: Apache-2.0
"""MONAI Label's training task: a bundle learns on from the labels that annotators submit."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout
from monai.bundle import ConfigParser
from monailabel.interfaces.datastore import Datastore
from monailabel.tasks.train.bundle import BundleTrainTask
from monailabel.utils.others.generic import device_list

from monai_kdsam.data.splits import hold_out
from monai_kdsam.errors import UserError, find_mistake
from monai_kdsam.files import file_sha256, write_text
from monai_kdsam.label.infer_task import check_device
from monai_kdsam.label.labels import check_labels, labelled_slices
from monai_kdsam.phases import phase_files

__all__ = ["LearnTask"]

REPORT, HELD_OUT = "report.json", "held_out.json"


class Parameter(NamedTuple):
    """What a client may set."""

    allowed: str
    is_allowed: Callable[[Any], bool]


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


PARAMETERS = {
    "max_epochs": Parameter("a whole number from 1", _is_count),
    "batch_size": Parameter("a whole number from 1", _is_count),
    "learning_rate": Parameter("a number above 0", _is_positive),
    "val_split": Parameter("a number between 0 and 1", lambda value: _is_positive(value) and value < 1),
    "train_encoder": Parameter("true or false", lambda value: isinstance(value, bool)),
}
# What the server itself and its clients add to every request, and what this task adds.
OTHERS = {"model", "device", "client_id", "gpus", "bundle_path", "local_rank", "multi_gpu"}


class LearnTask(BundleTrainTask):
    """MONAI Label's own training of a bundle, with the phase `learn` behind train.yaml.

    It learns from the labels with the tag `final`, on the images that are not held out, and replaces the served
    weights only by better ones (see `ReplaceIfBetter`). Files are written to the bundle that the served one links to;
    the defaults of `max_epochs`, `batch_size`, `learning_rate` and `train_encoder` are those of learn.yaml.

    Args:
        path: folder of the served bundle; without configs/learn.yaml the task is not valid, and is not offered.
        conf: of the server.
    """

    def __init__(self, path: str, conf: dict[str, str]) -> None:
        super().__init__(path, conf)
        try:
            configs = phase_files(path, "learn")
        except FileNotFoundError:
            configs = []
        self.valid: bool = bool(configs)
        if self.valid:
            self.bundle_config_path = configs
            self.bundle_config = self._load_bundle_config(path, configs)
            names = ("epochs", "batch_size", "learning_rate", "train_encoder")
            own = {name: self.bundle_config[name] for name in names}
            self.defaults = {"max_epochs": own.pop("epochs"), **own, "val_split": 0.2}
            self.folder = _linked_bundle(Path(path)) / "output" / "learn"

    def config(self) -> dict[str, Any]:
        """What clients may set, with the defaults."""
        return {"device": device_list()} | self.defaults

    def stats(self) -> dict[str, Any]:
        """How far the last training came and what was decided; empty before the first one."""
        report = self.folder / REPORT
        content: dict[str, Any] = json.loads(report.read_text(encoding="utf-8")) if report.is_file() else {}
        return content

    def check(self, request: Mapping[str, Any], datastore: Datastore) -> list[dict[str, Any]]:
        """The labelled images, if they and the request can be trained with.

        Raises:
            ValueError: on an unknown or impossible parameter, fewer than two labels, or a label that cannot be used.
        """
        _check_parameters(request)
        items = [{"image": item["image"], "label": item["label"]} for item in datastore.datalist() if item]
        items = labelled_slices(items)
        self._choose(items, request)
        parser: ConfigParser = self.bundle_config
        check_labels(items, parser.get_parsed_content("foreground_values"))
        return items

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Train, compare and decide; returns `stats`."""
        # A handful of labels is the work of one device.
        request = self.defaults | request | {"multi_gpu": False}
        with self.alone():
            return self._learn(request, datastore)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep the bundle for one training, whichever server started it.

        Raises:
            ValueError: when another one learns on it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError("Another training works on this bundle. Wait for its end, or stop its server.") from error
        try:
            yield
        finally:
            lock.release()

    def _learn(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        self._report({"epoch": 0, "total_epochs": request["max_epochs"]})
        try:
            super().__call__(request, datastore)
        except Exception as error:
            mistake = find_mistake(error)
            self._report({"error": str(mistake or error), "is_mistake": mistake is not None})
            raise
        return self.stats()

    def _fetch_datalist(self, request: dict[str, Any], datastore: Datastore) -> list[dict[str, Any]]:
        return self.check(request, datastore)

    def _choose(self, items: list[dict[str, Any]], request: Mapping[str, Any]) -> tuple[list[str], dict[str, bool]]:
        """Checksum of each image, and whether an image of a checksum is held out."""
        file = self.folder / HELD_OUT
        earlier = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        images = [file_sha256(item.get("series", item["image"])) for item in items]  # a series is never parted
        return images, hold_out(images, earlier, request.get("val_split", self.defaults["val_split"]))

    def _partition_datalist(
        self, datalist: list[dict[str, Any]], request: dict[str, Any], shuffle: bool = False
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        images, is_held_out = self._choose(datalist, request)
        write_text(self.folder / HELD_OUT, json.dumps(is_held_out, indent=1))
        sides: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
        for item, image in zip(datalist, images, strict=True):
            sides[is_held_out[image]].append(item)
        return sides

    def _load_checkpoint(self, model_pytorch: str, pretrained: bool, train_handlers: list[Any]) -> None:
        """Nothing: the phase `learn` starts from the served weights on its own."""

    def run_single_gpu(self, request: dict[str, Any], overrides: dict[str, Any]) -> None:
        """Run train.yaml with learn.yaml, as `python -m monai.bundle run` does."""
        frozen = ["prompt_encoder"] if request["train_encoder"] else ["image_encoder", "prompt_encoder"]
        own = {
            "bundle_root": str(self.folder.parents[1]),
            "device": f"$torch.device('{overrides['device']}')",
            "batch_size": request["batch_size"],
            "learning_rate": request["learning_rate"],
            "frozen": frozen,
        }
        super().run_single_gpu(request, overrides | own)

    def _report(self, content: dict[str, Any]) -> None:
        write_text(self.folder / REPORT, json.dumps(content))


def _linked_bundle(served: Path) -> Path:
    """The bundle whose weights a served folder links to; the folder itself where they are no link."""
    weights = served / "models" / "model.pt"
    return Path(os.readlink(weights)).parents[1] if weights.is_symlink() else served


def _check_parameters(request: Mapping[str, Any]) -> None:
    unknown = sorted(set(request) - set(PARAMETERS) - OTHERS)
    if unknown:
        raise UserError(f"Expected parameters among device, {', '.join(PARAMETERS)}; got {', '.join(unknown)}.")
    for name, parameter in PARAMETERS.items():
        if name in request and not parameter.is_allowed(request[name]):
            raise UserError(f"Expected `{name}` to be {parameter.allowed}, got {request[name]!r}.")
    check_device(request.get("device"))
