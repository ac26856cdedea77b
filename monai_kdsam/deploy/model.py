# SPDX-License-Identifier: Apache-2.0
"""The model of the application: a bundle's folder, or the TorchScript file made from it."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monai_kdsam
from monai_kdsam.errors import MissingFileError, UserError
from monai_kdsam.files import file_sha256
from monai_kdsam.weights.state_dict import check_crc

__all__ = ["DeployModel", "open_model"]


@dataclass(frozen=True)
class DeployModel:
    """A model that the App SDK can load.

    Args:
        path: folder of the bundle, or TorchScript file.
        weights: the file with the weights.
        metadata: the bundle's.
    """

    path: Path
    weights: Path
    metadata: dict[str, Any]

    @property
    def sha256(self) -> str:
        """Checksum of the weights."""
        return file_sha256(self.weights)


def open_model(path: str | Path) -> DeployModel:
    """Check a model before anything is computed.

    Args:
        path: folder of a bundle, TorchScript file from `python -m monai_kdsam export --format torchscript` or from
            `python -m monai.bundle ckpt_export`, or a folder that holds one of these alone, as packaged applications
            have it.

    Raises:
        FileNotFoundError: when there is none, or no weights.
        ValueError: when it is damaged, of another kind, or of another version of this package.
    """
    place = Path(path)
    while place.is_dir() and not (place / "configs").is_dir():
        inside = [entry for entry in place.iterdir() if not entry.name.startswith(".")]
        if len(inside) != 1:
            raise MissingFileError(f"Expected a bundle with configs/inference.json, or a TorchScript file, at {path}.")
        place = inside[0]
    if place.is_dir():
        model = _open_folder(place)
    elif place.is_file():
        model = _open_file(place)
    else:
        raise MissingFileError(
            f"Expected a bundle or a TorchScript file, but there is none at {path}. "
            "`python -m monai_kdsam bundle DIR` copies a bundle out, to be trained."
        )
    _check_metadata(model)
    try:
        check_crc(model.weights)
    except ValueError as error:
        raise UserError(f"{model.weights} is damaged: {error}. Copy it anew, or export again.") from error
    return model


def _open_folder(folder: Path) -> DeployModel:
    for name in ("inference", "metadata"):
        if not (folder / "configs" / f"{name}.json").is_file():
            raise MissingFileError(f"Expected a bundle with configs/{name}.json, got {folder}.")
    # In the order in which the App SDK looks for them.
    weights = [folder / "models" / name for name in ("model.ts", "model.pt")]
    found = [file for file in weights if file.is_file()]
    if not found:
        raise MissingFileError(f"Expected weights at {weights[1]}. The phase `train` writes them (train.yaml).")
    try:
        metadata = json.loads((folder / "configs" / "metadata.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"Cannot read {folder / 'configs' / 'metadata.json'}: {error}.") from error
    return DeployModel(folder, found[0], metadata)


def _open_file(file: Path) -> DeployModel:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            root = names[0].partition("/")[0]
            configs = {name: f"{root}/extra/{name}.json" for name in ("metadata", "inference")}
            is_script = any(name.startswith(f"{root}/code/") for name in names)
            has_configs = set(configs.values()) <= set(names)
            metadata = json.loads(archive.read(configs["metadata"])) if has_configs else {}
    except (zipfile.BadZipFile, ValueError, IndexError) as error:
        raise UserError(f"Expected a TorchScript file, got {file}, which is damaged or of another kind.") from error
    if not is_script:
        raise UserError(f"Expected a TorchScript file, got {file}. For weights (model.pt) give the folder: `--bundle`.")
    if not has_configs:
        raise UserError(
            f"{file} has no bundle's configs inside. Give the model.ts of "
            "`python -m monai_kdsam export --format torchscript`."
        )
    if file.stem != root:  # the App SDK would go on without the configs
        raise UserError(f"The App SDK reads {file} only under the name that it was written with, {root}.ts: rename it.")
    return DeployModel(file, file, metadata)


def _check_metadata(model: DeployModel) -> None:
    try:
        formats = model.metadata["network_data_format"]
        image = formats["inputs"]["image"]
        fits = (
            list(formats["inputs"]) == ["image"]
            and list(formats["outputs"]) == ["pred"]
            and (image["num_channels"], len(image["spatial_shape"])) == (3, 2)
        )
        needed = model.metadata["required_packages_version"]["monai_kdsam"]
    except (KeyError, TypeError):
        fits, needed = False, None
    if not fits or not needed:
        raise UserError(f"Expected a model of the bundle kdsam_deepgrow_2d, of RGB images in 2-D, got {model.path}.")
    if _release(needed) != _release(monai_kdsam.__version__):
        raise UserError(
            f"{model.path} is of monai_kdsam {needed}, and this is {monai_kdsam.__version__}: install that version, "
            "or make the model anew."
        )


def _release(version: str) -> list[str]:
    """Major and minor number: what may change a model's meaning."""
    return str(version).split(".")[:2]
