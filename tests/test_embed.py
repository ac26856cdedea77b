# SPDX-License-Identifier: Apache-2.0
"""The phase `embed`, and distillation from what it wrote, run as a user runs them."""

from __future__ import annotations

import json
import logging
import re

import pytest
import torch

from monai_kdsam.bundles import bundle_path
from monai_kdsam.data import EmbeddingStore
from monai_kdsam.data.phantoms import write_phantoms
from monai_kdsam.phases import read_phase
from monai_kdsam.run import config_checksum


def reason(error: BaseException) -> str:
    causes, cause = [], error
    while cause is not None:
        causes.append(str(cause))
        cause = cause.__cause__
    return "\n".join(causes)


def files(workspace):
    return sorted((workspace.output / "embeddings").glob("*/*/*.safetensors"))


def images(workspace):
    return len(json.loads((workspace.output / "split.json").read_text())["training"])


def distill(workspace, caplog, **overrides):
    """Losses of all steps, and the weights."""
    caplog.clear()
    path = workspace.output / "student.pt"
    with caplog.at_level(logging.INFO):
        settings = {"batch_size": 4, "learning_rate": 1e-4, "epochs": 3, "log_interval": 1, "logging_file": False}
        workspace.run("distill", best_checkpoint=str(path), **settings, **overrides)
    losses = [float(text) for text in re.findall(r"Iter: .* loss: ([\d.]+)", caplog.text)]
    return losses, torch.load(path, weights_only=True)


def test_distilling_from_the_cache_equals_distilling_live(trained, caplog):
    live, student = distill(trained, caplog, augment=False)
    assert len(live) > 2
    for precision in ("float32", "float16"):
        own = {"augment": False, "embedding_variants": 1, "embedding_dir": str(trained.folder / precision)}
        trained.run("embed", embedding_precision=precision, **own)
        cached, same_student = distill(trained, caplog, cached_embeddings=True, **own)
        assert cached == pytest.approx(live, rel=1e-3)
        for name, value in student.items():
            torch.testing.assert_close(value, same_student[name], rtol=0, atol=1e-2, msg=name)


def test_every_variant_is_stored_and_the_student_is_trained_on_all(trained, caplog):
    trained.run("embed", augment=True, embedding_variants=3)
    assert len(files(trained)) == 3 * images(trained)
    losses, _ = distill(trained, caplog, augment=True, embedding_variants=3, cached_embeddings=True)
    assert losses


@pytest.mark.slow
def test_unlabeled_images_are_embedded_and_distilled_and_the_other_phases_have_the_labeled_ones(trained, caplog):
    write_phantoms(trained.folder / "more", per_kind=2, size=72, seed=9)
    (trained.folder / "more" / "images").rename(trained.folder / "phantoms" / "unlabeled")
    (trained.output / "split.json").unlink()
    trained.run("embed", embedding_variants=1)
    assert len(files(trained)) == images(trained) + 4
    losses, _ = distill(trained, caplog, embedding_variants=1, cached_embeddings=True)
    assert len(losses) == 3 * ((images(trained) + 4) // 4)
    live, _ = distill(trained, caplog)
    assert len(live) == len(losses)
    for phase, settings in (
        ("refine", {"embedding_variants": 1, "cached_embeddings": True}),
        ("train", {"initial_checkpoint": trained.models / "refined.pt"}),
    ):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            trained.run(phase, batch_size=4, log_interval=1, logging_file=False, **settings)
        assert len(re.findall(r"Iter: .* loss: ", caplog.text)) == images(trained) // 4


def test_an_interrupted_run_goes_on_after_its_last_image(trained, monkeypatch):
    def write(self, *args, write=EmbeddingStore.write):
        if len(files(trained)) == 5:
            raise KeyboardInterrupt
        write(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(EmbeddingStore, "write", write)
        with pytest.raises(KeyboardInterrupt):
            trained.run("embed")
    before = {file: file.stat().st_mtime_ns for file in files(trained)}
    assert len(before) == 5
    trained.run("embed")
    after = {file: file.stat().st_mtime_ns for file in files(trained)}
    assert before.items() <= after.items()
    assert len(after) == 4 * images(trained)
    trained.run("embed")  # nothing is left to do
    assert {file: file.stat().st_mtime_ns for file in files(trained)} == after


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"teacher_checkpoint": "models/other.pt"}, "teacher"),
        ({"pixel_mean": [1.0, 2.0, 3.0]}, "pixel_mean"),
        ({"embedding_seed": 7}, "embedding_seed"),
        ({"to_network_frame#1#mode": ["bicubic", "nearest-exact"]}, "preprocessing"),
    ],
)
def test_a_cache_of_something_else_is_refused_by_name(trained, change, name):
    trained.run("embed")
    if name == "teacher":
        weights = torch.load(trained.models / "teacher.pt", weights_only=True)
        first = next(key for key in weights if key.startswith("image_encoder"))
        weights[first] = weights[first] + 1
        change = {"teacher_checkpoint": str(trained.models / "other.pt")}
        torch.save(weights, trained.models / "other.pt")
    with pytest.raises(RuntimeError) as error:
        trained.run("distill", cached_embeddings=True, **change)
    assert f"were made from something else: {name} " in reason(error.value)


def test_without_a_cache_the_command_to_run_is_named(trained):
    with pytest.raises(RuntimeError) as error:
        trained.run("distill", cached_embeddings=True)
    assert "Run the phase `embed` with the same settings" in reason(error.value)


def test_verify_redoes_what_is_damaged(trained, caplog):
    trained.run("embed", embedding_variants=1, logging_file=False)
    victim = files(trained)[0]
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RuntimeError) as error:
        trained.run("distill", cached_embeddings=True, embedding_variants=1, logging_file=False)
    assert f"{victim} is damaged" in reason(error.value)
    with caplog.at_level(logging.WARNING):
        trained.run("embed", embedding_variants=1, verify=True, logging_file=False)
    assert str(victim) in caplog.text
    assert victim.stat().st_size == len(whole)
    trained.run("distill", cached_embeddings=True, embedding_variants=1)


@pytest.mark.parametrize(("augment", "count"), [(True, 3), (False, 1)])
def test_without_augmentation_there_are_no_equal_variants_and_outside_of_a_run_the_preprocessing_counts(augment, count):
    settings = {"augment": augment, "embedding_variants": 3, "embedding_store#made_from#teacher": "weights"}
    parser = read_phase(bundle_path(), "distill", embedding_dir="nowhere", **settings)
    store = parser.get_parsed_content("embedding_store#variants"), parser.get_parsed_content("variant#0#variants")
    assert store == (count, count)
    checksum = "embedding_store#made_from#preprocessing"
    before = parser.get_parsed_content(checksum)
    parser["to_network_frame"][0]["axcodes"] = "LP"
    parser.parse(reset=True)
    assert parser.get_parsed_content(checksum) != before


def test_a_checksum_of_no_config_is_refused():
    with pytest.raises(ValueError, match="called by an expression of a config"):
        config_checksum("load")
