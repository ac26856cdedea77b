# SPDX-License-Identifier: Apache-2.0
"""What the MONAI Model Zoo and MONAI's own commands demand of a bundle."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, ckpt_export, verify_metadata, verify_net_in_out
from PIL import Image

import monai_kdsam
from monai_kdsam.bundles import bundle_path, config_path
from monai_kdsam.data.phantoms import write_phantoms
from monai_kdsam.networks import build_student

ROOT = Path(__file__).parents[1]
BUNDLE = bundle_path()
SIZE = 64
STUDENT = {"backbone": "resnet18", "image_size": SIZE, "prompt_map": True, "fine_features": True}
SCHEMA = os.environ.get("KDSAM_SCHEMA")
PHASES = ("adapt", "distill", "train", "evaluate")
LAYOUT = [
    *(f"configs/{phase}.yaml" for phase in PHASES),
    "configs/inference.json",
    "configs/inference_trt.yaml",
    "configs/multi_gpu_train.yaml",
    "configs/metadata.json",
    "configs/logging.conf",
    "docs/README.md",
    "docs/data_license.txt",
    "LICENSE",
]
# Keys that rightly differ between training and inference.
OWN_OF_A_PHASE = {
    "imports",
    "phase",
    "device",
    "bad_images",
    "overwrite",
    "network",
    "output_dir",
    "run_dir",
    "num_workers",
    "inferer",
    "initialize",
    "run",
}


def read(name: str, folder: Path = BUNDLE) -> dict:
    return ConfigParser.load_config_file(folder / "configs" / name)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A copy of the bundle with a network of 64 px, and random weights in it."""
    folder = tmp_path_factory.mktemp("zoo") / BUNDLE.name
    shutil.copytree(BUNDLE, folder, ignore=shutil.ignore_patterns("models", "output"))
    metadata, inference = read("metadata.json"), read("inference.json")
    formats = metadata["network_data_format"]
    for tensor in (formats["inputs"]["image"], formats["outputs"]["pred"]):
        tensor["spatial_shape"] = [SIZE, SIZE]
    inference |= STUDENT
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata))
    (folder / "configs" / "inference.json").write_text(json.dumps(inference))
    (folder / "models").mkdir()
    torch.manual_seed(0)
    torch.save(build_student(**STUDENT).state_dict(), folder / "models" / "model.pt")
    return folder


@pytest.mark.parametrize("name", LAYOUT)
def test_the_zoos_layout_is_complete(name):
    assert (BUNDLE / name).is_file()


def test_the_bundle_has_no_code_and_no_weights_of_its_own():
    assert not list(BUNDLE.rglob("*.py"))
    assert all(path.stat().st_size < 1e6 for path in BUNDLE.rglob("*") if path.is_file() and "models" not in path.parts)


def test_the_license_is_the_projects():
    assert (BUNDLE / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_the_version_is_the_packages_and_in_the_changelog():
    metadata = read("metadata.json")
    assert metadata["version"] == monai_kdsam.__version__
    assert metadata["required_packages_version"]["monai_kdsam"] == monai_kdsam.__version__
    assert metadata["version"] in metadata["changelog"]


def test_the_readme_names_every_phase_and_no_config_that_is_not_there():
    readme = (BUNDLE / "docs" / "README.md").read_text()
    named = set(re.findall(r"configs/(\w+\.(?:json|yaml))", readme))
    assert named >= {"inference.json", *(f"{phase}.yaml" for phase in PHASES)}
    assert all((BUNDLE / "configs" / name).is_file() for name in named)


@pytest.mark.filterwarnings("ignore:No hash value provided")
@pytest.mark.skipif(not SCHEMA, reason="set KDSAM_SCHEMA to a file of MONAI's metadata schema")
def test_metadata_fits_monais_schema(tmp_path):
    # A copy, since MONAI downloads to this path what it does not find there.
    schema = shutil.copyfile(SCHEMA, tmp_path / "schema.json")
    verify_metadata(meta_file=str(BUNDLE / "configs" / "metadata.json"), filepath=str(schema))


def test_the_network_takes_and_gives_what_metadata_says(small):
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(small / "configs" / "metadata.json"),
        config_file=str(small / "configs" / "inference.json"),
        bundle_root=str(small),
    )


def test_metadata_states_the_input_size_of_the_default_network():
    size = read("inference.json")["image_size"]
    formats = read("metadata.json")["network_data_format"]
    assert formats["inputs"]["image"]["spatial_shape"] == formats["outputs"]["pred"]["spatial_shape"] == [size, size]


PROMPTS = {
    "none": (),
    "clicks": (torch.tensor([[[20.0, 30.0], [50.0, 8.5]]]).repeat(2, 1, 1), torch.tensor([[1, 0], [1, -1]])),
    "box": (torch.tensor([[[8.0, 8.0], [40.0, 48.0]]]).repeat(2, 1, 1), torch.tensor([[2, 3], [2, 3]])),
    "two prompts for each image": (
        torch.tensor([[[8.0, 8.0], [40.0, 48.0]], [[9.0, 9.0], [0.0, 0.0]]]).repeat(2, 1, 1, 1),
        torch.tensor([[2, 3], [1, -1]]).repeat(2, 1, 1),
    ),
}


@pytest.fixture(scope="module")
def exported(small):
    path = small / "models" / "model.ts"
    ckpt_export(
        net_id="network_def",
        filepath=str(path),
        ckpt_file=str(small / "models" / "model.pt"),
        meta_file=str(small / "configs" / "metadata.json"),
        config_file=str(small / "configs" / "inference.json"),
        bundle_root=str(small),
    )
    return torch.jit.load(path).eval()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_network_that_ckpt_export_writes_equals_the_network(small, exported, prompt):
    network = build_student(**STUDENT).eval()
    network.load_state_dict(torch.load(small / "models" / "model.pt", weights_only=True))
    image = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(exported(image, *PROMPTS[prompt]), network(image, *PROMPTS[prompt]))


@pytest.mark.parametrize(
    ("kind", "config", "data"), [("train", "train.yaml", "."), ("infer", "inference.json", "images")]
)
def test_monai_finds_every_property_that_it_demands(small, tmp_path, kind, config, data):
    write_phantoms(tmp_path / "data", per_kind=4, size=SIZE)
    workflow = ConfigWorkflow(
        config_file=[str(BUNDLE / "configs" / config), str(config_path("smoke.yaml"))],
        meta_file=str(BUNDLE / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type=kind,
        bundle_root=str(BUNDLE),
        dataset_dir=str(tmp_path / "data" / data),
        output_dir=str(tmp_path / "output"),
        ckpt_dir=str(small / "models"),
        initial_checkpoint=str(small / "models" / "model.pt"),
    )
    workflow.initialize()
    assert workflow.check_properties() == []


def test_what_training_and_inference_share_is_equal():
    train, inference = read("train.yaml"), read("inference.json")
    shared = set(train) & set(inference) - OWN_OF_A_PHASE
    assert {"image_size", "backbone", "neck", "pixel_mean", "pixel_std", "network_def"} <= shared
    del train["network_def"]["imagenet_weights"]  # which only a training begins with
    assert {key: train[key] for key in shared} == {key: inference[key] for key in shared}
    served = {"remember": None, "go_on": None}  # what a server keeps between requests
    assert {**train["inferer"], **served} == {**inference["inferer"], **served}


def of_the_image(transforms: list[dict]) -> dict[str, dict]:
    """What each deterministic transform is told about the key `image`, by the transform's name."""
    told = {}
    for transform in transforms:
        keys = [transform["keys"]] if isinstance(transform["keys"], str) else transform["keys"]
        if "image" in keys and "Rand" not in transform["_target_"]:
            index = keys.index("image")
            settings = {
                name: value[index] if isinstance(value, list) and len(value) == len(keys) else value
                for name, value in transform.items()
                if name not in ("keys", "_target_", "allow_missing_keys")  # of the label: unlabeled images have none
            }
            told[transform["_target_"]] = settings
    return told


@pytest.mark.parametrize("second", [None, "evaluate"])
def test_training_evaluation_and_inference_prepare_the_image_alike(second):
    train = read("train.yaml") | (read(f"{second}.yaml") if second else {})
    trained = of_the_image([*train["load"], *train["to_network_frame"], *train["pad"]])
    served = of_the_image(read("inference.json")["preprocessing"]["transforms"])
    resize = "monai_kdsam.transforms.ResizeLongestSided"
    geometry = ("LoadImaged", "EnsureChannelFirstd", "Orientationd", resize, "NormalizeIntensityd", "SpatialPadd")
    assert [name for name in trained if name in geometry] == list(geometry)
    assert [name for name in served if name in geometry] == list(geometry)
    for name in geometry:
        assert trained[name] == served[name], name


@pytest.mark.parametrize("part", ["train", "validate"])
def test_a_picture_far_longer_than_wide_goes_through(tmp_path, part):
    picture = np.zeros((2000, 5), np.uint8)
    picture[900:1100, 1:4] = 255
    for name in ("image", "label"):
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "train.yaml"))
    parser.update({"image_size": 64, "augment": False})
    item = {"image": str(tmp_path / "image.png"), "label": str(tmp_path / "label.png"), "source": "folder"}
    data = parser.get_parsed_content(f"{part}#preprocessing")(item)
    assert data["image"].shape == (3, 64, 64)
    assert data["label"][..., 1:].sum() == 0
    assert data["label"][0].sum() == 6  # 200 of 2000 rows are 6.4 of 64


@pytest.mark.parametrize(
    ("phase", "part"), [((), "train"), (("distill", "refine"), "train"), ((), "validate"), (("evaluate",), "validate")]
)
def test_prompts_are_on_the_image_and_never_on_its_padding(tmp_path, phase, part):
    picture = np.zeros((40, 128), np.uint8)
    picture[20:38, 30:100] = 255  # near the lower edge, beyond which there is padding
    for name in ("image", "label"):
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    parser = ConfigParser()
    parser.read_config([str(BUNDLE / "configs" / f"{name}.yaml") for name in ("train", *phase)])
    parser.update(
        {
            "image_size": 128,
            "augment": False,
            "teacher": "vit_micro",
            "teacher_checkpoint": None,
            "box_size_jitter": 0.3,
            "prompts": ["box", "clicks", "box+clicks"],
            "val_prompts": ["box", "clicks", "box+clicks"],
        }
    )
    prepare = parser.get_parsed_content(f"{part}#preprocessing")
    item = {"image": str(tmp_path / "image.png"), "label": str(tmp_path / "label.png"), "source": "folder"}
    for _ in range(40):
        data = prepare(item)
        assert data["image"].shape == (3, 128, 128)
        assert (data["points"][data["labels"] >= 0][:, 1] <= 39).all()
