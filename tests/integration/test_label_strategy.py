# SPDX-License-Identifier: Apache-2.0
"""The strategy `uncertainty` on the server's datastore."""

from __future__ import annotations

import importlib.util
import os
import time

import pytest

if importlib.util.find_spec("monailabel") is None:
    reason = "MONAI Label is not installed; `nox -s label` runs these tests in an environment that has it"
    pytest.skip(reason, allow_module_level=True)

from monai_kdsam.errors import UserError
from monai_kdsam.label import active_learning
from monai_kdsam.label.active_learning import LeastSureFirst, UncertaintyScoring, unscored_images
from monai_kdsam.label.studies import StudiesDatastore
from monai_kdsam.label.uncertainty import Uncertainty

REQUEST = {"strategy": "uncertainty"}


@pytest.fixture
def datastore(tmp_path):
    """Images a to e; b, c and d have scores."""
    for name in "abcde":
        (tmp_path / f"{name}.png").write_bytes(b"image")
    store = StudiesDatastore(str(tmp_path), extensions=("*.png",))
    for name, score in {"b": 0.2, "c": 0.7, "d": 0.5}.items():
        store.update_image_info(name, {"uncertainty": score})
    return store


def offer(store, ago: float = 0) -> str:
    """Ask, and note the offer as the server does."""
    image = LeastSureFirst()(REQUEST, store)["id"]
    store.update_image_info(image, {"strategy": {"uncertainty": {"ts": time.time() - ago}}})
    return image


def test_the_least_sure_comes_first_then_what_has_no_score_by_name(datastore):
    assert LeastSureFirst()(REQUEST, datastore) == {"id": "c", "uncertainty": 0.7, "unscored": 2}
    assert [offer(datastore) for _ in range(5)] == ["c", "d", "b", "a", "e"]


def test_what_was_offered_comes_back_after_an_hour_or_when_nothing_else_is_left(datastore):
    assert [offer(datastore, ago=4000) for _ in range(2)] == ["c", "c"]
    assert [offer(datastore) for _ in range(6)] == ["c", "d", "b", "a", "e", "c"]


def test_a_labelled_image_is_not_offered(datastore, tmp_path):
    datastore.save_label("c", str(tmp_path / "a.png"), "final", {})
    assert LeastSureFirst()(REQUEST, datastore)["id"] == "d"
    for name in "abde":
        datastore.save_label(name, str(tmp_path / "a.png"), "final", {})
    assert LeastSureFirst()(REQUEST, datastore) is None


def test_thousands_of_images_are_ranked_at_once(tmp_path):
    for number in range(5000):
        (tmp_path / f"{number:04d}.png").touch()
    store = StudiesDatastore(str(tmp_path), extensions=("*.png",))
    for name, item in store._datastore.objects.items():
        item.image.info["uncertainty"] = 1.0 if name == "4321" else 0.5
    begin = time.process_time()
    assert LeastSureFirst()(REQUEST, store)["id"] == "4321"
    assert time.process_time() - begin < 2


def test_what_has_no_score_is_scored_before_what_earlier_weights_scored(datastore, tmp_path):
    (tmp_path / "bundle" / "models").mkdir(parents=True)
    weights = tmp_path / "bundle" / "models" / "model.pt"
    weights.touch()
    datastore.update_image_info("b", {"uncertainty_weights": weights.stat().st_mtime_ns})
    assert unscored_images(datastore, tmp_path / "bundle") == ["a", "e", "c", "d"]
    os.utime(weights, ns=(0, 0))
    assert unscored_images(datastore, tmp_path / "bundle") == ["a", "e", "b", "c", "d"]


def wrapped(error: Exception) -> Exception:
    """As MONAI's transforms raise it."""
    outer = RuntimeError("applying transform")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(
    "error", [ValueError("its images differ in size"), wrapped(UserError("its images differ in size"))], ids=repr
)
def test_an_image_that_cannot_be_had_is_marked_and_the_next_is_scored(datastore, tmp_path, monkeypatch, error):
    """The predictor is no concern of this test, which has no weights: every image that is there scores 0.5."""
    (tmp_path / "bundle" / "models").mkdir(parents=True)
    (tmp_path / "bundle" / "models" / "model.pt").touch()
    monkeypatch.setattr(active_learning, "BundlePredictor", lambda bundle: None)
    monkeypatch.setattr(active_learning, "score_file", lambda predictor, path: Uncertainty(0.5, 0.5))
    given = datastore.get_image_uri

    def get_image_uri(image: str) -> str:
        if image == "a":
            raise error
        return given(image)

    monkeypatch.setattr(datastore, "get_image_uri", get_image_uri)
    scoring, written = UncertaintyScoring(tmp_path / "bundle"), []
    monkeypatch.setattr(
        StudiesDatastore,
        "_update_datastore_file",
        lambda store, write=datastore._update_datastore_file: written.append(write()),
    )
    done = scoring({"max_samples": 3}, datastore)
    assert (done["executed"], done["failed"], done["left"]) == (3, 1, 2)
    assert len(written) == 1  # of thousands of images a list has megabytes
    assert datastore.get_image_info("a")["uncertainty_error"] == "its images differ in size"
    assert scoring({}, datastore)["executed"] == 2


@pytest.mark.parametrize("most", [-1, "ten", 1.5])
def test_an_impossible_number_of_images_is_refused(datastore, tmp_path, most):
    with pytest.raises(ValueError, match="`max_samples` to be a whole number from 0, got"):
        UncertaintyScoring(tmp_path)({"max_samples": most}, datastore)
