# SPDX-License-Identifier: Apache-2.0
"""The bundle's phases, run as a user runs them, on generated pictures."""

from __future__ import annotations

import csv
import json
import logging
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import fire
import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from monai_kdsam.bundles import config_path
from monai_kdsam.errors import find_mistake
from monai_kdsam.handlers import ResumeHandler
from monai_kdsam.inferers import BundlePredictor
from monai_kdsam.networks import build_student
from monai_kdsam.phases import phase_command, phase_files, run_phase


def weights(path):
    return torch.load(path, weights_only=True)


def same(one, other, prefix=""):
    return all(torch.equal(one[name], other[name]) for name in one if name.startswith(prefix))


def test_the_files_of_a_phase_are_found_by_name_whatever_their_suffix(workspace):
    configs = workspace.bundle / "configs"
    (configs / "distill.yaml").rename(configs / "distill.json")
    own = workspace.folder / "own.yaml"
    own.write_text("epochs: 3\n")
    (workspace.folder / "configs" / "smoke.yaml").unlink()  # then the package's counts
    found = [Path(name) for name in phase_files(workspace.bundle, "refine", own, "recipes/plus", "smoke")]
    assert [path.stem for path in found] == ["train", "distill", "refine", "own", "plus", "smoke"]
    assert [path.suffix for path in found[:3]] == [".yaml", ".json", ".yaml"]
    assert found[3:] == [own, workspace.folder / "configs" / "recipes" / "plus.yaml", config_path("smoke.yaml")]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("distil",), "Expected a phase among adapt, embed, distill, .*, got 'distil'"),
        (("train", "recipes/plush"), r"Expected a config recipes/plush \(\.yaml or \.json\) in .*configs"),
    ],
)
def test_a_phase_or_an_overlay_that_does_not_exist_is_named(workspace, names, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run_phase(workspace.bundle, *names)
    with pytest.raises(FileNotFoundError, match="Expected the folder of a bundle, with configs in it, got nowhere"):
        run_phase("nowhere", "train")


def test_the_command_of_a_phase_says_to_a_shell_and_to_fire_what_was_meant(workspace, monkeypatch):
    settings = {
        "dataset_dir": workspace.folder / "my own $images'",
        "initial_checkpoint": None,
        "teacher": "17",
        "prompts": ["box", "none"],
        "learning_rate": 1e-5,
        "augment": False,
        "loss#iou_weight": 0.5,
        "frozen": "$['prompt_encoder'] * (not @prompt_map)",
    }
    words = shlex.split(phase_command(workspace.bundle, "distill", "recipes/plus", **settings))
    assert words[:4] == ["python", "-m", "monai.bundle", "run"]
    heard = {}
    fire.Fire(lambda **given: heard.update(given), command=words[4:])
    files = phase_files(workspace.bundle, "distill", "recipes/plus")
    expected = settings | {"dataset_dir": str(settings["dataset_dir"]), "initial_checkpoint": "$None"}
    assert heard == {"config_file": files, "bundle_root": str(workspace.bundle), **expected}


def test_each_phase_leaves_raw_weights_and_keeps_the_merged_config(trained):
    for name in ("teacher.pt", "distilled.pt", "model.pt"):
        assert all(isinstance(value, torch.Tensor) for value in weights(trained.models / name).values())
    build_student("resnet18", image_size=64).load_state_dict(weights(trained.models / "model.pt"))
    assert json.loads((trained.output / "runs" / "train_001" / "config.json").read_text())["image_size"] == 64
    for phase in ("adapt", "distill", "train"):
        assert list((trained.output / "runs" / f"{phase}_001").glob("events*")), phase


def test_validation_tells_what_a_box_brings(trained):
    curves = EventAccumulator(str(trained.output / "runs" / "train_001")).Reload()
    gain, box, none = (curves.Scalars(f"val_{name}")[-1].value for name in ("box_minus_none", "dice_box", "dice_none"))
    assert gain == pytest.approx(box - none, abs=1e-6)


def test_the_log_names_seed_and_versions(workspace, caplog):
    with caplog.at_level(logging.INFO, logger="monai_kdsam"):
        workspace.run("adapt", "recipes/paper", seed=3, logging_file=False)
    assert "Seed 3; monai_kdsam 0.1.0, monai" in caplog.text
    assert f"torch {torch.__version__}" in caplog.text


def test_distillation_trains_the_encoder_and_leaves_the_teachers_decoder(trained):
    teacher, student = weights(trained.models / "teacher.pt"), weights(trained.models / "distilled.pt")
    assert same({k: v for k, v in teacher.items() if not k.startswith("image_encoder")}, student)


def test_fine_tuning_leaves_the_frozen_encoder_bit_for_bit_batch_norm_included(trained):
    before, after = weights(trained.models / "distilled.pt"), weights(trained.models / "model.pt")
    assert same(before, after, "image_encoder")
    assert same(before, after, "prompt_encoder")
    assert not same(before, after, "mask_decoder")


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(trained, tmp_path, monkeypatch):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    settings = {"batch_size": 4, "seed": 5}
    trained.run("train", epochs=3, output_dir=str(whole), best_checkpoint=str(whole / "best.pt"), **settings)

    def save_then_die(self, engine, save=ResumeHandler.save):
        save(self, engine)
        if engine.state.epoch == 1:
            raise KeyboardInterrupt

    halved = {"epochs": 3, "output_dir": str(halves), "best_checkpoint": str(halves / "best.pt")} | settings
    with monkeypatch.context() as patch:
        patch.setattr(ResumeHandler, "save", save_then_die)
        with pytest.raises(KeyboardInterrupt):
            trained.run("train", **halved)
    trained.run("train", resume=True, **halved)
    one, other = weights(whole / "train_state.pt"), weights(halves / "train_state.pt")
    assert one["epoch"] == other["epoch"] == 3
    assert one["best"] == other["best"]
    assert same(one["objects"]["network"], other["objects"]["network"])
    assert same(weights(whole / "best.pt"), weights(halves / "best.pt"))


def test_a_run_shorter_than_the_validation_interval_still_leaves_weights(trained):
    best = trained.output / "short.pt"
    trained.run("train", epochs=1, val_interval=5, best_checkpoint=str(best))
    assert best.is_file()


def test_mlflow_is_written_by_the_bundles_own_tracking(trained):
    trained.run("train", tracking="mlflow", phase="tracked")
    assert (trained.output / "mlruns.db").stat().st_size > 0


def test_evaluation_reports_every_image_and_prompt_at_the_files_own_size(trained):
    assert trained.run("evaluate") == trained.output / "evaluate"
    with open(trained.output / "evaluate" / "cases.csv", newline="") as file:
        cases = list(csv.DictReader(file))
    splits = json.loads((trained.output / "split.json").read_text())
    assert len(cases) == len(splits["test"]) == len(list((trained.output / "evaluate" / "overlays").iterdir()))
    predictor = BundlePredictor(trained.bundle)
    mask = predictor(cases[0]["image"])
    reference = np.asarray(Image.open(cases[0]["image"].replace("images", "masks"))) > 0
    dice = 2 * (mask * reference).sum() / (mask.sum() + reference.sum())
    assert float(cases[0]["none"]) == pytest.approx(dice, abs=1e-4)


def test_a_filled_box_scores_as_computed_by_hand(trained):
    baseline = {"_target_": "monai_kdsam.report.FillBox"}
    trained.run("evaluate", network=baseline, box_jitter=[0.0, 0.0])
    with open(trained.output / "evaluate" / "cases.csv", newline="") as file:
        for case in csv.DictReader(file):
            reference = np.asarray(Image.open(case["image"].replace("images", "masks"))) > 0
            rows, columns = np.flatnonzero(reference.any(1)), np.flatnonzero(reference.any(0))
            box = np.zeros_like(reference)
            box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
            dice = 2 * (box & reference).sum() / (box.sum() + reference.sum())
            assert float(case["box"]) == pytest.approx(dice, abs=0.06)  # the network's frame is coarser


def test_inference_writes_a_mask_of_each_images_size(trained):
    masks = trained.folder / "masks_out"
    trained.run("inference", dataset_dir=str(trained.folder / "phantoms" / "images"), output_dir=str(masks))
    for image in (trained.folder / "phantoms" / "images").iterdir():
        mask = np.asarray(Image.open(masks / f"{image.stem}_mask.png"))
        assert mask.shape == np.asarray(Image.open(image)).shape[:2]
        assert set(np.unique(mask)) <= {0, 255}
    overlays = sorted((masks / "overlays").iterdir())
    assert len(overlays) == 16
    assert all(
        Image.open(overlay).size == Image.open(image.with_name(f"{overlay.stem[4:]}.png")).size for overlay in overlays
    )


def test_inference_in_shares_goes_on_where_it_ended_and_tells_the_broken_at_the_end(trained):
    images, masks = trained.folder / "archive", trained.folder / "masks_out"
    first, second, *_ = sorted((trained.folder / "phantoms" / "images").iterdir())
    (images / "b").mkdir(parents=True)
    for source, name in ((first, "x.png"), (second, "b/x.png"), (second, "y.png")):
        shutil.copy(source, images / name)
    (images / "a.png").write_bytes(b"no picture")
    settings = {"dataset_dir": str(images), "output_dir": str(masks), "overlays": 0}
    with pytest.raises(RuntimeError) as error:  # a.png and x.png
        trained.run("inference", **settings, shard="1/2")
    assert str(find_mistake(error.value)).startswith(
        f"1 of 2 images were not segmented, see {masks}/failed_1_of_2.txt:"
    )
    assert (masks / "failed_1_of_2.txt").read_text().startswith(f"{images}/a.png\tCannot read")
    trained.run("inference", **settings, shard="2/2")
    before = {path: path.stat().st_mtime_ns for path in masks.rglob("*_mask.png")}
    assert sorted(path.relative_to(masks).as_posix() for path in before) == ["b/x_mask.png", "x_mask.png", "y_mask.png"]
    (images / "a.png").unlink()
    (masks / "x_mask.png").unlink()
    trained.run("inference", **settings)
    after = {path: path.stat().st_mtime_ns for path in masks.rglob("*_mask.png")}
    assert [path.name for path in after if after[path] != before[path]] == ["x_mask.png"]
    trained.run("inference", **settings)  # nothing is left to do
    with pytest.raises(RuntimeError) as error:
        trained.run("inference", **settings, close_up=3.0)
    assert "are of other settings. `--overwrite` replaces them" in str(find_mistake(error.value))
    trained.run("inference", **settings, close_up=3.0, overwrite=True)
    assert not any(path.stat().st_mtime_ns == after[path] for path in after)


def test_inference_takes_dicom_nifti_and_frames(trained, real_data):
    masks = trained.folder / "dicom_out"
    trained.run("inference", dataset_dir=str(real_data / "dicom-us"), output_dir=str(masks))
    assert len(list(masks.glob("US1_J2KR_mask.png"))) == 1
    assert len(list(masks.glob("*#frame*_mask.png"))) > 1


def test_a_prompt_reaches_the_network_and_changes_the_mask(trained):
    """A barely trained network need not be good, but it has to listen."""
    predictor = BundlePredictor(trained.bundle)
    image = next((trained.folder / "phantoms" / "images").iterdir())
    calls = []
    predictor.network.prompt_encoder.register_forward_hook(lambda _, inputs, __: calls.append(inputs))
    predictor(image, foreground=[[20, 30]], background=[[3, 4]], roi=[10, 12, 40, 44])
    points, labels = calls[0]
    assert labels[0, :4].tolist() == [1, 0, 2, 3]
    height, width = np.asarray(Image.open(image)).shape[:2]
    scale = 64 / max(height, width)
    np.testing.assert_allclose(points[0, 0], (np.array([20, 30]) + 0.5) * scale - 0.5, atol=0.3)


def test_a_mistyped_key_stops_the_run_and_names_the_right_one(workspace):
    with pytest.raises(RuntimeError) as error:
        workspace.run("train", epochz=5)
    assert "'epochz'. Did you mean 'epochs'?" in str(error.value.__cause__)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"dataset_layout": "kitti"}, "Unknown data set layout 'kitti'. Expected one of"),
        ({"dataset_dir": "nowhere"}, "nowhere"),
        ({"prompts": ["lasso"]}, "Expected `kinds`"),
        ({"initial_checkpoint": "nothing.pt"}, "No weights at nothing.pt"),
        ({"backbone": "resnet19"}, "Expected `backbone`"),
        ({"frozen": ["neck"]}, "Expected `parts`"),
    ],
)
def test_a_wrong_setting_is_told_in_one_line(trained, overrides, message):
    with pytest.raises((RuntimeError, ValueError)) as error:
        trained.run("train", **({"split_file": str(trained.folder / "new.json")} | overrides))
    causes, cause = [], error.value
    while cause is not None:
        causes.append(str(cause))
        cause = cause.__cause__
    assert any(message in text for text in causes), causes


def test_the_command_line_ends_in_one_line_without_a_traceback(workspace):
    configs = workspace.bundle / "configs"
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(configs / "train.yaml")]
    command += ["--bundle_root", str(workspace.bundle), "--dataset_dir", str(workspace.folder / "phantoms")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "monai_kdsam: error: No weights at" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("cached", [False, True])
def test_refining_trains_the_encoder_at_the_teachers_masks_and_leaves_the_decoder(trained, cached):
    if cached:
        trained.run("embed")
    trained.run("refine", cached_embeddings=cached)
    before, after = weights(trained.models / "distilled.pt"), weights(trained.models / "refined.pt")
    assert same({k: v for k, v in before.items() if not k.startswith("image_encoder")}, after)
    assert not same(before, after, "image_encoder")


def test_refining_live_and_from_the_cache_is_the_same(trained):
    settings = {"augment": False, "embedding_variants": 1, "embedding_precision": "float32"}
    settings |= {"prompts": ["box", "none"], "box_jitter": [0.0, 0.0]}  # what is random depends on what precedes it
    trained.run("embed", **settings)
    found = []
    for cached in (False, True):
        trained.run("refine", cached_embeddings=cached, **settings)
        found.append(weights(trained.models / "refined.pt"))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, atol=1e-5, rtol=1e-4)


def test_the_recipe_plus_starts_from_the_refined_student_and_trains_everything_but_the_prompts(trained):
    trained.run("refine", "recipes/plus")
    trained.run("train", "recipes/plus")
    before, after = weights(trained.models / "refined.pt"), weights(trained.models / "model.pt")
    assert same(before, after, "prompt_encoder")
    for part in (
        "image_encoder.layer1",
        "mask_decoder.iou_prediction_head",
        "mask_decoder.output_hypernetworks_mlps.0",
    ):
        assert not same(before, after, part), part


def test_a_refined_student_that_is_missing_is_named(trained):
    with pytest.raises(RuntimeError) as error:
        trained.run("train", refined=True)
    assert "refined.pt" in str(error.value.__cause__)


def test_learning_on_replaces_the_weights_only_by_better_ones_and_leaves_the_encoder(trained):
    served = trained.models / "model.pt"
    before, decisions = weights(served), []
    for rate in (1e-3, 30.0):
        trained.run("learn", epochs=1, learning_rate=rate)
        report = json.loads((trained.output / "learn" / "report.json").read_text())
        assert not report["replaced"] or report["after"]["mean"] > report["before"]["mean"]
        assert same(before, weights(served)) != report["replaced"]
        assert same(before, weights(served), "image_encoder")
        if report["replaced"]:
            assert same(before, weights(trained.models / "previous.pt"))
        before = weights(served)
        decisions.append(report["replaced"])
    assert decisions[1] is False
