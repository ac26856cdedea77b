# SPDX-License-Identifier: Apache-2.0
"""A small trained bundle on generated pictures, made once and shared by the tests."""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from monai_kdsam.bundles import copy_bundle
from monai_kdsam.data.phantoms import write_phantoms
from monai_kdsam.phases import run_phase

SIZE = 64
TOKENS = {"prompt_map": False, "fine_features": False}  # SAM's own prompts and upscaling


@dataclass(frozen=True)
class Workspace:
    """A folder with a copy of the bundle, the overlays and pictures; `run` runs a phase on them, small."""

    folder: Path

    @property
    def bundle(self) -> Path:
        return self.folder / "kdsam_deepgrow_2d"

    @property
    def models(self) -> Path:
        return self.bundle / "models"

    @property
    def output(self) -> Path:
        return self.bundle / "output"

    def run(self, phase: str, /, *overlays: str, small: bool = True, **settings: Any) -> Path:
        own = {"dataset_dir": self.folder / "phantoms", "progress": False}
        if phase not in ("embed", "evaluate", "inference"):
            own["overwrite"] = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            behind = ("offline", "smoke") if small else ()
            return run_phase(self.bundle, phase, *overlays, *behind, **own | settings)


def make_workspace(folder: Path, **settings: Any) -> Workspace:
    copy_bundle(folder, settings={"backbone": "resnet18", "image_size": SIZE} | TOKENS | settings)
    write_phantoms(folder / "phantoms", per_kind=8, size=72)
    return Workspace(folder)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A fresh bundle, nothing trained."""
    return make_workspace(tmp_path)


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = make_workspace(tmp_path_factory.mktemp("trained"))
    workspace.run("adapt")
    workspace.run("distill")
    workspace.run("train", device="cpu")
    return workspace


@pytest.fixture
def trained(trained_once: Workspace, tmp_path: Path) -> Workspace:
    """A copy of a bundle that went through adapt, distill and train; tests may change it."""
    # Hard links to what is large: saving replaces a file, and never writes into it.
    for source in trained_once.folder.rglob("*"):
        target = tmp_path / source.relative_to(trained_once.folder)
        if source.is_dir():
            target.mkdir(exist_ok=True)
        elif source.suffix == ".pt":
            os.link(source, target)
        else:
            shutil.copy2(source, target)
    return Workspace(tmp_path)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images that KDSAM_DATA names."""
    folder = os.environ.get("KDSAM_DATA")
    if not folder:
        pytest.skip("KDSAM_DATA names no folder of real images")
    return Path(folder)


@pytest.fixture(scope="session")
def program() -> Callable[..., Path]:
    """Finds programs of Debian packages: without one a test is skipped, unless they were unpacked for the tests."""
    from hosts.orthanc import find_program  # needs requests

    def find(*paths: str) -> Path:
        try:
            return find_program(*paths)
        except FileNotFoundError as error:
            (pytest.fail if os.environ.get("KDSAM_DEBIAN") else pytest.skip)(str(error))

    return find


@pytest.fixture(scope="session")
def chromium(program: Callable[..., Path]) -> tuple[Path, dict[str, str]]:
    """The browser, and the environment that it needs where it was unpacked and not installed."""
    from hosts.orthanc import debian_root, library_path

    path = program("usr/lib/chromium/chromium", "usr/bin/chromium")
    environment = {**os.environ, **library_path()}
    if not Path("/etc/fonts/fonts.conf").is_file():
        environment["FONTCONFIG_SYSROOT"] = str(debian_root())
    return path, environment


@pytest.fixture(autouse=True)
def one_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def own_log_handlers() -> Iterator[None]:
    """A bundle's run adds handlers that write to this test's output, which is closed afterwards."""
    before = [*logging.root.handlers]
    yield
    for handler in {*logging.root.handlers} - {*before}:
        logging.root.removeHandler(handler)
