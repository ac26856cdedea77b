# SPDX-License-Identifier: Apache-2.0
"""What phantoms are drawn with: random shapes, smooth noise and ultrasound speckle. Numpy and scipy only.

All arithmetic is in float64: its rounding errors, which differ between numpy builds, then never reach an 8-bit result.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

__all__ = ["FORMS", "hairs", "lesion_distance", "smooth_noise", "soft_inside", "speckle", "warped_grid"]

FORMS = ("crescent", "slanted", "stalked", "parted", "lobed", "spiked")
Array = np.ndarray
Rng = np.random.Generator


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


def lesion_distance(
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
    y, x = (axis[::2, ::2, None] for axis in warped_grid(rng, (shape[0] + 2, shape[1] + 2), rough))
    dx, dy, radius = ((discs - [*(low + high) / 2, 0]) * scale).T
    distance = (np.sqrt((x - center[0] - dx) ** 2 + (y - center[1] - dy) ** 2) - radius).min(-1)
    distance = ndimage.gaussian_filter(distance, 0.6)
    down, right = (
        np.maximum(0, 1 - np.abs(np.arange(n)[:, None] / 2 - np.arange(k)))
        for n, k in zip(shape, distance.shape, strict=True)
    )
    return down @ distance @ right.T


def warped_grid(rng: Rng, shape: tuple[int, int], amplitude: float) -> tuple[Array, Array]:
    """Rows and columns (H, W) of the pixels, displaced smoothly by about ``amplitude`` pixels."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(float)
    return y + amplitude * smooth_noise(rng, shape, 9), x + amplitude * smooth_noise(rng, shape, 9)


def soft_inside(distance: Array, width: float) -> Array:
    """1 inside, 0 outside, with a ramp of ``width`` pixels."""
    return np.clip(0.5 - distance / width, 0, 1)


def smooth_noise(rng: Rng, shape: tuple[int, int], cell: float | tuple[float, float]) -> Array:
    """Noise (H, W) of mean 0 and variance 1 with structures of about ``cell`` pixels (y, x)."""
    cells = cell if isinstance(cell, tuple) else (cell, cell)
    rows, columns = (_kernel(n, c) for n, c in zip(shape, cells, strict=True))
    return rows @ rng.standard_normal((rows.shape[1], columns.shape[1])) @ columns.T


def _kernel(length: int, cell: float) -> Array:
    """Weights (length, knots) that turn noise on a coarse line into smooth noise on a fine one."""
    knots = np.arange(-1, int(length / cell) + 3)
    weights = np.exp(-0.5 * ((np.arange(length)[:, None] / cell - knots) / 0.7) ** 2)
    return weights / np.sqrt((weights**2).sum(1, keepdims=True))


def speckle(rng: Rng, shape: tuple[int, int], cell: tuple[float, float]) -> Array:
    """Log-compressed Rayleigh noise (H, W), as a scanner shows it: deviation about 0.1, a tail towards dark."""
    power = smooth_noise(rng, shape, cell) ** 2 + smooth_noise(rng, shape, cell) ** 2
    return 0.09 * np.maximum(np.log(power + 0.02) - 0.15, -3)


def hairs(rng: Rng, shape: tuple[int, int]) -> Array:
    """Up to ten thin curves (H, W), in [0, 1]."""
    ink, t = np.zeros(shape), np.linspace(-1, 1, 3 * max(shape))
    for _ in range(int(rng.integers(0, 11))):
        turn, bend = rng.uniform(0, np.pi), rng.uniform(-0.3, 0.3) * t**2
        middle, half = rng.uniform(0, shape), 0.6 * max(shape) * rng.uniform(0.4, 1)
        row = middle[0] + half * (t * np.sin(turn) + bend * np.cos(turn))
        column = middle[1] + half * (t * np.cos(turn) - bend * np.sin(turn))
        seen = (row >= 0) & (row < shape[0]) & (column >= 0) & (column < shape[1])
        ink[row[seen].astype(int), column[seen].astype(int)] = 1
    return np.clip(1.6 * ndimage.gaussian_filter(ink, 0.6), 0, 1)
