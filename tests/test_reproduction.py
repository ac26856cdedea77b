# SPDX-License-Identifier: Apache-2.0
"""Each row of reproduction.md, small: stand-ins for SAM's and VGG16's weights, and a dozen generated pictures."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from reproduce import ROWS, main
from torchvision.models import vgg16

from monai_kdsam.bundles import config_path
from monai_kdsam.data.phantoms import make_phantom
from monai_kdsam.networks import build_teacher

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "reference" / "reproduction.md").read_text(encoding="utf-8")
FOLDERS = {
    "kvasir": lambda part, n: (f"images/{n}.jpg", f"masks/{n}.jpg"),
    "busi": lambda part, n: (f"benign/benign ({n}).png", f"benign/benign ({n})_mask.png"),
    "isic2017": lambda part, n: (
        f"ISIC-2017_{part}_Data/ISIC_{n:07d}.jpg",
        f"ISIC-2017_{part}_Part1_GroundTruth/ISIC_{n:07d}_segmentation.png",
    ),
}


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, quality=95)


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Random weights of the official layouts, SAM's of the smallest ViT. Not under the official names: there they
    would be refused as damaged."""
    folder = tmp_path_factory.mktemp("weights")
    torch.save(build_teacher("vit_micro").state_dict(), folder / "sam.pth")
    features = {key: value for key, value in vgg16(weights=None).state_dict().items() if key.startswith("features.")}
    torch.save(features, folder / "vgg.pth")
    return [f"sam_checkpoint={folder / 'sam.pth'}", f"vgg_weights={folder / 'vgg.pth'}"]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three sets in the layouts of their downloads; BUSI has a picture without lesion."""
    folder = tmp_path_factory.mktemp("sets")
    for name, files in FOLDERS.items():
        for number in range(12):
            picture, mask = make_phantom("polyp", size=64, seed=number)
            part = ("Training", "Validation", "Test_v2")[number % 3]
            for file, array in zip(files(part, number), (picture, mask.astype(np.uint8) * 255), strict=True):
                save(folder / name / file, array)
    save(folder / "busi/normal/normal (1).png", picture)
    save(folder / "busi/normal/normal (1)_mask.png", np.zeros_like(mask, dtype=np.uint8))
    return folder


QUICK = ("kvasir_sam", "busi_sam_decoder", "isic2017_kdsam_vit_b")  # one of each kind and set; the others with -m slow


@pytest.mark.parametrize("row", [row if row in QUICK else pytest.param(row, marks=pytest.mark.slow) for row in ROWS])
def test_each_row_runs_from_the_weights_to_a_dice(row, stand_ins, sets, tmp_path, monkeypatch):
    monkeypatch.setattr("machine.RESULTS", tmp_path)
    data, small = str(sets / row.partition("_")[0]), str(config_path("smoke.yaml"))
    main([row, data, "weights", str(tmp_path), "progress=False", *stand_ins, "--overlays", small])
    written = json.loads((tmp_path / f"reproduce_{row}.json").read_text())
    ((name, prompt, dice),) = written["tables"]["dice"]["rows"]
    assert (name, prompt) == (row, "none" if row.startswith("isic2017") else "box")
    assert 0 <= float(dice) < 1
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", written["date"])
    assert f"torch {torch.__version__.partition('+')[0]}" in written["machine"]
    assert (tmp_path / row / "cases.csv").read_text().count("\n") == 1 + (4 if row.startswith("isic2017") else 2)


def test_the_page_has_each_row_once_with_an_empty_column_for_our_number():
    rows = re.findall(r"^\| `(\w+)` \|.*\| not run \|", PAGE, re.MULTILINE)
    assert Counter(rows) == Counter(ROWS.keys())


def test_a_setting_without_a_value_is_an_error_that_says_so(capsys):
    with pytest.raises(SystemExit):
        main(["kvasir_sam", "data", "weights", "out", "epochs"])
    assert "expected NAME=VALUE, got 'epochs'" in capsys.readouterr().err
