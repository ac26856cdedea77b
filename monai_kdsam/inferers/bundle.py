# SPDX-License-Identifier: Apache-2.0
"""A trained bundle as a Python object."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose, SaveImaged
from numpy.typing import NDArray

from monai_kdsam.bundles import find_mistake

__all__ = ["BundlePredictor"]


@contextlib.contextmanager
def _unwrapped() -> Iterator[None]:
    """Raise what a user can mend as it was raised, without the errors that MONAI puts around it."""
    mistake = None
    try:
        yield
    except Exception as error:
        mistake = find_mistake(error)
        if mistake is None:
            raise
    if mistake is not None:
        raise mistake


class BundlePredictor:
    """Segments image files, or volumes, with a bundle's own preprocessing, network and postprocessing.

    The image's embedding stays in memory, so a second prompt on the same image costs only the decoder. Threads may
    share one: nothing else of a call is kept.

    Args:
        bundle: folder of the bundle, with `models/model.pt`.
        overrides: of named scalars in inference.json.

    Raises:
        FileNotFoundError: when there is no such bundle, or it has no weights.
        ValueError: when the weights are damaged, or of a network with other settings.
    """

    def __init__(self, bundle: str | Path, **overrides: Any) -> None:
        bundle = Path(bundle)
        file = bundle / "configs" / "inference.json"
        if not file.is_file():
            raise FileNotFoundError(f"Expected a bundle with configs/inference.json at `bundle`, got {bundle}.")
        parser = ConfigParser()
        parser.read_config(str(file))
        parser.update({"bundle_root": str(bundle), **overrides})
        with _unwrapped():
            self.device = parser.get_parsed_content("device")
            self.network = parser.get_parsed_content("network").eval()
            self.inferer = parser.get_parsed_content("inferer")
            self.preprocessing = parser.get_parsed_content("preprocessing")
            steps = parser.get_parsed_content("postprocessing").transforms
        self.postprocessing = Compose([step for step in steps if not isinstance(step, SaveImaged)])

    def __call__(
        self,
        image: str | Path,
        *,
        foreground: Sequence[Sequence[float]] = (),
        background: Sequence[Sequence[float]] = (),
        roi: Sequence[float] | None = None,
        propagate: bool | None = None,
    ) -> NDArray[np.uint8]:
        """Segment one image file or volume.

        Args:
            image: path; one frame of a multi-frame DICOM is `cine#frame3.dcm`, a DICOM series is its folder.
            foreground: clicks [x, y] on the structure, in pixels of the file; [i, j, k] in voxels of a volume.
            background: clicks beside it.
            roi: box [x1, y1, x2, y2] around it; [i1, i2, j1, j2, k1, k2] in a volume. Without any prompt the network
                segments on its own, a volume slice by slice.
            propagate: carry the mask from the prompted slices of a volume to the others; None is the bundle's setting.

        Returns:
            (H, W) mask of 0 and 1, in the file's size; (X, Y, Z) of a volume.

        Raises:
            ValueError: when a prompt is not on the image, or the file is damaged.
        """
        prompts = {"foreground": list(foreground), "background": list(background), "roi": roi, "propagate": propagate}
        with _unwrapped():
            data = self.preprocessing({"image": str(image), **prompts})
        with torch.no_grad():
            logits = self.inferer(data["image"][None].to(self.device), self.network)
        mask = self.postprocessing({"image": data["image"], "pred": logits[0].cpu()})["pred"]
        array = np.asarray(mask, dtype=np.uint8)
        return array.T if array.ndim == 2 else array[0]  # MONAI's arrays of pictures are (W, H)
