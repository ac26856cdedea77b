# SPDX-License-Identifier: Apache-2.0
"""Which image an annotator is offered next: MONAI Label's scoring method and strategy for a promptable network."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy

from monai_kdsam.errors import UserError, find_mistake
from monai_kdsam.inferers import BundlePredictor
from monai_kdsam.label.dicom_series import series_images
from monai_kdsam.label.studies import StudiesDatastore
from monai_kdsam.label.uncertainty import Uncertainty, uncertainty
from monai_kdsam.rgb import fit_longest

__all__ = ["NAME", "LeastSureFirst", "UncertaintyScoring", "unscored_images"]

logger = logging.getLogger(__name__)
NAME = "uncertainty"
WEIGHTS = f"{NAME}_weights"
BATCH = 8  # scores are stored after so many images: each time the whole datastore's file is written
PAUSE = 3600  # seconds for which an image that was offered is not offered to the next annotator, if there are others


def weights_stamp(bundle: str | Path) -> int:
    """What tells a bundle's weights from earlier ones without reading them: nanoseconds of their file's time."""
    return (Path(bundle) / "models" / "model.pt").stat().st_mtime_ns


def unscored_images(datastore: Datastore, bundle: str | Path) -> list[str]:
    """Images without a label that these weights have not scored: first those without any score, by name."""
    stamp = weights_stamp(bundle)
    infos = {image: datastore.get_image_info(image) for image in datastore.get_unlabeled_images()}
    old = [image for image, info in infos.items() if info.get(WEIGHTS) != stamp]
    return sorted(old, key=lambda image: (NAME in infos[image], image))


class UncertaintyScoring(ScoringMethod):
    """Scores the images without a label by how unsure a bundle's network is of them.

    The datastore's information on an image then holds `uncertainty` (0 to 1, the higher the less sure),
    `uncertainty_predicted_iou`, `uncertainty_disagreement` and `uncertainty_weights`, the time of the weights' file;
    an image that cannot be read has `uncertainty_error` instead.

    Args:
        bundle: folder of the bundle.
        max_samples: images a run, unless a request says otherwise; 0 for all. What has no score yet comes first.
    """

    def __init__(self, bundle: str | Path, max_samples: int = 100) -> None:
        super().__init__("How unsure the model is: its own expectation, and whether different prompts agree")
        self.bundle = Path(bundle)
        self.max_samples = max_samples

    def __call__(self, request: dict[str, Any], datastore: StudiesDatastore) -> dict[str, Any]:
        """Score, store, and count what was done.

        Raises:
            ValueError: when `max_samples` is no whole number from 0.
        """
        most = request.get("max_samples", self.max_samples)
        if not isinstance(most, int) or most < 0:
            raise UserError(f"Expected `max_samples` to be a whole number from 0, got {most!r}.")
        start, stamp = time.monotonic(), weights_stamp(self.bundle)
        predictor = BundlePredictor(self.bundle)
        waiting = unscored_images(datastore, self.bundle)
        images = waiting[:most] if most else waiting
        failed = 0
        for number in range(0, len(images), BATCH):
            found = {image: self._score(predictor, datastore, image) for image in images[number:][:BATCH]}
            failed += sum(NAME not in info for info in found.values())
            datastore.update_image_infos({image: info | {WEIGHTS: stamp} for image, info in found.items()})
        seconds = round(time.monotonic() - start, 1)
        return {"executed": len(images), "failed": failed, "left": len(waiting) - len(images), "seconds": seconds}

    @staticmethod
    def _score(predictor: BundlePredictor, datastore: Datastore, image: str) -> dict[str, Any]:
        try:
            found = score_file(predictor, datastore.get_image_uri(image))
        except Exception as error:  # the archive's are OSErrors; MONAI wraps what a file's reader says
            mistake = find_mistake(error) or error
            if not isinstance(mistake, (OSError, ValueError)):
                raise
            logger.warning("Cannot score %s: %s", image, mistake)
            return {f"{NAME}_error": str(mistake)}
        return {
            NAME: round(found.score, 4),
            f"{NAME}_predicted_iou": round(found.predicted_iou, 4),
            f"{NAME}_disagreement": round(found.disagreement, 4),
        }


def score_file(predictor: BundlePredictor, path: str) -> Uncertainty:
    """The uncertainty of a bundle's network about one image file; of a series, the mean over slices of its middle."""
    slices = series_images(path)
    if slices:
        places = sorted({len(slices) * part // 4 for part in (1, 2, 3)})
        found = [score_file(predictor, slices[place]) for place in places]
        expected, differing = np.mean([(one.predicted_iou, one.disagreement) for one in found], axis=0).tolist()
        return Uncertainty(expected, differing)
    image = predictor.preprocessing({"image": path})["image"]
    width, height = (int(side) for side in image.meta["spatial_shape"])
    valid = fit_longest(height, width, predictor.network.image_size)
    return uncertainty(predictor.network, image.as_tensor()[None].to(predictor.device), valid)


class LeastSureFirst(Strategy):
    """Offers the image without a label that the network is least sure of.

    It reads stored scores only, so it answers at once. Images without a score come after those with one, by name; a
    score of earlier weights counts until the image is scored anew. What was offered within the last hour comes last,
    so that two annotators get different images and a skipped one does not come back at once.
    """

    def __init__(self) -> None:
        super().__init__("The images first that the model is least sure of")

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """The image's `id`, its `uncertainty`, and how many images without a label have no score yet."""
        images = datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels"))
        if not images:
            return None
        infos = {image: datastore.get_image_info(image) for image in images}
        limit = time.time() - PAUSE

        def rank(image: str) -> tuple[float, bool, float, str]:
            info = infos[image]
            offered = info.get("strategy", {}).get(NAME, {}).get("ts", 0)
            return (offered if offered > limit else 0, NAME not in info, -info.get(NAME, 0), image)

        chosen = min(images, key=rank)
        unscored = sum(NAME not in info for info in infos.values())
        return {"id": chosen, NAME: infos[chosen].get(NAME), "unscored": unscored}
