# SPDX-License-Identifier: Apache-2.0
"""Phantoms: pictures drawn by formula that look like two kinds of medical image, for the demo and the tests.

They need no download, no license and no patient. The shapes are concave, slanted, branched and in parts, so that
filling the box is a poor answer, and each picture holds distractors, so that a brightness threshold is one too. They
show that the software works; they say nothing about how well a model does on real images.

All arithmetic is in float64: its rounding errors, which differ between numpy builds, then never reach an 8-bit result.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image
from scipy import ndimage

from monai_kdsam.errors import UserError

__all__ = ["PHANTOM_KINDS", "make_phantom", "write_phantoms"]

PhantomKind = Literal["breast_lesion", "polyp"]
PHANTOM_KINDS: tuple[PhantomKind, ...] = get_args(PhantomKind)
FORMS = ("crescent", "slanted", "stalked", "parted", "lobed", "spiked")
_SMALLEST = 48  # pixels; below it speckle and lesion are of one size
Array = np.ndarray
Rng = np.random.Generator


def make_phantom(
    kind: PhantomKind, *, size: int = 160, seed: int, clutter: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one phantom and its reference mask.

    Args:
        kind: one of ``PHANTOM_KINDS``.
        size: the longest that a side can be, in pixels, at least 48; the shortest is three quarters of it.
        seed: not negative; the same kind, size and seed give the same mask, and with the same clutter the same picture.
        clutter: how plain to see what is not the target is, from 0 (not at all) to 1: shadows, folds, lobules.

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
        UserError: if ``per_kind`` is not between 1 and 100000, ``seed`` is negative or ``folder`` cannot be written to.
    """
    if not 1 <= per_kind <= 100_000:
        raise UserError(f"Expected `per_kind` to be between 1 and 100000, got {per_kind}.")
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


# Both paint an image, about [0, 1], (H, W) or (H, W, 3), and its mask (H, W); `clutter`, 0 to 1, scales what could be
# taken for the target and is not.
def _paint_breast_lesion(rng: Rng, shape: tuple[int, int], clutter: float) -> tuple[Array, Array]:
    """A dark mass, or two, in layered tissue, with fat lobules and shadows that are dark too."""
    unit, (y, x) = min(shape), _warped_grid(rng, shape, 0.0)
    level = y + 0.035 * unit * _smooth_noise(rng, shape, (60, 30))
    fat, gland = rng.uniform(0.12, 0.2) * shape[0], rng.uniform(0.72, 0.85) * shape[0]
    fibers = _smooth_noise(rng, shape, (2.5, 18))
    bright = 0.5 + 0.1 * fibers + 0.07 * _smooth_noise(rng, shape, 18)
    bright = np.where(level < fat, 0.34 + 0.18 * np.maximum(fibers - 0.3, 0), bright)
    bright = np.where(level > gland, 0.26 + 0.1 * fibers, bright)
    bright = np.where(level < 0.05 * unit, 0.75, bright)  # skin
    for _ in range(int(rng.integers(2, 5))):  # fat lobules: grey with a bright capsule, no shadow
        lobule = _lesion_distance(rng, shape, ("lobed", "slanted"), reach=0.12, rough=1.0, rows=(0.1, 0.9))
        bright -= 0.2 * clutter * _soft_inside(lobule, 3) * (bright > 0.3)
        bright += 0.2 * clutter * np.exp(-((lobule / 1.5) ** 2))

    distance = _lesion_distance(rng, shape, FORMS, reach=0.26, rough=rng.uniform(1, 2.5), rows=(0.2, 0.75))
    if rng.random() < 0.25:
        distance = np.minimum(
            distance, _lesion_distance(rng, shape, ("lobed", "slanted"), reach=0.12, rough=1.5, rows=(0.2, 0.75))
        )
    mask = distance < 0
    behind = np.cumsum(mask, 0) > 0
    shadow = ndimage.gaussian_filter((behind & ~mask).astype(float), (2, 4))
    bright *= 1 + clutter * rng.choice([-0.75, -0.5, 0.3]) * shadow * (1 - 0.5 * y / shape[0])
    rib = np.exp(-(((x / shape[1] - rng.uniform(0.05, 0.95)) / 0.08) ** 2))
    bright *= 1 - 0.75 * clutter * rib * _soft_inside(gland - 0.03 * unit - level, 6)
    inside = _soft_inside(distance, rng.uniform(2, 6))
    bright += 0.12 * np.exp(-(((distance - 3) / 2.5) ** 2))
    bright = bright * (1 - inside) + (0.16 + 0.04 * _smooth_noise(rng, shape, 8)) * inside
    return bright * (1.1 - 0.35 * y / shape[0]) + 0.8 * _speckle(rng, shape, (1.1, 2.0)), mask


def _paint_polyp(rng: Rng, shape: tuple[int, int], clutter: float) -> tuple[Array, Array]:
    """A growth on a folded colon wall, lit from the endoscope, with highlights, a dark lumen and a round vignette."""
    unit, (y, x) = min(shape), _warped_grid(rng, shape, 3.0)
    lumen_x, lumen_y = rng.uniform(0.1, 0.9) * shape[1], rng.uniform(0.1, 0.9) * shape[0]
    away = np.hypot(x - lumen_x, (y - lumen_y) * rng.uniform(0.7, 1.4))
    phase = away / (unit * rng.uniform(0.16, 0.26)) * 2 * np.pi * (unit / (unit + away)) + rng.uniform(0, 6)
    light = 0.72 + 0.1 * _smooth_noise(rng, shape, 40)
    light += 0.14 * np.sin(phase) * (1 + 0.4 * _smooth_noise(rng, shape, 25))
    light *= 1 - 0.85 * clutter * np.exp(-((away / (unit * rng.uniform(0.15, 0.3))) ** 2))

    distance = _lesion_distance(rng, shape, FORMS[:5], reach=rng.uniform(0.25, 0.36), rough=rng.uniform(1, 2))
    mask = distance < 0
    # A fold: raised, of the wall's color.
    bump = _lesion_distance(rng, shape, ("slanted", "lobed"), reach=0.2, rough=1.0)
    for raised, height, strength in ((bump, 0.1, clutter), (distance, 0.16, 1.0)):
        light = light * (1 - 0.35 * strength * np.exp(-((np.maximum(raised, 0) / (0.035 * unit)) ** 2)) * (raised > 0))
        dome = np.sqrt(np.clip(-raised / (0.12 * unit), 0, 1))
        slope_y, slope_x = np.gradient(ndimage.gaussian_filter(dome, 1.5))
        cover = strength * _soft_inside(raised, 2)
        light = light * (1 - 0.5 * cover) + (0.5 * 0.62 + height * dome) * cover
        light -= 0.9 * strength * (slope_y + 0.5 * slope_x)
    vessels = np.exp(-((_smooth_noise(rng, shape, 13) / 0.1) ** 2)) * np.clip(_smooth_noise(rng, shape, 30), 0, 1)
    inside = _soft_inside(distance, 2.5)[..., None]
    wall = np.array([0.98, 0.62, 0.5]) + rng.normal(0, 0.03, 3)
    growth = wall * rng.choice([[1.02, 0.68, 0.72], [1.04, 1.2, 1.3], [0.9, 0.78, 0.72]])
    color = wall * (1 - vessels[..., None] * [0.1, 0.35, 0.35]) * (1 - inside) + growth * inside
    color = color * (1 + 0.07 * inside * _smooth_noise(rng, shape, 3)[..., None])
    stool = _soft_inside(_lesion_distance(rng, shape, ("lobed",), reach=0.07, rough=2.0), 3)[..., None] * clutter
    image = (color * (1 - stool) + np.array([0.85, 0.7, 0.2]) * stool) * light[..., None] * 1.12
    shiny = _smooth_noise(rng, shape, 4) + 1.2 * (light - 0.72)
    image += 0.9 * np.clip((shiny - 2.1) * 2.5, 0, 1)[..., None]
    row, column = (np.abs(np.linspace(-1, 1, n)) for n in shape)
    octagon = row[:, None] + column < rng.uniform(1.55, 1.75)
    return np.where(octagon[..., None], image, 0.02), mask & octagon


_PAINTERS: dict[str, Callable[[Rng, tuple[int, int], float], tuple[Array, Array]]] = {
    "breast_lesion": _paint_breast_lesion,
    "polyp": _paint_polyp,
}


def _spine(rng: Rng, form: str) -> Array:
    """Discs (n, 3) of x, y, radius, whose union is a shape of about the square [-1, 1]^2."""
    t = np.linspace(-1, 1, 13)
    slant = rng.choice([-1, 1]) * rng.uniform(0.5, 1.07)  # well away from upright and level, where a box fits best
    if form == "crescent":
        angle = t * rng.uniform(1.3, 2.0)
        discs = np.stack([0.75 * np.cos(angle), 0.75 * np.sin(angle), rng.uniform(0.3, 0.42) * (1.1 - 0.7 * t**2)], 1)
        return _turned(discs, rng.uniform(0, 2 * np.pi))
    if form == "slanted":
        discs = np.stack([t, rng.uniform(-0.35, 0.35) * t**2, rng.uniform(0.26, 0.38) * (1 - 0.5 * t**2)], 1)
        return _turned(discs, slant)
    if form == "stalked":
        stalk = np.stack([t, 0.3 * np.sin(2 * t), np.full_like(t, rng.uniform(0.15, 0.22))], 1)
        head = np.stack([rng.normal(0.6, 0.16, 3), rng.normal(0.2, 0.16, 3), rng.uniform(0.38, 0.5, 3)], 1)
        return _turned(np.concatenate([stalk, head]), slant + np.pi * rng.integers(2))
    if form == "parted":
        x = 0.68 * np.repeat([-1, 1], 3) + rng.normal(0, 0.1, 6)
        return _turned(np.stack([x, rng.normal(0, 0.1, 6), rng.uniform(0.28, 0.44, 6)], 1), slant)
    return _turned(_arms(rng, spiked=form == "spiked"), rng.uniform(0, 2 * np.pi))


def _arms(rng: Rng, *, spiked: bool) -> Array:
    """Discs along arms from a core: a few that swell outwards, or many that taper to a point."""
    arms = int(rng.integers(5, 8)) if spiked else int(rng.integers(3, 5))
    angle = np.arange(arms) * 2 * np.pi / arms + rng.normal(0, 0.2, arms)
    reach, along = rng.uniform(0.7, 1.1, arms), np.linspace(0, 1, 8)
    radius = np.maximum(0.46 * (1 - along), 0.05) if spiked else 0.25 + 0.17 * along
    reach = reach if spiked else 0.8 * reach
    centers = (reach * np.stack([np.cos(angle), np.sin(angle)]))[..., None] * along
    return np.concatenate([centers, np.broadcast_to(radius, (1, arms, 8))]).reshape(3, -1).T


def _turned(discs: Array, angle: float) -> Array:
    c, s = np.cos(angle), np.sin(angle)
    x, y, r = discs.T
    return np.stack([c * x - s * y, s * x + c * y, r], 1)


def _lesion_distance(
    rng: Rng,
    shape: tuple[int, int],
    forms: tuple[str, ...],
    *,
    reach: float,
    rough: float,
    rows: tuple[float, float] = (0, 1),
) -> Array:
    """Signed distance (H, W) to a random shape.

    ``reach`` is half its extent relative to the shorter side, ``rough`` the amplitude of its border in pixels, ``rows``
    the part of the free height, from 0 at the top to 1, in which it may lie.
    """
    discs = _spine(rng, str(rng.choice(forms)))
    low, high = (discs[:, :2] - discs[:, 2:]).min(0), (discs[:, :2] + discs[:, 2:]).max(0)
    half = reach * min(shape) * rng.uniform(0.8, 1.2)
    scale = 2 * half / (high - low).max()
    extent = scale * (high - low) / 2
    room = np.array([shape[1], shape[0]]) - 2 * 0.85 * extent  # up to 15 % of half the shape may leave the picture
    center = 0.85 * extent + np.maximum(room, 0) * rng.uniform([0, rows[0]], [1, rows[1]])
    # On every second pixel, then interpolated: the border is smoother than that, and it takes a quarter of the time.
    y, x = (axis[::2, ::2, None] for axis in _warped_grid(rng, (shape[0] + 2, shape[1] + 2), rough))
    dx, dy, radius = ((discs - [*(low + high) / 2, 0]) * scale).T
    distance = (np.sqrt((x - center[0] - dx) ** 2 + (y - center[1] - dy) ** 2) - radius).min(-1)
    distance = ndimage.gaussian_filter(distance, 0.6)
    down, right = (
        np.maximum(0, 1 - np.abs(np.arange(n)[:, None] / 2 - np.arange(k)))
        for n, k in zip(shape, distance.shape, strict=True)
    )
    return down @ distance @ right.T


def _warped_grid(rng: Rng, shape: tuple[int, int], amplitude: float) -> tuple[Array, Array]:
    """Rows and columns (H, W) of the pixels, displaced smoothly by about ``amplitude`` pixels."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(float)
    return y + amplitude * _smooth_noise(rng, shape, 9), x + amplitude * _smooth_noise(rng, shape, 9)


def _soft_inside(distance: Array, width: float) -> Array:
    """1 inside, 0 outside, with a ramp of ``width`` pixels."""
    return np.clip(0.5 - distance / width, 0, 1)


def _smooth_noise(rng: Rng, shape: tuple[int, int], cell: float | tuple[float, float]) -> Array:
    """Noise (H, W) of mean 0 and variance 1 with structures of about ``cell`` pixels (y, x)."""
    cells = cell if isinstance(cell, tuple) else (cell, cell)
    rows, columns = (_kernel(n, c) for n, c in zip(shape, cells, strict=True))
    return rows @ rng.standard_normal((rows.shape[1], columns.shape[1])) @ columns.T


def _kernel(length: int, cell: float) -> Array:
    """Weights (length, knots) that turn noise on a coarse line into smooth noise on a fine one."""
    knots = np.arange(-1, int(length / cell) + 3)
    weights = np.exp(-0.5 * ((np.arange(length)[:, None] / cell - knots) / 0.7) ** 2)
    return weights / np.sqrt((weights**2).sum(1, keepdims=True))


def _speckle(rng: Rng, shape: tuple[int, int], cell: tuple[float, float]) -> Array:
    """Log-compressed Rayleigh noise (H, W), as a scanner shows it: deviation about 0.1, a tail towards dark."""
    power = _smooth_noise(rng, shape, cell) ** 2 + _smooth_noise(rng, shape, cell) ** 2
    return 0.09 * np.maximum(np.log(power + 0.02) - 0.15, -3)
