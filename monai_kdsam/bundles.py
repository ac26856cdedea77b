# SPDX-License-Identifier: Apache-2.0
"""Bundles and config overlays: where they lie, copies of them, and the modules that lie beside their configs."""

from __future__ import annotations

import importlib
import json
import logging
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_kdsam.bundle_weights import copy_weights, weights_path
from monai_kdsam.config_files import edit_config, list_configs, own_values, parse_config
from monai_kdsam.errors import ExistingFileError, MissingFileError, UserError, did_you_mean
from monai_kdsam.files import write_text
from monai_kdsam.settings import check_value

__all__ = [
    "bundle_path",
    "config_path",
    "copy_bundle",
    "copy_bundles",
    "default_bundle",
    "find_student",
    "make_importable",
    "own_modules",
    "shipped_bundle",
    "weights_path",
]

BUNDLES = ("kdsam_deepgrow_2d", "kdsam_deepgrow_3d")

logger = logging.getLogger(__name__)
_IMPORTABLE: set[Path] = set()  # folders of bundles whose modules may have been imported


def _data_folder(name: str) -> Path:
    """`bundles` or `configs`: inside the package once installed, as `_bundles`; beside it in a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / f"_{name}", package.parent / name):
        if folder.is_dir():
            return folder
    raise MissingFileError(f"Expected the folder {name} in {package}; the installation of monai_kdsam is incomplete.")


def bundle_path(name: str = "kdsam_deepgrow_2d") -> Path:
    """The folder of a bundle that came with the package."""
    path = _data_folder("bundles") / name
    if not path.is_dir():
        known = ", ".join(sorted(p.name for p in path.parent.iterdir() if (p / "configs").is_dir()))
        raise MissingFileError(f"Expected a bundle among {known}, got {name!r}.")
    return path


def shipped_bundle() -> Path:
    """The bundle with the student that came with the package: a folder to read from, not to write to.

    Raises:
        FileNotFoundError: when its weights are missing.
    """
    bundle = bundle_path()
    weights = weights_path(bundle)
    if not weights.is_file():
        raise MissingFileError(
            f"Expected the student that comes with monai_kdsam at {weights}; the installation is incomplete. "
            "Install it again, or name a trained bundle."
        )
    return bundle


def default_bundle() -> Path:
    """What is served where no bundle is named: kdsam_deepgrow_2d of the working directory, or the shipped one.

    Raises:
        FileNotFoundError: when there is neither.
    """
    own = Path(BUNDLES[0])
    return own if own.is_dir() else shipped_bundle()


def find_student(weights: str | None) -> str | None:
    """The file that `student_weights` names: a path, or "shipped" for the student that came with the package.

    Raises:
        FileNotFoundError: when none came with it.
    """
    return str(weights_path(shipped_bundle())) if weights == "shipped" else weights


def config_path(name: str = "") -> Path:
    """A config overlay that came with the package, for example "datasets/kvasir.yaml"."""
    path = _data_folder("configs") / name
    if not path.exists():
        known = ", ".join(sorted(str(p.relative_to(_data_folder("configs"))) for p in path.parent.glob("*.yaml")))
        raise MissingFileError(f"Expected a config overlay among {known}, got {name!r}.")
    return path


def copy_bundle(
    folder: str | Path,
    name: str = "kdsam_deepgrow_2d",
    *,
    settings: Mapping[str, Any] | None = None,
    new_name: str | None = None,
) -> Path:
    """Copy a bundle, and the overlays beside it, out for training and editing.

    Args:
        folder: where to; the bundle's folder there may hold weights that `download` has put into its `models`.
        name: of the bundle.
        settings: named scalars at the top of the bundle's configs to change, for example
            `{"backbone": "resnet18", "image_size": 512}`. What is changed for training is changed for serving too.
        new_name: of the copy's folder, by default the bundle's.

    Returns:
        The copy's folder, with the weights that the bundle serves if the settings leave its network as it is; the
        overlays are in `folder`/configs, where files that are there already stay as they are.

    Raises:
        FileExistsError: when there is a bundle already.
        ValueError: when no config of the bundle has a setting, or its configs differ in it, each for a reason, or hold
            a value of another kind.
    """
    target = Path(folder) / (new_name or name)
    if target.exists() and not _has_outside_weights_alone(target):
        raise ExistingFileError(f"{target} exists already; choose another folder, or delete it first.")
    source = bundle_path(name)
    known = own_values(source / "configs")
    for key in settings or {}:
        if key not in known:
            raise UserError(f"The bundle has no setting {key!r}.{did_you_mean(key, known)}")
        first, *others = known[key].values()
        if any(other != first for other in others):
            own = ", ".join(f"{json.dumps(value)} in {file}" for file, value in known[key].items())
            raise UserError(f"{key!r} is not one setting of the bundle: {own}. Edit the file, or set it for each run.")
        check_value(key, (settings or {})[key], known[key])
    edited = {file.name: _with_settings(file, settings or {}) for file in list_configs(source / "configs")}
    left_out = shutil.ignore_patterns("__pycache__", "models", "output", "*.pyc")
    shutil.copytree(source, target, ignore=left_out, dirs_exist_ok=True)
    for file in config_path().rglob("*.yaml"):
        copied = Path(folder) / "configs" / file.relative_to(config_path())
        if not copied.exists():
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copied)
    (target / "models").mkdir(exist_ok=True)
    for file_name, text in edited.items():
        write_text(target / "configs" / file_name, text)
    copy_weights(source, target)
    return target


def _has_outside_weights_alone(folder: Path) -> bool:
    """Whether `download` was here before the bundle is made, and nothing else."""
    return [path.name for path in folder.glob("*")] == ["models"] and not any((folder / "models").glob("*.pt"))


def copy_bundles(
    folder: str | Path, names: Sequence[str] = BUNDLES, *, settings: Mapping[str, Any] | None = None
) -> list[Path]:
    """Copy bundles as `copy_bundle` does; each takes those settings that it has, one that none has is refused."""
    known = {name: set(own_values(bundle_path(name) / "configs")) for name in names}
    foreign = {name: set().union(*known.values()) - known[name] for name in names}
    return [
        copy_bundle(folder, name, settings={k: v for k, v in (settings or {}).items() if k not in foreign[name]})
        for name in names
    ]


def own_modules(bundle: str | Path) -> list[Path]:
    """Python files and packages beside a bundle's `configs`, which its configs may name."""
    return sorted([*Path(bundle).glob("*.py"), *(file.parent for file in Path(bundle).glob("*/__init__.py"))])


def make_importable(bundle: str | Path) -> None:
    """Let a bundle's configs name modules of its folder.

    `python -m monai.bundle run` does so, but only after it has built what `initialize` names. A module of the same name
    that came from another bundle before is forgotten.
    """
    folder = Path(bundle).resolve()
    for path in own_modules(folder):
        file = Path(getattr(sys.modules.get(path.stem), "__file__", None) or path).resolve()
        if not file.is_relative_to(folder) and any(file.is_relative_to(other) for other in _IMPORTABLE):
            for name in [name for name in sys.modules if name.partition(".")[0] == path.stem]:
                del sys.modules[name]
    _IMPORTABLE.add(folder)
    if str(folder) in sys.path:
        sys.path.remove(str(folder))
    sys.path.insert(1, str(folder))
    importlib.invalidate_caches()


def _with_settings(file: Path, settings: Mapping[str, Any]) -> str:
    """The text of a config with those settings that it has; metadata.json states the size of images."""
    text = file.read_text(encoding="utf-8")
    own = {key: value for key, value in settings.items() if key in parse_config(text, file.suffix)}
    if file.suffix == ".yaml":
        return edit_config(text, own)
    config = json.loads(text) | own
    if file.name == "metadata.json" and "image_size" in settings:
        formats = config["network_data_format"]
        for tensor in (formats["inputs"]["image"], formats["outputs"]["pred"]):
            tensor["spatial_shape"][:2] = [settings["image_size"]] * 2
    return json.dumps(config, indent=4) + "\n"
