# SPDX-License-Identifier: Apache-2.0
"""segment_anything's ONNX contract around a student of any input size, for the annotation tools that know SAM.

They give points in a frame of 1024 pixels and masks of 256 x 256, whatever the student's own input is: what lies
between is inside the graphs. Some of them insist on SAM's shape of an embedding, so a student's is laid out in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_kdsam.export.onnx import join, trace
from monai_kdsam.mask_input import CELL
from monai_kdsam.networks import KDSAM

__all__ = [
    "CELLS",
    "FRAME",
    "INPUTS",
    "SAM_MEAN",
    "SAM_STD",
    "Packed",
    "SamDecoder",
    "SamInput",
    "decoder_graph",
    "write_sam",
]

FRAME = 1024  # pixels of the longest side, in which hosts give pictures and points
CELLS = 256  # along a side of `mask_input` and `low_res_masks`
EMBEDDING = (1, 256, 64, 64)
IR_VERSION = 9  # of the file; OHIF's ONNX Runtime of 2024 reads no later one, and opset 20 needs none
# How hosts give a picture: as samexporter's encoders take it, as segment_anything's own do, and as a browser's canvas.
INPUTS = {"encoder": "pixels", "encoder_normalized": "normalized", "encoder_browser": "canvas"}
SAM_MEAN, SAM_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class SamInput(nn.Module):
    """A host's picture, its longest side 1024 pixels, as the network's input (1, 3, S, S).

    Args:
        image_size: S.
        pixel_mean: of the network's input.
        pixel_std: of the network's input.
        form: pixels: (H, W, 3) in [0, 255], of any size; normalized: (1, 3, 1024, 1024) by SAM's mean and
            standard deviation, zeros at the bottom and right; canvas: (1, 3, 1024, 1024) in [0, 1].
    """

    mean: Tensor
    std: Tensor
    sam_mean: Tensor
    sam_std: Tensor
    blur: Tensor

    def __init__(self, image_size: int, pixel_mean: Sequence[float], pixel_std: Sequence[float], form: str) -> None:
        super().__init__()
        self.image_size, self.form = image_size, form
        for name, values in (("mean", pixel_mean), ("std", pixel_std), ("sam_mean", SAM_MEAN), ("sam_std", SAM_STD)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)
        weights = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("blur", torch.outer(weights, weights), persistent=False)

    def forward(self, picture: Tensor) -> Tensor:
        """Resize by averaging, normalize, and leave zeros where there is no picture."""
        small = self._shrink(self._on_frame(picture))
        covered = small[:, 3:]
        normalized = (small[:, :3] / covered.clamp_min(0.5) - self.mean) / self.std
        return torch.where(covered >= 0.5, normalized, 0.0)  # where the middle of a pixel is on the picture

    def _on_frame(self, picture: Tensor) -> Tensor:
        """(1, 4, 1024, 1024): color in [0, 255], and 1 where there is picture, both 0 elsewhere."""
        if self.form == "canvas":
            return torch.cat([picture * 255, torch.ones_like(picture[:, :1])], dim=1)
        if self.form == "normalized":
            # Of whole values less SAM's mean none is zero, so zero is padding.
            covered = (picture != 0).any(dim=1, keepdim=True).to(picture.dtype)
            return torch.cat([(picture * self.sam_std + self.sam_mean) * covered, covered], dim=1)
        planes = _fit_longest(picture.permute(2, 0, 1)[None])
        channels = torch.cat([planes, torch.ones_like(planes[:, :1])], dim=1)
        return F.pad(channels, (0, FRAME - planes.shape[3], 0, FRAME - planes.shape[2]))

    def _shrink(self, frame: Tensor) -> Tensor:
        """(1, 4, S, S): means over twice a pixel's width that weigh its middle most, nearly as Pillow resizes."""
        size = self.image_size
        times = 2 ** max(int(math.log2(FRAME / size)), 0)
        if times * size != FRAME:
            frame = _resize(frame, times * size, times * size)
        if times == 1:
            return frame
        half = F.avg_pool2d(frame, times // 2) if times > 2 else frame
        return F.conv2d(half, self.blur.expand(4, 1, 4, 4), stride=2, padding=1, groups=4)


class Packed(nn.Module):
    """An embedding (1, C, S/16, S/16) in SAM's shape, followed by zeros, where it fits into it."""

    def forward(self, embedding: Tensor) -> Tensor:
        """Lay it out."""
        room = math.prod(EMBEDDING) - math.prod(embedding.shape[1:])
        if room < 0 or embedding.shape[1:] == EMBEDDING[1:]:
            return embedding
        return F.pad(embedding[:1].flatten(), (0, room)).reshape(EMBEDDING)


class SamDecoder(nn.Module):
    """`SamOnnxModel` of segment_anything by names and shapes, of one mask: SAM's first, which is the one we train.

    Args:
        network: the student.
        channels: of its embedding.
    """

    def __init__(self, network: KDSAM, channels: int) -> None:
        super().__init__()
        self.network = network
        grid = network.image_size // 16
        self.shape = (1, channels, grid, grid)

    def forward(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
        orig_im_size: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Decode one prompt.

        Args:
            image_embeddings: of an encoder's file.
            point_coords: (1, N, 2), XY pixels of the picture when its longest side is 1024.
            point_labels: (1, N) float: 1 foreground, 0 background, 2 and 3 two corners of a box, -1 padding.
            mask_input: (1, 1, 256, 256) `low_res_masks` of an earlier answer.
            has_mask_input: (1,) 1 where that is meant; otherwise nothing in it matters.
            orig_im_size: (2,) float, height and width of `masks`.

        Returns:
            masks: (1, 1, H, W) logits.
            iou_predictions: (1, 1).
            low_res_masks: (1, 1, 256, 256) logits.
        """
        size = self.network.image_size
        labels = point_labels.long()
        embedding = image_embeddings.flatten()[: math.prod(self.shape)].reshape(self.shape)
        points = (_sort_corners(point_coords, labels) + 0.5) * (size / FRAME) - 0.5  # pixel centers lie at halves
        mask = _resize(mask_input, size // CELL, size // CELL)
        small, iou = self.network.decode(embedding, points, labels, mask, has_mask_input > 0.5)
        return self._to_picture(small, orig_im_size), iou, _resize(small, CELLS, CELLS)

    def _to_picture(self, small: Tensor, orig_im_size: Tensor) -> Tensor:
        """To the network's input, without its padding, and to the picture, as SAM does."""
        size = self.network.image_size
        longest = size / orig_im_size.max()
        inner = (orig_im_size * longest + 0.5).long().clamp_min(1)
        height, width = inner[0].item(), inner[1].item()
        full_height, full_width = orig_im_size.long()[0].item(), orig_im_size.long()[1].item()
        for side in (height, width, full_height, full_width):
            torch._check(side >= 1)
        torch._check(height <= size)
        torch._check(width <= size)
        return _resize(_resize(small, size, size)[:, :, :height, :width], full_height, full_width)


def _sort_corners(points: Tensor, labels: Tensor) -> Tensor:
    """The upper left corner of the box for a 2, the lower right one for a 3: hosts give them as they are drawn."""
    other = (labels < 2)[..., None]
    first = points.masked_fill(other, torch.inf).amin(dim=1, keepdim=True)
    last = points.masked_fill(other, -torch.inf).amax(dim=1, keepdim=True)
    points = torch.where((labels == 2)[..., None], first, points)
    return torch.where((labels == 3)[..., None], last, points)


def _fit_longest(planes: Tensor) -> Tensor:
    """Planes (1, C, H, W) with a longest side of 1024, halves up as in SAM; hosts mostly give them so."""
    size = torch.tensor(planes.shape[2:])
    height, width = ((2 * FRAME * size + size.max()) // (2 * size.max())).clamp_min(1).tolist()
    for side in (height, width):
        torch._check(side >= 1)
        torch._check(side <= FRAME)
    return F.interpolate(planes, (height, width), mode="bilinear", align_corners=False, antialias=True)


def _resize(masks: Tensor, height: Any, width: Any) -> Tensor:
    return F.interpolate(masks, size=(height, width), mode="bilinear", align_corners=False)


def write_sam(
    network: KDSAM, encoder: Any, pixel_mean: Sequence[float], pixel_std: Sequence[float], folder: Path
) -> dict[str, str]:
    """Write the decoder, and an encoder for each way in which hosts give a picture; returns part to file name.

    Args:
        network: with the bundle's weights.
        encoder: its ONNX graph, image -> embedding, of any precision.
        pixel_mean: of the network's input.
        pixel_std: of the network's input.
        folder: where to.
    """
    import onnx

    size = network.image_size
    with torch.no_grad():
        embedding = network.image_encoder(torch.zeros(1, 3, size, size))
    packed = trace(Packed().eval(), {"embedding": (embedding, {})}, ["image_embeddings"])
    graphs = {"decoder": decoder_graph(network, embedding.shape[1])}
    for part, form in INPUTS.items():
        front = _input_graph(SamInput(size, pixel_mean, pixel_std, form))
        graphs[part] = join(join(front, encoder, "image"), packed, "embedding")
    for part, graph in graphs.items():
        graph.ir_version = min(graph.ir_version, IR_VERSION)
        onnx.save(graph, str(folder / f"{part}.onnx"))
    return {part: f"{part}.onnx" for part in graphs}


def _input_graph(module: SamInput) -> Any:
    name = "x" if module.form == "normalized" else "input_image"  # osam knows no other name than x
    if module.form != "pixels":
        return trace(module.eval(), {name: (torch.zeros(1, 3, FRAME, FRAME), {})}, ["image"])
    free = {axis: torch.export.Dim(name) for axis, name in enumerate(("image_height", "image_width"))}
    return trace(module.eval(), {name: (torch.zeros(684, 1000, 3), free)}, ["image"])


def decoder_graph(network: KDSAM, channels: int) -> Any:
    """The ONNX graph of a `SamDecoder`, for any number of points and any size of picture."""
    decoder = SamDecoder(network, channels).eval()
    shape = EMBEDDING if math.prod(decoder.shape) <= math.prod(EMBEDDING) else decoder.shape
    count = torch.export.Dim("num_points")
    inputs = {
        "image_embeddings": (torch.zeros(shape), {}),
        "point_coords": (torch.tensor([[[1.0, 2.0], [9.0, 9.0], [0.0, 0.0]]]), {1: count}),
        "point_labels": (torch.tensor([[2.0, 3.0, -1.0]]), {1: count}),
        "mask_input": (torch.zeros(1, 1, CELLS, CELLS), {}),
        "has_mask_input": (torch.zeros(1), {}),
        "orig_im_size": (torch.tensor([684.0, 1024.0]), {}),
    }
    return trace(decoder, inputs, ["masks", "iou_predictions", "low_res_masks"])
