# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from monai_kdsam.data.phantoms import PHANTOM_KINDS, make_phantom, write_phantoms


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def box_and_ellipse(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.nonzero(mask)
    y, x = np.indices(mask.shape)
    across = (2 * x - columns.min() - columns.max()) / (np.ptp(columns) + 1)
    down = (2 * y - rows.min() - rows.max()) / (np.ptp(rows) + 1)
    return (np.abs(across) < 1) & (np.abs(down) < 1), across**2 + down**2 <= 1


def best_threshold(image: np.ndarray, mask: np.ndarray) -> float:
    """Dice of the best of all thresholds, chosen by looking at the mask."""
    gray = ndimage.gaussian_filter(image.mean(2), 1.5)
    cuts = np.quantile(gray, np.linspace(0.05, 0.95, 19))
    return max(dice(side, mask) for cut in cuts for side in (gray < cut, gray >= cut))


@pytest.fixture(scope="module")
def fifty() -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    return {kind: [make_phantom(kind, seed=seed) for seed in range(25)] for kind in PHANTOM_KINDS}


def test_filling_the_box_is_a_poor_answer(fifty) -> None:
    pairs = [(mask, *box_and_ellipse(mask)) for kind in fifty.values() for _, mask in kind]
    assert np.mean([dice(box, mask) for mask, box, _ in pairs]) < 0.72
    assert np.mean([dice(ellipse, mask) for mask, _, ellipse in pairs]) < 0.82


def test_a_brightness_threshold_is_a_poor_answer_even_the_best_one(fifty) -> None:
    scores = {kind: np.mean([best_threshold(*pair) for pair in pairs]) for kind, pairs in fifty.items()}
    assert max(scores.values()) < 0.8
    assert np.mean(list(scores.values())) < 0.6


@pytest.mark.parametrize("kind", PHANTOM_KINDS)
def test_a_lesion_differs_from_what_surrounds_it(fifty, kind) -> None:
    for image, mask in fifty[kind]:
        ring = ndimage.binary_dilation(mask, iterations=12) & ~ndimage.binary_dilation(mask, iterations=3)
        ring &= image.max(2) > 8  # not what lies outside the sector or the endoscope's view
        assert np.abs(image[mask].mean(0) - image[ring].mean(0)).max() > 8


@pytest.mark.parametrize("kind", PHANTOM_KINDS)
def test_masks_are_neither_empty_nor_nearly_the_whole_image(kind) -> None:
    areas = [make_phantom(kind, size=96, seed=seed)[1].mean() for seed in range(100, 250)]
    assert min(areas) > 0.02
    assert max(areas) < 0.5


def test_sizes_vary_between_three_quarters_and_all_of_the_size_asked_for(fifty) -> None:
    sides = [side for pairs in fifty.values() for _, mask in pairs for side in mask.shape]
    assert 120 <= min(sides) < 125
    assert 155 < max(sides) <= 160
    assert any(mask.shape[0] != mask.shape[1] for _, mask in fifty["polyp"])


@pytest.mark.parametrize("kind", PHANTOM_KINDS)
def test_the_same_seed_gives_the_same_picture_and_another_seed_another(kind) -> None:
    (image, mask), (again, mask_again) = make_phantom(kind, seed=7), make_phantom(kind, seed=7)
    assert np.array_equal(image, again)
    assert np.array_equal(mask, mask_again)
    other = make_phantom(kind, seed=8)[0]
    assert image.shape != other.shape or not np.array_equal(image, other)


@pytest.mark.parametrize("kind", PHANTOM_KINDS)
def test_clutter_changes_the_picture_and_not_the_mask(kind) -> None:
    (full, mask), (plain, same_mask) = make_phantom(kind, seed=7), make_phantom(kind, seed=7, clutter=0.0)
    assert np.array_equal(mask, same_mask)
    assert not np.array_equal(full, plain)


# Shape, area and sum of all pixels, computed with numpy 1.26.4 and scipy 1.13.1 on Python 3.10.
@pytest.mark.parametrize(
    ("kind", "shape", "area", "total"),
    [
        ("breast_lesion", (159, 124), 2986, 5000988),
        ("polyp", (153, 149), 4510, 8781650),
    ],
)
def test_pictures_are_the_same_with_every_numpy(kind, shape, area, total) -> None:
    image, mask = make_phantom(kind, seed=11)
    assert image.shape[:2] == shape
    assert mask.sum() == area
    assert image.sum(dtype=int) == total


def test_written_phantoms_are_image_and_mask_pairs_by_name(tmp_path) -> None:
    folder = write_phantoms(tmp_path / "new" / "set", per_kind=2, seed=5, size=64)
    names = [f"{kind}_{n:03d}.png" for kind in PHANTOM_KINDS for n in range(2)]
    assert sorted(path.name for path in (folder / "images").iterdir()) == sorted(names)
    assert sorted(path.name for path in (folder / "masks").iterdir()) == sorted(names)
    image, mask = (Image.open(folder / part / names[0]) for part in ("images", "masks"))
    assert (image.mode, mask.mode, image.size) == ("RGB", "L", mask.size)
    assert set(np.unique(mask)) == {0, 255}


def test_two_seeds_write_different_sets(tmp_path) -> None:
    one, two = (write_phantoms(tmp_path / str(seed), per_kind=1, seed=seed, size=64) for seed in (0, 1))
    for path in (one / "images").iterdir():
        assert path.read_bytes() != (two / "images" / path.name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "liver", "seed": 0}, "`kind` to be one of breast_lesion, polyp, got 'liver'"),
        ({"kind": "polyp", "seed": -1}, "`seed` to be 0 or more, got -1"),
        ({"kind": "polyp", "seed": 0, "size": 20}, "`size` to be at least 48 pixels, got 20"),
        ({"kind": "polyp", "seed": 0, "clutter": 2}, "`clutter` to be between 0 and 1, got 2"),
    ],
)
def test_wrong_arguments_are_named(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        make_phantom(**arguments)


def test_writing_where_a_file_stands_says_so(tmp_path) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(ValueError, match=r"Could not write phantoms to .*taken.*choose another folder"):
        write_phantoms(tmp_path / "taken", per_kind=1)
    with pytest.raises(ValueError, match="`per_kind` to be between 1 and 100000, got 0"):
        write_phantoms(tmp_path, per_kind=0)
