# SPDX-License-Identifier: Apache-2.0
"""The weights that a bundle serves, and how they travel with its copies."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from monai_kdsam.weights.sidecar import copy_with_sidecar, describe_weights

__all__ = ["copy_weights", "describe_bundle", "network_settings", "weights_path"]

PICTURES = "kdsam_deepgrow_2d"


def weights_path(bundle: str | Path, models: str | Path | None = None) -> Path:
    """The weights that a bundle serves, `model.pt` in `models` (by default its own), which need not be there.

    A bundle of volumes without any has those of the bundle `kdsam_deepgrow_2d` beside it.
    """
    own = Path(models or Path(bundle) / "models") / "model.pt"
    place = Path(bundle).resolve()
    beside = place.parent / PICTURES / "models" / "model.pt"
    return beside if "3d" in place.name and beside.is_file() and not own.is_file() else own


def network_settings(bundle: str | Path) -> dict[str, Any]:
    """What a bundle's inference.json says of the settings that travel with weights."""
    served = json.loads((Path(bundle) / "configs" / "inference.json").read_text(encoding="utf-8"))
    names = re.findall(r"@(\w+)", json.dumps([served["network_def"], served["trained_with"]]))
    return {name: served[name] for name in names}


def copy_weights(source: Path, target: Path) -> None:
    """Copy the weights that a bundle serves into its copy, if that has the same network and finds none by itself."""
    weights = weights_path(source)
    if weights.is_file() and not weights_path(target).is_file() and not _differing(source, target):
        copied = target / "models" / "model.pt"
        copy_with_sidecar(weights, copied, remedy="Free disk space, or copy the bundle to another place.")


def describe_bundle(bundle: Path, source: Path) -> str:
    """What a copy of a bundle serves, in a line; empty where there are no weights to copy."""
    weights = weights_path(bundle)
    if weights.is_file():
        return f"{bundle.name} serves {describe_weights(weights)}"
    if not weights_path(source).is_file():
        return ""
    return (
        f"{bundle.name} has no weights yet: those that come with monai_kdsam are of another network, "
        f"{', '.join(_differing(bundle, source))}."
    )


def _differing(bundle: Path, other: Path) -> list[str]:
    """The other bundle's settings of the network where they differ."""
    own = network_settings(bundle)
    return [f"{name}={value}" for name, value in network_settings(other).items() if value != own.get(name)]
