# SPDX-License-Identifier: Apache-2.0
"""What is compared: anything that turns an image file and prompts into masks of the file's size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from monai_kdsam.data.decoding import decode
from monai_kdsam.inferers import BundlePredictor
from monai_kdsam.networks.fill_box import FillBox
from monai_kdsam.report.prompts import Prompt
from monai_kdsam.transforms.host_prompts import to_network_frame

__all__ = ["BundleModel", "EllipseModel", "Model", "Prediction"]

Prediction = tuple[NDArray[np.bool_], float]
"""A mask (H, W), rows from the top, and the IoU that the model expects of it; nan if it expects none."""


class Model(Protocol):
    """Set an image once, predict for any number of prompts."""

    name: str

    def set_image(self, path: str) -> None:
        """The predictions that follow are about this image file."""

    def predict(self, prompts: Sequence[Prompt]) -> list[Prediction]:
        """A mask for each prompt."""


class BundleModel:
    """A bundle, as it is served: its own preprocessing, inferer, network and postprocessing.

    Args:
        name: in the report.
        bundle: folder of the bundle.
        overrides: of named values in its inference.json, such as `checkpoint`.

    Raises:
        FileNotFoundError: when there is no such bundle, or it has no weights.
        ValueError: when the weights are of another network.
    """

    def __init__(self, name: str, bundle: str | Path, **overrides: Any) -> None:
        self.name = name
        self._predictor = BundlePredictor(bundle, **overrides)
        self._image: Any = None
        self._expected_iou: list[float] = []
        decoder = getattr(self._predictor.network, "mask_decoder", None)
        if isinstance(decoder, nn.Module):
            # The inferer gives masks alone; what the IoU head says about them passes by here.
            decoder.register_forward_hook(self._keep_expected_iou)

    def _keep_expected_iou(self, _: nn.Module, __: Any, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        # Of several masks the network takes the one that it expects most of.
        self._expected_iou = output[1].amax(dim=1).tolist()

    def set_image(self, path: str) -> None:
        """Load and preprocess; the network remembers the embedding after the first prediction."""
        self._image = self._predictor.preprocessing({"image": path})["image"]

    def predict(self, prompts: Sequence[Prompt]) -> list[Prediction]:
        """A mask for each prompt, all in one pass of the decoder."""
        predictor, image = self._predictor, self._image
        most = max([1, *(len(prompt.labels) for prompt in prompts)])
        points, labels = torch.zeros(1, len(prompts), most, 2), torch.full((1, len(prompts), most), -1)
        for row, prompt in enumerate(prompts):
            count = len(prompt.labels)
            points[0, row, :count] = torch.from_numpy(to_network_frame(prompt.points, image)).float()
            labels[0, row, :count] = torch.from_numpy(prompt.labels)
        device = predictor.device
        self._expected_iou = [math.nan] * len(prompts)
        with torch.no_grad():
            logits = predictor.inferer(
                image[None].to(device), predictor.network, points=points.to(device), labels=labels.to(device)
            )
        masks = [predictor.postprocessing({"image": image, "pred": one[None].cpu()})["pred"] for one in logits[0]]
        # MONAI's arrays of pictures are (W, H).
        return [(np.asarray(mask).T > 0, iou) for mask, iou in zip(masks, self._expected_iou, strict=True)]


class EllipseModel:
    """The baseline: the ellipse inscribed in the box; without a box, in the whole image."""

    name = "filled ellipse"

    def __init__(self) -> None:
        self._fill = FillBox("ellipse")
        self._canvas = torch.zeros(1, 1, 1, 1)

    def set_image(self, path: str) -> None:
        """Only the size matters."""
        self._canvas = torch.zeros(1, 1, *decode(path).pixels.shape[:2])

    def predict(self, prompts: Sequence[Prompt]) -> list[Prediction]:
        """An ellipse for each prompt."""
        masks = []
        for prompt in prompts:
            points, labels = torch.from_numpy(prompt.points)[None], torch.from_numpy(prompt.labels)[None]
            masks.append((self._fill(self._canvas, points, labels)[0, 0].numpy() > 0, math.nan))
        return masks
