# SPDX-License-Identifier: Apache-2.0
"""The demonstration in miniature: a table and two sheets of pictures come out, and a student that has learned."""

from __future__ import annotations

import json
import re

import pytest
from PIL import Image

from monai_kdsam import demo
from monai_kdsam.__main__ import main
from monai_kdsam.bundles import bundle_path
from monai_kdsam.files import file_sha256


@pytest.mark.slow
@pytest.mark.skipif(not (bundle_path() / "models" / "model.pt").is_file(), reason="needs the shipped student's weights")
def test_a_demonstration_in_miniature(tmp_path, monkeypatch, capsys):
    small = {"counts": {"training": 4, "validation": 2, "test": 4}, "image_size": 64, "epochs": 1}
    run = demo.run_demo
    monkeypatch.setattr(demo, "run_demo", lambda folder, device: run(folder, device=device, **small))
    folder = tmp_path / "demo"
    assert main(["demo", "--dir", str(folder)]) == 0

    printed = capsys.readouterr().out
    table = {name: scores.split() for name, scores in re.findall(r"^([fs]\w.*?)  +([-\d. ]+)$", printed, re.MULTILINE)}
    assert [*table] == ["filled box", "filled ellipse", "student, as it comes", "student, after 8 labels"]
    assert all(0.3 < float(table[f"filled {shape}"][column]) < 0.9 for shape in ("box", "ellipse") for column in (0, 3))
    assert all(0 <= float(score) <= 1 for name in [*table][2:] for score in table[name])
    # The shipped student has never seen such pictures, and follows its box all the same.
    box, _, none = map(float, table["student, as it comes"][3:])
    assert box > none + 0.05

    lists = json.loads((folder / "datalist.json").read_text())
    assert {name: len(items) for name, items in lists.items()} == {"training": 8, "validation": 4, "test": 16}
    # A mosaic's mask lies in one tile.
    mask = Image.open(folder / "several" / "masks" / "polyp_006.png")
    left, _, right, _ = mask.getbbox()
    assert (right - left) / mask.width < 0.6
    assert Image.open(folder / "several" / "images" / "polyp_006.png").size == mask.size
    for name in ("shipped.png", "pictures.png"):
        assert Image.open(folder / name).width > 0
    own = folder / "kdsam_deepgrow_2d" / "models" / "model.pt"
    assert file_sha256(own) != file_sha256(demo.shipped_bundle() / "models" / "model.pt")
    assert (folder / "results.txt").read_text().strip() in printed


def test_a_finished_demonstration_is_not_overwritten(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "shipped_bundle", lambda: tmp_path)
    (tmp_path / "demo" / "kdsam_deepgrow_2d").mkdir(parents=True)
    (tmp_path / "demo" / "kdsam_deepgrow_2d" / "mine.txt").touch()
    assert main(["demo", "--dir", str(tmp_path / "demo")]) == 1
    assert "exists already" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "demo").rglob("*")] == ["kdsam_deepgrow_2d", "mine.txt"]
