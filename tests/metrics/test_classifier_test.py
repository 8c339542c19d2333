"""Classifier tests: optima in closed form, and nulls."""

import numpy as np
import pytest
from scipy.stats import norm

from mmtok.errors import UserError
from mmtok.metrics.classifier_test import auc, classifier_test


@pytest.mark.parametrize("delta", [0.5, 1.0])
def test_two_normals_are_told_apart_as_well_as_they_can_be(rng, delta):
    """Accuracy Phi(delta / 2), AUC Phi(delta / sqrt 2)."""
    x = rng.normal(size=(8000, 2))
    y = rng.normal(size=(8000, 2)) + [delta, 0]
    found = classifier_test(x, y, "linear", n_permutations=99)
    assert abs(found.accuracy - norm.cdf(delta / 2)) < 3 * found.accuracy_sd
    assert abs(found.auc - norm.cdf(delta / np.sqrt(2))) < 3 * found.auc_sd
    assert found.p_value == 0.01


def test_the_nulls_spread_is_mann_and_whitneys(rng):
    found = classifier_test(rng.normal(size=(300, 2)), rng.normal(size=(200, 2)), "linear")
    assert (found.n, found.m) == (150, 100)
    assert found.null.std() == pytest.approx(found.auc_sd, rel=0.08)
    assert found.null.mean() == pytest.approx(0.5, abs=0.01)
    assert abs(found.auc - 0.5) < 4 * found.auc_sd
    assert classifier_test(np.zeros((8, 1)), np.zeros((8, 1)), "linear").auc == 0.5


def test_spreads_are_found_by_quadratic_and_boosted_classifiers_only(rng):
    x = rng.normal(size=(1500, 2))
    y = rng.normal(size=(1500, 2)) * 1.6
    assert abs(classifier_test(x, y, "linear").auc - 0.5) < 0.08
    assert classifier_test(x, y, "quadratic").auc > 0.6
    pytest.importorskip("sklearn")
    assert classifier_test(x, y, "boosted").auc > 0.6


def test_auc_counts_pairs():
    assert auc([0, 1], [1, 2]) == pytest.approx(3.5 / 4)
    assert auc([3], [1, 2]) == 0


def test_a_classifier_of_ones_own(rng):
    def fit(points, labels):
        assert len(points) == len(labels)
        return np.ravel

    assert classifier_test(np.zeros((8, 1)), np.ones((8, 1)), fit).auc == 1
    with pytest.raises(UserError, match="'x' is unknown"):
        classifier_test(np.zeros((8, 1)), np.ones((8, 1)), "x")
    with pytest.raises(UserError, match="4 points"):
        classifier_test(np.zeros((3, 1)), np.ones((8, 1)))
