"""Calibration of posteriors that are known exactly, and of ones that are wrong in known ways."""

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm

from mmtok.errors import UserError
from mmtok.metrics.calibration import (
    coverage,
    coverage_of_scaled_width,
    crps,
    crps_normal,
    pit,
    pulls,
    ranks,
    reliability,
    sharpness,
    skill,
    tarp,
    uniformity,
)

N = 1000
L = 99


@pytest.fixture(scope="module")
def linear():
    """x = A t + e with t of N(0, 1) and e of N(0, 0.25): truths, means and sd of t given x."""
    rng = np.random.default_rng(5)
    a = np.array([[1.0, 0.5], [-0.3, 2.0], [0.7, 0.1]])
    precision = np.eye(2) + a.T @ a / 0.25
    covariance = np.linalg.inv(precision)
    truth = rng.normal(size=(N, 2))
    data = truth @ a.T + 0.5 * rng.normal(size=(N, 3))
    mean = data @ a / 0.25 @ covariance
    return truth, mean, covariance


def drawn(linear, scale=1.0, seed=0):
    truth, mean, covariance = linear
    noise = np.random.default_rng(seed).normal(size=(N, L, 2))
    return mean[:, None] + scale * noise @ np.linalg.cholesky(covariance).T


def test_exact_posteriors_are_calibrated(linear):
    truth, mean, covariance = linear
    draws = drawn(linear)
    for values in pit(truth, draws).T:
        assert uniformity(values).ks_p > 0.01 and uniformity(values).chi2_p > 0.01
    for i in range(2):
        found = pulls(truth[:, i], mean[:, i], np.full(N, covariance[i, i] ** 0.5))
        assert abs(found.mean) < 3 * found.mean_error
        assert abs(found.sd - 1) < 3 * found.sd_error and found.p_value > 0.01
    seen = tarp(truth, draws)
    assert seen.p_value > 0.01
    assert (np.abs(seen.coverage.observed - seen.coverage.levels) < 0.016 * 3).all()
    central = coverage(truth[:, 0], draws[:, :, 0])
    assert (np.abs(central.observed - central.levels) < 4 * central.error).all()


@pytest.mark.parametrize("scale, at_68, at_95", [(0.8, 0.574, 0.883), (1.25, 0.786, 0.986)])
def test_wrong_widths_are_caught(linear, scale, at_68, at_95):
    truth, _, _ = linear
    assert coverage_of_scaled_width([0.68, 0.95], scale) == pytest.approx([at_68, at_95], abs=6e-4)
    draws = drawn(linear, scale)
    found = coverage(truth[:, 0], draws[:, :, 0], (0.68, 0.95))
    for observed, expected in zip(found.observed, (at_68, at_95), strict=True):
        assert abs(observed - expected) < 4 * (expected * (1 - expected) / N) ** 0.5 + 0.01
    assert uniformity(pit(truth[:, 0], draws[:, :, 0])).ks_p < 0.01
    assert uniformity(tarp(truth, draws).values).chi2_p < 0.05


def test_the_prior_passes_ranks_and_tarp_but_has_no_skill(linear):
    truth, _, _ = linear
    prior = np.random.default_rng(8).normal(size=(N, L, 2))
    assert uniformity(pit(truth, prior)).ks_p > 0.01
    assert tarp(truth, prior).p_value > 0.01
    nothing = skill(truth[:, 0], prior[:, :, 0], 50)
    assert nothing.p_value > 0.02 and abs(nothing.skill) < 0.02
    exact = skill(truth[:, 0], drawn(linear)[:, :, 0], 50)
    assert exact.p_value == pytest.approx(1 / 51) and exact.skill > 0.3
    assert sharpness(prior).mean() > 2 * sharpness(drawn(linear)).mean()
    # reference points that depend on the truth do see it
    assert tarp(truth, prior, truth + 0.01).p_value < 1e-6


def test_the_null_of_tarp_is_valid():
    """p-values of calibrated posteriors are uniform."""
    p = []
    for seed in range(120):
        rng = np.random.default_rng(seed)
        centre = rng.normal(size=(60, 2))
        truth = centre + rng.normal(size=(60, 2))
        p.append(tarp(truth, centre[:, None] + rng.normal(size=(60, 15, 2)), seed=seed).p_value)
    assert kstest(p, "uniform").pvalue > 0.01


def test_ranks_count_draws_below_and_share_ties():
    draws = np.arange(9.0)[None].repeat(3, 0)
    np.testing.assert_array_equal(ranks([-1, 4.5, 99], draws), [0, 5, 9])
    tied = ranks(np.zeros(2000), np.zeros((2000, 3)))
    assert np.bincount(tied).min() > 400  # uniform on 0 to 3
    assert ranks(torch.zeros(2, 3), torch.ones(2, 4, 3)).shape == (2, 3)


def test_the_band_of_1000_values():
    found = uniformity((np.arange(1000) + 0.5) / 1000)
    assert found.band == pytest.approx(0.0429, abs=2e-4)
    assert found.max_deviation == pytest.approx(0.0005) and found.ks_p == pytest.approx(1)


def test_crps_in_closed_form(rng):
    truth = np.array([0.0, 1.5])
    draws = 0.3 + 2 * norm.ppf((np.arange(4000) + 0.5) / 4000)[None].repeat(2, 0)
    expected = crps_normal(truth, 0.3, 2.0)
    np.testing.assert_allclose(crps(truth, draws), expected, rtol=2e-3)
    x = rng.normal(size=(1, 5))
    pairs = np.abs(x[0][:, None] - x[0]).sum() / 20
    assert crps([0.2], x)[0] == pytest.approx(np.abs(x - 0.2).mean() - pairs / 2)


def test_reliability_of_right_and_of_overconfident_probabilities(rng):
    p = rng.random(4000)
    labels = rng.random(4000) < p
    right = reliability(p, labels)
    assert right.p_value > 0.02 and right.ece < 0.03 and right.counts.sum() == 4000
    assert (np.abs(right.observed - right.predicted) < 4 * right.error).all()
    assert right.brier == pytest.approx(1 / 6, abs=0.02)  # mean p (1 - p)
    sure = reliability(p > 0.5, labels)
    assert sure.ece == pytest.approx(0.25, abs=0.03) and sure.p_value < 0.01
    three = rng.dirichlet(np.ones(3), 1000)
    classes = (np.cumsum(three, 1) < rng.random((1000, 1))).sum(1)
    assert reliability(three, classes).p_value > 0.02


def test_wrong_shapes_are_refused():
    for call in (
        lambda: ranks(np.zeros(3), np.zeros((2, 4))),
        lambda: ranks(np.zeros((3, 2)), np.zeros((3, 4))),
        lambda: crps([0.0], [[1.0]]),
        lambda: crps([np.nan], [[1.0, 2.0]]),
        lambda: uniformity([2.0]),
        lambda: pulls([1.0, 2.0], [0.0, 0.0], [1.0, 0.0]),
        lambda: reliability([0.5], [1, 0]),
        lambda: skill(np.zeros((3, 2)), np.zeros((3, 4, 2))),
        lambda: tarp(np.zeros((3, 2)), np.zeros((3, 4, 2)), np.zeros((3, 1))),
    ):
        with pytest.raises(UserError):
            call()
