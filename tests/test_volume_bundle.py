# SPDX-License-Identifier: Apache-2.0
"""What the MONAI Model Zoo demands of the bundle for volumes, and what it shares with the 2-D bundle."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from monai.bundle import ConfigParser, verify_metadata, verify_net_in_out

import monai_kdsam
from monai_kdsam.__main__ import main
from monai_kdsam.bundles import bundle_path, copy_bundle

BUNDLE, FLAT = bundle_path("kdsam_deepgrow_3d"), bundle_path()
SCHEMA = os.environ.get("KDSAM_SCHEMA")
LAYOUT = ("configs/inference.json", "configs/metadata.json", "configs/logging.conf", "docs/README.md")


def read(name: str, folder: Path = BUNDLE) -> dict:
    return ConfigParser.load_config_file(folder / "configs" / name)


@pytest.mark.parametrize("name", [*LAYOUT, "docs/data_license.txt", "LICENSE"])
def test_the_zoos_layout_is_complete_and_has_no_code(name):
    assert (BUNDLE / name).is_file()
    assert not list(BUNDLE.rglob("*.py"))


def test_the_version_is_the_packages_and_in_the_changelog():
    metadata = read("metadata.json")
    assert metadata["version"] == monai_kdsam.__version__
    assert metadata["version"] in metadata["changelog"]


@pytest.mark.filterwarnings("ignore:No hash value provided")
@pytest.mark.skipif(not SCHEMA, reason="set KDSAM_SCHEMA to a file of MONAI's metadata schema")
def test_metadata_fits_monais_schema(tmp_path):
    schema = shutil.copyfile(SCHEMA, tmp_path / "schema.json")
    verify_metadata(meta_file=str(BUNDLE / "configs" / "metadata.json"), filepath=str(schema))


def test_the_network_takes_and_gives_what_metadata_says(tmp_path):
    bundle = copy_bundle(tmp_path, BUNDLE.name, settings={"backbone": "resnet18", "image_size": 64})
    shape = read("metadata.json", bundle)["network_data_format"]["inputs"]["image"]["spatial_shape"]
    assert shape == [64, 64, "*"]  # three of them, by which MONAI Label knows a model for volumes
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=str(bundle / "configs" / "inference.json"),
        any=3,
        bundle_root=str(bundle),
    )


def test_what_both_bundles_say_of_the_network_is_equal():
    ours, flat = read("inference.json"), read("inference.json", FLAT)
    same = ("image_size", "backbone", "neck", "pixel_mean", "pixel_std", "network", "ckpt_dir", "device")
    assert {key: ours[key] for key in same} == {key: flat[key] for key in same}
    assert {**ours["network_def"], "_target_": ""} == {**flat["network_def"], "_target_": ""}
    pins = ("monai_version", "pytorch_version", "numpy_version", "required_packages_version")
    assert all(read("metadata.json")[key] == read("metadata.json", FLAT)[key] for key in pins)


def test_a_slice_is_prepared_as_the_2d_bundle_prepares_a_picture():
    flat = {step["_target_"]: step for step in read("inference.json", FLAT)["preprocessing"]["transforms"]}
    ours = read("inference.json")["slice_preprocessing"]
    assert [step["_target_"] for step in ours] == [
        "monai_kdsam.transforms.ResizeLongestSide",
        "NormalizeIntensity",
        "SpatialPad",
    ]
    for step in ours:
        assert {**step, "keys": "image", "_target_": f"{step['_target_']}d"} == flat[f"{step['_target_']}d"]


def test_the_command_copies_both_bundles_with_the_same_settings(tmp_path):
    assert main(["bundle", str(tmp_path), "--set", "image_size=128", "augment=False"]) == 0
    for name in (FLAT.name, BUNDLE.name):
        assert read("inference.json", tmp_path / name)["image_size"] == 128
        assert (tmp_path / name / "models").is_dir()
    assert read("train.yaml", tmp_path / FLAT.name)["augment"] is False


def test_the_command_copies_the_bundle_that_is_named(tmp_path):
    assert main(["bundle", str(tmp_path), "--name", BUNDLE.name]) == 0
    assert not (tmp_path / FLAT.name).exists()
