# SPDX-License-Identifier: Apache-2.0
"""Pictures with the outlines of their masks, to look at what a network does."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from PIL import Image

from monai_kdsam.data.paths import split_frame, stem_of
from monai_kdsam.data.picture_file import decode
from monai_kdsam.drawing import draw_contour
from monai_kdsam.files import ROOM, replacing
from monai_kdsam.picture import to_rgb

__all__ = ["Overlays"]

logger = logging.getLogger(__name__)
REFERENCE, PREDICTED = (0, 255, 0), (255, 255, 0)


class Overlays:
    """Draws the first pictures of an evaluator: the mask in yellow over the reference in green.

    Of several prompts it is the first one's mask. At the end the log says how many images there were and where
    all of it is.

    Args:
        folder: of the overlays, NUMBER_NAME.jpg.
        limit: draw no more than so many; 0 draws none.
        written: folder of what others wrote about the same images, for the log.
    """

    def __init__(self, folder: str | Path, *, limit: int, written: str | Path) -> None:
        self.folder = Path(folder)
        self.limit = limit
        self.written = written
        self.count = 0

    def attach(self, engine: Engine) -> None:
        """Draw after each iteration, tell at the end."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._tell)

    def _start(self, engine: Engine) -> None:
        self.count = 0

    def __call__(self, engine: Engine) -> None:
        """Draw the batch's pictures."""
        output: Any = engine.state.output
        for item in output:
            self.count += 1
            if self.count <= self.limit:
                self._draw(item)

    def _draw(self, item: Any) -> None:
        source = str(item["image"].meta["filename_or_obj"])
        picture = to_rgb(decode(source))
        for key, color in (("label", REFERENCE), ("pred", PREDICTED)):
            if item.get(key) is not None:
                mask = np.asarray(item[key].cpu())
                picture = draw_contour(picture, (mask if mask.ndim == 2 else mask[0]).T > 0, color)
        path = self.folder / f"{self.count:03d}_{stem_of(split_frame(source)[0])}.jpg"
        with replacing(path, ROOM) as unfinished:
            Image.fromarray(picture).save(unfinished, format="JPEG", quality=90)

    def _tell(self, engine: Engine) -> None:
        drawn = min(self.count, self.limit)
        told = f", overlays of {'the first ' * (drawn < self.count)}{drawn} to {self.folder}" if drawn else ""
        logger.info("Wrote what was found on %d images to %s%s.", self.count, self.written, told)
