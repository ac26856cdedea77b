# SPDX-License-Identifier: Apache-2.0
"""The four kinds of phantom. Each function paints an image, about [0, 1], (H, W) or (H, W, 3), and its mask (H, W).

`clutter`, 0 to 1, scales what could be taken for the target and is not.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from monai_kdsam.data.phantom_parts import (
    FORMS,
    hairs,
    lesion_distance,
    smooth_noise,
    soft_inside,
    speckle,
    warped_grid,
)

__all__ = ["paint_breast_lesion", "paint_fetal_head", "paint_polyp", "paint_skin_lesion"]

Array = np.ndarray
Rng = np.random.Generator


def paint_fetal_head(rng: Rng, shape: tuple[int, int], clutter: float) -> tuple[Array, Array]:
    """A skull in an ultrasound sector; the mask is the head, filled, as far as the sector shows it."""
    unit, (y, x) = min(shape), np.mgrid[: shape[0], : shape[1]].astype(float)
    apex_x, apex_y = shape[1] * rng.uniform(0.4, 0.6), -shape[0] * rng.uniform(0.05, 0.25)
    depth, angle = np.hypot(x - apex_x, y - apex_y), np.arctan2(x - apex_x, y - apex_y)
    half_angle, last = rng.uniform(0.5, 0.75), shape[0] - apex_y
    sector = (np.abs(angle) < half_angle) & (depth > 0.06 * last - apex_y) & (depth < 0.98 * last)

    # The head, often partly out of the sector.
    side = rng.choice([-1, 0, 1], p=[0.4, 0.2, 0.4])
    aim, reach = side * half_angle * rng.uniform(0.5, 0.95), (0.55 + 0.1 * rng.uniform(-1, 1)) * last
    center_x, center_y = apex_x + reach * np.sin(aim), apex_y + reach * np.cos(aim)
    turn = rng.choice([-1, 1]) * rng.uniform(0.35, 1.2)
    along = (x - center_x) * np.cos(turn) + (y - center_y) * np.sin(turn)
    across = (y - center_y) * np.cos(turn) - (x - center_x) * np.sin(turn)
    major, aspect = unit * rng.uniform(0.26, 0.4), rng.uniform(0.52, 0.75)
    bulge = 1 + rng.uniform(-0.2, 0.2) * along / major
    radius = np.hypot(along, across / (aspect * bulge))
    distance = (radius - major) * aspect
    mask = (distance < 0) & sector

    # Tissue in bands, a dark pocket of fluid and a bright bone of the wrong kind beside the head.
    bright = (
        0.34 + 0.08 * smooth_noise(rng, shape, 22) + 0.07 * np.sin(depth / unit * 30 + smooth_noise(rng, shape, 30))
    )
    pocket = lesion_distance(rng, shape, ("lobed", "slanted", "crescent"), reach=0.22, rough=1.5)
    bright -= 0.3 * clutter * soft_inside(pocket, 5)
    bone = lesion_distance(rng, shape, ("crescent", "slanted"), reach=0.2, rough=0.5)
    bright += 0.45 * clutter * np.exp(-((bone / 2.5) ** 2))
    inside = soft_inside(distance, 3)
    brain = 0.2 + 0.06 * smooth_noise(rng, shape, 9) + 0.05 * smooth_noise(rng, shape, 20)
    brain += 0.3 * np.exp(-(((across + 2 * smooth_noise(rng, shape, 25)) / 1.6) ** 2)) * (np.abs(along) < 0.75 * major)
    bright = bright * (1 - inside) + brain * inside

    # Bone echoes where the beam meets it squarely; beyond part of it falls a shadow.
    slope_y, slope_x = np.gradient(distance)
    square = np.abs(slope_x * np.sin(angle) + slope_y * np.cos(angle))
    bright += (0.12 + 0.6 * square) * np.exp(-((distance / (0.02 * unit)) ** 2))
    shade = np.exp(-(((angle - aim - rng.uniform(-0.3, 0.3)) / rng.uniform(0.04, 0.1)) ** 2)) * (depth > reach)
    bright *= (1 - clutter * rng.uniform(0.3, 0.8) * shade) * (1.15 - 0.4 * depth / last)
    polar = speckle(rng, (int(last) + 2, shape[1]), (1.2, 2.0))
    columns = (angle / half_angle * 0.49 + 0.5) * shape[1]
    grain = ndimage.map_coordinates(polar, [depth, columns], order=1, mode="nearest")
    return np.where(sector, bright + grain, 0.01), mask


def paint_breast_lesion(rng: Rng, shape: tuple[int, int], clutter: float) -> tuple[Array, Array]:
    """A dark mass, or two, in layered tissue, with fat lobules and shadows that are dark too."""
    unit, (y, x) = min(shape), warped_grid(rng, shape, 0.0)
    level = y + 0.035 * unit * smooth_noise(rng, shape, (60, 30))
    fat, gland = rng.uniform(0.12, 0.2) * shape[0], rng.uniform(0.72, 0.85) * shape[0]
    fibers = smooth_noise(rng, shape, (2.5, 18))
    bright = 0.5 + 0.1 * fibers + 0.07 * smooth_noise(rng, shape, 18)
    bright = np.where(level < fat, 0.34 + 0.18 * np.maximum(fibers - 0.3, 0), bright)
    bright = np.where(level > gland, 0.26 + 0.1 * fibers, bright)
    bright = np.where(level < 0.05 * unit, 0.75, bright)  # skin
    for _ in range(int(rng.integers(2, 5))):  # fat lobules: grey with a bright capsule, no shadow
        lobule = lesion_distance(rng, shape, ("lobed", "slanted"), reach=0.12, rough=1.0, rows=(0.1, 0.9))
        bright -= 0.2 * clutter * soft_inside(lobule, 3) * (bright > 0.3)
        bright += 0.2 * clutter * np.exp(-((lobule / 1.5) ** 2))

    distance = lesion_distance(rng, shape, FORMS, reach=0.26, rough=rng.uniform(1, 2.5), rows=(0.2, 0.75))
    if rng.random() < 0.25:
        distance = np.minimum(
            distance, lesion_distance(rng, shape, ("lobed", "slanted"), reach=0.12, rough=1.5, rows=(0.2, 0.75))
        )
    mask = distance < 0
    behind = np.cumsum(mask, 0) > 0
    shadow = ndimage.gaussian_filter((behind & ~mask).astype(float), (2, 4))
    bright *= 1 + clutter * rng.choice([-0.75, -0.5, 0.3]) * shadow * (1 - 0.5 * y / shape[0])
    rib = np.exp(-(((x / shape[1] - rng.uniform(0.05, 0.95)) / 0.08) ** 2)) * soft_inside(
        gland - 0.03 * unit - level, 6
    )
    bright *= 1 - 0.75 * clutter * rib
    inside = soft_inside(distance, rng.uniform(2, 6))
    bright += 0.12 * np.exp(-(((distance - 3) / 2.5) ** 2))
    bright = bright * (1 - inside) + (0.16 + 0.04 * smooth_noise(rng, shape, 8)) * inside
    return bright * (1.1 - 0.35 * y / shape[0]) + 0.8 * speckle(rng, shape, (1.1, 2.0)), mask


def paint_polyp(rng: Rng, shape: tuple[int, int], clutter: float) -> tuple[Array, Array]:
    """A growth on a folded colon wall, lit from the endoscope, with highlights, a dark lumen and a round vignette."""
    unit, (y, x) = min(shape), warped_grid(rng, shape, 3.0)
    lumen_x, lumen_y = rng.uniform(0.1, 0.9) * shape[1], rng.uniform(0.1, 0.9) * shape[0]
    away = np.hypot(x - lumen_x, (y - lumen_y) * rng.uniform(0.7, 1.4))
    phase = away / (unit * rng.uniform(0.16, 0.26)) * 2 * np.pi * (unit / (unit + away)) + rng.uniform(0, 6)
    light = 0.72 + 0.1 * smooth_noise(rng, shape, 40) + 0.14 * np.sin(phase) * (1 + 0.4 * smooth_noise(rng, shape, 25))
    light *= 1 - 0.85 * clutter * np.exp(-((away / (unit * rng.uniform(0.15, 0.3))) ** 2))

    distance = lesion_distance(rng, shape, FORMS[:5], reach=rng.uniform(0.25, 0.36), rough=rng.uniform(1, 2))
    mask = distance < 0
    bump = lesion_distance(
        rng, shape, ("slanted", "lobed"), reach=0.2, rough=1.0
    )  # a fold: raised, of the wall's color
    for raised, height, strength in ((bump, 0.1, clutter), (distance, 0.16, 1.0)):
        light = light * (1 - 0.35 * strength * np.exp(-((np.maximum(raised, 0) / (0.035 * unit)) ** 2)) * (raised > 0))
        dome = np.sqrt(np.clip(-raised / (0.12 * unit), 0, 1))
        slope_y, slope_x = np.gradient(ndimage.gaussian_filter(dome, 1.5))
        cover = strength * soft_inside(raised, 2)
        light = light * (1 - 0.5 * cover) + (0.5 * 0.62 + height * dome) * cover
        light -= 0.9 * strength * (slope_y + 0.5 * slope_x)
    vessels = np.exp(-((smooth_noise(rng, shape, 13) / 0.1) ** 2)) * np.clip(smooth_noise(rng, shape, 30), 0, 1)
    inside = soft_inside(distance, 2.5)[..., None]
    wall = np.array([0.98, 0.62, 0.5]) + rng.normal(0, 0.03, 3)
    growth = wall * rng.choice([[1.02, 0.68, 0.72], [1.04, 1.2, 1.3], [0.9, 0.78, 0.72]])
    color = wall * (1 - vessels[..., None] * [0.1, 0.35, 0.35]) * (1 - inside) + growth * inside
    color = color * (1 + 0.07 * inside * smooth_noise(rng, shape, 3)[..., None])
    stool = soft_inside(lesion_distance(rng, shape, ("lobed",), reach=0.07, rough=2.0), 3)[..., None] * clutter
    image = (color * (1 - stool) + np.array([0.85, 0.7, 0.2]) * stool) * light[..., None] * 1.12
    shiny = smooth_noise(rng, shape, 4) + 1.2 * (light - 0.72)
    image += 0.9 * np.clip((shiny - 2.1) * 2.5, 0, 1)[..., None]
    row, column = (np.abs(np.linspace(-1, 1, n)) for n in shape)
    octagon = row[:, None] + column < rng.uniform(1.55, 1.75)
    return np.where(octagon[..., None], image, 0.02), mask & octagon


def paint_skin_lesion(rng: Rng, shape: tuple[int, int], clutter: float) -> tuple[Array, Array]:
    """A brown lesion of uneven border and color on skin, under hairs, among freckles, ink and a red rash."""
    unit, (y, x) = min(shape), np.mgrid[: shape[0], : shape[1]]
    skin = np.array([0.86, 0.68, 0.6]) * rng.uniform(0.72, 1.08) + rng.normal(0, 0.025, 3)
    light = (
        1
        + 0.1 * smooth_noise(rng, shape, 60)
        + 0.025 * smooth_noise(rng, shape, 4)
        + 0.015 * smooth_noise(rng, shape, 1.2)
    )
    distance = lesion_distance(rng, shape, FORMS, reach=rng.uniform(0.24, 0.36), rough=rng.uniform(2, 4))
    mask = distance < 0
    redness = 0.5 + 0.5 * smooth_noise(rng, shape, 30)
    image = skin * (1 - 0.06 * np.clip(redness, 0, 1.5)[..., None] * [0.2, 1, 1])
    rash = soft_inside(lesion_distance(rng, shape, ("lobed", "slanted", "crescent"), reach=0.25, rough=3.0), 9)[
        ..., None
    ]
    # Red, as dark as some lesions, and not one.
    image = image * (1 - clutter * rash * rng.uniform(0.5, 1) * [0.12, 0.5, 0.45])

    brown = skin * rng.choice([[0.72, 0.55, 0.42], [0.55, 0.42, 0.36], [0.8, 0.58, 0.55]])
    patches = np.clip(0.6 + 0.5 * smooth_noise(rng, shape, 12) + 0.2 * smooth_noise(rng, shape, 3), 0, 1.4)[..., None]
    inside = (
        soft_inside(distance, rng.uniform(3, 7))[..., None]
        * np.clip(0.95 + 0.1 * smooth_noise(rng, shape, 9), 0, 1)[..., None]
    )
    pigment = brown * (1.12 - 0.35 * patches) * (1 + 0.06 * smooth_noise(rng, shape, 2.0)[..., None])
    image = image * (1 - inside) + pigment * inside
    freckles = np.clip((smooth_noise(rng, shape, 5) - 1.9) * 1.5, 0, 1)[..., None]
    image = image * (1 - 0.4 * clutter * freckles * [0.6, 1, 1.2])
    if rng.random() < 0.4:  # a surgeon's ink
        ink = (
            soft_inside(lesion_distance(rng, shape, ("slanted", "spiked"), reach=0.1, rough=2.5), 2)[..., None]
            * (distance > 3)[..., None]
        )
        image = image * (1 - 0.75 * clutter * ink) + np.array([0.3, 0.15, 0.5]) * 0.75 * clutter * ink
    image = image * light[..., None]
    hair = clutter * hairs(rng, shape)[..., None]
    image = image * (1 - 0.75 * hair) + 0.08 * hair
    corner = np.hypot(y - shape[0] / 2, x - shape[1] / 2) / (unit * rng.uniform(0.55, 0.85))
    return image * np.clip(1.75 - corner, 0.05, 1)[..., None], mask
