# SPDX-License-Identifier: Apache-2.0
"""A bundle as it lies on a hub: with a card that has what is known of its weights, and nothing else of its site."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from safetensors.torch import save_file

import monai_kdsam
from monai_kdsam.bill_of_materials import limitations, write_bill_of_materials
from monai_kdsam.bundles import own_modules, shipped_bundle, weights_path
from monai_kdsam.errors import ExistingFileError, MissingFileError
from monai_kdsam.files import ROOM, file_sha256, replacing, scratch_folder, write_text
from monai_kdsam.hub import check_name, push_folder
from monai_kdsam.inferers import BundlePredictor
from monai_kdsam.weights.sidecar import copy_with_sidecar, describe_weights, read_sidecar, sidecar_path
from monai_kdsam.weights.state_dict import read_state_dict

__all__ = ["publish"]

TEMPLATE = Path(__file__).with_name("model_card.md.j2")
TAGS = ["monai", "medical", "segment-anything", "interactive-segmentation", "knowledge-distillation"]
NEEDED = ("LICENSE", "docs/README.md", "configs/inference.json", "configs/metadata.json")


def publish(bundle: str | Path | None, folder: str | Path, *, push: str | None = None) -> str:
    """Write a bundle into a folder as Hugging Face's hub and MONAI take it, and upload that only where `push` says so.

    Weights are there as `model.pt`, for MONAI, and as `model.safetensors`, with their hashes, a bill of materials, and
    a README.md for people. Outputs, other weights and lists of images are left out; what its configs say is not.

    Args:
        bundle: its folder; None: what was published to `folder` before, or else the one that comes with the package.
        folder: new or empty, or what was published before, which is pushed as it is now.
        push: ORG/NAME on the hub; a repository that is not there yet is made, private.

    Returns:
        What was done.

    Raises:
        UserError: when the bundle does not run, its weights are not those of their sidecar, or the hub refuses.
        FileNotFoundError: when the bundle, its weights or their sidecar are missing.
        FileExistsError: when the folder holds something else.
    """
    folder = Path(folder)
    if push is not None:
        check_name(push, "--push", "ORG/NAME on a hub")
    told = _published_before(folder, bundle, push) or _write(Path(bundle) if bundle else shipped_bundle(), folder)
    if push is None:
        return f"{told} Nothing was uploaded: look it through, then add `--push ORG/NAME`."
    page = folder / "README.md"
    write_text(page, page.read_text(encoding="utf-8").replace("ORG/NAME", push))
    return f"{told} Pushed to {push}, commit {push_folder(folder, push)}."


def _published_before(folder: Path, bundle: str | Path | None, push: str | None) -> str:
    """What to say of a folder that is there already, empty for one that is to be written."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return ""
    weights = folder / "models" / "model.pt"
    if push is None or not (folder / "README.md").is_file() or not weights.with_suffix(".cdx.json").is_file():
        raise ExistingFileError(
            f"Expected `--dir` to be new or empty, got {folder}. `--push` pushes what was published there before."
        )
    read_sidecar(weights)
    if bundle is not None and file_sha256(weights_path(bundle)) != file_sha256(weights):
        raise ExistingFileError(f"{folder} holds other weights than {bundle}. Delete it, or choose another `--dir`.")
    return f"{folder} is as it was published before."


def _write(bundle: Path, folder: Path) -> str:
    for name in NEEDED:
        if not (bundle / name).is_file():
            raise MissingFileError(f"Expected a bundle with {name} at `--bundle`, got {bundle}.")
    BundlePredictor(bundle, device="cpu")  # raises where hosts would
    weights = weights_path(bundle)
    if read_sidecar(weights) is None:
        raise MissingFileError(
            f"Expected {sidecar_path(weights)}, which every training writes: what these weights are for is not known."
        )
    with scratch_folder(folder.parent, "publish") as scratch:
        built = scratch / "built"
        for name in ("configs", "docs"):
            shutil.copytree(bundle / name, built / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        for path in own_modules(bundle):
            (shutil.copytree if path.is_dir() else shutil.copyfile)(path, built / path.name)
        shutil.copyfile(bundle / "LICENSE", built / "LICENSE")
        _write_weights(weights, built / "models" / "model.pt")
        write_bill_of_materials(bundle, built / "models" / "model.cdx.json")
        write_text(built / "README.md", _card(built, bundle.resolve().name))
        if folder.exists():
            folder.rmdir()
        built.rename(folder)
    return f"Wrote {folder}. {describe_weights(folder / 'models' / 'model.pt')}"


def _write_weights(weights: Path, target: Path) -> None:
    """Copy weights and their sidecar, and write them as safetensors, whose hash the sidecar of the copy has too."""
    copy_with_sidecar(weights, target, remedy=ROOM)
    state = {name: value.contiguous() for name, value in read_state_dict(weights).items()}
    tensors = target.with_suffix(".safetensors")
    with replacing(tensors, ROOM) as unfinished:
        save_file(state, unfinished, metadata={"format": "pt"})
    described = json.loads(sidecar_path(target).read_text(encoding="utf-8"))
    described["safetensors"] = file_sha256(tensors)
    write_text(sidecar_path(target), json.dumps(described, indent=1) + "\n")


def _card(built: Path, name: str) -> str:
    """The README.md of a folder that is about to be published; its name tells MONAI Label whether it takes clicks."""
    weights = built / "models" / "model.pt"
    described: dict[str, Any] = json.loads(sidecar_path(weights).read_text(encoding="utf-8"))
    card = described.get("card", {})
    about = json.loads((built / "configs" / "metadata.json").read_text(encoding="utf-8"))
    license_of_weights = card.get("license")
    data = ModelCardData(
        # Of a site's own weights the license is the site's to say.
        license=license_of_weights.lower() if license_of_weights else None,
        library_name="monai",
        pipeline_tag="mask-generation",
        tags=TAGS,
    )
    given = {"title": card.get("name", about["name"]), "about": about, "card": card, "described": described}
    told = describe_weights(weights).replace("your phase", "the phase")
    given |= {"weights": told, "limits": limitations(built), "name": name, "version": monai_kdsam.__version__}
    return str(ModelCard.from_template(data, template_path=str(TEMPLATE), **given))
