# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import bootstrap

from monai_kdsam.report.intervals import estimate, estimate_mean_of_sets, few_subjects_note, holm, signed_rank_test


def names(count):
    return [str(number) for number in range(count)]


def test_the_interval_holds_the_true_mean_about_95_times_in_100():
    rng = np.random.default_rng(0)
    held = [
        low <= 0.7 <= high for _, low, high, _ in (estimate(rng.normal(0.7, 0.2, 40), names(40)) for _ in range(120))
    ]
    assert 0.90 <= np.mean(held) <= 0.98


def test_the_interval_is_about_that_of_the_normal_distribution():
    values = np.random.default_rng(1).normal(0, 1, 400)
    found = estimate(values, names(400))
    error = values.std() / 20
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)


def test_frames_of_one_subject_are_not_more_subjects():
    values = np.random.default_rng(2).normal(0, 1, 30)
    alone, repeated = estimate(values, names(30)), estimate(np.repeat(values, 4), np.repeat(names(30), 4).tolist())
    assert repeated.mean == pytest.approx(alone.mean)
    assert (repeated.low, repeated.high) == pytest.approx((alone.low, alone.high))
    independent = estimate(np.repeat(values, 4), names(120))
    assert independent.high - independent.low < 0.6 * (alone.high - alone.low)


def test_the_interval_is_scipys_of_the_means_of_subjects_of_equal_size():
    values = np.random.default_rng(4).gamma(1, 1, 25)
    found = estimate(np.repeat(values, 3), np.repeat(names(25), 3).tolist())
    low, high = bootstrap(
        (values,), np.mean, n_resamples=20000, method="percentile", random_state=1
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.06)


def test_sets_of_few_subjects_are_named():
    assert few_subjects_note({"busi": 20, "kvasir": 800}) == ""
    assert "Fewer than 20 subjects: hc18 (19). Their 95 % intervals" in few_subjects_note({"hc18": 19, "busi": 20})


def test_one_subject_has_no_interval():
    found = estimate([0.5, 0.7], ["a", "a"])
    assert found.mean == pytest.approx(0.6)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_every_set_counts_the_same_in_the_mean_of_sets():
    found = estimate_mean_of_sets([([1.0] * 90, names(90)), ([0.0] * 10, names(10))])
    assert found == (0.5, 0.5, 0.5, 100)


def test_the_signed_rank_test_finds_a_difference_and_none_where_there_is_none():
    rng = np.random.default_rng(3)
    assert signed_rank_test(rng.normal(0.05, 0.05, 40), names(40)) < 0.001
    assert signed_rank_test(np.tile([0.1, -0.1], 20), names(40)) > 0.9
    assert signed_rank_test(np.zeros(8), names(8)) == 1
    # Five images of one subject are one observation.
    assert signed_rank_test(np.full(5, 0.3), ["a"] * 5) == 1


def test_holm_is_never_below_the_raw_p_and_keeps_the_order():
    raw = np.random.default_rng(4).uniform(0, 0.2, 12)
    adjusted = np.array(holm(raw))
    assert (adjusted >= raw).all()
    assert (np.diff(adjusted[np.argsort(raw)]) >= 0).all()
    assert adjusted.min() == pytest.approx(min(1, 12 * raw.min()))
