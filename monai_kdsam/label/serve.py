# SPDX-License-Identifier: Apache-2.0
"""Start MONAI Label's server on a trained bundle."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from monai_kdsam.bundles import weights_path
from monai_kdsam.data.paths import stem_of, suffix_of
from monai_kdsam.errors import MissingFileError, UserError, UserFileError, find_mistake
from monai_kdsam.files import is_unicode
from monai_kdsam.label.app_folder import (
    alone_in,
    copy_labels,
    default_model,
    label_folder,
    prepare_app,
    run_monailabel,
    served_name,
    use_own_temporary_folder,
)
from monai_kdsam.label.dicomweb import check_dicomweb
from monai_kdsam.weights.sidecar import describe_weights

__all__ = ["serve"]

# The server's own list knows neither DICOM files nor BMP, nor the long names of JPEG and TIFF.
SUFFIXES = ("*.nii.gz", "*.nii", "*.png", "*.jpg", "*.jpeg", "*.bmp", "*.tif", "*.tiff", "*.dcm")
SERVED = tuple(pattern[1:] for pattern in SUFFIXES)
# pydicom-seg, which the server imports, works with these versions and no later ones.
PACKAGES = (
    'monailabel==0.8.5 "pydicom<3" "pynetdicom<3" "dicomweb-client<0.60" dcmqi "highdicom<0.23" "setuptools<81" '
    "filelock"
)

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
    from monai_kdsam.label.gate import read_origin

    origins = [read_origin(origin) for origin in allow_origin]
    _check_studies(studies)
    if model is None:
        model = default_model(Path(folder))
    bundles = [Path(model)] if isinstance(model, (str, Path)) else [Path(name) for name in model]
    _check_bundles(bundles)
    _check_port(host, port)
    with alone_in(Path(folder)):
        _set_defaults(Path(folder).resolve())
        prepared = [prepare_app(folder, bundle) for bundle in bundles]
        app, names = prepared[0][0], [name for _, name in prepared]
        use_own_temporary_folder(app.parent / "tmp")
        if not _is_address(studies):
            sys.stdout.write(copy_labels(Path(studies), label_folder(Path(studies), Path(folder))))
            sys.stdout.write(_remarks(Path(studies)))
        for bundle, name in zip(bundles, names, strict=True):
            sys.stdout.write(f"{name}: {describe_weights(weights_path(bundle))}\n")
        sys.stdout.write(WELCOME.format(models=", ".join(names), model=names[0], address=f"http://{host}:{port}"))
        sys.stdout.flush()
        settings = {"models": ",".join(names), "zoo_source": "local", "sam2": "false", "preload": "true"}
        settings |= {"allow_origin": " ".join(origins), "allow_model_upload": str(allow_model_upload).lower()}
        settings |= {"max_upload": str(max_upload << 20), "max_sessions": str(max_sessions << 20)}
        words = ["--app", str(app), "--studies", studies, "--host", host, "--port", str(port), "--verbose", "WARNING"]
        words += [word for key, value in settings.items() for word in ("--conf", key, value)]
        run_monailabel("start_server", *words, "--uvicorn_app", "monai_kdsam.label.web_app:app")
    return "The server has stopped."


def _is_address(studies: str) -> bool:
    return studies.startswith(("http://", "https://"))


def _check_studies(studies: str) -> None:
    if _is_address(studies):
        if "googleapis.com" not in studies:  # there the server logs in by itself
            check_dicomweb(studies)
    elif not Path(studies).is_dir():
        raise MissingFileError(
            f"Expected `--studies` to be a folder of images or the http address of a DICOMweb server, got {studies}."
        )


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


def _check_bundles(bundles: Sequence[Path]) -> None:
    for bundle in bundles:
        _check_bundle(bundle)
    if len({served_name(bundle) for bundle in bundles}) < len(bundles):
        raise UserError(f"Expected `--model` to name bundles of different names, got {', '.join(map(str, bundles))}.")


def _check_bundle(model: Path) -> None:
    if not (model / "configs" / "inference.json").is_file():
        raise MissingFileError(
            f"Expected a bundle with configs/inference.json at `--model`, got {model}. "
            "`python -m monai_kdsam bundle DIR` copies one out, to be trained."
        )
    if not weights_path(model).is_file():
        raise MissingFileError(
            f"Expected weights at {model / 'models' / 'model.pt'}. The phase `train` writes them (train.yaml), "
            "best after `distill` (train.yaml with distill.yaml); README.md has both commands. "
            "kdsam_deepgrow_3d takes those of the kdsam_deepgrow_2d beside it."
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
