"""The exact posterior of the linear model is that of Bayes' theorem."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from mmtok.errors import UserError
from mmtok.sources.linear_gaussian import LinearGaussian

SOURCE = LinearGaussian(n_train=30, n_heldout=20)


def test_likelihood_times_prior_is_posterior_up_to_a_constant():
    x = np.array([[0.5, -1.0, 2.0]])
    mean, covariance = SOURCE.posterior(x)
    theta = np.random.default_rng(1).normal(size=(50, 2))
    prior = stats.norm.logpdf(theta).sum(1)
    likelihood = stats.norm.logpdf(x, theta @ SOURCE.matrix.T, SOURCE.noise).sum(1)
    found = stats.multivariate_normal(mean[0], covariance).logpdf(theta)
    assert np.ptp(prior + likelihood - found) < 1e-10


def test_examples_repeat_and_splits_differ(tmp_path):
    def thetas(split):
        return [example["theta"] for example in SOURCE.examples(split, tmp_path)]

    assert np.array_equal(thetas("train"), thetas("train")) and len(thetas("train")) == 30
    assert not np.isin(thetas("heldout"), thetas("train")).any()


def test_mistakes_are_refused():
    with pytest.raises(UserError, match="noise is 0"):
        LinearGaussian(noise=0.0)
    with pytest.raises(UserError, match="measurements is 0"):
        LinearGaussian(measurements=0)
    with pytest.raises(UserError, match="no split"):
        next(SOURCE.examples("test", Path()))
