# SPDX-License-Identifier: Apache-2.0
"""Phantoms: pictures drawn by formula that look like four kinds of medical image, for the demo and the tests.

They need no download, no license and no patient. The shapes are concave, slanted, branched and in parts, so that
filling the box is a poor answer, and each picture holds distractors, so that a brightness threshold is one too. They
show that the software works; they say nothing about how well a model does on real images.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image

from monai_kdsam.data.phantom_kinds import paint_breast_lesion, paint_fetal_head, paint_polyp, paint_skin_lesion
from monai_kdsam.errors import UserError

__all__ = ["PHANTOM_KINDS", "make_phantom", "write_phantoms"]

PhantomKind = Literal["fetal_head", "breast_lesion", "polyp", "skin_lesion"]
PHANTOM_KINDS: tuple[PhantomKind, ...] = get_args(PhantomKind)
_SMALLEST = 48  # pixels; below it speckle and lesion are of one size

_PAINTERS: dict[str, Callable[[np.random.Generator, tuple[int, int], float], tuple[np.ndarray, np.ndarray]]] = {
    "fetal_head": paint_fetal_head,
    "breast_lesion": paint_breast_lesion,
    "polyp": paint_polyp,
    "skin_lesion": paint_skin_lesion,
}


def make_phantom(
    kind: PhantomKind, *, size: int = 160, seed: int, clutter: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one phantom and its reference mask.

    Args:
        kind: one of ``PHANTOM_KINDS``.
        size: the longest that a side can be, in pixels, at least 48; the shortest is three quarters of it.
        seed: not negative; the same kind, size and seed give the same mask, and with the same clutter the same picture.
        clutter: how plain to see what is not the target is, from 0 (not at all) to 1: shadows, folds, lobules, hairs.

    Returns:
        The image, uint8 (H, W, 3), RGB, and its mask, bool (H, W), which is never empty.

    Raises:
        ValueError: if ``kind`` is unknown, ``size`` too small, ``seed`` negative or ``clutter`` not in [0, 1].

    Example:
        >>> image, mask = make_phantom("polyp", seed=3)
        >>> image.dtype, mask.dtype, image.shape[:2] == mask.shape
        (dtype('uint8'), dtype('bool'), True)
    """
    if kind not in _PAINTERS:
        raise UserError(f"Expected `kind` to be one of {', '.join(PHANTOM_KINDS)}, got {kind!r}.")
    if size < _SMALLEST:
        raise UserError(f"Expected `size` to be at least {_SMALLEST} pixels, got {size}.")
    if seed < 0:
        raise UserError(f"Expected `seed` to be 0 or more, got {seed}.")
    if not 0 <= clutter <= 1:
        raise UserError(f"Expected `clutter` to be between 0 and 1, got {clutter}.")
    rng = np.random.default_rng([seed, *kind.encode()])
    height, width = (int(n) for n in rng.integers(-(-3 * size // 4), size + 1, 2))
    image, mask = _PAINTERS[kind](rng, (height, width), clutter)
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=2)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8), mask


def write_phantoms(
    folder: str | Path, *, per_kind: int = 40, seed: int = 0, size: int = 160, clutter: float = 1.0
) -> Path:
    """Write phantoms as a data set in the plain folder layout.

    The files are ``images/<kind>_<n>.png`` (RGB) and ``masks/<kind>_<n>.png`` (0 and 255). Existing ones are replaced.

    Args:
        folder: where to write; created if missing.
        per_kind: how many of each kind.
        seed: another seed gives another set, with no picture in common.
        size: as in ``make_phantom``.
        clutter: as in ``make_phantom``.

    Returns:
        ``folder`` as a path.

    Raises:
        ValueError: if ``per_kind`` is not between 1 and 100000 or ``seed`` is negative.
        UserError: if ``folder`` cannot be written to.
    """
    if not 1 <= per_kind <= 100_000:
        raise UserError(f"Expected `per_kind` to be between 1 and 100000, got {per_kind}.")
    if seed < 0:
        raise UserError(f"Expected `seed` to be 0 or more, got {seed}.")
    folder = Path(folder)
    try:
        for part in ("images", "masks"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        for kind in PHANTOM_KINDS:
            for n in range(per_kind):
                image, mask = make_phantom(kind, size=size, seed=100_000 * seed + n, clutter=clutter)
                name = f"{kind}_{n:03d}.png"
                Image.fromarray(image).save(folder / "images" / name)
                Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "masks" / name)
    except OSError as error:
        raise UserError(
            f"Could not write phantoms to {folder}: {error}. Free some space or choose another folder."
        ) from error
    return folder
