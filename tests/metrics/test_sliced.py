"""Exact distances along axes and directions."""

import numpy as np
import pytest
from scipy.special import gammaln
from scipy.stats import ks_2samp, norm, wasserstein_distance

from mmtok.metrics.sliced import Sliced, directions


def test_directions_are_unit_and_always_the_same():
    u = directions(4)
    np.testing.assert_allclose(np.linalg.norm(u, axis=1), 1)
    np.testing.assert_array_equal(u, directions(4))


@pytest.mark.parametrize("n, m", [(30, 30), (31, 17), (1, 5)])
@pytest.mark.parametrize("ties", [False, True])
def test_one_coordinate_agrees_with_scipy(rng, n, m, ties):
    x = rng.normal(size=(n, 1))
    y = rng.normal(0.3, 2, (m, 1))
    if ties:
        x = np.round(x)
        y = np.round(y)
    found = Sliced(1).measure(x, y)
    assert found["ks"] == pytest.approx(ks_2samp(x[:, 0], y[:, 0]).statistic, abs=1e-12)
    assert found["sks"] == pytest.approx(found["ks"], abs=1e-12)
    distance = wasserstein_distance(x[:, 0], y[:, 0])
    assert found["sw"] == pytest.approx(distance, abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n, m", [(40, 40), (40, 23)])
def test_orders_of_the_pooled_points_give_the_same(rng, n, m, ties):
    z = rng.normal(size=(n + m, 3))
    if ties:
        z = np.round(z)
    statistic = Sliced(3, n_directions=7)
    measure = statistic.permuter(z, n)
    for _ in range(3):
        order = rng.permutation(n + m)
        direct = statistic.measure(z[order[:n]], z[order[n:]])
        by_order = measure(order)
        for name in ("ks", "sks", "sw"):
            assert by_order[name] == pytest.approx(direct[name], abs=1e-9)


@pytest.mark.parametrize("d", [2, 3, 5, 20])
def test_sliced_wasserstein_of_a_shift(rng, d):
    """|delta| E|u_1|, with E|u_1| = G(d / 2) / (sqrt(pi) G((d + 1) / 2))."""
    x = rng.normal(size=(50, d))
    k = 4000
    shift = np.zeros(d)
    shift[0] = 2.0
    found = Sliced(d, ("sw",), n_directions=k).measure(x, x + shift)["sw"]
    expected = 2 * np.exp(gammaln(d / 2) - gammaln((d + 1) / 2)) / np.sqrt(np.pi)
    assert found == pytest.approx(expected, rel=4 / np.sqrt(k))
    assert found == pytest.approx(2 * np.abs(directions(d, k)[:, 0]).mean(), rel=1e-9)


@pytest.mark.parametrize("delta, expected", [(0.1, 0.039878), (0.5, 0.197413)])
def test_ks_of_two_normals(delta, expected):
    """2 Phi(delta / 2) - 1, by points at the quantiles."""
    x = norm.ppf((np.arange(20_000) + 0.5) / 20_000)[:, None]
    assert Sliced(1, ("ks",)).measure(x, x + delta)["ks"] == pytest.approx(expected, abs=1e-4)


def test_identity_is_zero(rng):
    x = rng.normal(size=(25, 4))
    assert Sliced(4).measure(x, x[::-1]) == pytest.approx({"ks": 0, "sks": 0, "sw": 0})
