"""Intervals that hold the truth as often as they say, and p-values of known examples."""

import numpy as np
import pytest

from mmtok.metrics.intervals import (
    LEVEL,
    Estimate,
    mean_difference,
    mean_estimate,
    paired_difference,
    ratio_estimate,
    width_estimate,
)


def test_intervals_of_means_hold_the_truth_as_often_as_they_say(rng):
    n_held = 0
    for _ in range(150):
        estimate = mean_estimate(rng.normal(2, 1, 40))
        n_held += estimate.low <= 2 <= estimate.high
    assert abs(n_held / 150 - LEVEL) < 0.06


def test_an_interval_is_as_wide_as_the_normal_one(rng):
    values = rng.normal(0, 3, 400)
    value, low, high, n = mean_estimate(values)
    assert value == pytest.approx(values.mean()) and n == 400
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_a_ratio_is_of_sums_and_keeps_pairs_together():
    assert ratio_estimate([1, 0], [1, 9]).value == pytest.approx(0.1)
    same = ratio_estimate([1, 2, 30], [2, 4, 60])  # of equal rates nothing varies
    assert (same.value, same.low, same.high) == pytest.approx((0.5, 0.5, 0.5))


def test_what_was_not_measured_is_left_out_and_nothing_is_no_number():
    assert mean_estimate([1.0, np.nan, 3.0])[::3] == (2.0, 2)
    for estimate in (mean_estimate([]), mean_estimate([np.nan]), ratio_estimate([1], [0])):
        assert np.isnan(estimate.value) and estimate.named("x") == {}
    assert mean_estimate([4.0]).named("x") == {"x": 4.0}
    assert Estimate(1.0, 0.5, 1.5, 9).named("x") == {"x": 1.0, "x_low": 0.5, "x_high": 1.5}


def test_pairs_tell_small_differences_apart_and_equal_ones_not(rng):
    base = rng.normal(0, 5, 60)
    difference, p = paired_difference(base + 0.1 + 0.01 * rng.normal(size=60), base)
    assert difference.low > 0.09 and p < 0.001
    _, p = paired_difference(base, base)
    assert p == 1
    assert paired_difference([1, np.nan, 3], [0, 0, 0])[0].n == 2
    with pytest.raises(ValueError, match="no pairs"):
        paired_difference([1], [1, 2])


def test_sets_of_different_signals(rng):
    apart = mean_difference(rng.normal(1, 1, 200), rng.normal(0, 1, 300))
    assert 0.6 < apart.low < 1 < apart.high < 1.4 and apart.n == 200
    assert np.isnan(mean_difference([], [1.0]).value)


def test_a_width_is_that_of_the_middle_of_the_values(rng):
    values = rng.normal(5, 2, 2000)
    found = width_estimate(values)
    assert found.low < 2 * 0.9945 < found.high  # a normal one's half of 68 %
    far = np.concatenate((values, [1e9] * 20))
    assert width_estimate(far).value == pytest.approx(found.value, rel=0.05)
    assert width_estimate([3.0]).named("x") == {"x": 0.0} and width_estimate([]).n == 0
