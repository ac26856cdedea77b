# SPDX-License-Identifier: Apache-2.0
"""OHIF without a server: its released viewer asks our student in Chromium where it would ask SAM.

Needs the extra `export`, Playwright, Debian's chromium and OHIF's npm package; `nox -s export` provides them.
"""

from __future__ import annotations

import copy
import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

if any(importlib.util.find_spec(name) is None for name in ("nncf", "onnxscript", "playwright")):
    reason = "the extra `export` or Playwright is not installed; `nox -s export` has both"
    pytest.skip(reason, allow_module_level=True)

from hosts.chromium import FLAGS
from hosts.ohif import Viewer, served_viewer
from hosts.orthanc import encoded, ultrasound_still
from playwright.sync_api import sync_playwright

from monai_kdsam.bundles import shipped_bundle
from monai_kdsam.data.phantoms import write_phantoms
from monai_kdsam.export import sam
from monai_kdsam.export.int8 import quantize
from monai_kdsam.export.onnx import encoder_graph
from monai_kdsam.export.parity import mask_iou
from monai_kdsam.inferers import BundlePredictor


@pytest.fixture(scope="module")
def viewer_files() -> Path:
    folder = os.environ.get("KDSAM_OHIF")
    if not folder:
        pytest.skip("KDSAM_OHIF names no folder with the files of @ohif/app; `nox -s export` fetches them")
    return Path(folder)


@pytest.fixture(scope="module")
def browser(chromium):
    path, environment = chromium
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS, env=environment)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def predict():
    return BundlePredictor(shipped_bundle(), close_up=0)  # which programs that know SAM cannot ask for


@pytest.fixture(scope="module")
def students(predict, tmp_path_factory):
    """Folder of each precision's files. The 8 bits are those of a few generated pictures, and not checked."""
    folder = tmp_path_factory.mktemp("students")
    pictures = sorted((write_phantoms(folder / "pictures", per_kind=6) / "images").iterdir())
    tensors = [predict.preprocessing({"image": str(path)})["image"].numpy()[None] for path in pictures]
    graph = encoder_graph(predict.network)
    eight = quantize(copy.deepcopy(graph), tensors, lambda encode: 1.0, least=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sam, "INPUTS", {"encoder_browser": "canvas"})
        for precision, encoder in {"fp32": graph, "int8": eight}.items():
            (folder / precision).mkdir()
            sam.write_sam(predict.network, encoder, sam.SAM_MEAN, sam.SAM_STD, folder / precision)
    return folder


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_clicks_and_boxes_in_the_viewer_show_the_masks_of_a_direct_call(
    precision, viewer_files, browser, predict, students
):
    picture = ultrasound_still(seed=7, size=400)
    click, away, box = [192, 108], [122, 37], [122, 37, 285, 194]
    with served_viewer(viewer_files, students / precision) as address:
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        viewer = Viewer(page, address, encoded(picture))
        shown = [viewer.click(*click), viewer.click(*away, "Exclude")]
        viewer.clear()
        shown.append(viewer.box(*box[2:], *box[:2]))  # dragged to the upper left
        page.close()
    prompts = [{"foreground": [click]}, {"foreground": [click], "background": [away]}, {"roi": box}]
    for mask, prompt in zip(shown, prompts, strict=True):
        assert mask_iou(mask, predict_in_the_viewers_frame(predict, picture.pixel_array, prompt, click)) > 0.9


def predict_in_the_viewers_frame(predict, pixels, prompt, inside):
    """As OHIF asks: the picture in the middle of its dark blue square, a logit of 0.25, no islands without a click."""
    height, width = pixels.shape[:2]
    scale = 1024 / max(height, width)
    size = (round(width * scale), round(height * scale))
    left, top = (1024 - size[0]) // 2, (1024 - size[1]) // 2
    square = Image.new("RGB", (1024, 1024), (0, 0, 51))
    square.paste(Image.fromarray(pixels).resize(size), (left, top))
    moved = {name: (np.reshape(xy, (-1, 2)) * scale + (left, top)).tolist() for name, xy in prompt.items()}
    moved |= {"roi": np.ravel(moved["roi"]).tolist()} if "roi" in moved else {}
    found = predict.predict(np.asarray(square), **moved).logits > 0.25
    found = Image.fromarray(found[top : top + size[1], left : left + size[0]])
    islands, _ = ndimage.label(np.asarray(found.resize((width, height), Image.Resampling.NEAREST)))
    return islands == islands[inside[1], inside[0]]
