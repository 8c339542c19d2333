"""Fréchet distances and quartic discrepancies with values in closed form."""

import numpy as np
import pytest

from mmtok.metrics.images import frechet
from mmtok.metrics.moments import Frechet, Mmd, frechet_squared


def test_frechet_of_gaussians_of_one_orientation():
    a = np.diag([1.0, 4.0])
    b = np.diag([9.0, 4.0])
    mean = np.array([1.0, -2.0])
    assert frechet_squared(mean, a, 0 * mean, b) == pytest.approx(5 + (1 - 3) ** 2)


def test_frechet_of_constant_points():
    zeros = np.zeros((200, 2))
    assert Frechet().measure(zeros, zeros)["fgd"] == pytest.approx(0, abs=1e-12)
    assert Frechet().measure(zeros + 2, zeros)["fgd"] == pytest.approx(8)
    assert Frechet().measure(zeros + 1, zeros)["fgd"] == pytest.approx(2)


def test_extrapolation_takes_the_bias_away(rng):
    """Of alike sets the plain distance is positive, and the extrapolated one 0 on average."""
    plain = []
    extrapolated = []
    for _ in range(40):
        x = rng.normal(size=(300, 4))
        y = rng.normal(size=(300, 4))
        plain.append(frechet(x, y))
        extrapolated.append(Frechet().measure(x, y)["fgd"])
    error = np.std(extrapolated) / np.sqrt(40)
    assert abs(np.mean(extrapolated)) < 4 * error
    assert np.mean(plain) > 10 * error


def test_extrapolated_frechet_of_gaussians(rng):
    """|delta mu|^2 + sum (s1 - s2)^2."""
    x = rng.normal(size=(20_000, 3))
    y = rng.normal(size=(20_000, 3)) * [1, 2, 1] + [0.5, 0, 0]
    assert Frechet().measure(x, y)["fgd"] == pytest.approx(0.25 + 1, rel=0.05)


@pytest.mark.parametrize("statistic", [Frechet(), Mmd()])
def test_orders_of_the_pooled_points_give_the_same(rng, statistic):
    z = rng.normal(size=(400, 3))
    order = rng.permutation(400)
    by_order = statistic.permuter(z, 180)(order)
    direct = statistic.measure(z[order[:180]], z[order[180:]])
    (name,) = statistic.names
    scale = 1e-9
    if name == "fgd":  # subsets are others
        scale = 0.05
    assert by_order[name] == pytest.approx(direct[name], abs=scale)


def test_quartic_discrepancies_in_closed_form(rng):
    """(x . y / d + 1)^4 of constant points, and of N(0, 1) against N(0.5, 1) as a mean of many."""
    zeros = np.zeros((30, 2))
    assert Mmd().measure(zeros + 2, zeros)["mmd"] == pytest.approx(624)
    assert Mmd().measure(zeros + 1, zeros)["mmd"] == pytest.approx(15)
    found = [
        Mmd().measure(rng.normal(size=(2000, 1)), rng.normal(0.5, 1, (2000, 1)))["mmd"]
        for _ in range(300)
    ]
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found) - 14.37890625) < 3.5 * error and error < 0.2


@pytest.mark.parametrize("d, n", [(2, 300), (12, 40)])  # by moments, and by blocks
def test_quartic_discrepancy_is_the_sum_over_pairs(rng, d, n):
    x = rng.normal(size=(n, d))
    y = rng.normal(size=(n - 7, d)) + 0.3

    def kernel(a, b):
        return (a @ b.T / d + 1) ** 4

    def within(a):
        k = kernel(a, a)
        return (k.sum() - np.trace(k)) / (len(a) * (len(a) - 1))

    expected = within(x) + within(y) - 2 * kernel(x, y).mean()
    assert Mmd().measure(x, y)["mmd"] == pytest.approx(expected, rel=1e-9)
