# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from PIL import Image

from monai_kdsam.data.phantoms import make_phantom
from monai_kdsam.export import export_bundle
from monai_kdsam.inferers import BundlePredictor
from monai_kdsam.report.models import BundleModel, CommandModel, EllipseModel, ExportModel
from monai_kdsam.report.prompts import Prompt, named_prompts


@pytest.fixture
def picture(tmp_path):
    image, mask = make_phantom("breast_lesion", size=96, seed=4)
    Image.fromarray(image).save(tmp_path / "picture.png")
    return str(tmp_path / "picture.png"), mask


def test_a_bundle_answers_as_it_is_served(trained, picture):
    path, reference = picture
    served, model = BundlePredictor(trained.bundle), BundleModel("student", trained.bundle)
    model.set_image(path)
    prompts = named_prompts(reference)
    for (name, prompt), (mask, iou) in zip(prompts.items(), model.predict(list(prompts.values())), strict=True):
        clicks = prompt.points[prompt.labels == 1].tolist()
        box = prompt.points[prompt.labels >= 2].ravel().tolist()
        assert np.array_equal(mask, served(path, foreground=clicks, roi=box or None) > 0), name
        assert math.isfinite(iou)


def test_a_correction_goes_on_from_the_last_answer_as_the_hosts_do(trained, picture):
    path, reference = picture
    first, box = (named_prompts(reference)[name] for name in ("center_click", "box"))
    more = Prompt(np.concatenate([first.points, [[3, 4]]]), np.array([1, 0]))
    asked = []
    for goes_on in (True, False):
        model = BundleModel("student", trained.bundle, go_on=goes_on)
        predict = model._predictor.predict
        model._predictor.predict = lambda *_, predict=predict, **prompt: asked.append(prompt) or predict(path, **prompt)
        model.set_image(path)
        model.predict([box, first])
        model.correct(more)
        last = predict(path, foreground=first.points.tolist()).logits
        assert [prompt["mask_input"] is None for prompt in asked] == [True, True, not goes_on]
        assert not goes_on or np.array_equal(asked[-1]["mask_input"], last)
        asked.clear()
        model.set_image(path)
        model.correct(more)  # of another picture there is none
        assert asked.pop()["mask_input"] is None


def test_an_export_answers_as_the_bundle_that_it_is_of(trained, picture, tmp_path):
    folder, _ = export_bundle(trained.bundle, "torchscript", output=tmp_path / "exported")
    path, reference = picture
    prompts = named_prompts(reference)
    answers = []
    for model in (BundleModel("student", trained.bundle), ExportModel("exported", folder)):
        model.set_image(path)
        answers.append(model.predict(list(prompts.values())))
    for name, (mask, iou), (exported, expected_iou) in zip(prompts, *answers, strict=True):
        assert mask.shape == exported.shape == reference.shape
        assert (mask != exported).mean() < 0.01, name
        assert expected_iou == pytest.approx(iou, abs=1e-3), name


def test_an_image_is_encoded_once_for_all_its_prompts(trained, picture):
    path, reference = picture
    model = BundleModel("student", trained.bundle, close_up=0)
    encoded = []
    model._predictor.network.image_encoder.register_forward_hook(lambda *_: encoded.append(1))
    model.set_image(path)
    model.predict(list(named_prompts(reference).values()))
    model.predict([named_prompts(reference)["center_click"]])
    assert len(encoded) == 1


def test_the_baseline_fills_the_box_in_pixels_of_the_file(picture):
    path, reference = picture
    model = EllipseModel()
    model.set_image(path)
    box = np.array([[10, 20], [50, 40]], np.float32)
    ((mask, iou),) = model.predict([Prompt(box, np.array([2, 3]))])
    assert mask.shape == reference.shape
    assert math.isnan(iou)
    assert mask.sum() == pytest.approx(math.pi / 4 * 41 * 21, rel=0.02)
    assert mask[20:41, 10:51].sum() == mask.sum()


def command(tmp_path, body):
    """A program that answers each request by `body`."""
    lines = [
        "import json, sys",
        "import numpy as np",
        "from PIL import Image",
        "for line in sys.stdin:",
        "    request = json.loads(line)",
        *("    " + line for line in body.splitlines()),
    ]
    (tmp_path / "model.py").write_text("\n".join(lines))
    return f"{sys.executable} {tmp_path / 'model.py'}"


def asked(tmp_path, picture, body):
    model = CommandModel("theirs", command(tmp_path, body))
    try:
        model.set_image(picture[0])
        return model.predict(list(named_prompts(picture[1]).values()))
    finally:
        model.close()
        assert model._process.poll() is not None


def test_a_command_gets_image_and_prompt_and_its_mask_and_iou_are_taken(tmp_path, picture):
    body = """\
print("thinking ...")
mask = np.zeros(Image.open(request["image"]).size[::-1], np.uint8)
for (x, y), label in zip(request["points"], request["labels"]):
    mask[int(y), int(x)] = 10 + label
Image.fromarray(mask).save(request["mask"])
print(json.dumps({"iou": 0.5} if request["labels"] else {}), flush=True)"""
    predictions = asked(tmp_path, picture, body)
    for prompt, (mask, iou) in zip(named_prompts(picture[1]).values(), predictions, strict=True):
        marked = {(x, y) for y, x in np.argwhere(mask)}
        assert marked == {(x, y) for x, y in prompt.points.astype(int)}
        assert iou == 0.5 or (math.isnan(iou) and not marked)


@pytest.mark.parametrize("iou", ["null", '"high"'])
def test_an_iou_that_is_null_is_unknown_and_one_that_is_no_number_is_told(tmp_path, picture, iou):
    body = f"""\
Image.fromarray(np.ones(Image.open(request["image"]).size[::-1], np.uint8)).save(request["mask"])
print('{{"iou": {iou}}}', flush=True)"""
    if iou == "null":
        assert all(math.isnan(iou) for _, iou in asked(tmp_path, picture, body))
    else:
        with pytest.raises(ValueError, match=r"Expected a number under `iou` from the `command` of .*, got 'high'"):
            asked(tmp_path, picture, body)


def test_a_command_that_fails_is_told_with_its_last_words(tmp_path, picture):
    with pytest.raises(ValueError, match=r"ended with status 1.*picture\.png: ValueError: no such model"):
        asked(tmp_path, picture, "raise ValueError('no such model')")
    with pytest.raises(ValueError, match=r"theirs wrote no mask of .*picture\.png"):
        asked(tmp_path, picture, "print('{}', flush=True)")
    with pytest.raises(OSError, match="Cannot start the `command` of theirs, 'no-such-program'"):
        CommandModel("theirs", "no-such-program")
