# SPDX-License-Identifier: Apache-2.0
"""OHIF's released viewer as a site of static files, with a student's two files, for tests and benchmarks."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

CONFIG = Path(__file__).resolve().parents[2] / "docs" / "howto" / "ohif_app_config.js"

TO_CANVAS = """([x, y]) => {
    const viewport = services.cornerstoneViewportService.getCornerstoneViewport('default');
    const world = cornerstone.utilities.imageToWorldCoords(viewport.getCurrentImageId(), [x, y]);
    const {left, top} = viewport.element.getBoundingClientRect();
    const [right, down] = viewport.worldToCanvas(world);
    return [left + right, top + down];
}"""
# `drawn` resolves when the labelmap changes next.
WATCH = """() => {
    window.drawn = new Promise(resolve => cornerstone.eventTarget.addEventListener(
        cornerstoneTools.Enums.Events.SEGMENTATION_DATA_MODIFIED, resolve, {once: true}));
}"""
AGAIN = """() => {
    const [annotation] = cornerstoneTools.annotation.state.getAllAnnotations().slice(-1);
    const changed = cornerstoneTools.Enums.Events.ANNOTATION_MODIFIED;
    cornerstone.triggerEvent(cornerstone.eventTarget, changed, {annotation});
}"""
LABELMAP = """() => {
    const [segmentation] = cornerstoneTools.segmentation.state.getSegmentations();
    const image = cornerstone.cache.getImage(segmentation.representationData.Labelmap.imageIds[0]);
    return [image.height, image.width, Array.from(image.voxelManager.getScalarData())];
}"""


@contextmanager
def served_viewer(dist: Path, student: Path) -> Iterator[str]:
    """The address of OHIF's `dist` with the app-config of the docs, and the files of the folder `student` at /kdsam."""

    class Site(SimpleHTTPRequestHandler):
        extensions_map = SimpleHTTPRequestHandler.extensions_map | {".wasm": "application/wasm"}

        def translate_path(self, path: str) -> str:
            path = path.split("?")[0]
            if path == "/app-config.js":
                return str(CONFIG)
            if path.startswith("/kdsam/"):
                return str(student / path.removeprefix("/kdsam/"))
            found = super().translate_path(path)
            return found if os.path.isfile(found) else str(dist / "index.html")

        def log_message(self, *_: Any) -> None:
            pass

    site = ThreadingHTTPServer(("127.0.0.1", 0), partial(Site, directory=str(dist)))
    threading.Thread(target=site.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{site.server_port}"
    finally:
        site.shutdown()
        site.server_close()


class Viewer:
    """OHIF in a page, its marker tool chosen, with the embedding of a picture that was opened from the disk."""

    def __init__(self, page: Any, address: str, dicom: bytes) -> None:
        self.page = page
        page.set_default_timeout(120_000)
        page.goto(f"{address}/local")
        file = {"name": "picture.dcm", "mimeType": "application/dicom", "buffer": dicom}
        page.locator("input[type=file]").first.set_input_files([file])
        page.get_by_text("Phantom, Generated").click()
        page.get_by_text("Segmentation", exact=True).first.click()
        page.locator('[data-cy="cine-player-close"]').click()  # it lies over the picture
        page.get_by_text("Add segmentation").click()
        page.get_by_text("Segment 1").wait_for()
        with page.expect_console_message(lambda message: "Image Ready" in message.text) as waiting:
            page.locator('[data-cy="MarkerLabelmap"]').click()
        self.seconds_to_encode = float(waiting.value.text.split()[-2]) / 1000

    def click(self, x: float, y: float, mode: str = "Include") -> np.ndarray:
        """Click on a pixel of the picture; the mask (H, W) that is shown."""
        self.page.get_by_text(mode, exact=True).click()
        self.page.evaluate(WATCH)
        self.page.mouse.click(*self.page.evaluate(TO_CANVAS, [x, y]))
        return self._mask()

    def box(self, x1: float, y1: float, x2: float, y2: float) -> np.ndarray:
        """Drag a box; the mask (H, W) that is shown."""
        self.page.get_by_text("Box", exact=True).click()
        begin, end = (self.page.evaluate(TO_CANVAS, corner) for corner in ([x1, y1], [x2, y2]))
        self.page.evaluate(WATCH)
        self.page.mouse.move(*begin)
        self.page.mouse.down()
        self.page.mouse.move(*end, steps=3)
        self.page.mouse.up()
        self._mask()  # a slow drag is answered before it ends
        self.page.evaluate(WATCH)
        self.page.evaluate(AGAIN)
        return self._mask()

    def clear(self) -> None:
        """Take away all prompts, and what they show."""
        self.page.get_by_text("Clear Markers").click()

    def _mask(self) -> np.ndarray:
        self.page.evaluate("() => window.drawn")
        height, width, values = self.page.evaluate(LABELMAP)
        return np.reshape(values, (height, width)) > 0
