# SPDX-License-Identifier: Apache-2.0
"""The bill of materials, by CycloneDX's own schema where its library is installed."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch

from monai_kdsam.__main__ import main
from monai_kdsam.bundles import copy_bundle
from monai_kdsam.weights.sidecar import write_sidecar


@pytest.fixture
def bundle(tmp_path):
    folder = copy_bundle(tmp_path)
    torch.save({"weight": torch.zeros(1)}, folder / "models" / "model.pt")
    torch.save({"weight": torch.ones(1)}, folder / "models" / "distilled.pt")
    write_sidecar(folder / "models" / "model.pt", {"network": {"backbone": "resnet18"}}, remedy="")
    (folder / "output").mkdir()
    images = [{"image": "patient_name.png"}] * 3
    (folder / "output" / "split.json").write_text(json.dumps({"training": images, "test": images[:1]}))
    return folder


def test_the_bill_names_the_model_by_its_hash_and_what_it_came_from_without_names_of_images(bundle):
    assert main(["bom", str(bundle)]) == 0
    text = (bundle / "models" / "model.cdx.json").read_text()
    bill = json.loads(text)
    model = bill["metadata"]["component"]
    sums = [hashlib.sha256((bundle / "models" / n).read_bytes()).hexdigest() for n in ("model.pt", "distilled.pt")]
    assert [model["hashes"][0]["content"], model["pedigree"]["ancestors"][0]["hashes"][0]["content"]] == sums
    assert "3 training, 1 test" in text
    assert model["modelCard"]["modelParameters"]["modelArchitecture"] == "resnet18"
    assert "model.pt has no card: what it was trained on is not known." in model["description"]
    assert "patient_name" not in text
    torch_here = "pkg:pypi/torch@" + torch.__version__.partition("+")[0]
    assert any(part.get("purl", "").startswith(torch_here) for part in bill["components"])
    assert len(model["modelCard"]["considerations"]["technicalLimitations"]) > 3


def test_the_bill_follows_the_schema(bundle):
    json_validation = pytest.importorskip("cyclonedx.validation.json", reason="needs cyclonedx-python-lib")
    schema = pytest.importorskip("cyclonedx.schema").SchemaVersion.V1_6
    assert main(["bom", str(bundle)]) == 0
    text = (bundle / "models" / "model.cdx.json").read_text()
    assert json_validation.JsonStrictValidator(schema).validate_str(text) is None


def test_a_bundle_without_weights_has_no_bill(tmp_path, capsys):
    assert main(["bom", str(copy_bundle(tmp_path, settings={"image_size": 64}))]) == 1
    assert "trained bundle" in capsys.readouterr().err
