# SPDX-License-Identifier: Apache-2.0
"""OHIF, as it ships with MONAI Label, in Chromium, on a study in Orthanc: connect, click, see the mask.

Needs the environment of the extra `label`, Playwright, and Debian's orthanc-dicomweb and chromium; `nox -s label`
provides them.
"""

from __future__ import annotations

import importlib.util
import json
import re
from io import BytesIO

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from PIL import Image

if any(importlib.util.find_spec(name) is None for name in ("monailabel", "playwright")):
    reason = "MONAI Label or Playwright is not installed; `nox -s label` runs these tests in an environment with both"
    pytest.skip(reason, allow_module_level=True)

from hosts.chromium import FLAGS
from hosts.label_server import random_bundle, running_server
from hosts.orthanc import encoded, mr_series
from playwright.sync_api import Page, Response, sync_playwright

from monai_kdsam.inferers import BundlePredictor

PICTURE = (129 * 0.5) / (140 * 0.7)  # height to width, in mm
WORLD_TO_INDEX = """([x, y]) => {
    const viewport = services.cornerstoneViewportService.getCornerstoneViewport('mpr-axial');
    const volume = services.segmentationService.getLabelmapVolume('1');
    return volume.imageData.worldToIndex(viewport.canvasToWorld([x, y])).map(Math.round);
}"""
LABELMAP = """() => {
    const volume = services.segmentationService.getLabelmapVolume('1');
    return [volume.dimensions, Array.from(volume.voxelManager.getCompleteScalarDataArray())];
}"""

# Whether clicks are the panel's, how many there are, and the slice that is shown.
PROBES = """() => cornerstoneTools.ToolGroupManager.getAllToolGroups().some(
    group => group.getActivePrimaryMouseButtonTool() === 'ProbeMONAILabel')"""
CLICKS = "() => cornerstoneTools.annotation.state.getAllAnnotations().length"
SLICE = "() => services.cornerstoneViewportService.getCornerstoneViewport('mpr-axial').getSliceIndex()"


@pytest.fixture(scope="module")
def series():
    return mr_series(orientation=(1, 0, 0, 0, 1, 0))


@pytest.fixture(scope="module")
def server(archive, series, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    archive.store(*series)
    with running_server(random_bundle(folder, "resnet18", 256), archive.dicomweb, folder) as running:
        yield running


@pytest.fixture(scope="module")
def predict(server, tmp_path_factory):
    predictor, file = BundlePredictor(server.bundle), tmp_path_factory.mktemp("direct") / "slice.dcm"

    def mask(dataset, **prompt):
        file.write_bytes(encoded(dataset))
        return predictor(file, **prompt)

    return mask


@pytest.fixture
def page(chromium):
    path, environment = chromium
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS, env=environment)
        yield browser.new_page(viewport={"width": 1280, "height": 800})
        browser.close()


def open_study(page: Page, server, series) -> None:
    """As a user does: open the study, enter the server's address, choose the model's tab."""
    page.goto(f"{server.address}/ohif/monai-label?StudyInstanceUIDs={series[0].StudyInstanceUID}")
    page.get_by_text("Confirm and Hide").click(timeout=60_000)
    # The first volume on the screen takes a software renderer several seconds.
    page.wait_for_function("services.cornerstoneViewportService.getCornerstoneViewport('mpr-axial')", timeout=60_000)
    settle(page)
    panel = page.locator(".monaiLabelPanel")
    panel.locator("#monailabelServerURL").fill(f"{server.address}/")
    panel.locator("button").first.click()
    page.get_by_text("Point Prompts").first.click(timeout=60_000)
    page.wait_for_function("services.segmentationService.getLabelmapVolume('1')", timeout=60_000)
    page.locator("tr.clickable-row", has_text="structure").wait_for(timeout=60_000)
    settle(page)


def click_on(page: Page, segment: str, x: float, y: float) -> list[int]:
    """Choose a segment and click at a fraction of the axial view; the voxel that is there."""
    row = page.locator("tr.clickable-row", has_text=segment)
    row.click()
    page.wait_for_function("row => row.style.backgroundColor.startsWith('dark')", arg=row.element_handle())
    page.wait_for_function(PROBES, timeout=60_000)
    before = page.evaluate(CLICKS)
    box = axial(page).bounding_box()
    at = (box["width"] * x, box["height"] * y)
    page.mouse.click(box["x"] + at[0], box["y"] + at[1])
    page.wait_for_function(f"before => ({CLICKS})() > before", arg=before, timeout=60_000)
    return page.evaluate(WORLD_TO_INDEX, at)


def settle(page: Page) -> None:
    """Wait until what is painted stays the same: the software renderer takes seconds for a volume."""
    last, same = b"", 0
    for _ in range(120):
        painted = axial(page).locator("canvas").first.screenshot()
        same = same + 1 if painted == last else 0
        if same == 3:
            return
        last = painted
        page.wait_for_timeout(250)
    raise AssertionError("The viewer has been repainting for half a minute.")


def axial(page: Page):
    return page.locator(".viewport-element").first


def run(page: Page) -> tuple[dict, Response]:
    """Press Run; the prompts that the viewer sent, and the answer."""
    with page.expect_response(re.compile("/infer/"), timeout=60_000) as waiting:
        page.locator('[title="Run PointPrompts"]').click()
    page.get_by_text("Running Inference for Point Prompts - Successful").last.wait_for(timeout=60_000)
    settle(page)
    sent = re.search(r"\{.*\}", waiting.value.request.post_data)[0]
    return json.loads(sent), waiting.value


def labelmap(page: Page) -> np.ndarray:
    (width, height, depth), values = page.evaluate(LABELMAP)
    return np.reshape(values, (depth, height, width))


def coloured(page: Page) -> np.ndarray:
    """Pixels of the axial view's canvas that are not grey, as all of the image is."""
    content = axial(page).locator("canvas").first.screenshot()
    pixels = np.asarray(Image.open(BytesIO(content)).convert("RGB")).astype(int)
    middle = pixels[pixels.shape[0] // 4 : -(pixels.shape[0] // 4)]  # without the texts at the edges
    return np.ptp(middle, axis=-1) > 12


def test_a_click_in_the_viewer_shows_the_mask_of_a_direct_call(page, server, series, predict, tmp_path):
    open_study(page, server, series)
    box = axial(page).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    for _ in range(2):  # away from the middle slice, which an axis in the wrong direction would leave where it is
        slice_before = page.evaluate(SLICE)
        page.mouse.wheel(0, 100)
        page.wait_for_function(f"before => ({SLICE})() !== before", arg=slice_before, timeout=60_000)
    settle(page)
    before = coloured(page)

    clicked = click_on(page, "structure", 0.6, 0.5)
    sent, answer = run(page)
    assert answer.status == 200
    assert sent["foreground"] == [clicked]
    assert clicked[2] not in (len(series) // 2, len(series) - 1 - clicked[2])
    expected = predict(series[clicked[2]], foreground=[clicked[:2]])
    (tmp_path / "mask.nrrd").write_bytes(answer.body())
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "mask.nrrd")))[clicked[2]], expected
    )
    found = labelmap(page)
    np.testing.assert_array_equal(found[clicked[2]], expected)
    assert np.count_nonzero(found) == np.count_nonzero(expected) > 100
    # The mask is painted over the picture, which is as wide as its view.
    assert before.mean() < 0.02
    assert (coloured(page) & ~before).sum() > 0.2 * expected.mean() * box["width"] ** 2 * PICTURE

    away = click_on(page, "background", 0.3, 0.45)
    # The panel takes the clicks of the segment that is chosen for the foreground, those of the background too.
    page.locator("tr.clickable-row", has_text="structure").click()
    sent, _ = run(page)
    assert (sent["foreground"], sent["background"]) == ([clicked], [away])
    corrected = predict(series[clicked[2]], foreground=[clicked[:2]], background=[away[:2]])
    np.testing.assert_array_equal(labelmap(page)[clicked[2]], corrected)
    assert (corrected != expected).any()
