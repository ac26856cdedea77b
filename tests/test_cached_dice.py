# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of benchmarks/cached_dice.py; its runs take hours."""

from __future__ import annotations

import torch
from scipy.stats import ttest_rel
from torch import nn

from benchmarks.cached_dice import LastBit, table


def row(arm, seed, dice):
    return {"arm": arm, "seed": str(seed), "box": str(dice), "center": str(dice), "none": str(dice)}


def test_a_constant_difference_has_no_interval_and_is_as_far_apart_as_it_is_large():
    rows = [row("live", 0, 0.5), row("live", 1, 0.7), row("float16", 0, 0.51), row("float16", 1, 0.71)]
    assert "| float16 | 2 | +0.0100 ± 0.0000 | 0.0100 |" in table(rows)


def test_the_interval_is_scipys_of_the_paired_t_test():
    live, cached = [0.5, 0.6, 0.4, 0.55], [0.51, 0.58, 0.43, 0.56]
    rows = [row("live", n, dice) for n, dice in enumerate(live)] + [row("int8", n, d) for n, d in enumerate(cached)]
    low, high = ttest_rel(cached, live).confidence_interval(0.95)
    assert f"| int8 | 4 | {(low + high) / 2:+.4f} ± {(high - low) / 2:.4f} |" in table(rows)


def test_an_arm_counts_only_the_seeds_that_also_ran_live():
    rows = [row("live", 0, 0.5), row("float16", 0, 0.5), row("float16", 1, 0.9)]
    assert "| float16 | 1 | +0.0000 ±" in table(rows)


def test_the_last_bit_is_all_that_changes():
    embedding = torch.randn(2, 4, 3, 3)
    moved = LastBit(nn.Identity())(embedding)
    assert (moved > embedding).all()
    assert torch.equal(torch.nextafter(moved, torch.full_like(moved, -torch.inf)), embedding)
    assert ((moved - embedding) / embedding.abs() < 1.2e-7).all()
