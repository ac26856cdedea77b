# SPDX-License-Identifier: Apache-2.0
"""Start MONAI Label's server on a trained bundle."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import logging
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from monai_kdsam.bundles import bundle_path, default_bundle, own_modules
from monai_kdsam.data.paths import stem_of, suffix_of
from monai_kdsam.errors import ExistingFileError, MissingFileError, UserError, UserFileError, find_mistake
from monai_kdsam.files import is_unicode, write_text
from monai_kdsam.label.dicomweb import check_dicomweb
from monai_kdsam.weights.sidecar import sidecar_path

__all__ = ["label_folder", "prepare_app", "serve"]

APP = "monaibundle"
MARKER = ".made-by-monai_kdsam"  # in folders that are emptied at each start
OWN_APP = '''# SPDX-License-Identifier: Apache-2.0
"""Written at each start. MONAI Label's own app is monaibundle.py beside this file, as it was released."""

import monaibundle

from monai_kdsam.label.app import with_learning

App = with_learning(monaibundle.MyApp)
'''
# pydicom-seg, which the server imports, works with these versions and no later ones.
PACKAGES = (
    'monailabel==0.8.5 "pydicom<3" "pynetdicom<3" "dicomweb-client<0.60" dcmqi "highdicom<0.23" "setuptools<81" '
    "filelock"
)
# The server's own list knows neither DICOM files nor BMP, nor the long names of JPEG and TIFF.
SUFFIXES = ("*.nii.gz", "*.nii", "*.png", "*.jpg", "*.jpeg", "*.bmp", "*.tif", "*.tiff", "*.dcm")
SERVED = tuple(pattern[1:] for pattern in SUFFIXES)

WELCOME = """Serving {models} on {address}

  3D Slicer  Module MONAI Label: server {address}, Next Sample; then points or a box under SmartEdit.
  OHIF       {address}/ohif/ when --studies is a DICOMweb address; the same server in its panel.
  CVAT       MONAI Label's interactor with MONAI_LABEL_SERVER={address} and MONAI_LABEL_MODEL={model}.
  REST       curl -o mask -F 'params={{"foreground": [[120, 90]]}}' '{address}/infer/{model}?image=NAME&output=image'
             A click on a volume has a third coordinate, its slice.

Ready when "Application startup complete" appears. Ctrl-C stops it.
"""


def serve(
    studies: str,
    model: str | Path | Sequence[str | Path] | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    folder: str = "kdsam_label",
    allow_origin: Sequence[str] = (),
    allow_model_upload: bool = False,
    max_upload: int = 1024,
    max_sessions: int = 4096,
) -> str:
    """Serve a trained bundle to annotators until the process is stopped.

    Args:
        studies: folder of images, or the address of a DICOMweb server.
        model: folder of a trained bundle, or several. None is kdsam_deepgrow_2d of the working directory, or else
            a copy of the one that comes with the package, made in `folder`, where it may learn.
        host: address to listen on; "0.0.0.0" for other machines too.
        port: to listen on.
        folder: where the server's application and its log are put.
        allow_origin: addresses whose pages may use the server beside its own, a proxy's public one among them.
        allow_model_upload: whether clients may replace the weights.
        max_upload: MiB of a request.
        max_sessions: MiB of all images that clients have uploaded for a while.

    Returns:
        What to tell the user at the end.

    Raises:
        UserError: when MONAI Label is not installed, with the command that does.
        FileNotFoundError: when there are no studies, no bundle, or no weights in it.
        ValueError: when clients could not tell two bundles apart, a bundle does not predict, an origin is none, or
            what answers at the address is not DICOMweb.
        OSError: when the port or the folder is taken, holds files that are not ours, or no DICOMweb server answers.
    """
    if importlib.util.find_spec("monailabel") is None:
        raise UserError(f"MONAI Label is not installed here. In an environment of its own: pip install {PACKAGES}")
    is_address = studies.startswith(("http://", "https://"))
    if not is_address and not Path(studies).is_dir():
        raise MissingFileError(
            f"Expected `--studies` to be a folder of images or the http address of a DICOMweb server, got {studies}."
        )
    from monai_kdsam.label.gate import read_origin

    origins = [read_origin(origin) for origin in allow_origin]
    if model is None:
        model = _default_model(Path(folder))
    bundles = [Path(model)] if isinstance(model, (str, Path)) else [Path(name) for name in model]
    for bundle in bundles:
        _check_bundle(bundle)
    if len({served_name(bundle) for bundle in bundles}) < len(bundles):
        raise UserError(f"Expected `--model` to name bundles of different names, got {', '.join(map(str, bundles))}.")
    _check_port(host, port)
    if is_address and "googleapis.com" not in studies:  # there the server logs in by itself
        check_dicomweb(studies)
    with _alone_in(Path(folder)):
        _set_defaults(Path(folder).resolve())
        prepared = [prepare_app(folder, bundle) for bundle in bundles]
        app, names = prepared[0][0], [name for _, name in prepared]
        _use_own_temporary_folder(app.parent / "tmp")
        if not is_address:
            sys.stdout.write(_copy_labels(Path(studies), label_folder(Path(studies), Path(folder))))
            sys.stdout.write(_remarks(Path(studies)))
        sys.stdout.write(WELCOME.format(models=", ".join(names), model=names[0], address=f"http://{host}:{port}"))
        sys.stdout.flush()
        settings = {"models": ",".join(names), "zoo_source": "local", "sam2": "false", "preload": "true"}
        settings |= {"allow_origin": " ".join(origins), "allow_model_upload": str(allow_model_upload).lower()}
        settings |= {"max_upload": str(max_upload << 20), "max_sessions": str(max_sessions << 20)}
        arguments = ["--app", str(app), "--studies", studies, "--host", host, "--port", str(port)]
        for key, value in settings.items():
            arguments += ["--conf", key, value]
        quiet = ("--verbose", "WARNING")
        _monailabel("start_server", *arguments, *quiet, "--uvicorn_app", "monai_kdsam.label.web_app:app")
    return "The server has stopped."


def _default_model(folder: Path) -> Path:
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


def _copy_labels(studies: Path, kept: Path) -> str:
    """Labels that lie beside images where none can be added, taken along once; what to tell of it."""
    if kept == studies.resolve():
        return ""
    unfinished = kept / "unfinished"
    if not (kept / "labels").exists() and (studies / "labels").is_dir():
        shutil.copytree(studies / "labels", unfinished, dirs_exist_ok=True)
        unfinished.rename(kept / "labels")
    return f"{studies} is read-only: labels are kept in {kept}, where those of before were copied.\n"


def _remarks(studies: Path) -> str:
    """Which files are not served, as another one has their name but for the suffix."""
    known, remarks = dict[str, str](), []
    for file in sorted(file.name for file in studies.iterdir() if suffix_of(file) in SERVED):
        if not is_unicode(file):
            remarks.append(f"{file!a} is not served: its name is no UTF-8, or PYTHONUTF8=0 is set.\n")
            continue
        first = known.setdefault(stem_of(file), file)
        if first != file:
            remarks.append(f"{file} is not served: clients know images by their name without suffix, as {first} is.\n")
    return "".join(remarks[:10]) + (f"So are {len(remarks) - 10} more.\n" if len(remarks) > 10 else "")


def _set_defaults(folder: Path) -> None:
    """Settings that the user's environment may override; the server reads them when it is first imported."""
    os.environ.setdefault("MONAI_LABEL_DATASTORE_FILE_EXT", json.dumps(SUFFIXES))
    # It would offer CT alone, and copy the studies into the home folder.
    os.environ.setdefault("MONAI_LABEL_DICOMWEB_SEARCH_FILTER", "{}")
    os.environ.setdefault("MONAI_LABEL_DICOMWEB_CACHE_PATH", str(folder / "studies"))
    os.environ.setdefault("MONAI_LABEL_SESSION_PATH", str(folder / "sessions"))


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
            _monailabel("apps", "--download", "--name", APP, "--output", str(app.parent))
    if not (app / f"{APP}.py").is_file():
        (app / "main.py").replace(app / f"{APP}.py")
    write_text(app / "main.py", OWN_APP)
    name = served_name(model)
    served = app / "model" / name
    _empty(served)
    # Of the weights only model.pt: the server would offer its clients each .pt file, a teacher's too, for this network.
    (served / "models").mkdir()
    weights = model / "models" / "model.pt"
    parts = [model / "configs", weights, *own_modules(model)]
    parts += [file for file in [sidecar_path(weights)] if file.is_file()]
    for part in parts:
        _link(part, served / part.relative_to(model))
    return app, name


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


def _check_bundle(model: Path) -> None:
    if not (model / "configs" / "inference.json").is_file():
        raise MissingFileError(
            f"Expected a bundle with configs/inference.json at `--model`, got {model}. "
            "`python -m monai_kdsam bundle DIR` copies one out, to be trained."
        )
    if not (model / "models" / "model.pt").is_file():
        raise MissingFileError(
            f"Expected weights at {model / 'models' / 'model.pt'}. The phase `train` writes them (train.yaml), "
            "best after `distill` (train.yaml with distill.yaml); README.md has both commands. "
            "kdsam_deepgrow_3d takes those of kdsam_deepgrow_2d."
        )
    _check_prediction(model)


def _check_prediction(model: Path) -> None:
    """Load all that the server will: MONAI Label would go on with random layers, or end in a traceback.

    Raises:
        ValueError: when the bundle is damaged, of another version, or its weights are another network's.
    """
    from monai_kdsam.inferers import BundlePredictor

    try:
        json.loads((model / "configs" / "metadata.json").read_text(encoding="utf-8"))["network_data_format"]
        BundlePredictor(model)
    except Exception as error:  # whatever a config calls may raise
        reason = (str(find_mistake(error) or error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"Expected a bundle that predicts at `--model`, but {model} does not: {reason}") from None


def _check_port(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # As the server binds: connections of its predecessor that are still closing do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserFileError(
                f"Cannot listen on {host}, port {port}: {reason}. Choose another with `--port`."
            ) from error


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
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


def _use_own_temporary_folder(folder: Path) -> None:
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


def _monailabel(*arguments: str) -> None:
    """The command `monailabel` in this process, so that it takes this process's signals and its Python."""
    from monailabel.main import Main

    before, sys.argv = sys.argv, ["monailabel", *arguments]
    try:
        Main(loglevel=logging.WARNING).run()
    finally:
        sys.argv = before
