"""Declared changes of points, and the smallest that are found."""

import numpy as np
import pytest

from mmtok.errors import UserError
from mmtok.metrics.deformations import KINDS, Deformation, epsilon_limit


@pytest.mark.parametrize("kind", KINDS)
def test_none_at_epsilon_0(rng, kind):
    x = rng.normal(size=(50, 3))
    np.testing.assert_allclose(Deformation(kind, 0.0)(x, rng), x, atol=1e-12)


def test_what_they_change(rng):
    x = rng.normal(size=(500, 2)) @ [[1.0, 0.8], [0.0, 0.5]] + 3
    np.testing.assert_allclose(Deformation("shift", 0.2)(x, rng), x + 0.2)
    moved = Deformation("mean", 0.5)(x, rng) - x
    assert np.ptp(moved, axis=0) == pytest.approx(0) and (np.abs(moved) < 0.5).all()
    flat = Deformation("correlation", 0.5)(x, rng)
    expected = np.cov(x, rowvar=False) * [[1, 0.25], [0.25, 1]]
    np.testing.assert_allclose(np.cov(flat, rowvar=False), expected)
    np.testing.assert_allclose(flat.mean(0), x.mean(0))
    wider = Deformation("variance", 1.0)(x, rng)
    factors = wider.std(0) / x.std(0)
    assert ((factors > 1) & (factors < 2)).all()
    np.testing.assert_allclose(wider.mean(0), x.mean(0))
    assert Deformation("longer_tails", 1.0)(np.array([[-3.0]]), rng) == -9


def test_wrong_ones_are_refused(rng):
    with pytest.raises(UserError, match="'x' is unknown; one of shift"):
        Deformation("x", 0.1)
    with pytest.raises(UserError, match="must be >= 0"):
        Deformation("shift", -1.0)
    with pytest.raises(UserError, match="at most 1"):
        Deformation("correlation", 1.5)(rng.normal(size=(9, 2)), rng)


def test_the_limit_of_a_known_statistic():
    """The difference of means of n points: reached where epsilon is the threshold."""

    def measure(x, y):
        return float(y.mean() - x.mean())

    def reference(n, rng):
        return rng.normal(size=(n, 1))

    found = epsilon_limit(measure, reference, "shift", 0.3, 400)
    assert found.epsilon == pytest.approx(0.3, abs=0.05)
    spread = np.sqrt(2 / 400)
    assert found.high - found.epsilon == pytest.approx(spread, rel=0.5)
    assert found.epsilon - found.low == pytest.approx(spread, rel=0.5)
    with pytest.raises(UserError, match="not even"):
        epsilon_limit(measure, reference, "shift", 1e9, 9)


def test_limits_fall_as_the_square_root_of_n():
    from mmtok.metrics.sliced import Sliced
    from mmtok.metrics.statistics import toys

    def reference(n, rng):
        return rng.normal(size=(n, 2))

    def measure(x, y):
        return Sliced(2, ("sks",), 5).measure(x, y)["sks"]

    limits = []
    for n in (150, 1350):
        threshold = np.quantile(toys(reference, n, n, ("sks",), 100, 5)["sks"], 0.95)
        limits.append(epsilon_limit(measure, reference, "shift", threshold, n, 8, 0.05).epsilon)
    assert limits[0] / limits[1] == pytest.approx(3, rel=0.4)
