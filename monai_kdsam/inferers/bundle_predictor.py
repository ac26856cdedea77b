# SPDX-License-Identifier: Apache-2.0
"""A trained bundle as a Python object."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import PIL.Image
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import AsDiscreted, Compose, LoadImaged, SaveImaged
from numpy.typing import NDArray
from scipy import ndimage

from monai_kdsam.bundles import make_importable, shipped_bundle
from monai_kdsam.data.archive import masks_made_by
from monai_kdsam.data.image_reader import Image2DReader, PixelsReader
from monai_kdsam.data.remembered_image import RememberedImaged
from monai_kdsam.errors import MissingFileError, UserError, find_mistake
from monai_kdsam.inferers.prompted_inferer import PromptedInferer
from monai_kdsam.mask_input import CELL, check_mask_input
from monai_kdsam.rgb import pillow_pixels, rgb_from_array
from monai_kdsam.settings import check_device
from monai_kdsam.transforms.host_prompts import to_file_frame

__all__ = ["BundlePredictor", "Segmentation"]

Returned = TypeVar("Returned")
Picture = str | Path | NDArray[Any] | PIL.Image.Image | torch.Tensor


class Segmentation(NamedTuple):
    """What the network finds in a picture.

    Attributes:
        mask: (H, W) of 0 and 1.
        probability: (H, W) of foreground, within 0 and 1; the mask is where it is above a half, and in the
            holes of that (`fill_holes`).
        iou: the IoU that the network expects of the mask. Only a training of the IoU head makes it worth something.
        logits: (H, W), what the probability is of; the next prompt's `mask_input`.
    """

    mask: NDArray[np.uint8]
    probability: NDArray[np.float32]
    iou: float
    logits: NDArray[np.float32]


def _unwrapped(function: Callable[[], Returned]) -> Returned:
    """Call it, and raise what a user can mend as it was raised, without the errors that MONAI puts around it.

    Nothing on the error's way refers to it, or the image that failed would stay in memory until garbage is collected.
    """
    try:
        return function()
    except Exception as error:
        mistake = find_mistake(error)
        if mistake is None:
            raise
    try:
        raise mistake
    finally:
        del mistake


class BundlePredictor:
    """Segments image files, or volumes, with a bundle's own preprocessing, network and postprocessing.

    The prepared image and its embedding stay in memory, within the bounds of the bundle, so a second prompt on the
    same file costs only the decoder. Threads may share one: nothing else of a call is kept.

    Args:
        bundle: folder of the bundle, with `models/model.pt`; modules beside its `configs` are importable from then on.
            By default the one whose student comes with the package.
        overrides: of named scalars in inference.json.

    Raises:
        FileNotFoundError: when there is no such bundle, or it has no weights.
        ValueError: when the weights are damaged, or of a network with other settings, or an override is unknown.
    """

    def __init__(self, bundle: str | Path | None = None, **overrides: Any) -> None:
        bundle = shipped_bundle() if bundle is None else Path(bundle)
        file = bundle / "configs" / "inference.json"
        if not file.is_file():
            raise MissingFileError(f"Expected a bundle with configs/inference.json at `bundle`, got {bundle}.")
        make_importable(bundle)
        parser = ConfigParser()
        try:
            parser.read_config(str(file))
        except ValueError as error:
            raise UserError(f"{file} is damaged: {error}. Copy the bundle's configs anew.") from error
        for name in overrides:
            if re.split("#|::", name)[0] not in parser:
                raise UserError(f"Expected an override of a setting of {file}, got {name!r}, which is none.")
        if "device" in overrides:
            check_device(overrides["device"])
        parser.update({"bundle_root": str(bundle), **overrides})
        _unwrapped(partial(self._build, parser))

    @property
    def made_by(self) -> dict[str, str]:
        """Checksums of the weights and of the settings that decide how masks look."""
        return masks_made_by(self.checkpoint, self._config) if self.checkpoint else {}

    @classmethod
    def from_pretrained(
        cls, bundle: str | Path, *, revision: str | None = None, trust_remote_code: bool = False, **overrides: Any
    ) -> BundlePredictor:
        """A bundle from a hub, which is fetched once, or from a folder.

        Args:
            bundle: ORG/NAME on Hugging Face's hub, or on the one that HF_ENDPOINT names; or a folder.
            revision: branch, tag or commit on the hub; by default the newest commit. The log says which.
            trust_remote_code: a bundle's configuration and modules are code. Without this only those from a hub are
                taken that have no modules, and whose configuration differs from this package's in values alone.
            **overrides: see the class.

        Raises:
            FileNotFoundError: see the class; also when the repository holds no bundle.
            ValueError: see the class; also when the hub, the repository or the revision cannot be had, or the bundle
                has code of its own.
        """
        if not Path(bundle).is_dir():
            from monai_kdsam.hub import fetch_bundle

            bundle = fetch_bundle(str(bundle), revision, trust_remote_code=trust_remote_code)
        elif revision is not None:
            raise UserError(f"Expected `revision` with a bundle on a hub alone, got it with the folder {bundle}.")
        return cls(bundle, **overrides)

    def _build(self, parser: ConfigParser) -> None:
        self.device = parser.get_parsed_content("device")
        self.network = parser.get_parsed_content("network").eval()
        self.checkpoint: str | None = parser.get_parsed_content("checkpoint", default=None)
        self._config: Any = parser.config
        self.inferer = parser.get_parsed_content("inferer")
        self.preprocessing = parser.get_parsed_content("preprocessing")
        loading = parser.get_parsed_content("pre_transforms", default=self.preprocessing).transforms
        steps = parser.get_parsed_content("postprocessing").transforms
        # What a server does before it recalls an image is for paths that a server has.
        first = next((number for number, step in enumerate(loading) if isinstance(step, RememberedImaged)), 0)
        self.loading = Compose(loading[first:])
        self.postprocessing = Compose([step for step in steps if not isinstance(step, SaveImaged)])

    def __call__(
        self,
        image: Picture,
        *,
        foreground: Sequence[Sequence[float]] = (),
        background: Sequence[Sequence[float]] = (),
        roi: Sequence[float] | None = None,
        propagate: bool | None = None,
    ) -> NDArray[np.uint8]:
        """Segment one image, or a volume.

        Args:
            image: path of a file; one frame of a multi-frame DICOM is `cine#frame3.dcm`, a DICOM series is its folder.
                Pictures may be in memory as well: an array (H, W) or (H, W, 3) of RGB, a PIL image, a tensor (H, W) or
                (3, H, W). What is not 8-bit is mapped from its 0.5 to 99.5 percentiles.
            foreground: clicks [x, y] on the structure, in pixels of the file; [i, j, k] in voxels of a volume.
            background: clicks beside it.
            roi: box [x1, y1, x2, y2] around it; [i1, i2, j1, j2, k1, k2] in a volume. Without any prompt the network
                segments on its own, a volume slice by slice.
            propagate: carry the mask from the prompted slices of a volume to the others; None is the bundle's setting.

        Returns:
            (H, W) mask of 0 and 1, in the file's size; (X, Y, Z) of a volume.

        Raises:
            FileNotFoundError: when there is no such file.
            ValueError: when a prompt is not on the image, the file is damaged, or an array is no picture.
        """
        prompts = {"foreground": list(foreground), "background": list(background), "roi": roi, "propagate": propagate}
        loaded, logits = self._infer(image, prompts)
        mask = self.postprocessing({"image": loaded, "pred": logits})["pred"]
        array = np.asarray(mask, dtype=np.uint8)
        return array.T if array.ndim == 2 else array[0]  # MONAI's arrays of pictures are (W, H)

    def predict(
        self,
        image: Picture,
        *,
        foreground: Sequence[Sequence[float]] = (),
        background: Sequence[Sequence[float]] = (),
        roi: Sequence[float] | None = None,
        mask_input: NDArray[Any] | None = None,
    ) -> Segmentation:
        """Segment one picture as a call does, tell how sure the network is, and go on from an earlier answer.

        Args:
            image: see the call.
            foreground: see the call.
            background: see the call.
            roi: see the call.
            mask_input: (H, W) `logits` of the answer that these prompts correct, SAM's mask prompt. It helps a network
                that was trained with such prompts (`mask_share`).

        Raises:
            ValueError: see the call; also of a bundle of volumes, and when `mask_input` is of another picture's size
                or not finite.
        """
        if not isinstance(self.inferer, PromptedInferer):
            raise UserError("Expected a bundle of pictures for `predict`; of volumes there are masks alone.")
        prompts = {"foreground": list(foreground), "background": list(background), "roi": roi}

        def infer() -> tuple[Any, torch.Tensor, float]:
            loaded = self._load(image, prompts)["image"]
            mask = None if mask_input is None else _as_seen(mask_input, loaded, self.network.image_size)
            logits, iou = self.inferer.answer(loaded[None].to(self.device), self.network, mask)
            return loaded, logits[0].cpu(), float(iou[0, 0])

        loaded, answer, iou = _unwrapped(infer)
        steps = self.postprocessing.transforms
        first = next(number for number, step in enumerate(steps) if isinstance(step, AsDiscreted))
        inverted = Compose(steps[:first])({"image": loaded, "pred": answer})
        mask = Compose(steps[first:])(inverted)["pred"]
        logits = torch.as_tensor(inverted["pred"]).float()[0].T
        probability = logits.sigmoid().numpy()
        return Segmentation(np.asarray(mask, dtype=np.uint8).T, probability, iou, logits.numpy())

    def _infer(self, image: Picture, prompts: dict[str, Any]) -> tuple[Any, torch.Tensor]:
        """The preprocessed image and what the inferer makes of it."""

        def infer() -> tuple[Any, torch.Tensor]:
            loaded = self._load(image, prompts)["image"]
            with torch.no_grad():
                logits = self.inferer(loaded[None].to(self.device), self.network)
            return loaded, logits[0].cpu()

        return _unwrapped(infer)

    def _load(self, image: Picture, prompts: dict[str, Any]) -> Any:
        if isinstance(image, (str, Path)):
            return self.loading({"image": str(image), **prompts})
        load, *others = self.preprocessing.transforms
        if not isinstance(load, LoadImaged) or not any(isinstance(r, Image2DReader) for r in load._loader.readers):
            raise UserError(f"Expected `image` to be a path, as this bundle reads files, got {type(image).__name__}.")
        return Compose(others)(load({"image": "array", **prompts}, reader=PixelsReader(_to_pixels(image))))


def _as_seen(logits: Any, image: MetaTensor, size: int) -> torch.Tensor:
    """(1, 1, S/4, S/4): logits (H, W) of a picture at the centers of the cells of the part that the network sees."""
    width, height = (int(side) for side in image.meta["spatial_shape"][:2])
    logits = check_mask_input(logits, height, width)
    rows, columns = np.indices((size // CELL, size // CELL)).reshape(2, -1) * CELL + (CELL - 1) / 2
    x, y = to_file_frame(np.column_stack([columns, rows]), image).T
    seen = ndimage.map_coordinates(logits, [y, x], order=1, mode="nearest")  # padding sees the picture's edge
    return torch.from_numpy(seen).reshape(1, 1, size // CELL, size // CELL)


def _to_pixels(image: NDArray[Any] | PIL.Image.Image | torch.Tensor) -> NDArray[np.uint8]:
    """(H, W, 3) RGB of a picture in memory."""
    if isinstance(image, PIL.Image.Image):
        return rgb_from_array(pillow_pixels(image))
    if isinstance(image, torch.Tensor):
        if image.ndim == 3 and image.shape[0] > 4:
            raise UserError(f"Expected `image` as a tensor (C, H, W), channels first, got {tuple(image.shape)}.")
        array = image.detach().cpu().numpy()
        return rgb_from_array(np.moveaxis(array, 0, -1) if array.ndim == 3 else array)
    if isinstance(image, np.ndarray):
        return rgb_from_array(image)
    raise TypeError(f"Expected `image` to be a path, an array, a PIL image or a tensor, got {type(image).__name__}.")
