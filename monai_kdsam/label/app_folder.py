# SPDX-License-Identifier: Apache-2.0
"""The folder of MONAI Label's server: its app with the bundles in it, and where it keeps labels and uploads."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from monai_kdsam.bundles import bundle_path, default_bundle, own_modules, weights_path
from monai_kdsam.errors import ExistingFileError, UserFileError
from monai_kdsam.files import write_text
from monai_kdsam.weights.sidecar import sidecar_path

__all__ = [
    "alone_in",
    "copy_labels",
    "default_model",
    "label_folder",
    "prepare_app",
    "run_monailabel",
    "served_name",
    "use_own_temporary_folder",
]

APP = "monaibundle"
MARKER = ".made-by-monai_kdsam"  # in folders that are emptied at each start
OWN_APP = '''# SPDX-License-Identifier: Apache-2.0
"""Written at each start. MONAI Label's own app is monaibundle.py beside this file, as it was released."""

import monaibundle

from monai_kdsam.label.app import with_learning

App = with_learning(monaibundle.MyApp)
'''


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep a folder for this server: a second one would empty its temporary files and exchange its bundles."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserFileError(
            f"Another server works in {folder}. Stop it, or name another folder with `--dir`."
        ) from error
    try:
        yield
    finally:
        lock.release()


def prepare_app(folder: str | Path, model: str | Path) -> tuple[Path, str]:
    """Copy MONAI Label's `monaibundle` app, as it is, put a bundle into it, and an app that derives from it before it.

    The bundle's files are links: weights that are trained while the server runs are served from the next request on.

    Args:
        folder: where the app goes; one that is there is used again.
        model: folder of the bundle.

    Returns:
        The app's folder, and the name by which clients know the model.
    """
    model, app = Path(model).resolve(), Path(folder).resolve() / APP
    if not (app / "main.py").is_file():
        if app.exists():
            raise ExistingFileError(f"{app} is not this command's. Name another folder with `--dir`.")
        with contextlib.redirect_stdout(io.StringIO()):
            run_monailabel("apps", "--download", "--name", APP, "--output", str(app.parent))
    if not (app / f"{APP}.py").is_file():
        (app / "main.py").replace(app / f"{APP}.py")
    write_text(app / "main.py", OWN_APP)
    name = served_name(model)
    served = app / "model" / name
    _empty(served)
    # Of the weights only model.pt: the server would offer its clients each .pt file, a teacher's too, for this network.
    (served / "models").mkdir()
    weights = weights_path(model)
    for part in [model / "configs", *own_modules(model)]:
        _link(part, served / part.relative_to(model))
    for file in filter(Path.is_file, [weights, sidecar_path(weights)]):
        _link(file, served / "models" / file.name)
    return app, name


def default_model(folder: Path) -> Path:
    """The bundle that is served when none is named, which is told; of the package's own a copy, as it learns."""
    bundle = default_bundle()
    if bundle.resolve() != bundle_path().resolve():
        sys.stdout.write(f"No --model: serving {bundle} of this folder.\n")
        return bundle
    copy = folder / bundle.name
    if not copy.exists():
        unfinished = folder / f".{bundle.name}.part"
        left_out = shutil.ignore_patterns("__pycache__", "output")
        shutil.copytree(bundle, unfinished, ignore=left_out, dirs_exist_ok=True)
        unfinished.rename(copy)
    sys.stdout.write(f"No --model: serving the student that comes with monai_kdsam, from its copy in {copy}.\n")
    return copy


def served_name(bundle: Path) -> str:
    """The name by which clients know a bundle: from the word "deepgrow" the server concludes that it takes clicks."""
    name = bundle.resolve().name
    return name if "deepgrow" in name.lower() else f"{name}_deepgrow"


def _link(source: Path, target: Path) -> None:
    try:
        target.symlink_to(source, target_is_directory=source.is_dir())
    except OSError:  # Windows wants a privilege for links
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy2(source, target)


def use_own_temporary_folder(folder: Path) -> None:
    """Uploads and masks get a place of their own, emptied at each start.

    The server deletes a mask after it was sent, and a client on the same machine saves it under the same name: in a
    common folder for temporary files the client would lose it. Uploads whose request fails are left behind.
    """
    _empty(folder)
    tempfile.tempdir = str(folder)


def _empty(folder: Path) -> None:
    """Empty a folder that this command made, or make it; what a user keeps in one of that name is theirs."""
    marker = folder / MARKER
    if not marker.is_file() and folder.exists() and next(folder.iterdir(), None) is not None:
        raise ExistingFileError(f"{folder} is not empty and not this command's. Name another folder with `--dir`.")
    folder.mkdir(parents=True, exist_ok=True)
    marker.touch()
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path != marker:
            path.unlink(missing_ok=True)


def label_folder(studies: Path, folder: Path) -> Path:
    """Where labels of images are kept: beside these, or in the server's folder where theirs is read-only.

    Args:
        studies: folder of the images.
        folder: of the server.
    """
    studies = studies.resolve()
    if os.access(studies, os.W_OK):
        return studies
    return folder.resolve() / "labels" / f"{studies.name}-{hashlib.sha256(os.fsencode(studies)).hexdigest()[:8]}"


def copy_labels(studies: Path, kept: Path) -> str:
    """Labels that lie beside images where none can be added, taken along once; what to tell of it."""
    if kept == studies.resolve():
        return ""
    unfinished = kept / "unfinished"
    if not (kept / "labels").exists() and (studies / "labels").is_dir():
        shutil.copytree(studies / "labels", unfinished, dirs_exist_ok=True)
        unfinished.rename(kept / "labels")
    return f"{studies} is read-only: labels are kept in {kept}, where those of before were copied.\n"


def run_monailabel(*arguments: str) -> None:
    """The command `monailabel` in this process, so that it takes this process's signals and its Python."""
    from monailabel.main import Main

    before, sys.argv = sys.argv, ["monailabel", *arguments]
    try:
        Main(loglevel=logging.WARNING).run()
    finally:
        sys.argv = before
