# SPDX-License-Identifier: Apache-2.0
"""Cases as the challenges' own scripts write them, and a segmenter that finds what is bright in a box."""

from __future__ import annotations

import io
import os
import pickle
import shlex
import zipfile
from pathlib import Path

import numpy as np
import pytest

from monai_kdsam.__main__ import main
from monai_kdsam.parser import build_parser
from monai_kdsam.predict_npz import label_case, predict_npz
from monai_kdsam.runtime.npz_case import read_case

DEPTH, HEIGHT, WIDTH = 6, 40, 50


class Bright:
    """What is above 127 within the box, but what is clicked off; the whole picture without a box."""

    close_up = 0

    def __init__(self):
        self.calls = 0

    def encode(self, image, *, whole=True):
        return image if image.ndim == 2 else image[..., 0]

    def predict(self, points=None, labels=None, box=None, *, image):
        self.calls += 1
        boxes = [[0, 0, WIDTH, HEIGHT]] if box is None else np.reshape(box, (-1, 4))
        rows, columns = np.indices(image.shape)
        found = []
        for left, top, right, bottom in boxes:
            inside = (columns >= left) & (columns <= right) & (rows >= top) & (rows <= bottom)
            found.append((image > 127) & inside)
            for x, y in () if points is None else np.asarray(points)[np.asarray(labels) == 0]:
                found[-1] &= (np.abs(columns - x) > 2) | (np.abs(rows - y) > 2)
        logits = np.where(found, 1.0, -1.0).astype(np.float32)
        single = np.ndim(box) < 2
        masks = (logits > 0).astype(np.uint8)
        return (masks[0], 1.0, logits[0]) if single else (masks, np.ones(len(masks)), logits)


def volume():
    """Two bright blocks, and their labels."""
    labels = np.zeros((DEPTH, HEIGHT, WIDTH), np.uint8)
    labels[1:5, 10:20, 5:15], labels[2:6, 25:35, 30:45] = 1, 2
    return (labels > 0).astype(np.uint8) * 200, labels


def boxes_of_slices(labels):
    """As the organizers' get_boxes.py has it, NumPy's integers included."""
    found = []
    for label in np.unique(labels)[1:]:
        z, _, _ = np.where(labels == label)
        middle = z[len(z) // 2]
        y, x = np.where(labels[middle] == label)
        names = ("z_min", "z_max", "z_mid", "z_mid_x_min", "z_mid_y_min", "z_mid_x_max", "z_mid_y_max")
        values = (z.min(), z.max(), middle, x.min(), y.min(), x.max(), y.max())
        found.append(dict(zip(names, values, strict=True)))
    return found


def write(folder, **arrays):
    np.savez_compressed(folder / "case.npz", **arrays)
    return folder / "case.npz"


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("color", [False, True])
@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.float32])
def test_a_picture_has_a_label_for_each_box(color, kind, threads, tmp_path):
    image, labels = (array[3] for array in volume())
    boxes = np.array([[5, 10, 14, 19], [30, 25, 44, 34]])
    pixels = np.repeat(image[..., None], 3, axis=2) if color else image
    predictor = Bright()
    found = label_case(read_case(write(tmp_path, imgs=pixels.astype(kind), boxes=boxes)), predictor, threads=threads)
    assert found.dtype == np.uint8
    assert np.array_equal(found, labels)
    assert predictor.calls == min(threads, 2)


def test_a_later_box_lies_on_an_earlier_one_and_beyond_255_labels_have_two_bytes(tmp_path):
    boxes = np.tile([5, 10, 14, 19], (300, 1))
    found = label_case(read_case(write(tmp_path, imgs=volume()[0][3], boxes=boxes)), Bright())
    assert found.dtype == np.uint16
    assert set(np.unique(found)) == {0, 300}


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("dictionaries", [False, True])
@pytest.mark.parametrize("color", [False, True])
def test_a_volume_has_a_label_for_each_box(dictionaries, color, threads, tmp_path):
    images, labels = volume()
    boxes = boxes_of_slices(labels) if dictionaries else np.array([[5, 10, 1, 14, 19, 4], [30, 25, 2, 44, 34, 5]])
    pixels = np.repeat(images[..., None], 3, axis=3) if color else images
    file = write(tmp_path, imgs=pixels, boxes=boxes, spacing=np.array([2.0, 1, 1]), gts=labels)
    assert np.array_equal(label_case(read_case(file), Bright(), threads=threads), labels)


def test_clicks_correct_a_volume_with_and_without_boxes(tmp_path):
    images, labels = volume()
    clicks = [{"fg": [], "bg": [[np.int64(3), np.int64(12), np.int64(8)]]}, {"fg": [[3, 30, 40]], "bg": []}]
    more = {"clicks": clicks, "clicks_order": [["bg"], ["fg"]], "prev_pred": labels, "spacing": [2.0, 1, 1]}
    corrected = label_case(read_case(write(tmp_path, imgs=images, boxes=boxes_of_slices(labels), **more)), Bright())
    wrong = labels != corrected
    assert wrong.sum() == 25
    assert wrong[3, 10:15, 6:11].all()
    alone = label_case(read_case(write(tmp_path, imgs=images, **more)), Bright())
    assert not (alone == 1).any()  # a background click alone starts nothing
    assert (alone[labels == 2] == 2).all()


def test_nothing_reaches_beyond_the_box_and_the_clicks(tmp_path):
    images, labels = volume()
    boxes = boxes_of_slices(labels)
    boxes[1] |= {"z_mid_x_max": 40, "z_mid_y_max": 30}
    cut = label_case(read_case(write(tmp_path, imgs=images, boxes=boxes)), Bright())
    assert np.array_equal(cut[2:6, 25:31, 30:41], labels[2:6, 25:31, 30:41])
    assert (cut == 2).sum() == 4 * 6 * 11
    clicks = [{"fg": [], "bg": []}, {"fg": [[3, 33, 43]], "bg": []}]
    wider = label_case(read_case(write(tmp_path, imgs=images, boxes=boxes, clicks=clicks)), Bright())
    assert (wider[3, 25:34, 30:44] == 2).all()
    assert not (wider[3] == 2)[34:].any()


@pytest.mark.parametrize("boxes", [np.zeros((0, 4)), np.array([]), []])
def test_without_a_box_no_label_is_given(boxes, tmp_path):
    images, _ = volume()
    for imgs in (images, images[0]):
        found = label_case(read_case(write(tmp_path, imgs=imgs, boxes=boxes)), Bright())
        assert found.shape == imgs.shape
        assert not found.any()


def test_a_box_is_cut_off_at_the_edges_and_one_pixel_has_an_area(tmp_path):
    boxes = np.array([[-9, 10, 14, 99], [44, 34, 44, 34]])
    first, second = read_case(write(tmp_path, imgs=volume()[0][3], boxes=boxes)).targets
    assert first.box.tolist() == [0, 10, 14, HEIGHT - 1]
    assert second.box.tolist() == [43.5, 33.5, 44.5, 34.5]


CLICK = {"fg": [[1, 2, 3]], "bg": []}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image": 1}, "Expected `imgs` and `boxes`, or `imgs` and `clicks`, got boxes, image"),
        ({"imgs": np.zeros((2, 3, 4, 5))}, r"Expected `imgs` of shape .*got float64 \(2, 3, 4, 5\)"),
        ({"imgs": np.full((9, 9), -1000)}, "Expected `imgs` within 0 and 255, .*got -1000 to -1000"),
        ({"imgs": np.full((9, 9), np.nan)}, "Expected `imgs` within 0 and 255, .*got nan"),
        ({"boxes": np.zeros((2, 6))}, r"Expected `boxes` \(N, 4\) of .*got float64 \(2, 6\)"),
        ({"boxes": [{"z_min": 0}]}, r"Expected `boxes` of a picture of shape \(N, 4\), got objects"),
        ({"boxes": np.array([[99, 0, 120, 9]])}, r"`boxes` of label 1 within 50 x 40 pixels, got \[99.0, 0.0"),
        ({"boxes": np.array([[9, 0, 2, 9]])}, "`boxes` of label 1 within 50 x 40 pixels"),
        ({"boxes": np.array([[np.nan, 0, 2, 9]])}, "`boxes` of label 1 within 50 x 40 pixels"),
        ({"clicks": [CLICK]}, r"Expected `clicks` with slices \(D, H, W\) alone"),
        ({"imgs": volume()[0], "boxes": [{"z_min": 0}]}, "`boxes` of label 1 with numbers z_min, z_max, z_mid,"),
        ({"imgs": volume()[0], "boxes": np.array([[1, 1, 7, 9, 9, 8]])}, "label 1 within slices 0 to 5, got 7 to 8"),
        ({"imgs": volume()[0], "boxes": np.zeros((2, 4))}, r"Expected `boxes` \(N, 6\) of x_min, y_min, z_min"),
        ({"imgs": volume()[0], "boxes": boxes_of_slices(volume()[1]), "clicks": [CLICK]}, "as many labels .* 2, got 1"),
        ({"imgs": volume()[0], "clicks": [{"fg": [[6, 0, 0]]}]}, r"label 1, fg, as \[z, y, x\] within \(6, 40, 50\)"),
        ({"imgs": volume()[0], "clicks": [[1, 2, 3]]}, "`clicks` of label 1 as a dictionary of fg and bg"),
    ],
)
def test_what_a_case_lacks_is_told_in_a_line(arrays, message, tmp_path):
    given = {"imgs": volume()[0][0], "boxes": np.zeros((0, 4))} | arrays
    if "image" in given or ("clicks" in given and len(given["boxes"]) == 0):
        given.pop("boxes" if "clicks" in given else "imgs")
    with pytest.raises(ValueError, match=message):
        read_case(write(tmp_path, **given))


class Dangerous:
    def __reduce__(self):
        return os.mkdir, ("made_by_a_pickle",)


def test_a_pickle_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for boxes in ([{"z_min": Dangerous()}], [Dangerous()]):
        file = write(tmp_path, imgs=volume()[0], boxes=np.array(boxes, dtype=object))
        with pytest.raises(
            ValueError, match=r"Expected `boxes` of lists, dictionaries and numbers alone: it would run"
        ):
            read_case(file)
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in (("imgs", volume()[0]), ("boxes", np.zeros(1, dtype=object))):
            stream = io.BytesIO()
            np.save(stream, content, allow_pickle=True)
            text = stream.getvalue()
            archive.writestr(f"{name}.npy", text if name == "imgs" else text[:-20] + pickle.dumps(Dangerous()))
    with pytest.raises(ValueError, match=r"case.npz: Expected `boxes` of lists"):
        read_case(file)
    assert not (tmp_path / "made_by_a_pickle").exists()


def test_a_damaged_file_is_told_and_the_others_are_segmented(tmp_path, capsys, monkeypatch):
    images, labels = volume()
    cases, out = tmp_path / "inputs", tmp_path / "outputs"
    cases.mkdir()
    write(cases, imgs=images, boxes=boxes_of_slices(labels))
    (cases / "broken.npz").write_bytes((cases / "case.npz").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"1 of 2 cases were not segmented:\n.*broken.npz cannot be read"):
        predict_npz(cases, out, Bright())
    with np.load(out / "case.npz") as written:
        assert list(written) == ["segs"]
        assert np.array_equal(written["segs"], labels)
    assert "case.npz: 2 labels in " in capsys.readouterr().out
    with pytest.raises(ValueError, match="Expected to write to another folder"):
        predict_npz(cases, cases, Bright())
    with pytest.raises(ValueError, match="Expected `threads` to be at least 1, got 0"):
        predict_npz(cases, out, Bright(), threads=0)
    with pytest.raises(FileNotFoundError, match="none at"):
        read_case(tmp_path / "none.npz")
    monkeypatch.setenv("KDSAM_MAX_PIXELS", "8")
    with pytest.raises(ValueError, match=r"`imgs` claims 6 x 40 x 50 pixels .* more than the 64 of"):
        read_case(cases / "case.npz")


def test_the_command_tells_that_the_model_is_missing(tmp_path, capsys):
    assert main(["predict-npz", str(tmp_path), str(tmp_path / "out"), "--model", str(tmp_path / "none")]) == 1
    assert "monai_kdsam: error: Expected `folder` with kdsam.json" in capsys.readouterr().err


def test_what_the_organizers_start_is_this_command():
    script = Path(__file__).parents[2] / "deploy" / "challenge" / "predict.sh"
    words = shlex.split(script.read_text(encoding="utf-8").splitlines()[-1])
    assert words[:4] == ["exec", "python", "-m", "monai_kdsam"]
    arguments = build_parser().parse_args(words[4:])
    assert (arguments.cases, arguments.out) == ("/workspace/inputs", "/workspace/outputs")
