# SPDX-License-Identifier: Apache-2.0
"""Set an image once, predict per click."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_kdsam.close_up import check_close_up, close_up, part_of
from monai_kdsam.errors import UserError
from monai_kdsam.holes import fill_holes
from monai_kdsam.mask_input import CELL, NOWHERE, check_mask_input
from monai_kdsam.rgb import fit_longest, read_picture, resize_pixels, rgb_from_array
from monai_kdsam.runtime.encoded_image import EncodedImage, View, seen_by
from monai_kdsam.runtime.manifest import Manifest
from monai_kdsam.runtime.prompts import read_prompts
from monai_kdsam.runtime.resampling import resampled, resampling_matrix, resize
from monai_kdsam.runtime.sessions import Part, open_part

__all__ = ["EncodedImage", "Predictor"]

_MOST_CLOSE_UPS = 4  # of an image that are kept encoded


class Predictor:
    """Segments pictures with exported models, as the network and the bundle they came from do.

    Threads may share one, in each format: `encode` and `predict` with `image` keep nothing of a call. The image of
    `set_image` is that of all threads, for programs with one image at a time. Copies and pickles load the files anew.

    Args:
        folder: what `python -m monai_kdsam export` wrote.
        threads: to compute with; None takes every physical core. Torch has one such number in a process.
        device: of the image encoder: cpu or gpu, NVIDIA's for ONNX Runtime and TorchScript, Intel's for OpenVINO. What
            a click costs runs on the CPU.
        close_up: how much of a picture is seen with a box, in sides of the box; 0: all of it; None: as in the bundle.
        fill_holes: whether holes of a mask are filled, but for those with a background click; None: as in the bundle.

    Raises:
        FileNotFoundError: when the folder is no export, or files are missing.
        ValueError: when they are damaged or of another version, or there is no such device.
        ImportError: naming the package that runs them, and how to install it.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        threads: int | None = None,
        device: str = "cpu",
        close_up: float | None = None,
        fill_holes: bool | None = None,
    ) -> None:
        folder = Path(folder).absolute()
        self._source = partial(
            type(self), folder, threads=threads, device=device, close_up=close_up, fill_holes=fill_holes
        )
        self.manifest, self._encoder, self._decoder = self._load(folder, threads, device)
        self.close_up = check_close_up(self.manifest.close_up if close_up is None else close_up)
        self.fill_holes = self.manifest.fill_holes if fill_holes is None else fill_holes
        self._image: EncodedImage | None = None

    def _load(self, folder: Path, threads: int | None, device: str) -> tuple[Manifest, Part, Part]:
        manifest = Manifest.read(folder)
        files, form, half = manifest.files, manifest.format, manifest.precision == "fp16"
        encoder = open_part(folder / files["encoder"], form, threads=threads, device=device, half=half)
        return manifest, encoder, open_part(folder / files["decoder"], form, threads=threads)

    def __reduce__(self) -> tuple[Any, ...]:
        """What runs the files cannot be pickled: they are loaded, and checked, anew."""
        return self._source, (), {"_image": self._image}

    def set_image(self, image: str | Path | NDArray[Any]) -> None:
        """Encode a picture; the predictions that follow are about it, in every thread.

        Args:
            image: see `encode`.

        Raises:
            FileNotFoundError: see `encode`.
            ValueError: see `encode`.
        """
        self._image = None  # a picture that cannot be read must not leave the one before in its place
        self._image = self.encode(image)

    def encode(self, image: str | Path | NDArray[Any], *, whole: bool = True) -> EncodedImage:
        """Encode a picture, for predictions with `image`.

        Args:
            image: a PNG, JPEG, BMP or TIFF file, or an array (H, W) or (H, W, 3) of RGB. What is not 8-bit is mapped
                from its 0.5 to 99.5 percentiles.
            whole: encode all of it now; otherwise the first prompt without a close-up does, if there is one.

        Raises:
            FileNotFoundError: when there is no such file.
            ValueError: when the file is damaged, or the array has another shape or holds NaN.
        """
        pixels = rgb_from_array(image) if isinstance(image, np.ndarray) else read_picture(image)
        encoded = EncodedImage(self.manifest, pixels)
        if whole:
            self._view(encoded, encoded.part)
        return encoded

    def _view(self, image: EncodedImage, part: tuple[slice, slice]) -> View:
        """A picture or a part of it, encoded when it is new."""
        view = image.views.get(str(part))
        if view is None:
            view = image.views[str(part)] = self._encode(image.pixels, part)
            close_ups = [key for key in list(image.views) if key != str(image.part)]
            for oldest in close_ups[:-_MOST_CLOSE_UPS]:
                image.views.pop(oldest, None)
        return view

    def _encode(self, pixels: NDArray[np.uint8], part: tuple[slice, slice]) -> View:
        seen = pixels[part]
        height, width = seen.shape[:2]
        size = self.manifest.image_size
        inner = fit_longest(height, width, size)
        (embedding,) = self._encoder(self.prepare(seen)[None])
        rows, columns = (
            # The network's own doubling to full size, cut to what is not padding, then back to the picture.
            resampled(resampling_matrix(size // CELL, size)[:cut], full)
            for cut, full in zip(inner, (height, width), strict=True)
        )
        return View(part, np.array([inner[1] / width, inner[0] / height]), embedding, rows, columns)

    def _close_up(self, image: EncodedImage, box: NDArray[np.float64], clicks: NDArray[np.float64]) -> View:
        """What is seen with a box (2, 2)."""
        part = part_of(close_up(box, clicks, self.close_up), image.width, image.height)
        (left, top), (right, bottom) = part.tolist()
        return self._view(image, (slice(top, bottom + 1), slice(left, right + 1)))

    def prepare(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The models' input (3, S, S) of an RGB picture (H, W, 3): resized, normalized, padded at the end."""
        size = self.manifest.image_size
        height, width = fit_longest(pixels.shape[0], pixels.shape[1], size)
        padded = np.zeros((3, size, size), dtype=np.float32)
        std = np.array(self.manifest.pixel_std, dtype=np.float32)[:, None, None]
        mean = np.array(self.manifest.pixel_mean, dtype=np.float32)[:, None, None]
        inner = padded[:, :height, :width]
        np.subtract(resize_pixels(pixels.transpose(2, 0, 1), height, width), mean, out=inner)
        inner /= std
        return padded

    def predict(
        self,
        points: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
        *,
        mask_input: ArrayLike | None = None,
        image: EncodedImage | None = None,
    ) -> tuple[NDArray[np.uint8], Any, NDArray[np.float32]]:
        """Segment an image; without any prompt the network segments on its own.

        Args:
            points: clicks (N, 2), XY pixels of the picture; (K, N, 2) for K prompts in one call.
            labels: (N,) or (K, N): 1 foreground, 0 background, -1 padding; None means that all are foreground.
            box: [x1, y1, x2, y2] or (K, 4), corners in either order; with points, both count. A box that reaches
                beyond the picture is cut off at its edges. With `close_up`, each new one costs the encoder.
            mask_input: logits (H, W) or (K, H, W) of the answer that the prompt corrects, SAM's mask prompt.
            image: of `encode`; None is the one of `set_image`.

        Returns:
            mask: (H, W) of 0 and 1, or (K, H, W).
            iou: the IoU that the network expects, a float, or (K,).
            logits: (H, W) or (K, H, W), above 0 in the mask, but for holes that were filled; the next prompt's
                `mask_input`.

        Raises:
            RuntimeError: when no image is set.
            ValueError: when a click is not on the image, a prompt is no number or has another shape, a box has no
                area or is not on the image, the image was encoded by another export, the export takes no
                `mask_input`, or what the models give is not finite.
        """
        image = self._image if image is None else image
        if image is None:
            raise RuntimeError("An image must be set with `set_image` before `predict`, or be given as `image`.")
        if image.manifest != self.manifest:
            raise UserError("Expected `image` to be encoded by this export, got one that another export encoded.")
        xy, kinds, single = read_prompts(points, labels, box, image.width, image.height)
        earlier = self._earlier(mask_input, image, None if single else len(xy))
        if box is None or not self.close_up:
            logits, iou = self._decode(image, self._view(image, image.part), xy, kinds, earlier)
        else:
            boxes = np.sort(np.asarray(box, dtype=np.float64).reshape(-1, 2, 2), axis=1)
            answers = []
            for one, corners in enumerate(boxes):
                view = self._close_up(image, corners, xy[one][(kinds[one] == 0) | (kinds[one] == 1)])
                own = slice(one, one + 1)
                answers.append(
                    self._decode(image, view, xy[own], kinds[own], None if earlier is None else earlier[own])
                )
            logits, iou = (np.concatenate(part) for part in zip(*answers, strict=True))
        masks = (logits > 0).astype(np.uint8)
        if self.fill_holes:
            prompted = zip(masks, xy, kinds, strict=True)
            masks = np.stack([fill_holes(mask, clicks[kind == 0]) for mask, clicks, kind in prompted])
        return (masks[0], float(iou[0]), logits[0]) if single else (masks, iou, logits)

    def _earlier(self, logits: ArrayLike | None, image: EncodedImage, count: int | None) -> NDArray[np.float32] | None:
        """(K, H, W) logits of earlier answers."""
        if logits is None:
            return None
        if not self.manifest.mask_input:
            raise UserError("This export takes no `mask_input`: its network draws no prompts (`prompt_map`).")
        rows = [logits] if count is None else list(np.asarray(logits))
        if count is not None and len(rows) != count:
            raise UserError(f"Expected `mask_input` of {count} prompts, got {len(rows)}.")
        return np.stack([check_mask_input(row, image.height, image.width) for row in rows])

    def _decode(
        self,
        image: EncodedImage,
        view: View,
        xy: NDArray[np.float64],
        kinds: NDArray[np.int64],
        earlier: NDArray[np.float32] | None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits (K, H, W) and expected IoUs (K,) of prompts on one view."""
        seen = ((xy - view.corner + 0.5) * view.scale - 0.5).astype(np.float32)  # pixel centers lie at halves
        more: list[NDArray[np.float32]] = []
        if self.manifest.mask_input:
            cells = self.manifest.image_size // CELL
            found = np.zeros((len(xy), cells, cells), np.float32) if earlier is None else seen_by(view, earlier, cells)
            more = [found[:, None], np.full(len(xy), earlier is not None, np.float32)]
        small, iou = self._decoder(view.embedding, seen, kinds, *more)
        if not np.isfinite(small).all():
            raise UserError(
                "The exported models' output is not finite, so there is no mask: their weights hold NaN or infinity, "
                f"or {self.manifest.precision} is too low a precision for this picture. Export anew, as fp32."
            )
        logits = np.full((len(xy), image.height, image.width), NOWHERE, dtype=np.float32)
        logits[:, view.part[0], view.part[1]] = resize(small[:, 0], view.rows, view.columns)
        return logits, iou[:, 0]
