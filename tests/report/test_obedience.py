# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from monai_kdsam.data.picture_file import decode
from monai_kdsam.report.corrective_clicks import MOST_CLICKS
from monai_kdsam.report.items import load_reference
from monai_kdsam.report.obedience import make_mosaic, structures
from monai_kdsam.report.scoring import CLICKS, SHOWN_CLICKS, score_images
from monai_kdsam.report.summary import summarize


class Bright:
    """Marks all that is bright, within the box or within 20 pixels of the click if it does as it is told."""

    takes_clicks = True

    def __init__(self, obeys):
        self.name, self.obeys = ("obedient" if obeys else "stubborn"), obeys

    def set_image(self, path):
        self.bright = decode(path).pixels.reshape(*Image.open(path).size[::-1], -1)[..., 0] > 128

    def predict(self, prompts):
        return [(self.bright & self.asked(*prompt) if self.obeys else self.bright, math.nan) for prompt in prompts]

    def correct(self, prompt):
        return self.predict([prompt])[0]

    def asked(self, points, labels):
        window = np.zeros_like(self.bright)
        if len(points) == 0:
            return ~window
        low, high = (points[0], points[1]) if labels[0] == 2 else (points[0] - 20, points[0] + 20)
        (left, top), (right, bottom) = np.maximum(low, 0).astype(int), high.astype(int)
        window[top : bottom + 1, left : right + 1] = True
        return window


@pytest.fixture
def items(tmp_path):
    """Five white squares on black, and a picture of two."""
    items = []
    for number in range(6):
        mask = np.zeros((60, 80), np.uint8)
        mask[10:30, 10 + number : 30 + number] = 255
        if number == 5:
            mask[35:55, 50:70] = 255
        for kind in ("image", "label"):
            Image.fromarray(mask).save(tmp_path / f"{kind}{number}.png")
        files = {kind: str(tmp_path / f"{kind}{number}.png") for kind in ("image", "label")}
        items.append({**files, "source": "squares", "subject": str(number), "spacing": [1.0, 1.0]})
    return items


def test_a_mosaic_holds_its_own_image_and_others_of_the_set(items, tmp_path):
    for number, shape in ((0, (120, 160)), (1, (60, 160))):
        reference = load_reference(items[number])
        mosaic = make_mosaic(tmp_path / "mosaic.png", items, number, reference)
        pixels = np.asarray(Image.open(mosaic.path).convert("L")) > 128
        assert pixels.shape == mosaic.reference.shape == shape
        assert np.array_equal(pixels[mosaic.tile], reference)
        assert np.array_equal(mosaic.reference[mosaic.tile], reference)
        assert mosaic.reference.sum() == reference.sum()
        assert pixels.sum() == reference.sum() * (shape[0] * shape[1] // reference.size)


def test_a_large_image_is_made_smaller_and_an_only_one_has_no_mosaic(tmp_path):
    Image.new("RGB", (2048, 1024)).save(tmp_path / "large.png")
    item = {"image": str(tmp_path / "large.png"), "source": "large"}
    reference = np.ones((1024, 2048), bool)
    assert make_mosaic(tmp_path / "mosaic.png", [item, item], 1, reference).reference.shape == (256, 1024)
    assert make_mosaic(tmp_path / "mosaic.png", [item, item | {"source": "other"}], 0, reference) is None


def test_a_speck_is_no_structure():
    mask = np.zeros((50, 50), bool)
    mask[:20, :20] = mask[30:, 30:] = True
    mask[40, 3] = True
    assert [int(one.sum()) for one in structures(mask)] == [400, 400]


def test_who_obeys_is_told_from_who_knows_what_is_labeled(items):
    models = [Bright(obeys=True), Bright(obeys=False)]
    scores = score_images(models, items, {"squares": "px"}, progress=False)
    rows = summarize(scores, [model.name for model in models])["obedience"]
    found = {(row["model"], row["measure"]): (round(row["mean"], 4), row["images"]) for row in rows}
    assert found["obedient", "structure_box_dice"] == found["obedient", "structure_click_dice"] == (1, 2)
    assert found["stubborn", "structure_box_dice"] == (round(2 / 3, 4), 2)  # the other square is as large
    assert found["obedient", "mosaic_box_share"] == found["obedient", "mosaic_box_dice"] == (1, 6)
    # One square of as many as there are in four and in two pictures by turns; the last picture has two.
    shares = [1 / 4, 1 / 2, 1 / 5, 1 / 2, 1 / 5, 2 / 3]
    assert found["stubborn", "mosaic_box_share"] == (pytest.approx(np.mean(shares), abs=1e-4), 6)
    assert found["stubborn", "box_minus_none"] == (0, 6)
    # On the picture of two squares the box is around both, the click in one of them.
    assert found["obedient", "click_minus_none"] == (pytest.approx((2 / 3 - 1) / 6, abs=1e-4), 6)
    assert found["stubborn", "mosaic_box_minus_single"] == (0, 6)
    assert found["filled box", "box"] == (pytest.approx((5 + 2 * 800 / (800 + 45 * 55)) / 6, abs=1e-4), 6)


def test_clicks_beyond_ten_are_made_only_until_the_last_goal(items):
    models = [Bright(obeys=True), Bright(obeys=False)]
    scores = score_images(models, items, {"squares": "px"}, progress=False)
    made = [
        max(s.clicks for s in scores if (s.model, s.prompt, s.case) == (model.name, CLICKS, case))
        for model in models
        for case in (0, 5)
    ]
    assert made == [SHOWN_CLICKS, MOST_CLICKS, SHOWN_CLICKS, SHOWN_CLICKS]
    (row, _) = summarize(scores, [model.name for model in models])["clicks"]
    assert row["noc85"][0] == pytest.approx((5 * 1 + MOST_CLICKS) / 6)
    assert row["failures90"] == 1
