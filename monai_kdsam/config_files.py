# SPDX-License-Identifier: Apache-2.0
"""The config files of a bundle, YAML and JSON: read, and edited by typed settings without loss of their comments."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from monai_kdsam.errors import UserError

__all__ = ["edit_config", "list_configs", "own_values", "parse_config", "parse_value"]

# The same as MONAI's, in C where PyYAML was built so: a config takes a tenth of the time.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def parse_config(text: str, suffix: str) -> dict[str, Any]:
    """The content of a config file of the suffix .yaml, or .json, which is no YAML: 1e-05 is a text there."""
    content: dict[str, Any] = json.loads(text) if suffix == ".json" else yaml.load(text, _Loader)
    return content


def list_configs(folder: Path) -> list[Path]:
    """The config files of a bundle's `configs`."""
    return sorted(path for path in folder.iterdir() if path.suffix in (".json", ".yaml"))


def own_values(folder: Path) -> dict[str, dict[str, Any]]:
    """What the configs of a bundle have for each of their keys, by name of the file."""
    values: dict[str, dict[str, Any]] = {}
    for file in list_configs(folder):
        for key, value in parse_config(file.read_text(encoding="utf-8"), file.suffix).items():
            values.setdefault(key, {})[file.name] = value
    return values


def parse_value(text: str) -> Any:
    """A setting as it is typed: JSON, Python's True, False and None, or else text.

    >>> [parse_value(text) for text in ("512", "[0, 0.02]", "False", "false", "resnet18")]
    [512, [0, 0.02], False, False, 'resnet18']
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return {"True": True, "False": False, "None": None}.get(text, text)


def edit_config(text: str, settings: Mapping[str, Any]) -> str:
    """Replace values of a YAML config; comments, order and layout stay.

    Args:
        text: of the config.
        settings: new values of some of its top-level keys, each a scalar or a list in brackets now.

    Raises:
        UserError: when a value has more than a line.
    """
    root = yaml.compose(text, _Loader)
    places = {key.value: value for key, value in root.value} if isinstance(root, yaml.MappingNode) else {}
    edited = text
    for key in sorted(settings, key=lambda key: places[key].start_mark.index, reverse=True):
        start, end = places[key].start_mark, places[key].end_mark
        if start.line != end.line:
            raise UserError(f"Expected a setting of one value, got {key!r}, which has several lines. Edit the file.")
        value = yaml.safe_dump(settings[key], default_flow_style=True, width=1e9).removesuffix("...\n").strip()
        edited = edited[: start.index] + value + edited[end.index :]
    if parse_config(edited, ".yaml") != {**parse_config(text, ".yaml"), **settings}:
        raise UserError(f"Cannot write the settings {dict(settings)} into the config. Edit the file.")
    return edited
