# SPDX-License-Identifier: Apache-2.0
"""Images of an official split that are in two of its lists."""

from __future__ import annotations

import csv
import io
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from monai_kdsam.data.layouts import Item
from monai_kdsam.data.splits import held_out_relatives
from monai_kdsam.files import write_text

__all__ = ["warn_of_shared_images"]

logger = logging.getLogger(__name__)
COLUMNS = ("image", "list", "why", "other_image", "other_list")


def warn_of_shared_images(
    items: Sequence[Item], groups: Sequence[int] | np.ndarray, splits: Mapping[str, list[Item]], split_file: Path
) -> None:
    """Log how many images of one list are in a later one too, by what, and list them in ``<split file>_shared.csv``.

    Args:
        items: of all lists.
        groups: of `items`, see `duplicate_groups`.
        splits: the lists by name.
        split_file: beside which the table is written.
    """
    group_of = dict(zip([item["image"] for item in items], groups, strict=True))
    table, rows = split_file.with_name(f"{split_file.stem}_shared.csv"), []
    for name, held_out in (("training", ("validation", "test")), ("validation", ("test",))):
        others = [(item, other) for other in held_out for item in splits[other]]
        relatives = held_out_relatives(items, [item for item, _ in others], groups=groups)
        found = [_shared(item, name, others, group_of) for item in splits[name] if item["image"] in relatives]
        if found:
            reasons = ", ".join(f"{count} by {why}" for why, count in Counter(row[2] for row in found).items())
            logger.warning(
                f"{len(found)} images of the official list {name!r} are also in {' or '.join(held_out)} ({reasons}); "
                f"figures of {' and '.join(held_out)} are too good. The first is {found[0][0]} ({found[0][3]}); "
                f"all are in {table}."
            )
        rows += found
    if rows:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows])
        write_text(table, text.getvalue())


def _shared(
    item: Item, name: str, others: Sequence[tuple[Item, str]], group_of: Mapping[str, int]
) -> tuple[str, str, str, str, str]:
    """A row of the table, with the nearest reason and an image for which it holds."""
    subject, image = (item["source"], item["subject"]), item["image"]
    for why, is_so in (
        ("file", lambda other: other["image"] == image),
        ("subject", lambda other: (other["source"], other["subject"]) == subject),
        ("likeness", lambda other: group_of[other["image"]] == group_of[image]),
    ):
        for other, where in others:
            if is_so(other):
                return image, name, why, other["image"], where
    return image, name, "way of others", "", ""  # a duplicate of another image of a held-out subject
