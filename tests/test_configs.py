# SPDX-License-Identifier: Apache-2.0
"""Every config file is a test case by existing: each is run, small, on generated pictures in the layout it is for."""

from __future__ import annotations

import csv
import inspect
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
import yaml
from monai.bundle import ConfigWorkflow
from monai.networks.trt_compiler import TrtCompiler
from PIL import Image
from scipy import ndimage

from monai_kdsam.bundles import bundle_path, config_path
from monai_kdsam.data.phantoms import make_phantom
from monai_kdsam.networks import build_teacher, load_weights
from monai_kdsam.phases import PHASES, read_phase
from monai_kdsam.settings import used_keys
from monai_kdsam.weights.sidecar import read_sidecar

OVERLAYS = sorted(str(path.relative_to(config_path())) for path in config_path().rglob("*.yaml"))
NEEDS_SAM = {"teachers/vit_b.yaml", "teachers/vit_l.yaml", "teachers/vit_h.yaml", "teachers/medsam.yaml"}
PHASE_OF = {
    "evaluate_teacher.yaml": "evaluate",
    "teachers/adapted.yaml": "distill",
    "recipes/paper.yaml": "distill",
    "recipes/plus.yaml": "refine",
    "reproductions/sam_decoder.yaml": "adapt",
}


def pictures(kind, count=6):
    for number in range(count):
        yield number, *make_phantom(kind, size=64, seed=number)


def save(path: Path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8) * 255 if array.dtype == bool else array).save(path)


def write_kvasir(root: Path):
    for number, image, mask in pictures("polyp"):
        save(root / "images" / f"{number}.jpg", image)
        save(root / "masks" / f"{number}.jpg", mask)


def write_isic2017(root: Path):
    for number, image, mask in pictures("polyp", count=12):
        part = ("Training", "Validation", "Test_v2")[number % 3]
        save(root / f"ISIC-2017_{part}_Data" / f"ISIC_{number:07d}.jpg", image)
        save(root / f"ISIC-2017_{part}_Part1_GroundTruth" / f"ISIC_{number:07d}_segmentation.png", mask)


def write_hc18(root: Path):
    rows = [("filename", "pixel size(mm)", "head circumference (mm)")]
    for number, image, _ in pictures("breast_lesion"):
        down, right = (np.linspace(-2, 2, side) for side in image.shape[:2])
        head = down[:, None] ** 2 + right**2 < 1 + number / 10
        save(root / "training_set" / f"{number:03d}_HC.png", image[..., 0])
        save(root / "training_set" / f"{number:03d}_HC_Annotation.png", head & ~ndimage.binary_erosion(head))
        rows.append((f"{number:03d}_HC.png", 0.1, 100.0))
    with open(root / "training_set_pixel_size_and_HC.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)


def write_busi(root: Path):
    for number, image, mask in pictures("breast_lesion"):
        save(root / "benign" / f"benign ({number}).png", image)
        save(root / "benign" / f"benign ({number})_mask.png", mask)


def write_pooled(root: Path):
    write_kvasir(root / "Kvasir-SEG")
    write_isic2017(root)
    write_hc18(root / "HC18")
    write_busi(root / "Dataset_BUSI_with_GT")


WRITERS = {
    "kvasir": write_kvasir,
    "isic2017": write_isic2017,
    "hc18": write_hc18,
    "busi": write_busi,
    "pooled": write_pooled,
}


def as_datalist(folder: Path) -> Path:
    names = sorted(path.name for path in (folder / "images").iterdir())
    items = [{"image": f"images/{name}", "label": f"masks/{name}", "subject": name} for name in names]
    file = folder / "datalist.json"
    file.write_text(json.dumps({"training": items[:8], "validation": items[8:10], "test": items[10:]}))
    return file


# Of the students some of each kind; the others with -m slow.
QUICK_STUDENTS = ("resnet50", "resnet18", "repvit_m1", "hgnetv2_b0")
RUN = [
    name
    if Path(name).parent.name != "students" or Path(name).stem in QUICK_STUDENTS
    else pytest.param(name, marks=pytest.mark.slow)
    for name in OVERLAYS
    if name not in NEEDS_SAM
]


@pytest.mark.parametrize("overlay", RUN)
def test_each_overlay_runs_with_the_phase_it_is_for(trained, overlay, tmp_path):
    overrides = {"split_file": str(tmp_path / "new_split.json")}
    name = Path(overlay)
    if name.stem in WRITERS:
        WRITERS[name.stem](tmp_path / "set")
        overrides["dataset_dir"] = str(tmp_path / "set")
    elif name.stem == "datalist":
        overrides["dataset_dir"] = str(as_datalist(trained.folder / "phantoms"))
    overlays = ["offline", "smoke", overlay]
    if name.parts[0] == "students":
        overlays.insert(0, "without_distillation")  # the weights at hand are ResNet-18's
    else:
        overrides["backbone"] = "resnet18"
    if name.stem == "promptable":
        torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "imagenet.pth")
        overrides["imagenet_weights"] = str(tmp_path / "imagenet.pth")
    if name.stem == "few_labels":
        overrides["student_weights"] = str(trained.models / "model.pt")
    if name.stem == "paper":
        overrides["teacher"] = "vit_micro"  # which was adapted
    before = {path: path.stat().st_mtime_ns for path in trained.folder.rglob("*") if path.is_file()}
    trained.run(PHASE_OF.get(overlay, "train"), *overlays, small=False, **overrides | SMALL)
    after = {path for path in trained.folder.rglob("*") if path.is_file()}
    written = {p.name for p in after if before.get(p) != p.stat().st_mtime_ns}
    weights = {"teacher.pt", "distilled.pt", "refined.pt", "model.pt", "without_distillation.pt"}
    assert written & (weights | {"summary.csv"}), written


@pytest.mark.parametrize(("masks", "epochs", "interval"), [(8, 160, 40), (12, 80, 20), (40, 32, 8), (1600, 1, 1)])
def test_few_labels_takes_as_many_steps_whatever_the_number_of_masks(masks, epochs, interval):
    parser = read_phase(bundle_path(), "train", "recipes/promptable", "recipes/few_labels")
    parser["train"]["dataset"] = list(range(masks))
    parser["train"]["dataloader"] = "$range(-(-len(@train#dataset) // @batch_size))"
    assert parser.get_parsed_content("epochs") == epochs
    parser["train"]["trainer"] = {"_target_": "types.SimpleNamespace", "max_epochs": "@epochs"}
    assert parser.get_parsed_content("val_interval") == interval


# Whatever an overlay says of size, the test stays small.
SMALL = {"batch_size": 2, "image_size": 64, "epochs": 1, "num_workers": 0}


def test_a_teacher_of_medsams_kind_is_adapted_with_its_own_inputs_and_stays_of_that_kind(workspace):
    workspace.models.mkdir(exist_ok=True)
    torch.save(build_teacher("vit_micro", image_size=64).state_dict(), workspace.models / "medsam_vit_b.pth")
    overlays = ("offline", "smoke", "teachers/medsam")
    workspace.run("adapt", *overlays, small=False, teacher="vit_micro", **SMALL)
    assert read_sidecar(workspace.models / "teacher.pt")["network"]["preprocessing"] == "medsam"


@pytest.mark.parametrize("overlay", sorted(NEEDS_SAM - {"teachers/medsam.yaml"}))
def test_a_missing_sam_checkpoint_is_an_error_that_names_the_command(workspace, overlay):
    with pytest.raises(RuntimeError) as error:
        workspace.run("distill", overlay, small=False)
    cause = error.value
    while cause.__cause__ is not None:
        cause = cause.__cause__
    assert f"python -m monai_kdsam download sam_{Path(overlay).stem} --dir" in str(cause)


def test_the_overlay_for_tensorrt_leaves_the_network_as_it_is_where_there_is_none(trained):
    """All that can be said without a GPU: it merges, its names resolve, and MONAI's `trt_compile` gets the network."""
    configs = [str(trained.bundle / "configs" / name) for name in ("inference.json", "inference_trt.yaml")]
    parser = ConfigWorkflow(
        configs, workflow_type="infer", logging_file=False, bundle_root=str(trained.bundle), device="cpu"
    ).parser
    arguments = parser.get_parsed_content("trt_args")
    assert set(arguments) <= set(inspect.signature(TrtCompiler).parameters)
    network = parser.get_parsed_content("network")
    expected = load_weights(parser.get_parsed_content("network_def"), trained.models / "model.pt").eval()
    image = torch.rand(1, 3, network.image_size, network.image_size)
    with torch.no_grad():
        assert torch.equal(network(image), expected(image))


@pytest.mark.parametrize("phase", ["train", "adapt", "distill", "refine"])
def test_what_a_loss_consists_of_lies_where_the_network_does(phase):
    parser = read_phase(bundle_path(), phase, vgg_weights=None, device="meta")
    loss = parser.get_parsed_content("train#trainer#loss_function")
    held = [*loss.parameters(), *loss.buffers()]
    assert all(tensor.device.type == "meta" for tensor in held)
    assert held or phase != "distill"


def test_overlays_are_small_and_address_nothing_by_position():
    for name in OVERLAYS:
        text = config_path(name).read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 25, name
        assert not any(part.isdigit() for key in yaml.safe_load(text) for part in key.replace("::", "#").split("#"))


def test_each_config_of_the_bundle_is_a_phase_or_changes_what_a_phase_uses():
    files = {path.stem: path for path in bundle_path().glob("configs/*") if path.stem not in ("metadata", "logging")}
    assert PHASES.keys() <= files.keys()
    for name in files.keys() - PHASES.keys():
        parser = read_phase(bundle_path(), "inference" if name.startswith("inference") else "train", name)
        changed = {re.split("#|::", key)[0] for key in yaml.safe_load(files[name].read_text(encoding="utf-8"))}
        assert changed <= used_keys(parser.config) | {"imports", "initialize"}, name
