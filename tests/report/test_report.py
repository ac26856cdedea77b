# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_kdsam.__main__ import main
from monai_kdsam.data.phantoms import write_phantoms
from monai_kdsam.report.prompts import PROMPT_TITLES
from monai_kdsam.report.scoring import CLICKS, SHOWN_CLICKS, Score
from monai_kdsam.report.summary import summarize

PAGE = (Path(__file__).parents[2] / "docs" / "howto" / "report.md").read_text(encoding="utf-8")


def write_datalist(folder: Path, **common: object) -> Path:
    """Two phantoms with a reference, and one again without anything to find; `common` is part of every item."""
    write_phantoms(folder / "pictures", per_kind=1, size=64)
    images = sorted((folder / "pictures" / "images").iterdir())[:2]
    items = [{"image": str(image), "label": str(folder / "pictures" / "masks" / image.name)} for image in images]
    empty = folder / "pictures" / "empty.png"
    Image.new("L", Image.open(images[0]).size).save(empty)
    items.append({"image": str(images[0]), "label": str(empty), "subject": "empty"})
    if "spacing" in common:
        items[1]["head_circumference"] = 40.0
    (folder / "list.json").write_text(json.dumps({"test": [item | common for item in items]}))
    return folder / "list.json"


def example_command(folder: Path) -> str:
    (code,) = re.findall(r"```python\n# threshold\.py\n(.*?)```", PAGE, re.DOTALL)
    (folder / "threshold.py").write_text(code)
    return f"threshold={sys.executable} {folder / 'threshold.py'}"


@pytest.fixture(scope="module")
def report(trained_once, tmp_path_factory):
    """A report of a small student against itself after distillation, its teacher, and the example of report.md."""
    folder = tmp_path_factory.mktemp("report")
    models = trained_once.models
    words = ["report", "--bundle", f"student={trained_once.bundle}", "--other", f"earlier={models / 'distilled.pt'}"]
    words += ["--teacher", f"vit_micro={models / 'teacher.pt'}", "--command", example_command(folder)]
    words += ["--data_list", str(write_datalist(folder, spacing=[0.5, 0.5])), "--output", str(folder / "out")]
    assert main(words) == 0
    return folder / "out"


def cases(folder):
    with open(folder / "cases.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


MODELS = ["student", "earlier", "teacher vit_micro", "threshold", "filled ellipse"]


def test_every_model_has_every_image_under_every_prompt(report):
    rows = cases(report)
    summary = json.loads((report / "summary.json").read_text())
    assert summary["models"] == MODELS
    assert summary["sets"] == {"datalist": {"images": 3, "subjects": 3, "empty_references": 1, "unit": "mm"}}
    for model in MODELS:
        found = [row for row in rows if row["model"] == model and row["empty_reference"] == "False"]
        assert all(sum(row["clicks"] == str(count) for row in found) == 2 for count in range(1, SHOWN_CLICKS + 1))
        assert all(sum(row["prompt"] == prompt for row in found) == 2 for prompt in ("mosaic_box", "mosaic_click"))
        for prompt in PROMPT_TITLES:
            assert sum(row["prompt"] == prompt for row in found) == 2


def test_what_the_weights_were_trained_with_stands_in_summary_and_page(report):
    told = json.loads((report / "summary.json").read_text())["weights"]
    assert [*told] == MODELS[:3]
    assert told["student"].startswith("model.pt of your phase train, trained with the prompts box, clicks, none")
    assert told["earlier"].startswith("distilled.pt of the phase distill, NEVER TRAINED WITH PROMPTS")
    assert all(text in (report / "report.html").read_text() for text in told.values())


def test_the_summary_is_the_mean_of_the_cases_within_its_interval(report):
    rows = cases(report)
    for entry in json.loads((report / "summary.json").read_text())["scores"]:
        values = [
            float(row[entry["metric"]])
            for row in rows
            if (row["model"], row["prompt"]) == (entry["model"], entry["prompt"]) and row["empty_reference"] == "False"
        ]
        assert entry["mean"] == pytest.approx(np.mean(values), rel=1e-4, abs=1e-6)
        assert min(values) - 1e-4 <= entry["low"] <= entry["mean"] + 1e-9
        assert entry["mean"] - 1e-9 <= entry["high"] <= max(values) + 1e-4


def test_dice_is_told_apart_by_the_size_of_the_structure(report):
    found = [row for row in cases(report) if row["empty_reference"] == "False" and not int(row["clicks"])]
    for entry in json.loads((report / "summary.json").read_text())["sizes"]:
        low, high = {"1 to 5 %": (0.01, 0.05), "5 to 20 %": (0.05, 0.2), "20 % and more": (0.2, 1)}[entry["size"]]
        own = [row for row in found if (row["model"], row["prompt"]) == (entry["model"], entry["prompt"])]
        values = [float(row["dice"]) for row in own if low <= covered(row["image"]) < high]
        assert (entry["images"], entry["mean"]) == (len(values), pytest.approx(np.mean(values), abs=1e-5))
    assert "Small and large structures" in (report / "report.html").read_text()


@pytest.mark.parametrize(
    ("share", "size"), [(0.0099, "below 1 %"), (0.01, "1 to 5 %"), (0.1999, "5 to 20 %"), (0.2, "20 % and more")]
)
def test_a_size_begins_at_its_lower_end(share, size):
    shown = {"model": "m", "source": "s", "subject": "1", "case": 0, "image": "", "clicks": 0, "empty_reference": False}
    scores = [Score(**shown, prompt=prompt, foreground=0.1, structure=share, dice=0.5) for prompt in PROMPT_TITLES]
    scores += [
        Score(**shown | {"clicks": count + 1}, prompt=CLICKS, foreground=0.1, structure=share, dice=0.9, iou=0.95)
        for count in range(SHOWN_CLICKS)
    ]
    assert {(row["size"], row["mean"]) for row in summarize(scores, ["m"])["sizes"]} == {(size, 0.5)}


def covered(image):
    return (np.asarray(Image.open(image.replace("images", "masks"))) > 0).mean()


def test_models_are_compared_image_by_image(report):
    rows, summary = cases(report), json.loads((report / "summary.json").read_text())
    (entry,) = (
        row
        for row in summary["comparisons"]
        if (row["other"], row["prompt"], row["metric"]) == ("filled ellipse", "box", "dice")
    )

    def dice(model):
        return {r["image"]: float(r["dice"]) for r in rows if (r["model"], r["prompt"]) == (model, "box")}

    student, ellipse = dice("student"), dice("filled ellipse")
    assert entry["mean"] == pytest.approx(np.mean([student[name] - ellipse[name] for name in student]), abs=1e-5)
    assert 0 < entry["p"] <= entry["p_holm"] <= 1


def test_the_example_of_the_page_is_scored_on_its_own_masks(report):
    for row in cases(report):
        if row["model"] == "threshold" and row["prompt"] == "automatic":
            gray = np.asarray(Image.open(row["image"]).convert("L"))
            assert float(row["foreground"]) == pytest.approx((gray > gray.mean()).mean(), abs=1e-4)


def test_head_circumference_is_measured_where_it_is_known(report):
    rows = json.loads((report / "summary.json").read_text())["head_circumference"]
    assert {row["model"] for row in rows} == {"reference mask", *MODELS}
    assert all(row["images"] + row["no_head_found"] == 1 for row in rows)


def test_the_page_says_that_intervals_of_few_subjects_are_too_narrow(report):
    assert "Fewer than 20 subjects: datalist (3)." in (report / "report.html").read_text()


def test_images_without_anything_to_find_are_counted_apart(report):
    summary = json.loads((report / "summary.json").read_text())
    assert [(row["model"], row["images"]) for row in summary["empty_references"]] == [(model, 1) for model in MODELS]
    assert summary["empty_references"][-1]["with_foreground"] == 1  # the ellipse always fills something


def test_only_models_with_an_iou_head_are_calibrated(report):
    assert set(json.loads((report / "summary.json").read_text())["calibration"]) == set(MODELS[:3])


def test_without_spacing_distances_are_in_pixels_and_all_else_is_the_same_in_a_second_run(
    report, trained_once, tmp_path
):
    words = ["report", "--bundle", f"student={trained_once.bundle}", "--output", str(tmp_path / "again")]
    assert main([*words, "--data_list", str(write_datalist(tmp_path, source="our/set"))]) == 0
    assert (tmp_path / "again" / "cases_our_set.jpg").is_file()
    again = cases(tmp_path / "again")
    before = [row for row in cases(report) if row["model"] in ("student", "filled box", "filled ellipse")]
    same = ("model", "case", "prompt", "clicks", "dice", "iou", "foreground", "expected_iou")
    found, expected = ([[row[key] for key in same] for row in rows] for rows in (again, before))
    assert found == expected
    distances = [
        (float(one["hd95"]), float(two["hd95"])) for one, two in zip(again, before, strict=True) if one["hd95"]
    ]
    assert all(pixels == pytest.approx(2 * mm, rel=1e-4) for pixels, mm in distances)
    assert {row["unit"] for row in again} == {"px"}
    assert "95 % Hausdorff distance, px" in (tmp_path / "again" / "report.html").read_text(encoding="utf-8")


def test_the_page_needs_no_other_file(report):
    page = (report / "report.html").read_text(encoding="utf-8")
    assert all(target.startswith(("data:", "#")) for target in re.findall(r'(?:src|href)="([^"]*)"', page))
    assert not re.search(r"@import|url\(|<script|<link", page)
    assert page.count("data:image/svg+xml") >= 8
    assert "data:image/jpeg" in page


def test_a_browser_shows_plots_and_pictures(chromium, report, tmp_path):
    """Needs Chromium; `nox -s label` fetches it."""
    picture = tmp_path / "page.png"
    browser, environment = chromium
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1000,10000"]
    address = (report / "report.html").as_uri()
    command += [f"--screenshot={picture}", address]
    subprocess.run(command, check=True, capture_output=True, timeout=120, env=environment)
    red, green, blue = np.asarray(Image.open(picture).convert("RGB")).astype(int).transpose(2, 0, 1)
    assert ((red == 0) & (green == 0x72) & (blue == 0xB2)).any()  # the first model's color in the plots
    assert ((green > red + 90) & (green > blue + 90)).any()  # the references' in the pictures


SMALL = """
import json, sys
from PIL import Image
for line in sys.stdin:
    Image.new("L", (5, 5)).save(json.loads(line)["mask"])
    print("{}", flush=True)
"""
MISTAKES = {
    "a missing bundle": (["--bundle", "missing"], "Expected a bundle with configs/inference.json at `bundle`"),
    "missing weights": (["--other", "missing"], "missing"),
    "two of a name": (["--other", "student=BUNDLE"], "Two models are named 'student'"),
    "a teacher of no kind": (["--teacher", "missing"], "Expected `teacher` as KIND=FILE"),
    "a command that fails": (["--command", f"{sys.executable} -c 'raise SystemExit(3)'"], "ended with status 3"),
    "a mask of another size": (["--command", f"theirs={sys.executable} small.py"], "Expected theirs to give a mask of"),
    "nothing in the split": (["--split", "training"], "in the list 'training'"),
    "a folder without a set": (["--source", "kvasir"], "Expected `--source` KEY=VALUE, got 'kvasir'"),
    "no tolerance": (["--tolerance", "0"], "Expected `tolerance` in mm above 0"),
}


@pytest.mark.parametrize(("words", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_told_in_one_line(words, message, trained_once, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("small.py").write_text(SMALL)
    bundle = str(trained_once.bundle)
    base = ["report", "--bundle", f"student={bundle}", "--data_list", str(write_datalist(tmp_path)), "--output", "out"]
    assert main([*base, *(word.replace("BUNDLE", bundle) for word in words)]) == 1
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("monai_kdsam: error: "))
    assert message in line
    assert not Path("out", "report.html").exists()


def test_there_must_be_something_to_find(trained_once, tmp_path, capsys):
    path = write_datalist(tmp_path)
    path.write_text(json.dumps({"test": json.loads(path.read_text())["test"][-1:]}))
    words = [
        "report",
        "--bundle",
        str(trained_once.bundle),
        "--data_list",
        str(path),
        "--output",
        str(tmp_path / "out"),
    ]
    assert main(words) == 1
    assert "got empty masks only" in capsys.readouterr().err
