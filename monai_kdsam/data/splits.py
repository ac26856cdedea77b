# SPDX-License-Identifier: Apache-2.0
"""Split items into training, validation and test, so that neither a subject nor a duplicate is on two sides."""

from __future__ import annotations

import logging
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.ndimage import uniform_filter
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from monai_kdsam.data.layouts import SPLITS, UNLABELED, Item
from monai_kdsam.errors import UserError

__all__ = ["FEW", "duplicate_groups", "held_out_relatives", "hold_out", "split_all", "split_items"]

# With fewer images than this to compare on, a mean says little.
FEW = 3
logger = logging.getLogger(__name__)
BLOCK = 1024  # rows of the correlation matrix held at a time


def duplicate_groups(thumbnails: np.ndarray, *, threshold: float = 0.86) -> np.ndarray:
    """Group exact and near duplicates.

    Two images are duplicates if their thumbnails correlate after the local mean (7 x 7) is taken away, without which
    the common shape of all ultrasound sectors or endoscope frames would count as likeness. Groups are closed under
    "duplicate of a duplicate".

    Among 1420 images of Kvasir-SEG, ISIC 2017, HC18 and BUSI, 24 pairs are above the default (17 of them in BUSI), from
    0.874 up to 1.000, and the six least alike are duplicates by eye; the highest pair below, two polyps under one
    overlay, has 0.839. The largest group has 3 images. A lesion seen again at another zoom is not found.

    Args:
        thumbnails: (N, H, W) gray pictures, from :func:`monai_kdsam.data.checks.inspect_items`.
        threshold: lowest correlation of duplicates.

    Returns:
        (N,) group numbers; equal numbers are duplicates. An image without contrast is alone.

    >>> picture = np.random.RandomState(0).rand(2, 32, 32)
    >>> duplicate_groups(np.stack([picture[0], picture[1], 0.5 * picture[0] + 3])).tolist()
    [0, 1, 0]
    """
    if thumbnails.ndim != 3:
        raise UserError(f"Expected `thumbnails` of shape (N, H, W), got {thumbnails.shape}.")
    detail = thumbnails.astype(np.float32) - uniform_filter(thumbnails.astype(np.float32), (1, 7, 7), mode="nearest")
    vectors = detail.reshape(len(detail), detail.shape[1] * detail.shape[2])
    vectors = vectors - vectors.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 1e-3)
    pairs = [
        np.argwhere(vectors[start : start + BLOCK] @ vectors.T > threshold) + np.array([start, 0])
        for start in range(0, len(vectors), BLOCK)
    ]
    return _connected(np.concatenate([np.empty((0, 2), dtype=int), *pairs]), len(vectors))


def split_items(
    items: Sequence[Item],
    *,
    groups: Sequence[int] | np.ndarray | None = None,
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
    seed: int = 0,
) -> dict[str, list[Item]]:
    """Split items at random, each source in the given proportions.

    What belongs together stays together: items of one subject of one source, and items of one group. The result does
    not depend on the order of the items.

    Args:
        items: dictionaries with `image`, `source` and `subject`.
        groups: one group number per item, as :func:`duplicate_groups` gives.
        fractions: of training, validation and test, adding up to 1; a list of fraction 0 stays empty.
        seed: another seed, another split.

    Returns:
        the lists "training", "validation" and "test", each sorted by source and image.

    Raises:
        ValueError: the fractions are no fractions, or a source has too few groups to give each list one.

    >>> items = [{"image": f"{n}.png", "source": "s", "subject": str(n // 2)} for n in range(20)]
    >>> {name: len(split) for name, split in split_items(items).items()}
    {'training': 14, 'validation': 2, 'test': 4}
    """
    check_fractions(fractions)
    members: dict[int, list[Item]] = {}
    for item, unit in zip(items, _units(items, groups), strict=True):
        members.setdefault(int(unit), []).append(item)
    by_source: dict[str, list[list[Item]]] = {}
    for unit in sorted((sorted(unit, key=_identity) for unit in members.values()), key=lambda unit: _identity(unit[0])):
        # A duplicate across sources counts for the first of them.
        by_source.setdefault(unit[0]["source"], []).append(unit)
    splits: dict[str, list[Item]] = {name: [] for name in SPLITS}
    for source, units in sorted(by_source.items()):
        for name, chosen in zip(SPLITS, _allot(units, fractions, seed, source), strict=True):
            splits[name] += [item for unit in chosen for item in unit]
    return {name: sorted(split, key=_identity) for name, split in splits.items()}


def split_all(
    items: Sequence[Item],
    groups: Sequence[int] | np.ndarray,
    *,
    use_official_split: bool,
    fractions: tuple[float, float, float],
    seed: int,
) -> tuple[dict[str, list[Item]], list[Item]]:
    """Split items as `split_items`, those with an official split as that says, and list unlabeled ones apart.

    Returns:
        the lists, "unlabeled" among them where there are such items; and the unlabeled items that belong together with
        one of "validation" or "test", which are in no list.
    """
    official = [use_official_split and "official_split" in item for item in items]
    drawn = [number for number, item in enumerate(items) if "label" in item and not official[number]]
    splits = split_items(
        [items[number] for number in drawn],
        groups=[groups[number] for number in drawn],
        fractions=fractions,
        seed=seed,
    )
    for item, is_official in zip(items, official, strict=True):
        if is_official:
            splits[item["official_split"]].append(item)
    bare = [name for name in SPLITS if not splits[name]]
    if bare and any(official):
        logger.warning(f"The official split has no {' and no '.join(bare)} images.")
    unlabeled = [item for item in items if "label" not in item]
    if not unlabeled:
        return splits, []
    relatives = held_out_relatives(items, splits["validation"] + splits["test"], groups=groups)
    splits[UNLABELED] = [item for item in unlabeled if item["image"] not in relatives]
    return splits, [item for item in unlabeled if item["image"] in relatives]


def held_out_relatives(
    items: Sequence[Item], held_out: Sequence[Item], *, groups: Sequence[int] | np.ndarray | None = None
) -> set[str]:
    """The images that belong together with a held-out one, by subject or group, itself among them.

    Args:
        items: all items.
        held_out: some of them, of validation and test.
        groups: of `items`, as in `split_items`.

    >>> items = [{"image": f"{n}.png", "source": "s", "subject": str(n // 2)} for n in range(4)]
    >>> sorted(held_out_relatives(items, items[2:3]))
    ['2.png', '3.png']
    """
    units, images = _units(items, groups), {item["image"] for item in held_out}
    of_held_out = {unit for unit, item in zip(units, items, strict=True) if item["image"] in images}
    return {item["image"] for unit, item in zip(units, items, strict=True) if unit in of_held_out}


def check_fractions(fractions: Sequence[float]) -> None:
    """Raise a ValueError unless there are three fractions that add up to 1."""
    if len(fractions) != len(SPLITS) or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise UserError(f"Expected `fractions` of {', '.join(SPLITS)} that add up to 1, got {tuple(fractions)}.")


def _identity(item: Item) -> tuple[str, str]:
    return item["source"], item["image"]


def _connected(pairs: np.ndarray, count: int) -> np.ndarray:
    graph = coo_matrix((np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return connected_components(graph, directed=False)[1]


def _units(items: Sequence[Item], groups: Sequence[int] | np.ndarray | None) -> np.ndarray:
    """Number the sets of items that may not part: connected by subject or by group."""
    if groups is not None and len(groups) != len(items):
        raise UserError(f"Expected one of `groups` for each of the {len(items)} items, got {len(groups)}.")
    first: dict[tuple, int] = {}
    pairs = [(n, first.setdefault((item["source"], item["subject"]), n)) for n, item in enumerate(items)]
    if groups is not None:
        pairs += [(n, first.setdefault((int(group),), n)) for n, group in enumerate(groups)]
    return _connected(np.array(pairs, dtype=int).reshape(-1, 2), len(items))


def _allot(units: list[list[Item]], fractions: Sequence[float], seed: int, source: str) -> list[list[list[Item]]]:
    """Give each unit, in random order, to the list that is furthest from its share."""
    wanted = [n for n, fraction in enumerate(fractions) if fraction > 0]
    if len(units) < len(wanted):
        raise UserError(
            f"Source {source!r} has {len(units)} group(s) of subjects and duplicates, too few for {len(wanted)} lists. "
            "Add images, or set the fraction of the test list to 0 if it is not needed."
        )
    missing = np.array(fractions) * sum(len(unit) for unit in units)
    chosen: list[list[list[Item]]] = [[] for _ in fractions]
    # Of its own for each source, or sources of equal size would be split in parallel.
    order = np.random.RandomState([seed, zlib.crc32(source.encode())]).permutation(len(units))
    for number in order:
        target = max(wanted, key=lambda n: missing[n])
        chosen[target].append(units[number])
        missing[target] -= len(units[number])
    for target in wanted:
        if not chosen[target]:
            donor = max(wanted, key=lambda n: len(chosen[n]))
            smallest = min(range(len(chosen[donor])), key=lambda n: len(chosen[donor][n]))
            chosen[target].append(chosen[donor].pop(smallest))
    return chosen


def counts(splits: Mapping[str, list[Item]]) -> dict[str, dict[str, int]]:
    """Number of items per list and source.

    >>> counts({"training": [{"source": "busi"}, {"source": "busi"}], "test": []})
    {'training': {'busi': 2}, 'test': {}}
    """
    return {name: dict(sorted(Counter(item["source"] for item in split).items())) for name, split in splits.items()}


def hold_out(images: Sequence[str], earlier: Mapping[str, bool], fraction: float) -> dict[str, bool]:
    """Choose the images that models are compared on, and never choose otherwise later.

    An image that the served model has learned from would favor it in every later comparison; so what was once held out
    stays held out, what was once learned from is learned from again, and new images fill up what is missing. At
    least 3 images are held out, but never more than half.

    Args:
        images: checksums of the labelled images, in any order; images of equal content count once.
        earlier: whether an image was held out, of those that there was a choice for.
        fraction: of the images to hold out.

    Returns:
        Whether each image is held out; those of `earlier` that have lost their label included.

    Raises:
        ValueError: with fewer than two different images, or a fraction that is none.

    Example:
        >>> sorted(hold_out(["a", "b", "c", "d"], {"a": False}, 0.2).items())
        [('a', False), ('b', True), ('c', True), ('d', False)]
    """
    if not 0 < fraction < 1:
        raise UserError(f"Expected `val_split` between 0 and 1, got {fraction}.")
    present = sorted(set(images))
    if len(present) < 2:
        raise UserError(
            "Expected labels of at least 2 different images, one to learn from and one to compare on, "
            f"got {len(present)}. Submit labels, with the tag `final`, first."
        )
    wanted = min(max(round(fraction * len(present)), FEW), len(present) // 2)
    choice = {image: earlier[image] for image in present if image in earlier}
    for image in present:
        choice.setdefault(image, sum(choice.values()) < wanted)
    # Labels may have been removed since: there must be something on either side.
    for side in (True, False):
        if side not in choice.values():
            choice[present[0]] = side
    return {**earlier, **choice}
