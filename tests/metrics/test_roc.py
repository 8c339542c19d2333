"""ROC curves: areas by counting, intervals that hold the truth, differences of the same signals."""

import numpy as np
import pytest
from scipy.stats import norm

from mmtok.metrics.intervals import LEVEL
from mmtok.metrics.roc import auc_difference, auc_estimate, roc


def test_the_area_is_how_often_pairs_are_in_order(rng):
    a = rng.integers(0, 6, 40).astype(float)
    b = rng.integers(1, 7, 30).astype(float)
    pairs = (b[:, None] > a) + (b[:, None] == a) / 2
    assert auc_estimate(a, b).value == pytest.approx(pairs.mean())
    curve = roc(a, b)
    assert np.trapezoid(curve.true, curve.false) == pytest.approx(pairs.mean())
    assert curve.false[[0, -1]].tolist() == curve.true[[0, -1]].tolist() == [0, 1]


def test_two_normals_have_the_area_that_is_known_and_intervals_hold_it(rng):
    truth = norm.cdf(1 / np.sqrt(2))  # of means 0 and 1
    n_held = 0
    for _ in range(60):
        estimate = auc_estimate(rng.normal(0, 1, 60), rng.normal(1, 1, 80))
        n_held += estimate.low <= truth <= estimate.high
    assert n_held / 60 > LEVEL - 0.09


def test_a_difference_of_the_same_scores_is_none_and_pairs_are_narrower(rng):
    a = rng.normal(0, 1, 300)
    b = rng.normal(1, 1, 300)
    assert auc_difference((a, b), (a, b))[:3] == (0, 0, 0)
    noisy = a + 0.1 * rng.normal(size=300), b + 0.1 * rng.normal(size=300)
    paired = auc_difference((a, b), noisy)
    alone = auc_estimate(a, b)
    assert paired.high - paired.low < (alone.high - alone.low) / 2
    with pytest.raises(ValueError, match="no pairs"):
        auc_difference((a, b), (a[1:], b))


def test_one_signal_has_no_interval_and_none_no_area():
    assert auc_estimate(np.array([0.0]), np.array([1.0])).named("auc") == {"auc": 1.0}
    assert auc_estimate(np.array([]), np.array([1.0])).named("auc") == {}
