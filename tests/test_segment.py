# SPDX-License-Identifier: Apache-2.0
"""`python -m monai_kdsam segment`: masks, pictures of them, and a line about each."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (its own documentation's alias)
import torch
from PIL import Image

from monai_kdsam import bundles
from monai_kdsam.__main__ import main
from monai_kdsam.bundles import copy_bundle
from monai_kdsam.data.phantoms import make_phantom
from monai_kdsam.inferers import BundlePredictor
from monai_kdsam.networks import build_student, save_weights


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """A bundle with a random student, in place of the one that comes with the package."""
    bundle = copy_bundle(tmp_path_factory.mktemp("shipped"), settings={"backbone": "resnet18", "image_size": 64})
    save_weights(
        build_student("resnet18", image_size=64, prompt_map=True, fine_features=True), bundle / "models" / "model.pt"
    )
    return bundle


@pytest.fixture(autouse=True)
def place(shipped, tmp_path, monkeypatch):
    monkeypatch.setattr(bundles, "bundle_path", lambda name="kdsam_deepgrow_2d": shipped)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save_phantom(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    image, _ = make_phantom("polyp", size=64, seed=seed)
    Image.fromarray(image).save(path)
    return image


def test_a_picture_gets_the_mask_of_the_shipped_student_and_its_prompts_are_drawn(place, capsys):
    image = save_phantom(place / "photo.png")
    prompt = ["--box", "8", "9", "40", "30", "--click", "20", "15", "--click", "30", "20", "--background", "2", "3"]
    assert main(["segment", "photo.png", *prompt]) == 0

    clicks = {"foreground": [[20, 15], [30, 20]], "background": [[2, 3]]}
    expected = BundlePredictor().predict(image, roi=[8, 9, 40, 30], **clicks)
    mask = np.asarray(Image.open("kdsam_segmented/photo_mask.png"))
    assert np.array_equal(mask, expected.mask * np.uint8(255))
    drawn = np.asarray(Image.open("kdsam_segmented/photo_overlay.png"))
    assert drawn.shape == image.shape
    assert [drawn[9, 24].tolist(), drawn[15, 20].tolist(), drawn[3, 2].tolist()] == [
        [255, 220, 0],  # the box's upper edge, a click, one on the background
        [0, 220, 0],
        [230, 0, 0],
    ]
    (line,) = capsys.readouterr().out.splitlines()
    share, iou = re.fullmatch(
        r"kdsam_segmented/photo_mask\.png: ([\d.]+)% of the picture, estimated IoU ([\d.]+)", line
    ).groups()
    assert float(share) == pytest.approx(100 * expected.mask.mean(), abs=0.05)
    assert float(iou) == pytest.approx(min(max(expected.iou, 0), 1), abs=0.005)


def test_one_picture_is_not_segmented_over_an_earlier_mask_unless_that_is_said(place, capsys):
    save_phantom(place / "photo.png")
    (place / "photo_mask.png").write_bytes(b"drawn by hand")
    assert main(["segment", "photo.png", "--out", "."]) == 1
    assert "photo_mask.png exists already. `--overwrite` replaces it." in capsys.readouterr().err
    assert (place / "photo_mask.png").read_bytes() == b"drawn by hand"
    assert main(["segment", "photo.png", "--out", ".", "--overwrite"]) == 0
    assert Image.open("photo_mask.png").size == Image.open("photo.png").size


def test_a_picture_that_viewers_turn_is_segmented_as_it_is_stored_and_the_line_says_so(place, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(make_phantom("polyp", size=64, seed=4)[0]).crop((0, 0, 48, 40))
    picture.save(place / "phone.jpg", exif=exif)
    assert main(["segment", "phone.jpg"]) == 0
    assert "viewers turn the picture, by EXIF, and not the mask" in capsys.readouterr().out
    assert Image.open("kdsam_segmented/phone_mask.png").size == (48, 40)


def test_of_a_folder_all_that_can_be_is_segmented_and_the_rest_is_named(place, capsys, monkeypatch):
    remembered, predict = [], BundlePredictor.predict

    def watched(predictor, *given, **prompts):
        found = predict(predictor, *given, **prompts)
        remembered.append(len(predictor.network.embeddings))
        return found

    monkeypatch.setattr(BundlePredictor, "predict", watched)
    save_phantom(place / "set" / "a.png")
    gray = save_phantom(place / "set" / "b" / "c.png", seed=1)[..., 0]
    (place / "set" / "broken.jpg").write_bytes(b"no picture")
    sitk.WriteImage(sitk.GetImageFromArray(gray), place / "set" / "b.dcm")
    (place / "set" / "b.dcm").rename(place / "set" / "1.2.3")
    assert main(["segment", "set", "--out", "set/masks"]) == 1
    out, err = capsys.readouterr()
    assert [line.partition(":")[0] for line in out.splitlines()] == [
        "set/masks/1.2.3_mask.png",
        "set/masks/a_mask.png",
        "set/masks/b/c_mask.png",
    ]
    assert remembered == [0, 0, 0]  # memory stays as it is, however many there are
    first, second = err.splitlines()
    assert first == "monai_kdsam: error: 1 of 4 images were not segmented, see set/masks/failed.txt:"
    assert "broken.jpg" in second
    assert (place / "set" / "masks" / "failed.txt").read_text() == f"set/broken.jpg\t{second}\n"

    # Once more: what is there is kept, no mask is taken for a picture.
    (place / "set" / "broken.jpg").unlink()
    (place / "set" / "masks" / "a_mask.png").unlink()
    assert main(["segment", "set", "--out", "set/masks"]) == 0
    assert not (place / "set" / "masks" / "failed.txt").exists()
    assert capsys.readouterr().out.splitlines()[1:] == [
        "Segmented 1 picture, kept 2 masks that are there already (`--overwrite` replaces them); all are in set/masks, "
        "with overlays."
    ]


def changed(shipped, monkeypatch, folder):
    """The bundle with other weights."""
    other = copy_bundle(folder, settings={"backbone": "resnet18", "image_size": 64})
    torch.manual_seed(1)
    network = build_student("resnet18", image_size=64, prompt_map=True, fine_features=True)
    save_weights(network, other / "models" / "model.pt")
    monkeypatch.setattr(bundles, "bundle_path", lambda name="kdsam_deepgrow_2d": other)


def test_masks_of_other_weights_are_not_taken_for_this_runs_and_a_killed_replacement_goes_on(
    place, shipped, monkeypatch, capsys
):
    masks = [place / "kdsam_segmented" / f"{name}_mask.png" for name in "ab"]
    for seed, name in enumerate("ab"):
        save_phantom(place / "set" / f"{name}.png", seed=seed)
    assert main(["segment", "set"]) == 0
    before = [mask.read_bytes() for mask in masks]
    changed(shipped, monkeypatch, place / "other")
    capsys.readouterr()
    assert main(["segment", "set"]) == 1
    assert "The masks in kdsam_segmented are of other weights. `--overwrite` replaces them" in capsys.readouterr().err
    # Killed after the first of two: the other one is still of the weights before.
    with monkeypatch.context() as patch:
        patch.setattr("monai_kdsam.segment._write", lambda *_: sys.exit(9))
        with pytest.raises(SystemExit):
            main(["segment", "set", "--overwrite"])
    assert [mask.read_bytes() for mask in masks] == before
    assert main(["segment", "set"]) == 0
    assert "Segmented 2 pictures;" in capsys.readouterr().out
    assert [mask.read_bytes() for mask in masks] != before


def test_the_shares_of_an_array_are_all_pictures_once_and_equal_names_do_not_collide(place, capsys):
    names = ["a/x.png", "b/x.png", "x.png", "b/y.png", "c/d/x.png"]
    for seed, name in enumerate(names):
        save_phantom(place / "set" / name, seed=seed)
    (place / "list.csv").write_text("image,split\n" + "".join(f"set/{name},unlabeled\n" for name in names))
    told = []
    for source, out in (("set", "one"), ("list.csv", "two")):
        for number in (1, 2, 3):
            assert main(["segment", source, "--out", out, "--shard", f"{number}/3"]) == 0
            told.append(len(capsys.readouterr().out.splitlines()) - 1)
        found = sorted(path.relative_to(place / out).as_posix() for path in (place / out).rglob("*_mask.png"))
        assert found == sorted(name.replace(".png", "_mask.png") for name in names)
    assert told == [2, 2, 1] * 2
    assert (place / "one" / "b" / "y_mask.png").read_bytes() == (place / "two" / "b" / "y_mask.png").read_bytes()


def command_of(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cmdline").is_file(), reason="processes are looked for in /proc")
def test_two_processes_killed_in_the_middle_and_started_again_make_each_mask_once(place, shipped):
    for number in range(40):
        save_phantom(place / "set" / f"{number}.png", seed=number)
    (place / "set" / "broken.png").write_bytes(b"no picture")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    command += ["monai_kdsam", "segment", "set", "--bundle", str(shipped), "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    masks = place / "kdsam_segmented"
    given = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "start_new_session": True}
    with subprocess.Popen(command, **given) as running:
        while len(list(masks.glob("*_mask.png"))) < 6:
            assert running.poll() is None, running.stderr.read()[-2000:]
            time.sleep(0.01)
        os.killpg(running.pid, signal.SIGKILL)
        running.stderr.close()
    deadline = time.monotonic() + 30
    while any(str(shipped).encode() in command_of(process) for process in Path("/proc").glob("[0-9]*")):
        assert time.monotonic() < deadline, "torchrun was killed, and its processes live on"
        time.sleep(0.1)
    before = {path: path.stat().st_mtime_ns for path in masks.glob("*_mask.png")}
    assert 6 <= len(before) < 40
    again = subprocess.run(command, check=False, timeout=120, **given)
    assert again.returncode == 1
    assert b"monai_kdsam: error: 1 of 2" in again.stderr
    after = {path: path.stat().st_mtime_ns for path in masks.glob("*_mask.png")}
    assert before.items() <= after.items()
    assert len(after) == 40
    for path in after:
        assert Image.open(path).size == Image.open(place / "set" / path.name.replace("_mask", "")).size
    failed = "".join(path.read_text() for path in masks.glob("failed_*_of_2.txt"))
    assert failed.count("\n") == failed.count("broken.png\t") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.png"], "Expected a picture or a folder of pictures, but there is none at nowhere.png"),
        (["set", "--box", "1", "2", "3", "4"], "Expected one picture with `--box`, `--click` or `--background`"),
        (["set", "--out", "set"], "Expected `--out` to be another folder than that of the pictures"),
        (["set/images", "--out", "set"], "Expected `--out` to be a folder without the pictures, but .*a_mask.png"),
        (["photo.png", "--box", "5", "5", "5", "9"], "Expected `--box` to be a box with an area"),
        (["photo.png", "--click", "500", "5"], "Expected `--click` within the image of"),
        (["photo.png", "--shard", "1/2"], "Expected a folder or a datalist with `--shard`, got the picture photo.png"),
        (["set", "--shard", "0/2"], "Expected `shard` as in 3/64, the third of 64"),
        (["set", "--shard", "3/2"], "Expected `shard` as in 3/64, the third of 64"),
        (["photo.png", "--device", "tpu9"], "Expected `device` to be cpu, cuda or cuda:N, got 'tpu9'"),
        (["photo.png", "--bundle", "nowhere"], "Expected a bundle with configs/inference.json"),
    ],
)
def test_a_mistake_is_told_in_one_line(place, capsys, words, message):
    for name in ("photo.png", "set/images/images/a.png", "set/images/a_mask.png"):
        save_phantom(place / name)
    assert main(["segment", *words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(f"monai_kdsam: error: {message}", line)


def test_without_the_shipped_weights_it_is_said_what_to_do(place, tmp_path, monkeypatch, capsys):
    empty = copy_bundle(tmp_path / "other", settings={"backbone": "resnet18", "image_size": 64})
    (empty / "models" / "model.pt").unlink(missing_ok=True)
    monkeypatch.setattr(bundles, "bundle_path", lambda name="kdsam_deepgrow_2d": empty)
    save_phantom(place / "photo.png")
    assert main(["segment", "photo.png"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("the installation is incomplete. Install it again, or name a trained bundle.")


@pytest.mark.slow
def test_it_imports_little_that_monai_does_not_import():
    code = "import sys, monai; before = {*sys.modules}; import monai_kdsam.segment; "
    code += "print(*(name for name, module in sys.modules.items() if module and name not in before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    packages = {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}
    packages -= {*sys.stdlib_module_names, "monai", "swig_runtime_data5"}
    assert packages <= {"monai_kdsam", "pydicom", "nibabel", "safetensors", "scipy", "segment_anything"}
