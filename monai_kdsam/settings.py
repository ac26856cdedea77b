# SPDX-License-Identifier: Apache-2.0
"""The settings of a bundle's run are looked at before anything is done with them.

MONAI merges overlays and the command line silently: `--epochz 5` would train for the default, `--augment false` would
augment (the text "false" is true), and `--epochs 0` would end in a trace from the learning rate's schedule.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import torch

from monai_kdsam.config_files import own_values
from monai_kdsam.errors import UserError, did_you_mean

__all__ = ["check_device", "check_settings", "check_value", "used_keys"]

logger = logging.getLogger(__name__)

# A whole number for what is counted. More is checked where it is used.
AT_LEAST: dict[str, float] = {
    "epochs": 1,
    "val_interval": 1,
    "log_interval": 1,
    "batch_size": 1,
    "num_workers": 0,
    "correction_rounds": 0,
    "weight_decay": 0.0,
    "cache_rate": 0.0,
}
KINDS = {bool: "True or False", float: "a number", str: "text", list: "a list"}
# MONAI's, of every config.
OWN = {"_meta_", "initialize", "run", "finalize", "imports", "displayable_configs"}


def check_settings(
    config: Mapping[str, Any],
    folder: Path,
    *,
    typed: Mapping[str, Any],
    roots: tuple[str, ...],
    macros: Set[str] = frozenset(),
) -> None:
    """Raise a ValueError about the first setting that is unknown, cannot be meant, or is not used by this run.

    Args:
        config: the merged config.
        folder: of the bundle's own configs.
        typed: settings of the command line and their words, which are for this run alone. Overlays may be for several
            phases: what this one does not use of them is logged.
        roots: keys that the run evaluates.
        macros: keys that `%key` names in the config's files; in the merged config nothing is left of that.
    """
    own = own_values(folder)
    _reject_unknown(config, own, macros)
    _reject_separators(config)
    _reject_comments(typed)
    for key, value in config.items():
        check_value(key, value, own.get(key, {}))
    check_device(config.get("device"))
    _check_batch(config)
    _reject_unused(config, own, typed, used_keys(config, roots) | macros)


def used_keys(config: Mapping[str, Any], roots: Iterable[str] = ("initialize", "run", "finalize")) -> set[str]:
    """Top-level keys that a run comes to, from those that it evaluates."""
    used: set[str] = set()
    pending = {"_meta_", "bundle_root", "phase", "displayable_configs", "imports", *roots}
    while pending:
        used |= pending
        pending = _references([config.get(key) for key in pending]) - used
    return used


def _reject_unknown(config: Mapping[str, Any], own: Mapping[str, Any], macros: Set[str]) -> None:
    known = OWN | own.keys()
    referred = _references(config) | macros
    for key in config:
        if key not in known and key not in referred:
            hint = did_you_mean(key, known) or " A key of your own must be used by another: '@key' or '%key'."
            raise UserError(f"The config has a key that nothing knows: {key!r}.{hint}")


def _references(config: Any) -> set[str]:
    return set(re.findall(r"[@%](\w+)", json.dumps(config, default=str)))


def _is_expression(value: Any) -> bool:
    return isinstance(value, str) and value[:1] in ("$", "@", "%")


def _reject_separators(config: Mapping[str, Any]) -> None:
    """MONAI's parser has made `::` of every `#` by now, in paths too."""
    for key, value in config.items():
        for text in _texts(value) if key not in OWN else ():
            if "::" in text and not _is_expression(text):
                raise UserError(
                    f"Expected `{key}` without '#' or '::', which MONAI's configs take for separators of keys and "
                    f"rewrite, got {text!r}. Rename the file or folder."
                )


def _reject_comments(typed: Mapping[str, Any]) -> None:
    """Fire reads words as Python where it can: `out#1` has become `out`, without its comment."""
    for key, word in typed.items():
        if isinstance(word, str) and "#" in word and not re.search("[$@%]", word):
            raise UserError(
                f"Expected `{key}` without '#', from which on MONAI's command line ignores it, got {word!r}. Rename "
                "the file or folder."
            )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(part)


def check_value(key: str, value: Any, own: Mapping[str, Any]) -> None:
    """Compare a setting with its own values in the bundle's configs. Null and expressions are the user's business.

    Args:
        key: name of the setting.
        value: to be checked.
        own: what the configs have for it, by name of the file.

    Raises:
        UserError: when it is of another kind than they are, or a number that cannot be meant.
    """
    if value is None or _is_expression(value):
        return
    if key == "foreground_values":
        own = {"train": [1, 2]}
    kinds = {kind for default in own.values() if (kind := _kind_of(default))}
    if len(kinds) == 1 and _kind_of(value) not in kinds:
        (kind,) = kinds
        default = next(value for value in own.values() if _kind_of(value))
        example = json.dumps(default) if kind is list else default
        raise UserError(f"Expected `{key}` to be {KINDS[kind]}, such as {example}, got {value!r}.")
    least = AT_LEAST.get(key)
    if least is not None and (not value >= least or (isinstance(least, int) and value != int(value))):
        what = "a whole number" if isinstance(least, int) else "a number"
        raise UserError(f"Expected `{key}` to be {what} of at least {least:g}, got {value}.")
    if key == "learning_rate" and not value > 0:
        raise UserError(f"Expected `learning_rate` to be above 0, got {value}.")


def _check_batch(config: Mapping[str, Any]) -> None:
    """A batch norm cannot learn from one value, and of 32 pixels the encoder's last stage leaves one."""
    learns = config.get("phase") in ("distill", "refine") or (
        config.get("phase") == "train" and config.get("train_encoder") is True
    )
    if learns and config.get("image_size") == 32 and config.get("batch_size") == 1:
        raise UserError(
            "Expected `batch_size` of at least 2 with an `image_size` of 32, of which the encoder's last stage leaves "
            "one value an image, got 1."
        )


def _kind_of(value: Any) -> type | None:
    if isinstance(value, (bool, str)):
        return None if _is_expression(value) else type(value)
    if isinstance(value, (int, float)):
        return float
    return list if isinstance(value, (list, tuple)) else None


def check_device(value: Any) -> None:
    """Raise a UserError unless PyTorch sees such a device on this machine; an expression is the user's business."""
    if value is None or _is_expression(value):
        return
    try:
        device = torch.device(value)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"Expected `device` to be cpu, cuda or cuda:N, got {value!r}.") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"Expected `device` to be one of this machine, got {value!r}; {_gpus()}.")


def _gpus() -> str:
    count = torch.cuda.device_count()
    return f"PyTorch {torch.__version__} sees {count} GPU{'' if count == 1 else 's'}"


def _reject_unused(
    config: Mapping[str, Any], own: Mapping[str, Mapping[str, Any]], typed: Iterable[str], used: Set[str]
) -> None:
    """Raise about settings of the command line that the run never comes to; log those of overlays."""
    phase = config.get("phase", "")
    for name in typed:
        key = re.split("#|::", name.lstrip("+~"))[0]
        if key not in used:
            others = [file for file in own.get(key, ()) if Path(file).stem != phase]
            hint = f"It is of {', '.join(others)}. " if others else ""
            alike = sorted(f"`{name}`" for name in used if name.split("_")[-1] == key.split("_")[-1])
            hint += f"What it uses is {', '.join(alike)}. " if alike else ""
            raise UserError(
                f"The phase {phase} does not use the setting `{key}`, which has been given for it. {hint}Leave it out."
            )
    changed = [
        key
        for key, value in config.items()
        if key not in used and not isinstance(value, Mapping) and value not in own.get(key, {}).values()
    ]
    if changed:
        logger.info("Settings of overlays that the phase %s does not use: %s.", phase, ", ".join(changed))
