# SPDX-License-Identifier: Apache-2.0
"""The demonstration in miniature: every phase runs, and a table, weights, masks and a sheet of pictures come out."""

from __future__ import annotations

import json
import re

import pytest
from PIL import Image

from monai_kdsam import demo
from monai_kdsam.__main__ import main


@pytest.mark.slow
def test_a_demonstration_in_miniature(tmp_path, monkeypatch, capsys):
    run = demo.run_demo
    monkeypatch.setattr(
        demo, "run_demo", lambda folder, device: run(folder, device=device, per_kind=10, image_size=64, factor=0.01)
    )
    assert main(["demo", "--dir", str(tmp_path / "demo")]) == 0

    printed = capsys.readouterr().out
    table = {name: scores.split() for name, scores in re.findall(r"^(\w.*?)  +([-\d. ]+)$", printed, re.MULTILINE)}
    assert [*table] == [
        "filled box",
        "teacher",
        "student, distilled",
        "student, fine-tuned",
        "student, not distilled",
    ]
    assert 0.3 < float(table["filled box"][0]) < 0.9
    assert all(0 <= float(score) <= 1 for name in [*table][1:] for score in table[name])

    bundle = tmp_path / "demo" / "kdsam_deepgrow_2d"
    seen = json.loads((tmp_path / "demo" / "few_labels_split.json").read_text())
    whole = json.loads((bundle / "output" / "split.json").read_text())
    assert len(seen["training"]) == -(-len(whole["training"]) // 6)
    assert len(seen["training"]) + len(seen["unlabeled"]) == len(whole["training"])
    assert all(len(seen[name]) == len(whole[name]) for name in ("validation", "test"))
    for name in ("teacher", "distilled", "model", "without_distillation"):
        assert (bundle / "models" / f"{name}.pt").is_file()
    assert len([*(bundle / "output" / "masks").rglob("*_mask.png")]) == 20
    assert Image.open(tmp_path / "demo" / "pictures.png").width > 0


def test_a_finished_demonstration_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "demo" / "kdsam_deepgrow_2d").mkdir(parents=True)
    (tmp_path / "demo" / "kdsam_deepgrow_2d" / "mine.txt").touch()
    assert main(["demo", "--dir", str(tmp_path / "demo")]) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
