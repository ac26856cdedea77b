# SPDX-License-Identifier: Apache-2.0
"""The bill of materials of a trained bundle (CycloneDX 1.6 with a model card): what it is made of, and from what."""

from __future__ import annotations

import json
import re
import uuid
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import monai_kdsam
from monai_kdsam.bundle_weights import weights_path
from monai_kdsam.errors import MissingFileError
from monai_kdsam.files import file_sha256, write_text
from monai_kdsam.weights.sidecar import describe_weights, read_sidecar

__all__ = ["limitations", "write_bill_of_materials"]


def write_bill_of_materials(bundle: str | Path, output: str | Path | None = None) -> Path:
    """Write the bill of materials of a bundle. Of the training images it has the numbers, no names.

    Args:
        bundle: its folder, with weights.
        output: the file; by default `models/model.cdx.json` in the bundle.

    Returns:
        The file.

    Raises:
        MissingFileError: when the bundle has no weights.
        UserError: when its weights are not those that their sidecar describes.
    """
    bundle = Path(bundle)
    weights = weights_path(bundle)
    if not weights.is_file():
        raise MissingFileError(f"Expected a trained bundle with {weights}, which does not exist.")
    libraries = _libraries()
    content = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid4()}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "tools": {"components": [_named("application", "monai_kdsam", monai_kdsam.__version__)]},
            "component": _model(bundle, weights),
        },
        "components": [*_data(bundle), *libraries],
        "dependencies": [{"ref": "model", "dependsOn": [library["bom-ref"] for library in libraries]}],
    }
    path = Path(output) if output else bundle / "models" / "model.cdx.json"
    write_text(path, json.dumps(content, indent=2) + "\n")
    return path


def _model(bundle: Path, weights: Path) -> dict[str, Any]:
    about = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    settings = read_sidecar(weights) or {}
    parameters = {
        "task": about["task"],
        "architectureFamily": "Segment Anything Model, distilled",
        "modelArchitecture": str(settings.get("network", {}).get("backbone", "unknown")),
        "datasets": [{"ref": data["bom-ref"]} for data in _data(bundle)],
        "inputs": [{"format": name} for name in about["network_data_format"]["inputs"]],
        "outputs": [{"format": name} for name in about["network_data_format"]["outputs"]],
    }
    return {
        **_named("machine-learning-model", about["name"], about["version"]),
        "bom-ref": "model",
        "description": f"{about['description']} {describe_weights(weights)}",
        "hashes": [{"alg": "SHA-256", "content": file_sha256(weights)}],
        "pedigree": {"ancestors": [_ancestor(file) for file in _earlier(weights)]},
        "modelCard": {
            "modelParameters": parameters,
            "considerations": {"useCases": [about["intended_use"]], "technicalLimitations": limitations(bundle)},
        },
        "properties": [
            {"name": f"monai_kdsam:{key}", "value": json.dumps(value)} for key, value in sorted(settings.items())
        ],
    }


def limitations(bundle: Path) -> list[str]:
    """What a bundle's own page says of its limits."""
    page = (bundle / "docs" / "README.md").read_text(encoding="utf-8").partition("# Limitations\n")[2]
    return re.findall(r"^- (.+)$", page.partition("\n# ")[0], re.MULTILINE)


def _earlier(weights: Path) -> list[Path]:
    """The other weights beside these: of SAM, ImageNet, the teacher and earlier phases."""
    files = (file for file in weights.parent.iterdir() if file.suffix in (".pt", ".pth", ".safetensors"))
    return sorted(file for file in files if file.name not in (weights.name, "previous.pt"))


def _ancestor(file: Path) -> dict[str, Any]:
    hashes = [{"alg": "SHA-256", "content": file_sha256(file)}]
    return {**_named("machine-learning-model", file.name, None), "hashes": hashes}


def _data(bundle: Path) -> list[dict[str, Any]]:
    """How many images each split has, from the split file that training wrote."""
    file = bundle / "output" / "split.json"
    if not file.is_file():
        return []
    splits = json.loads(file.read_text(encoding="utf-8"))
    names = ("training", "validation", "test", "unlabeled")
    counts = ", ".join(f"{len(splits[name])} {name}" for name in names if splits.get(name))
    contents = {"properties": [{"name": "images", "value": counts}]}
    about = {"type": "dataset", "name": "images of the site", "contents": contents}
    return [{**_named("data", "images of the site", None), "bom-ref": "images", "data": [about]}]


def _libraries() -> list[dict[str, Any]]:
    """What this package needs without its extras, as installed here."""
    required = [line for line in metadata.requires("monai_kdsam") or [] if "extra ==" not in line]
    names = sorted({re.split(r"[^\w.-]", line, maxsplit=1)[0].lower() for line in required})
    return [_library(name, metadata.version(name)) for name in names]


def _library(name: str, version: str) -> dict[str, Any]:
    url = f"pkg:pypi/{name.replace('_', '-')}@{version}"
    return {**_named("library", name, version), "bom-ref": url, "purl": url}


def _named(kind: str, name: str, version: str | None) -> dict[str, Any]:
    return {"type": kind, "name": name, **({"version": version} if version else {})}
