# SPDX-License-Identifier: Apache-2.0
"""A phase of a bundle: the config files that it merges, the command that runs it, and the run itself."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import monai.bundle
from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser

from monai_kdsam.bundles import config_path
from monai_kdsam.errors import MissingFileError, UserError
from monai_kdsam.run import RUN_OPTIONS

__all__ = ["phase_command", "phase_files", "read_phase", "run_phase"]

# Phases, each with those whose configs lie before its own.
PHASES: dict[str, tuple[str, ...]] = {
    "adapt": ("train",),
    "embed": ("train", "distill"),
    "distill": ("train",),
    "refine": ("train", "distill"),
    "train": (),
    "learn": ("train",),
    "evaluate": ("train",),
    "inference": (),
}
# Settings that name what a phase leaves behind; the other phases leave weights.
RESULTS = {"embed": "embedding_dir", "evaluate": "report_dir", "inference": "output_dir"}
SUFFIXES = (".yaml", ".json")


def run_phase(bundle: str | Path, phase: str, /, *overlays: str | Path, **settings: Any) -> Path:
    """Run a phase in this process, as `python -m monai.bundle run` does in one of its own.

    Args:
        bundle: its folder.
        phase: adapt, embed, distill, refine, train, learn, evaluate or inference.
        overlays: config files, or names of those beside the bundle or of this package, such as "recipes/plus". Of two
            that say something else the later one counts.
        settings: of the config, such as `dataset_dir`, and options of `monai.bundle.run`. None is null here, while
            MONAI passes over it.

    Returns:
        What the phase has written: the file of the best weights, or the folder of embeddings, reports or masks.

    Raises:
        UserError: when there is no such phase.
        MissingFileError: when there is no such bundle or overlay.
        RuntimeError: MONAI's, with the reason as its cause.
    """
    monai.bundle.run(**_arguments(bundle, phase, overlays, settings))
    parser = read_phase(bundle, phase, *overlays, **settings)
    return Path(parser.get_parsed_content(RESULTS.get(phase, "best_checkpoint")))


def read_phase(bundle: str | Path, phase: str, /, *overlays: str | Path, **settings: Any) -> ConfigParser:
    """The merged config of a phase, nothing of it built yet; arguments and errors as of `run_phase`."""
    given = _arguments(bundle, phase, overlays, settings)
    parser = ConfigParser()
    parser.read_config(given["config_file"])
    parser.update({key: value for key, value in given.items() if key not in RUN_OPTIONS})
    return parser


def phase_command(bundle: str | Path, phase: str, /, *overlays: str | Path, **settings: Any) -> str:
    """What to type into a shell for `run_phase` with these arguments."""
    words = ["python", "-m", "monai.bundle", "run"]
    for key, value in _arguments(bundle, phase, overlays, settings).items():
        words += [f"--{key}", _as_typed(value)]
    return " ".join(_quoted(word) for word in words)


def phase_files(bundle: str | Path, phase: str, /, *overlays: str | Path) -> list[str]:
    """The config files of a phase, from the first to the last; arguments and errors as of `run_phase`."""
    if phase not in PHASES:
        raise UserError(f"Expected a phase among {', '.join(PHASES)}, got {phase!r}.")
    folder = Path(bundle) / "configs"
    if not folder.is_dir():
        raise MissingFileError(f"Expected the folder of a bundle, with configs in it, got {bundle}.")
    names = (*PHASES[phase], phase)
    return [*(str(_find(name, (folder,))) for name in names), *(str(_find_overlay(name, folder)) for name in overlays)]


def _find_overlay(name: str | Path, folder: Path) -> Path:
    if Path(name).suffix in SUFFIXES and Path(name).is_file():
        return Path(name)
    beside = Path(os.path.normpath(folder / ".." / ".." / "configs"))
    return _find(name, (folder, beside, config_path()))


def _find(name: str | Path, folders: tuple[Path, ...]) -> Path:
    places = [folder / f"{name}{suffix}" for folder in folders for suffix in ("", *SUFFIXES)]
    found = next((place for place in places if place.suffix in SUFFIXES and place.is_file()), None)
    if found is None:
        raise MissingFileError(f"Expected a config {name} (.yaml or .json) in {' or '.join(map(str, folders))}.")
    return found


def _arguments(
    bundle: str | Path, phase: str, overlays: tuple[str | Path, ...], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of `monai.bundle.run`."""
    values = {"bundle_root": str(bundle)} | {key: _plain(value) for key, value in settings.items()}
    return {"config_file": phase_files(bundle, phase, *overlays), **values}


def _plain(value: Any) -> Any:
    if value is None:
        return "$None"
    return str(value) if isinstance(value, Path) else value


def _quoted(word: str) -> str:
    """A word for a shell, as a person would quote it: `shlex` makes ten marks of each quote of a list.

    >>> print(_quoted("['box', 'none']"), _quoted("$None"))
    "['box', 'none']" '$None'
    """
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)


def _as_typed(value: Any) -> str:
    """A value for Fire, by which MONAI reads its command line: text that it would read as a number is quoted.

    >>> [_as_typed(value) for value in (0.5, "resnet18", "17", ["box", "none"])]
    ['0.5', 'resnet18', "'17'", "['box', 'none']"]
    """
    return value if isinstance(value, str) and DefaultParseValue(value) == value else repr(value)
