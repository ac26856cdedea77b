# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import logging
import math
from pathlib import Path

import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.handlers import MeanDice, from_engine
from torch import nn

from monai_kdsam.handlers import CaseReport

ROWS = torch.arange(4.0)[:, None].expand(4, 4)


def case(name: str, source: str | None, predicted: tuple[int, int], reference: int) -> dict:
    """Two predictions and a reference, each the first so many rows of a 4 x 4 image: Dice is 2 min(p, r) / (p + r)."""
    item = {
        "image": MetaTensor(torch.stack([rows > ROWS for rows in predicted]).float(), meta={"filename_or_obj": name}),
        "label": (reference > ROWS).float().expand(2, 4, 4).clone(),
    }
    return item if source is None else item | {"source": source}


CASES = [
    case("a.png", "kvasir", (2, 4), 2),  # Dice 1, 2/3
    case("b.png", "busi", (1, 3), 3),  # 1/2, 1
    case("c.png", "kvasir", (0, 1), 1),  # 0, 1
    case("d.png", "busi", (0, 2), 0),  # no Dice: the reference is empty
    case("e.png", "kvasir", (2, 2), 2),  # 1, 1
]


def report(folder: Path, cases: list[dict], *, batch_size: int = 1, epochs: int = 1) -> None:
    """Evaluate a network that answers its input, with MONAI's evaluator and metric."""
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(cases), batch_size=batch_size),
        network=nn.Identity(),
        key_val_metric={
            "val_mean_dice": MeanDice(include_background=True, output_transform=from_engine(["pred", "label"]))
        },
        val_handlers=[CaseReport(folder, ["box", "none"])],
    )
    for epoch in range(epochs):
        evaluator.run(epoch + 1)


def table(path: Path) -> list[list[str | float]]:
    def parsed(cell: str) -> str | float:
        try:
            return float(cell)
        except ValueError:
            return cell

    with open(path, newline="", encoding="utf-8") as file:
        return [[parsed(cell) for cell in row] for row in csv.reader(file)]


def same(found: list[list], expected: list[list]) -> bool:
    return [
        [pytest.approx(cell, nan_ok=True, abs=1e-6) if isinstance(cell, float) else cell for cell in row]
        for row in expected
    ] == found


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_every_image_has_its_dice_under_every_prompt(tmp_path, batch_size) -> None:
    report(tmp_path, CASES, batch_size=batch_size)
    assert same(
        table(tmp_path / "cases.csv"),
        [
            ["image", "source", "box", "none"],
            ["a.png", "kvasir", 1.0, 2 / 3],
            ["b.png", "busi", 0.5, 1.0],
            ["c.png", "kvasir", 0.0, 1.0],
            ["d.png", "busi", math.nan, math.nan],
            ["e.png", "kvasir", 1.0, 1.0],
        ],
    )


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_summary_has_the_mean_of_every_source_and_the_mean_of_these(tmp_path, batch_size) -> None:
    report(tmp_path / "report", CASES, batch_size=batch_size)
    box, none = (1 + 0 + 1) / 3, (2 / 3 + 1 + 1) / 3
    assert same(
        table(tmp_path / "report" / "summary.csv"),
        [
            ["source", "images", "empty references", "box", "none"],
            ["busi", 2.0, 1.0, 0.5, 1.0],
            ["kvasir", 3.0, 0.0, box, none],
            ["mean of sources", 5.0, 1.0, (0.5 + box) / 2, (1 + none) / 2],
        ],
    )


def test_images_of_one_source_need_no_mean_of_sources(tmp_path) -> None:
    report(tmp_path, [case("a.png", None, (2, 4), 2), case("b.png", None, (2, 2), 2)])
    assert same(
        table(tmp_path / "summary.csv"),
        [["source", "images", "empty references", "box", "none"], ["", 2.0, 0.0, 1.0, (2 / 3 + 1) / 2]],
    )


def test_a_source_of_empty_references_alone_has_no_mean_and_spoils_no_other(tmp_path) -> None:
    report(tmp_path, [case("a.png", "normal", (1, 1), 0), case("b.png", "lesions", (2, 2), 2)])
    assert same(
        table(tmp_path / "summary.csv")[1:],
        [
            ["lesions", 1.0, 0.0, 1.0, 1.0],
            ["normal", 1.0, 1.0, math.nan, math.nan],
            ["mean of sources", 2.0, 1.0, 1.0, 1.0],
        ],
    )


def test_a_second_evaluation_replaces_the_first(tmp_path) -> None:
    report(tmp_path, CASES, epochs=2)
    assert len(table(tmp_path / "cases.csv")) == 1 + len(CASES)


def test_the_summary_is_logged(tmp_path, caplog) -> None:
    with caplog.at_level(logging.INFO, logger="monai_kdsam"):
        report(tmp_path, CASES)
    lines = [record.getMessage().split() for record in caplog.records if record.name.startswith("monai_kdsam")]
    assert ["busi", "2", "1", "0.500", "1.000"] in lines
    assert ["mean", "of", "sources", "5", "1", "0.583", "0.944"] in lines


def test_names_with_commas_survive_the_table(tmp_path) -> None:
    report(tmp_path, [case('folder, "old"/a.png', "a", (2, 2), 2), case("b.png", "b", (2, 2), 2)])
    assert table(tmp_path / "cases.csv")[1][0] == 'folder, "old"/a.png'
