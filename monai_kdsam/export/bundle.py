# SPDX-License-Identifier: Apache-2.0
"""A trained bundle to a folder of models that run without torch, and the proof that their masks are the same."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import logging
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

import monai_kdsam
from monai_kdsam.data.image_reader import list_images
from monai_kdsam.data.phantoms import write_phantoms
from monai_kdsam.errors import ExistingFileError, UserError, UserFileError
from monai_kdsam.export.parity import LEAST_IOU, Parity, check_parity, draw_prompts
from monai_kdsam.export.sam_parity import check_sam_parity
from monai_kdsam.files import ROOM, file_sha256, scratch_folder
from monai_kdsam.inferers import BundlePredictor
from monai_kdsam.runtime.manifest import LAYOUT, MANIFEST, SAM_LAYOUT, Manifest
from monai_kdsam.weights.sidecar import describe_weights

__all__ = ["export_bundle"]

logger = logging.getLogger(__name__)
Format = Literal["onnx", "openvino", "torchscript", "sam"]
Item = TypeVar("Item")
Precision = Literal["fp32", "fp16", "int8"]

_MOST_CALIBRATION = 100  # each costs a second or two at full size
_MOST_CHECKED = 12
_MOST_JUDGED = 6  # while looking for layers that 8 bits hurt: each layer takes all of them
_PACKAGES = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    "torchscript": (),
    "sam": ("onnx", "onnxscript", "onnxruntime"),
}


def export_bundle(
    bundle: str | Path,
    form: Format,
    *,
    precision: Precision = "fp32",
    calibration: str | Path | None = None,
    images: str | Path | None = None,
    output: str | Path | None = None,
) -> tuple[Path, Parity]:
    """Export image encoder, prompt and mask decoder, and an image-only model, and compare their masks with PyTorch's.

    Args:
        bundle: folder of the bundle, with `models/model.pt`.
        form: onnx, openvino or torchscript, for the light runtime; sam for programs that run segment_anything's own
            ONNX files, see `monai_kdsam.export.sam`. There is no image-only model then.
        precision: of the image encoder; the decoder is always float32. int8 is not for torchscript.
        calibration: folder of pictures like those that the model will see; needed for int8.
        images: folder of pictures to compare masks on; None takes pictures of `calibration` that are not calibrated
            with, or else generated ones.
        output: folder to write; None is `models/<form>_<precision>` in the bundle. An earlier export is replaced.

    Returns:
        The folder, and how well the masks agree.

    Raises:
        ValueError: on an unknown or impossible choice, a package that is not installed, or masks that differ too much;
            nothing is written then.
        FileNotFoundError: when bundle, weights or pictures are missing.
        FileExistsError: when `output` holds something else than an export.
    """
    bundle = Path(bundle)
    _check_choice(form, precision, calibration)
    target = bundle / "models" / f"{form}_{precision}" if output is None else Path(output)
    if target.exists() and (not target.is_dir() or (any(target.iterdir()) and not (target / MANIFEST).is_file())):
        raise ExistingFileError(f"Expected `output` to be new, empty or an earlier export, got {target}.")
    config = read_config(bundle)
    # Hosts that know SAM encode a picture once, whatever is prompted, and take masks as they come.
    hosted = {"close_up": 0, "fill_holes": False} if form == "sam" else {}
    settings = {name: value for name, value in hosted.items() if name in config}
    predictor = BundlePredictor(bundle, device="cpu", progress=False, **settings)
    with scratch_folder(target.parent, "export") as scratch:
        _check_room(scratch, bundle / "models" / "model.pt")
        built = scratch / "built"
        built.mkdir()
        calibrated, checked = _pictures(calibration, images, scratch)
        files = _write(predictor, bundle, built, form, precision, calibrated if precision == "int8" else [], config)
        sha256 = {file.name: file_sha256(file) for file in sorted(built.iterdir())}
        manifest = describe(bundle, predictor, form, precision, files, sha256, config | settings)
        manifest.write(built)
        if form == "torchscript" and precision == "fp16":  # its encoder was converted in place
            predictor = BundlePredictor(bundle, device="cpu", progress=False)
        parity = (check_sam_parity if form == "sam" else check_parity)(built, predictor, checked)
        if not parity.holds:
            raise UserError(f"The masks of {form} {precision} differ too much. {parity}. {_ADVICE[precision]}")
        manifest.parity.update(parity.summary())
        manifest.write(built)
        if target.exists():
            shutil.rmtree(target)
        built.rename(target)
    return target, parity


_ADVICE = {
    "fp32": "Was the bundle's preprocessing or postprocessing edited? The runtime knows the stock one.",
    "fp16": "Export fp32.",
    "int8": "Calibrate with more pictures like those that the model will see, or export fp16.",
}


def _check_choice(form: str, precision: str, calibration: str | Path | None) -> None:
    if form not in _PACKAGES:
        raise UserError(f"Expected `format` to be one of {', '.join(_PACKAGES)}, got {form!r}.")
    if precision not in LEAST_IOU:
        raise UserError(f"Expected `precision` to be one of {', '.join(LEAST_IOU)}, got {precision!r}.")
    if precision == "int8" and form == "torchscript":
        raise UserError("Expected `precision` fp32 or fp16 for torchscript, got 'int8': export onnx or openvino.")
    if precision == "int8" and calibration is None:
        raise UserError("Expected `calibration`, a folder of pictures like those that the model will see, for int8.")
    needed = _PACKAGES[form] + (("nncf",) if precision == "int8" else ())
    for package in needed:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UserError(
                f"`format` {form} needs the package {package}, which cannot be imported ({error}): "
                "pip install 'monai_kdsam[export]'"
            ) from error


def _check_room(folder: Path, weights: Path) -> None:
    """Raise an OSError before torch would end the process for want of room."""
    needed, free = 3 * weights.stat().st_size, shutil.disk_usage(folder).free
    if free < needed:
        place = folder.parent
        raise UserFileError(
            f"An export needs {needed / 2**20:.0f} MiB in {place}, where {free / 2**20:.0f} are free. {ROOM}"
        )


def _pictures(calibration: str | Path | None, images: str | Path | None, scratch: Path) -> tuple[list[str], list[str]]:
    """Paths to calibrate with, and others to compare masks on."""
    found = [] if calibration is None else [item["image"] for item in list_images(calibration)]
    if images is not None:
        return _spread(found, _MOST_CALIBRATION), _spread(
            [item["image"] for item in list_images(images)], _MOST_CHECKED
        )
    if len(found) >= 5:
        held_out = _spread(found, min(len(found) // 5, _MOST_CHECKED))
        return _spread([path for path in found if path not in held_out], _MOST_CALIBRATION), held_out
    generated = write_phantoms(scratch / "phantoms", per_kind=4, size=320)
    return found, [item["image"] for item in list_images(generated / "images")]


def _spread(items: list[Item], most: int) -> list[Item]:
    """At most so many of them, evenly."""
    return [items[index * len(items) // most] for index in range(most)] if len(items) > most else items


def read_config(bundle: Path) -> dict[str, Any]:
    """What a bundle serves with, if it can be read."""
    file = bundle / "configs" / "inference.json"
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # `BundlePredictor` says what is wrong with it
    missing = [key for key in ("pixel_mean", "pixel_std") if key not in config]
    if missing:
        raise UserError(f"Expected `{missing[0]}` at the top of {file}, found none.")
    return config


def _write(
    predictor: BundlePredictor,
    bundle: Path,
    folder: Path,
    form: str,
    precision: str,
    calibrated: Sequence[str],
    config: dict[str, Any],
) -> dict[str, str]:
    if form == "torchscript":
        from monai_kdsam.export.torchscript import write_torchscript

        return write_torchscript(predictor.network, bundle, folder, half=precision == "fp16")
    from monai_kdsam.export.onnx import encoder_graph, to_graphs, to_half, write_onnx

    network = predictor.network
    graphs = {"encoder": encoder_graph(network)} if form == "sam" else to_graphs(network)
    if form != "openvino":
        if precision == "fp16":
            graphs["encoder"] = to_half(graphs["encoder"])
        elif precision == "int8":
            graphs["encoder"] = _quantize(graphs["encoder"], predictor, calibrated)
        if form == "onnx":
            return write_onnx(graphs, folder)
        from monai_kdsam.export.sam import write_sam

        return write_sam(network, graphs["encoder"], config["pixel_mean"], config["pixel_std"], folder)
    from monai_kdsam.export.openvino import to_models, write_openvino

    models = to_models(graphs, folder)
    if precision == "int8":
        models["encoder"] = _quantize(models["encoder"], predictor, calibrated)
    return write_openvino(models, folder, half=precision == "fp16")


def _quantize(encoder: Any, predictor: BundlePredictor, paths: Sequence[str]) -> Any:
    from monai_kdsam.export.int8 import MaskAgreement, quantize

    tensors = [predictor.preprocessing({"image": path})["image"].as_tensor()[None] for path in paths]
    # Masks of pictures that were calibrated with agree better than others; few pictures have to do for both.
    judged = _spread(tensors, _MOST_JUDGED)  # sorted by name they are often sorted by kind, too
    others = [image for image in tensors if not any(image is one for one in judged)]
    calibrating = others if len(others) >= _MOST_JUDGED else tensors
    prompts = []
    for seed, image in enumerate(judged):
        with torch.no_grad():
            points, labels = draw_prompts(predictor.network(image)[0, 0].numpy(), seed, ("none", "box", "center"))
        prompts.append((torch.from_numpy(points)[None], torch.from_numpy(labels)[None]))
    agreement = MaskAgreement(predictor.network, [image.numpy() for image in judged], prompts)
    logger.info("Calibrating with %d pictures.", len(calibrating))
    # A margin, because the pictures of the check are others.
    arrays = [image.numpy() for image in calibrating]
    return quantize(encoder, arrays, agreement, least=1 - 0.8 * (1 - LEAST_IOU["int8"]))


def describe(
    bundle: Path,
    predictor: BundlePredictor,
    form: str,
    precision: str,
    files: dict[str, str],
    sha256: dict[str, str],
    config: dict[str, Any],
) -> Manifest:
    """The manifest of a bundle's network, exported or not."""
    packages = ("torch", "monai", *_PACKAGES.get(form, ()), *(("nncf",) if precision == "int8" else ()))
    versions = {"monai_kdsam": monai_kdsam.__version__, "python": platform.python_version()}
    versions |= {package: importlib.metadata.version(package) for package in packages}
    return Manifest(
        format=form,
        precision=precision,
        image_size=predictor.network.image_size,
        pixel_mean=config["pixel_mean"],
        pixel_std=config["pixel_std"],
        close_up=config.get("close_up", 0),
        fill_holes=config.get("fill_holes", False),
        go_on=config.get("go_on", False),
        mask_input=predictor.network.prompt_map or form == "sam",
        files=files,
        sha256=sha256,
        weights_sha256=file_sha256(bundle / "models" / "model.pt"),
        weights=describe_weights(bundle / "models" / "model.pt"),
        versions=versions,
        layout=SAM_LAYOUT if form == "sam" else LAYOUT,
    )
