# SPDX-License-Identifier: Apache-2.0
"""Turn masks as data sets ship them into one channel of 0 and 1."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_data_type, convert_to_dst_type
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError

from monai_kdsam.errors import UserError
from monai_kdsam.mask_prompts import EIGHT_NEIGHBORS

__all__ = ["MASK_KINDS", "CleanMaskd", "MaskKind", "clean_mask", "fill_outline", "remove_specks", "threshold_mask"]

MaskKind = Literal["binary", "lossy", "outline"]
Mask = TypeVar("Mask", np.ndarray, torch.Tensor)

MASK_KINDS = ("binary", "lossy", "outline")
DARKEST_FOREGROUND = 32  # of a lossy mask; the noise around edges is far below


def threshold_mask(mask: np.ndarray) -> np.ndarray:
    """Foreground of a lossy mask: above half of its bright value, the median of what is above half of the maximum.

    Args:
        mask: (H, W), gray values of a JPEG, 0..255.

    Returns:
        (H, W) bool.

    Raises:
        ValueError: the bright value is not 0 but below 32, so that noise and labels cannot be told apart; or there are
            flat areas of another value: labels of several structures.

    >>> threshold_mask(np.array([[0, 3, 127, 128, 255]])).tolist()
    [[False, False, True, True, True]]
    """
    # The maximum itself overshoots: JPEG makes 161 of 128 at an edge.
    bright = float(np.median(mask[mask > mask.max() / 2])) if mask.any() else 0.0
    if 0 < bright < DARKEST_FOREGROUND:
        raise UserError(
            f"Expected a lossy mask of 0 and a bright value, got one of {bright:g}, where labels and the noise of JPEG "
            "cannot be told apart. Save the mask as PNG, or its foreground as 255."
        )
    if bright and (other := _other_value(mask, bright)) is not None:
        raise UserError(
            f"Expected a lossy mask of 0 and one bright value, got {bright:g} and flat areas of about {other:g}. "
            "Labels of several structures cannot be told apart in a JPEG: save the mask as PNG."
        )
    return mask > bright / 2


def remove_specks(mask: np.ndarray, most: int = 4) -> np.ndarray:
    """Remove connected components of so few pixels that they are no drawing but the noise of JPEG.

    MONAI's `RemoveSmallObjects` needs scikit-image, and would remove all of the foreground as well.

    Args:
        mask: (H, W); above 0 is foreground, neighbors include diagonals.
        most: pixels of the largest speck. In 500 masks of Kvasir-SEG each of the 72 specks is a single pixel.

    Returns:
        (H, W) bool. A mask that holds nothing larger stays as it is.

    >>> mask = np.zeros((200, 200)); mask[0, 0] = mask[50:60, 50:60] = 1
    >>> int(remove_specks(mask).sum())
    100
    """
    labels, _ = ndimage.label(mask > 0, structure=EIGHT_NEIGHBORS)
    keep = np.bincount(labels.ravel()) > most
    keep[0] = False
    return keep[labels] if keep.any() else mask > 0


def fill_outline(mask: np.ndarray) -> np.ndarray:
    """Fill a convex outline, an ellipse above all, which may be open where the image cuts it off.

    Args:
        mask: (H, W); above 0 is outline, and it belongs to the result.

    Returns:
        (H, W) bool.

    Raises:
        UserError: there is no outline, or it has a gap inside the image, so that its inside is not bounded.

    >>> outline = np.zeros((5, 5)); outline[1, 1:4] = outline[3, 1:4] = outline[2, 1] = outline[2, 3] = 1
    >>> int(fill_outline(outline).sum())
    9
    """
    outline = mask > 0
    rows, columns = np.nonzero(outline)
    try:
        corners = [np.stack([rows + down, columns + right], axis=1) for down in (0, 1) for right in (0, 1)]
        hull_area = ConvexHull(np.concatenate(corners)).volume
    except (QhullError, ValueError):
        raise UserError("Expected an outline to fill, got an empty mask.") from None
    # Four neighbors, so that the background does not slip through a diagonal step of the curve.
    regions, _ = ndimage.label(~outline)
    center = (rows.min() + rows.max()) // 2, (columns.min() + columns.max()) // 2
    filled = outline | (regions == regions[center]) if regions[center] else outline
    box = np.zeros_like(outline)
    box[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    # A curve without gaps holds its inside within its hull, save a corner of the image: a quarter disk is 2.75 hulls.
    most = 3 if filled[:: len(filled) - 1 or 1, :: filled.shape[1] - 1 or 1].any() else 1.05
    if not 0.8 <= filled.sum() / hull_area <= most or (filled & ~box).any() or filled.all():
        raise UserError(
            f"Cannot fill the outline: its inside has {filled.sum()} pixels where about {hull_area:.0f} were expected. "
            'Close its gaps, or set `mask_kind` to "binary" if the mask is filled already.'
        )
    return filled


def clean_mask(mask: Mask, kind: MaskKind = "binary", *, foreground_values: Collection[float] | None = None) -> Mask:
    """Turn the channels of a mask into one, their union.

    Args:
        mask: (K, H, W) or, for "binary", (K, ...), values as stored.
        kind: how the mask was stored: "binary" (0 and one other value), "lossy" (JPEG: above half of its bright
            value, without specks) or "outline" (to be filled).
        foreground_values: values that are foreground in a mask of several labels; only for "binary".

    Returns:
        (1, ...) float32 of 0 and 1.

    Raises:
        ValueError: the kind is unknown, a binary mask has more than two values, a lossy one is too dark or has several,
            or an outline cannot be filled.

    >>> clean_mask(np.array([[[0, 255]], [[0, 0]]])).tolist()
    [[[0.0, 1.0]]]
    """
    if kind not in MASK_KINDS:
        raise UserError(f"Expected `mask_kind` to be one of {', '.join(MASK_KINDS)}, got {kind!r}.")
    array = convert_data_type(mask, np.ndarray)[0]
    if kind == "lossy":
        array = np.stack([remove_specks(threshold_mask(channel)) for channel in array])
    elif kind == "outline":
        array = np.stack([fill_outline(channel) for channel in array])
    elif foreground_values is not None:
        array = np.isin(array, list(foreground_values))
    else:
        array = np.stack([_two_valued(channel) for channel in array])
    return convert_to_dst_type(array.any(axis=0, keepdims=True), dst=mask, dtype=np.float32)[0]


class CleanMaskd(MapTransform):
    """Dictionary version of :func:`clean_mask`; the meta information of a `MetaTensor` stays.

    MONAI's `AsDiscrete` thresholds, but does not tell a lossy mask from one with several labels.

    Args:
        keys: masks (K, H, W), channel first.
        kind_key: key of the item's mask kind; items without it are "binary".
        foreground_values: values that are foreground in a mask of several labels.
        allow_missing_keys: do not raise if a key is missing.

    Raises:
        ValueError: as :func:`clean_mask`, with the name of the file.

    Example:
        >>> CleanMaskd("label")({"label": torch.tensor([[[0.0, 255.0]]])})["label"].tolist()
        [[[0.0, 1.0]]]
    """

    def __init__(
        self,
        keys: KeysCollection,
        kind_key: str = "mask_kind",
        *,
        foreground_values: Sequence[float] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.kind_key = kind_key
        self.foreground_values = foreground_values

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Clean the masks of one item."""
        item = dict(data)
        for key in self.key_iterator(item):
            name = getattr(item[key], "meta", {}).get("filename_or_obj", f"the mask `{key}`")
            try:
                item[key] = clean_mask(
                    item[key], item.get(self.kind_key, "binary"), foreground_values=self.foreground_values
                )
            except ValueError as error:
                raise UserError(f"{name}: {error}") from error
        return item


def _two_valued(channel: np.ndarray) -> np.ndarray:
    values = np.unique(channel)
    if len(values) > 2 or (len(values) == 2 and values[0] != 0):
        listed = ", ".join(f"{value:g}" for value in values[:8]) + (", ..." if len(values) > 8 else "")
        raise UserError(
            f"Expected a mask of 0 and one other value, got {len(values)} values ({listed}). Say which are foreground "
            'with `foreground_values`, or set the item\'s `mask_kind` to "lossy" if the mask was stored as JPEG or its '
            "edges are smoothed (anti-aliased)."
        )
    return channel != 0


def _other_value(mask: np.ndarray, bright: float) -> float | None:
    """A value besides 0 and the bright one that fills a block of 8 x 8 pixels, as JPEG has them, if one does."""
    height, width = (8 * (side // 8) for side in mask.shape)
    blocks = mask[:height, :width].reshape(height // 8, 8, width // 8, 8)
    low, high = blocks.min(axis=(1, 3)).astype(np.float32), blocks.max(axis=(1, 3)).astype(np.float32)
    is_flat = high - low < 0.1 * bright
    is_other = (low > 0.15 * bright) & ((high < 0.85 * bright) | (low > 1.15 * bright))
    return float(high[is_flat & is_other][0]) if (is_flat & is_other).any() else None
