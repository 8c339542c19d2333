"""Nulls, p-values and power of two-sample tests."""

import numpy as np
import pytest
import torch

from mmtok.errors import UserError
from mmtok.metrics.deformations import Deformation
from mmtok.metrics.statistics import p_of, toys, two_sample

FIVE = ("ks", "sks", "sw", "fgd", "mmd")


def normal(n, rng, d=3):
    return rng.normal(size=(n, d))


def test_a_p_value_counts_the_null_and_has_an_error():
    assert p_of(2.0, np.array([0.0, 1.0, 2.0, 3.0])) == (0.6, pytest.approx((0.24 / 4) ** 0.5))
    assert p_of(9.0, np.zeros(99))[0] == 0.01
    assert p_of(0.1 + 0.2, np.array([0.3]))[0] == 1.0  # equal, but for rounding


def test_kolmogorovs_limit(rng):
    """E[sqrt(n m / (n + m)) D] = sqrt(pi / 2) ln 2, for any d, correlation and directions."""
    mixing = np.array([[1.0, 0.9, 0.0], [0.0, 0.4, 0.0], [0.0, 0.0, 2.0]])
    null = toys(lambda n, g: normal(n, g) @ mixing, 1000, 1000, ("ks", "sks"), 300, 20)
    for name in ("ks", "sks"):
        scaled = np.sqrt(500) * null[name]
        error = scaled.std() / np.sqrt(len(scaled))
        # D is of steps of 1 / n, which lowers its mean by about that much
        assert abs(scaled.mean() - 0.868731) < 3 * error + np.sqrt(500) / 1000
    one = toys(lambda n, g: normal(n, g, 1), 1000, 1000, ("ks",), 600)["ks"] * np.sqrt(500)
    assert one.std() == pytest.approx(0.260333, rel=0.12)


def test_a_test_of_toys_errs_as_often_as_it_says():
    null = toys(normal, 50, 50, FIVE, 800, 5, seed=1)
    trials = toys(normal, 50, 50, FIVE, 400, 5, seed=2)
    for name in FIVE:
        share = np.mean([p_of(value, null[name])[0] < 0.05 for value in trials[name]])
        assert abs(share - 0.05) < 0.022 + 0.008  # the null's own 95 % point is of 800 draws


@pytest.mark.slow
def test_permutations_err_as_often_as_they_say():
    from scipy.stats import kstest

    p = {name: [] for name in (*FIVE, "c2st")}
    for seed in range(400):
        rng = np.random.default_rng((3, seed))
        found = two_sample(
            normal(40, rng, 2),
            normal(60, rng, 2),
            tuple(p),
            n_null=99,
            n_directions=5,
            classifier="linear",
            seed=seed,
        )
        for name, values in p.items():
            values.append(found[name].p_value)
    jitter = np.random.default_rng(4).uniform(0, 0.01, 400)  # p is of steps of 1 / 100
    for values in p.values():
        assert abs(np.mean(np.array(values) <= 0.05) - 0.05) < 0.022
        assert kstest(np.array(values) - jitter, "uniform").pvalue > 0.001


def test_the_same_seed_gives_the_same_and_tensors_are_arrays(rng):
    x = normal(60, rng)
    y = normal(50, rng)
    ours = two_sample(x, y, FIVE, n_null=20)
    theirs = two_sample(torch.tensor(x), torch.tensor(y), FIVE, n_null=20)
    for name in FIVE:
        assert ours[name].statistic == theirs[name].statistic
        assert ours[name].p_value == theirs[name].p_value
    assert (ours.n, ours.m, ours.d) == (60, 50, 3)
    assert ours["ks"].scaled == pytest.approx(ours["ks"].statistic * np.sqrt(3000 / 110))


def test_sets_apart_are_found_and_alike_ones_not(rng):
    x = normal(300, rng)
    y = normal(300, rng)
    tests = (*FIVE, "c2st")
    alike = two_sample(x, y, tests, n_null=99, n_directions=20, classifier="quadratic")
    apart = two_sample(x, y + 0.5, tests, n_null=99, n_directions=20, classifier="quadratic")
    for name in tests:
        assert alike[name].p_value > 0.01
        assert apart[name].p_value == 0.01


def test_correlations_are_seen_by_oblique_directions_only():
    """The KS of the axes has the power of chance, 0.05; sliced KS and Fréchet have nearly all."""
    covariance = np.array([[1.0, 0.8, 0.0], [0.8, 1.0, 0.0], [0.0, 0.0, 1.0]])
    root = np.linalg.cholesky(covariance)

    def reference(n, rng):
        return normal(n, rng) @ root.T

    rng = np.random.default_rng(0)
    n = 3000
    found = two_sample(
        reference(n, rng),
        reference(n, rng),
        ("ks", "sks", "fgd"),
        null="toys",
        reference=reference,
        n_null=60,
        n_directions=20,
        alternative=Deformation("correlation", 0.3),
        n_power=20,
    )
    assert found["ks"].power < 0.05 + 4 * 0.05
    assert found["sks"].power >= 0.9 and found["fgd"].power >= 0.9
    assert found.alternative == "correlation by epsilon = 0.3"


def test_the_likelihood_ratio_is_the_strongest_test(rng):
    x = normal(200, rng)
    y = normal(200, rng) + 0.2
    ratios = [(z @ np.full(3, 0.2) - 0.06) for z in (x, y)]  # log N(0.2, 1) - log N(0, 1)
    found = two_sample(x, y, ("llr", "sw"), log_ratio=ratios, n_null=499)
    assert found["llr"].p_value == 0.002
    assert found["llr"].statistic == pytest.approx(ratios[1].mean() - ratios[0].mean())
    with pytest.raises(UserError, match="one number per point"):
        two_sample(x, y, ("llr",), log_ratio=(ratios[0][:3], ratios[1]))


def test_what_cannot_be_compared_is_refused(rng):
    x = normal(20, rng)
    for wrong, words in (
        (x[:3], "n >= 8"),
        (x[:, :2], "coordinates"),
        (np.where(x > 1, np.nan, x), "not finite"),
        (x[None], "shape"),
    ):
        with pytest.raises(UserError, match=words):
            two_sample(x, wrong)
    with pytest.raises(UserError, match="'t' is unknown; one of ks"):
        two_sample(x, x, ("t",))
    with pytest.raises(UserError, match="null 'x'"):
        two_sample(x, x, null="x")
    with pytest.raises(UserError, match="reference"):
        two_sample(x, x, null="toys")
