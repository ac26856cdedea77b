# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import zipfile

import pytest
import torch

from monai_kdsam.bundles import copy_bundle
from monai_kdsam.deploy.model import open_model


@pytest.fixture
def bundle(tmp_path):
    bundle = copy_bundle(tmp_path)
    (bundle / "models" / "model.pt").touch()
    return bundle


def change_metadata(bundle, change):
    file = bundle / "configs" / "metadata.json"
    metadata = json.loads(file.read_text())
    change(metadata)
    file.write_text(json.dumps(metadata))


def script(path, *, root="model", **extra):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{root}/data.pkl", b"")
        archive.writestr(f"{root}/code/__torch__.py", b"")
        for name, content in extra.items():
            archive.writestr(f"{root}/extra/{name}.json", content)
    return path


def configs(bundle):
    return {name: (bundle / "configs" / f"{name}.json").read_bytes() for name in ("metadata", "inference")}


def test_a_bundle_s_folder(bundle):
    assert open_model(bundle).weights == bundle / "models" / "model.pt"


def test_a_folder_that_holds_the_model_alone_as_packaged_applications_have_it(bundle, tmp_path):
    (tmp_path / "models" / "model").mkdir(parents=True)
    file = script(tmp_path / "models" / "model" / "model.ts", **configs(bundle))
    assert open_model(tmp_path / "models").path == file


def test_missing_weights_are_asked_for(bundle):
    (bundle / "models" / "model.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"Expected weights at .*model\.pt"):
        open_model(bundle)


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="python -m monai_kdsam bundle"):
        open_model(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="Expected a bundle with configs"):
        open_model(tmp_path)


def test_another_version_of_this_package(bundle):
    change_metadata(bundle, lambda metadata: metadata["required_packages_version"].update(monai_kdsam="7.3.1"))
    with pytest.raises(ValueError, match=r"is of monai_kdsam 7\.3\.1, and this is"):
        open_model(bundle)


@pytest.mark.parametrize(
    "change",
    [
        lambda metadata: metadata["network_data_format"]["inputs"]["image"].update(num_channels=1),
        lambda metadata: metadata["network_data_format"]["inputs"]["image"].update(spatial_shape=[96, 96, 96]),
        lambda metadata: metadata["network_data_format"]["inputs"].update(points={}),
        lambda metadata: metadata["required_packages_version"].pop("monai_kdsam"),
        lambda metadata: metadata.pop("network_data_format"),
    ],
)
def test_a_model_of_another_kind(bundle, change):
    change_metadata(bundle, change)
    with pytest.raises(ValueError, match="Expected a model of the bundle kdsam_deepgrow_2d"):
        open_model(bundle)


def test_weights_are_no_torchscript(tmp_path):
    torch.save({"weight": torch.ones(1)}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"Expected a TorchScript file.*`--bundle`"):
        open_model(tmp_path / "model.pt")


@pytest.mark.parametrize("place", ["folder", "file"])
def test_a_flipped_bit_is_noticed(bundle, place):
    file = script(bundle / "models" / "model.ts", **configs(bundle))
    content = file.read_bytes()
    at = content.index(b"network_def")
    file.write_bytes(content[:at] + b"N" + content[at + 1 :])
    with pytest.raises(ValueError, match=r"model\.ts is damaged: its part model/extra/inference\.json is not what was"):
        open_model(bundle if place == "folder" else file)


def test_a_damaged_file(tmp_path):
    (tmp_path / "model.ts").write_bytes(b"PK")
    with pytest.raises(ValueError, match="damaged or of another kind"):
        open_model(tmp_path / "model.ts")


def test_torchscript_without_a_bundle_s_configs(tmp_path):
    with pytest.raises(ValueError, match="has no bundle's configs inside"):
        open_model(script(tmp_path / "model.ts"))


def test_a_renamed_file_would_lose_its_configs(bundle, tmp_path):
    with pytest.raises(ValueError, match=r"only under the name .* model\.ts: rename it"):
        open_model(script(tmp_path / "polyp.ts", **configs(bundle)))
