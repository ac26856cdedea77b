# SPDX-License-Identifier: Apache-2.0
"""Learning from corrections in the running MONAI Label server, by its own HTTP API alone.

The tests are one story and run in their order: labels are submitted, trained with, refused, and images are offered.
"""

from __future__ import annotations

import importlib.util
import json
import os
import time
from io import BytesIO
from pathlib import Path

import nibabel
import numpy as np
import psutil
import pytest
import requests
import torch
from PIL import Image

from monai_kdsam.data.phantoms import write_phantoms
from monai_kdsam.inferers import BundlePredictor

if importlib.util.find_spec("monailabel") is None:
    reason = "MONAI Label is not installed; `nox -s label` runs these tests in an environment that has it"
    pytest.skip(reason, allow_module_level=True)

from hosts.label_server import MODEL, LabelServer, random_bundle, running_server
from monailabel.client.client import MONAILabelClient

from monai_kdsam.label.active_learning import score_file

LABELLED = [f"{kind}_{number:03d}" for kind in ("polyp", "breast_lesion") for number in range(4)]
UNSEEN = "polyp_004"
CLICK = {"foreground": [[40, 45]]}
QUICK = {"max_epochs": 32, "learning_rate": 1e-3, "batch_size": 2, "train_encoder": False}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("data"), per_kind=10, size=90)


@pytest.fixture(scope="module")
def server(phantoms, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    bundle = random_bundle(folder, "resnet18", 64)
    learn = bundle / "configs" / "learn.yaml"
    easier = {"bce_weight: 2.0": "bce_weight: 0.0", "mosaic_share: 0.5": "mosaic_share: 0.0"}  # random weights are slow
    text = learn.read_text(encoding="utf-8")
    for old, new in easier.items():
        assert old in text
        text = text.replace(old, new)
    learn.write_text(text, encoding="utf-8")
    with running_server(bundle, phantoms / "images", folder) as running:
        yield running
        assert running.process.poll() is None, "the server died on the way"


@pytest.fixture(scope="module")
def client(server) -> MONAILabelClient:
    return MONAILabelClient(server.address)


@pytest.fixture(scope="module")
def labelled(server, client, phantoms) -> list[str]:
    """Labels as PNG, and one as 3D Slicer saves it."""
    for name in LABELLED:
        label = phantoms / "masks" / f"{name}.png"
        if name == LABELLED[0]:
            pixels = (np.asarray(Image.open(label)) > 0).astype(np.uint8)
            label = server.log.parent / f"{name}.nii.gz"
            nibabel.Nifti1Image(pixels.T[..., None], np.diag([-1.0, -1, 1, 1])).to_filename(label)
        client.save_label(name, str(label))
    return LABELLED


def train(server: LabelServer, params: dict | None = None, run_sync: bool = True) -> requests.Response:
    address = f"{server.address}/train/{MODEL}"
    return requests.post(address, params={"run_sync": run_sync}, json=params or {}, timeout=300)


def mask(server: LabelServer, image: str = UNSEEN) -> np.ndarray:
    answer = server.post(image, CLICK, output="image")
    assert answer.status_code == 200, answer.text
    return np.asarray(Image.open(BytesIO(answer.content)))


def weights(server: LabelServer, name: str = "model.pt") -> dict[str, torch.Tensor]:
    return torch.load(server.bundle / "models" / name, weights_only=True)


def equal(one, other, part: str = "") -> bool:
    return all(torch.equal(one[key], other[key]) for key in one if key.startswith(part))


def test_clients_are_offered_training_scoring_and_the_strategy(client):
    info = client.info()
    assert info["trainers"][MODEL]["config"]["max_epochs"] == 40
    assert info["train_stats"][MODEL] == {}
    assert "uncertainty" in info["scoring"]
    assert set(info["strategies"]) == {"first", "random", "uncertainty"}


def test_training_without_labels_is_explained(server):
    answer = train(server)
    assert answer.status_code == 400
    assert "at least 2 different images" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"epochs": 3}, "Expected parameters among device, max_epochs"),
        ({"max_epochs": 0}, "`max_epochs` to be a whole number from 1, got 0"),
        ({"learning_rate": "high"}, "`learning_rate` to be a number above 0"),
        ({"val_split": 1}, "`val_split` to be a number between 0 and 1"),
        ({"train_encoder": 1}, "`train_encoder` to be true or false"),
        ({"device": "tpu"}, "`device` among"),
    ],
)
def test_a_bad_parameter_is_explained(server, labelled, params, message):
    answer = train(server, params)
    assert answer.status_code == 400
    assert message in answer.json()["detail"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [(lambda mask: mask[:, :-2], "pixels, as its image, got"), (lambda mask: mask * 0, "no foreground")],
)
def test_a_bad_label_is_named_and_nothing_is_trained(server, client, labelled, phantoms, tmp_path, spoil, message):
    before = weights(server)
    mask = np.asarray(Image.open(phantoms / "masks" / f"{LABELLED[1]}.png"))
    Image.fromarray(spoil(mask)).save(tmp_path / "bad.png")
    client.save_label(LABELLED[1], str(tmp_path / "bad.png"))
    try:
        detail = train(server).json()["detail"]
    finally:
        client.save_label(LABELLED[1], str(phantoms / "masks" / f"{LABELLED[1]}.png"))
    assert detail.startswith(f"1 of 8 labels cannot be learned from. {LABELLED[1]}.png: ")
    assert message in detail
    assert equal(before, weights(server))


def test_a_better_model_is_served_without_a_restart(server, labelled):
    before, old_mask = weights(server), mask(server)
    answer = train(server, QUICK)
    assert answer.status_code == 200, answer.text
    report = answer.json()
    assert report["replaced"], report
    assert report["after"]["mean"] > report["before"]["mean"]
    assert set(report["after"]) == {"mean", "box", "center", "none"}
    assert report["reason"] == "better on 3 held-out images"
    after = weights(server)
    assert equal(before, after, "image_encoder")
    assert not equal(before, after, "mask_decoder")
    assert equal(before, weights(server, "previous.pt"))
    new_mask = mask(server)
    assert not np.array_equal(new_mask, old_mask)
    expected = BundlePredictor(server.bundle)(server.studies / f"{UNSEEN}.png", **CLICK)
    np.testing.assert_array_equal(new_mask, expected)


def test_the_figures_stand_in_what_clients_show(server, client):
    stats = client.info()["train_stats"][MODEL]
    assert stats["best_metric"] == stats["after"]["mean"]
    assert stats["epoch"] == stats["total_epochs"] == QUICK["max_epochs"]
    details = "\n".join(client.train_status()["details"])
    assert f"Dice {stats['before']['mean']} before, {stats['after']['mean']} after" in details


def test_held_out_images_stay_held_out(server, labelled):
    choice = json.loads((server.bundle / "output" / "learn" / "held_out.json").read_text())
    assert sorted(choice.values()) == [False] * 5 + [True] * 3


def test_a_worse_model_does_not_replace_a_better_one(server, labelled):
    before, old_mask = weights(server), mask(server)
    report = train(server, {"max_epochs": 1, "learning_rate": 30.0}).json()
    assert not report["replaced"]
    assert report["after"]["mean"] <= report["before"]["mean"]
    assert equal(before, weights(server))
    np.testing.assert_array_equal(mask(server), old_mask)


def test_a_training_is_seen_refused_twice_and_stopped_while_masks_are_served(server, client, labelled):
    before, old_mask = weights(server), mask(server)
    started = train(server, {"max_epochs": 500}, run_sync=False)
    assert started.status_code == 200
    second = train(server, run_sync=False)
    assert second.status_code == 429
    assert "running already" in second.json()["detail"]
    end, learns = time.monotonic() + 300, False
    while not learns and time.monotonic() < end:
        stats = client.info()["train_stats"][MODEL]
        learns = stats["total_epochs"] == 500 and stats["epoch"] > 0
        np.testing.assert_array_equal(mask(server), old_mask)
    assert learns
    assert client.train_status(check_if_running=True)
    client.train_stop()
    assert client.train_status()["status"] == "STOPPED"
    assert not client.train_status(check_if_running=True)
    assert equal(before, weights(server))
    np.testing.assert_array_equal(mask(server), old_mask)


def test_the_weights_before_can_be_restored(server):
    old = weights(server, "previous.pt")
    models = server.bundle / "models"
    (models / "model.json").unlink()  # the weights that the server began with had none
    (models / "previous.pt").replace(models / "model.pt")
    assert equal(old, weights(server))
    expected = BundlePredictor(server.bundle)(server.studies / f"{UNSEEN}.png", **CLICK)
    np.testing.assert_array_equal(mask(server), expected)


def test_the_least_sure_image_is_offered_first(server, client, labelled):
    bad = requests.post(f"{server.address}/scoring/uncertainty", params={"run_sync": True}, json={"max_samples": -1})
    assert (bad.status_code, "max_samples" in bad.text) == (400, True)
    scored = requests.post(f"{server.address}/scoring/uncertainty", params={"run_sync": True}, timeout=300).json()
    objects = client.datastore()["objects"]
    unlabelled = {name: item["image"]["info"] for name, item in objects.items() if not item["labels"]}
    assert len(unlabelled) == 12
    assert (scored["executed"], scored["failed"], scored["left"]) == (12, 0, 0)
    order = sorted(unlabelled, key=lambda name: -unlabelled[name]["uncertainty"])
    scores = [unlabelled[name]["uncertainty"] for name in order]
    assert scores[0] > scores[-1]
    direct = score_file(BundlePredictor(server.bundle), str(server.studies / f"{order[0]}.png"))
    assert scores[0] == pytest.approx(direct.score, abs=1e-3)
    offered = [client.next_sample("uncertainty", {})["id"] for _ in range(3)]
    assert scores[:3] == [unlabelled[name]["uncertainty"] for name in offered]
    assert len(set(offered)) == 3


def test_scores_become_old_with_new_weights_and_are_renewed_after_a_request(server, client):
    stamp = (server.bundle / "models" / "model.pt").stat().st_mtime_ns + 10**9
    os.utime(server.bundle / "models" / "model.pt", ns=(stamp, stamp))
    chosen = client.next_sample("uncertainty", {})["id"]
    end = time.monotonic() + 300
    while time.monotonic() < end:
        info = client.datastore()["objects"][chosen]["image"]["info"]
        if info.get("uncertainty_weights") == stamp:
            break
        time.sleep(0.5)
    assert info["uncertainty_weights"] == stamp


def test_a_killed_server_takes_its_training_along_and_two_do_not_learn_on_one_bundle(
    server, client, labelled, tmp_path
):
    before = (server.bundle / "models" / "model.pt").read_bytes()
    with running_server(server.bundle, server.studies, tmp_path) as beside:
        assert train(beside, {"max_epochs": 501}, run_sync=False).status_code == 200
        end = time.monotonic() + 120
        while client.info()["train_stats"][MODEL].get("total_epochs") != 501 and time.monotonic() < end:
            time.sleep(0.1)
        refused = train(server, QUICK)
        assert refused.status_code == 400
        assert "Another training works on this bundle" in refused.json()["detail"]
        children = psutil.Process(beside.process.pid).children(recursive=True)
        beside.process.kill()
        _, alive = psutil.wait_procs(children, timeout=20)
        assert children
        assert not alive
    assert (server.bundle / "models" / "model.pt").read_bytes() == before
