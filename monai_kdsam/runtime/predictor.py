# SPDX-License-Identifier: Apache-2.0
"""Set an image once, predict per click."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_kdsam.errors import UserError
from monai_kdsam.rgb import fit_longest, read_picture, resize_pixels, rgb_from_array
from monai_kdsam.runtime.manifest import Manifest
from monai_kdsam.runtime.resampling import resampling_matrix, resize
from monai_kdsam.runtime.sessions import open_part

__all__ = ["EncodedImage", "Predictor"]


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """What is kept of an image for the clicks on it; `Predictor.encode` makes it."""

    manifest: Manifest  # of the models
    height: int
    width: int
    scale: NDArray[np.float64]  # (2,), x and y, from the picture to the models' input
    embedding: NDArray[np.float32]  # (1, C, S / 16, S / 16)
    rows: NDArray[np.float32]  # (height, S / 4), from the decoder's masks to the picture
    columns: NDArray[np.float32]  # (width, S / 4)


class Predictor:
    """Segments pictures with exported models, as the network and the bundle they came from do.

    Threads may share one, in each format: `encode` and `predict` with `image` keep nothing of a call. The image of
    `set_image` is that of all threads, for programs with one image at a time. Copies and pickles load the files anew.

    Args:
        folder: what `python -m monai_kdsam export` wrote.
        threads: to compute with; None takes every physical core. Torch has one such number in a process.
        device: of the image encoder: cpu or gpu, NVIDIA's for ONNX Runtime and TorchScript, Intel's for OpenVINO. What
            a click costs runs on the CPU.

    Raises:
        FileNotFoundError: when the folder is no export, or files are missing.
        ValueError: when they are damaged or of another version, or there is no such device.
        ImportError: naming the package that runs them, and how to install it.
    """

    def __init__(self, folder: str | Path, *, threads: int | None = None, device: str = "cpu") -> None:
        folder = Path(folder).absolute()
        self._source = partial(type(self), folder, threads=threads, device=device)
        self.manifest = Manifest.read(folder)
        files, form, half = self.manifest.files, self.manifest.format, self.manifest.precision == "fp16"
        self._encoder = open_part(folder / files["encoder"], form, threads=threads, device=device, half=half)
        self._decoder = open_part(folder / files["decoder"], form, threads=threads)
        self._image: EncodedImage | None = None

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

    def encode(self, image: str | Path | NDArray[Any]) -> EncodedImage:
        """Encode a picture, for predictions with `image`.

        Args:
            image: a PNG, JPEG, BMP or TIFF file, or an array (H, W) or (H, W, 3) of RGB. What is not 8-bit is mapped
                from its 0.5 to 99.5 percentiles.

        Raises:
            FileNotFoundError: when there is no such file.
            ValueError: when the file is damaged, or the array has another shape or holds NaN.
        """
        pixels = rgb_from_array(image) if isinstance(image, np.ndarray) else read_picture(image)
        height, width = pixels.shape[:2]
        size = self.manifest.image_size
        inner = fit_longest(height, width, size)
        (embedding,) = self._encoder(self.prepare(pixels)[None])
        rows, columns = (
            # The network's own doubling to full size, cut to what is not padding, then back to the picture.
            resampling_matrix(cut, full) @ resampling_matrix(size // 4, size)[:cut]
            for cut, full in zip(inner, (height, width), strict=True)
        )
        scale = np.array([inner[1] / width, inner[0] / height])
        return EncodedImage(self.manifest, height, width, scale, embedding, rows, columns)

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
        image: EncodedImage | None = None,
    ) -> tuple[NDArray[np.uint8], Any]:
        """Segment an image; without any prompt the network segments on its own.

        Args:
            points: clicks (N, 2), XY pixels of the picture; (K, N, 2) for K prompts in one call.
            labels: (N,) or (K, N): 1 foreground, 0 background, -1 padding; None means that all are foreground.
            box: [x1, y1, x2, y2] or (K, 4), corners in either order; with points, both count. A box that reaches
                beyond the picture is cut off at its edges.
            image: of `encode`; None is the one of `set_image`.

        Returns:
            mask: (H, W) of 0 and 1, or (K, H, W).
            iou: the IoU that the network expects, a float, or (K,).

        Raises:
            RuntimeError: when no image is set.
            ValueError: when a click is not on the image, a prompt is no number or has another shape, a box has no
                area or is not on the image, the image was encoded by another export, or what the models give is not
                finite.
        """
        image = self._image if image is None else image
        if image is None:
            raise RuntimeError("An image must be set with `set_image` before `predict`, or be given as `image`.")
        if image.manifest != self.manifest:
            raise UserError("Expected `image` to be encoded by this export, got one that another export encoded.")
        xy, kinds, single = _prompts(points, labels, box, image.width, image.height)
        xy = ((xy + 0.5) * image.scale - 0.5).astype(np.float32)  # pixel centers lie at halves
        logits, iou = self._decoder(image.embedding, xy, kinds)
        if not np.isfinite(logits).all():
            raise UserError(
                "The exported models' output is not finite, so there is no mask: their weights hold NaN or infinity, "
                f"or {self.manifest.precision} is too low a precision for this picture. Export anew, as fp32."
            )
        masks = (resize(logits[:, 0], image.rows, image.columns) > 0).astype(np.uint8)
        return (masks[0], float(iou[0, 0])) if single else (masks, iou[:, 0])


def _prompts(
    points: ArrayLike | None, labels: ArrayLike | None, box: ArrayLike | None, width: int, height: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], bool]:
    """Points (K, N, 2) and labels (K, N) of all prompts, and whether they were given as one."""
    if labels is not None and points is None:
        raise UserError("Expected `points` with `labels`, got labels alone.")
    clicks = None if points is None else _numbers("points", points, (2, 3), 2)
    boxes = None if box is None else _numbers("box", box, (1, 2), 4)
    ranks = {array.ndim - least for array, least in ((clicks, 2), (boxes, 1)) if array is not None}
    counts = {len(array) for array, least in ((clicks, 3), (boxes, 2)) if array is not None and array.ndim == least}
    if len(ranks) > 1 or len(counts) > 1:
        raise UserError("Expected `points` and `box` of equally many prompts, got different numbers.")
    single = ranks != {1}
    xy = np.zeros((1 if single else counts.pop(), int(clicks is None and boxes is None), 2))
    kinds = np.full(xy.shape[:2], -1, dtype=np.int64)  # without a prompt, one point of padding
    if clicks is not None:
        xy = clicks[None] if single else clicks
        kinds = _labels(labels, xy.shape[:2], single)
    if boxes is not None:
        xy = np.concatenate([xy, _corners(boxes, width, height)], axis=1)
        kinds = np.concatenate([kinds, np.tile([2, 3], (len(xy), 1))], axis=1)
    used = xy[kinds >= 0]
    if (used < 0).any() or (used > (width, height)).any():
        raise UserError(f"Expected `points` within the image of {width} x {height} pixels, got {used.tolist()}.")
    return np.minimum(xy, (width - 1, height - 1)), kinds, single  # a click may be on the far edge of the last pixel


def _corners(boxes: NDArray[np.float64], width: int, height: int) -> NDArray[np.float64]:
    """(K, 2, 2), top-left and bottom-right; what reaches beyond the image is cut off at its edges."""
    corners = np.sort(boxes.reshape(-1, 2, 2), axis=1)
    if (corners[:, 0] == corners[:, 1]).any():
        raise UserError(f"Expected `box` to have an area, got {boxes.tolist()}.")
    limit = (width - 1, height - 1)
    if (corners[:, 1] < 0).any() or (corners[:, 0] > limit).any():
        raise UserError(
            f"Expected `box` to cover some of the image of {width} x {height} pixels, got {boxes.tolist()}."
        )
    return np.clip(corners, 0, limit)


def _numbers(name: str, value: ArrayLike, ranks: tuple[int, int], last: int) -> NDArray[np.float64]:
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"Expected numbers in `{name}`, got {value!r}.") from error
    if array.ndim not in ranks or array.shape[-1] != last or 0 in array.shape:
        shape = "(N, 2) or (K, N, 2)" if last == 2 else "(4,) or (K, 4)"
        raise UserError(f"Expected `{name}` of shape {shape}, got {array.shape}.")
    if not np.isfinite(array).all():
        raise UserError(f"Expected finite numbers in `{name}`, got {array.tolist()}.")
    return array


def _labels(labels: ArrayLike | None, shape: tuple[int, ...], single: bool) -> NDArray[np.int64]:
    if labels is None:
        return np.ones(shape, dtype=np.int64)
    array = np.asarray(labels)
    if array.shape != (shape[1:] if single else shape):
        raise UserError(f"Expected `labels` of shape {shape[1:] if single else shape}, got {array.shape}.")
    if not np.isin(array, (-1, 0, 1)).all():
        raise UserError(f"Expected `labels` among 1, 0 and -1, got {array.tolist()}; a box goes into `box`.")
    return array.astype(np.int64).reshape(shape)
