"""Closed distributions are distributions: normalised, equal to scipy's, and drawn as they say."""

import numpy as np
import pytest
import torch
from scipy import stats

from mmtok.errors import UserError
from mmtok.heads.densities import (
    Gaussian,
    GaussianMixture,
    GeneralisedNormal,
    NegativeBinomial,
    Poisson,
    Student,
)

REAL = [Gaussian(), Gaussian(full=False), GeneralisedNormal(), Student(), GaussianMixture(3)]
COUNTS = [Poisson(), NegativeBinomial()]
N_DRAWS = 40_000


def raw_of(family, size, n=1):
    """Raw outputs as a trained network might have them."""
    generator = torch.Generator().manual_seed(3)
    shape = (n, family.n_raw(size))
    return family.initial(size) + 0.7 * torch.randn(shape, generator=generator).double()


def frozen(density, k=0):
    """The k-th number of the first row as a distribution of scipy's."""
    name = type(density).__name__
    if name == "GaussianDensity":
        sd = float((density.tril @ density.tril.mT)[0, k, k].sqrt())
        return stats.norm(float(density.mean[0, k]), sd)
    if name == "PoissonDensity":
        return stats.poisson(float(density.log_rate[0, k].exp()))
    if name == "NegativeBinomialDensity":
        r = float(density.r[0, k])
        return stats.nbinom(r, r / (r + float(density.log_mean[0, k].exp())))
    mean = float(density.mean[0, k])
    scale = float(density.log_scale[0, k].exp())
    if name == "StudentDensity":
        return stats.t(float(density.freedom[0, k]), mean, scale)
    return stats.gennorm(float(density.beta[0, k]), mean, scale)


@pytest.mark.parametrize("family", REAL, ids=str)
def test_densities_integrate_to_one(family):
    density = family.at(raw_of(family, 1), 1)
    # y = sinh(u) reaches far into the tails of Student's t
    u = torch.linspace(-40, 40, 400_001, dtype=torch.float64)
    rows = family.at(raw_of(family, 1).expand(len(u), -1), 1)
    p = (rows.log_prob(u.sinh()[:, None]) + u.cosh().log()).exp()
    assert torch.isfinite(density.log_prob(torch.zeros(1, 1).double())).all()
    assert abs(float(torch.trapezoid(p, u)) - 1) < 1e-6


@pytest.mark.parametrize("family", COUNTS, ids=str)
def test_probabilities_of_counts_sum_to_one(family):
    n = torch.arange(3000, dtype=torch.float64)[:, None]
    density = family.at((raw_of(family, 1) + torch.tensor(1.0)).expand(len(n), -1), 1)
    assert abs(float(density.log_prob(n).exp().sum()) - 1) < 1e-9


@pytest.mark.parametrize("family", REAL[1:4] + COUNTS, ids=str)
def test_log_p_equals_scipys(family):
    density = family.at(raw_of(family, 2), 2)
    y = np.array([3.0, 1.0])
    if not family.counts:
        y = y / 7 - 0.2
    wanted = 0.0
    for k in range(2):
        found = frozen(density, k)
        wanted += found.logpmf(y[k]) if family.counts else found.logpdf(y[k])
    assert abs(float(density.log_prob(torch.tensor(y)[None])) - wanted) < 1e-10


def test_a_full_covariance_and_a_mixture_equal_scipys():
    y = torch.tensor([[0.3, -0.4, 1.0]], dtype=torch.float64)
    full = Gaussian().at(raw_of(Gaussian(), 3), 3)
    covariance = (full.tril @ full.tril.mT)[0].numpy()
    assert abs(covariance[0, 1]) > 0.01
    wanted = stats.multivariate_normal(full.mean[0].numpy(), covariance).logpdf(y[0].numpy())
    assert abs(float(full.log_prob(y)) - wanted) < 1e-10

    mixture = GaussianMixture(4).at(raw_of(GaussianMixture(4), 3), 3)
    weights = mixture.logits.softmax(1)[0].numpy()
    sd = mixture.log_scale.exp()[0].numpy()
    parts = stats.norm(mixture.mean[0].numpy(), sd).pdf(y.numpy()).prod(1)
    assert abs(float(mixture.log_prob(y)) - np.log(weights @ parts)) < 1e-10


@pytest.mark.parametrize("family", REAL[:4] + COUNTS, ids=str)
def test_draws_have_the_distribution_of_log_p(family):
    """PIT of draws is uniform; of counts with a random place within each step."""
    rows = family.at(raw_of(family, 2).expand(N_DRAWS, -1), 2)
    draws = rows.sample(1.0, torch.Generator().manual_seed(0)).numpy()
    for k in range(2):
        found = frozen(rows, k)
        pit = found.cdf(draws[:, k])
        if family.counts:
            below = found.cdf(draws[:, k] - 1)
            pit = below + (pit - below) * np.random.default_rng(0).random(N_DRAWS)
        assert stats.kstest(pit, "uniform").pvalue > 1e-3


def test_draws_of_a_mixture_have_its_moments():
    family = GaussianMixture(3)
    rows = family.at(raw_of(family, 2).expand(N_DRAWS, -1), 2)
    draws = rows.sample(1.0, torch.Generator().manual_seed(0))
    w = rows.logits.softmax(1)[0][:, None]
    mean = (w * rows.mean[0]).sum(0)
    second = (w * (rows.mean[0].square() + rows.log_scale[0].exp().square())).sum(0)
    sd = (second - mean.square()).sqrt()
    assert ((draws.mean(0) - mean).abs() < 5 * sd / N_DRAWS**0.5).all()
    assert ((draws.std(0) / sd - 1).abs() < 0.03).all()


def test_draws_of_a_full_covariance_have_it():
    rows = Gaussian().at(raw_of(Gaussian(), 3).expand(N_DRAWS, -1), 3)
    draws = rows.sample(1.0, torch.Generator().manual_seed(0))
    wanted = (rows.tril @ rows.tril.mT)[0]
    assert ((torch.cov(draws.T) - wanted).abs() < 0.04 * wanted.abs().max()).all()


@pytest.mark.parametrize("family", REAL[:4], ids=str)
def test_the_temperature_multiplies_the_distance_from_the_centre(family):
    rows = family.at(raw_of(family, 2).expand(50, -1), 2)

    def drawn(temperature):
        return rows.sample(temperature, torch.Generator().manual_seed(1))

    assert torch.equal(drawn(0.0), rows.mean)
    assert torch.allclose(drawn(0.5) - rows.mean, (drawn(1.0) - rows.mean) / 2)


def test_counts_without_temperature_are_the_rounded_mean():
    for family in COUNTS:
        raw = torch.full((4, family.n_raw(1)), 1.3).double()
        drawn = family.at(raw, 1).sample(0.0, torch.Generator().manual_seed(0))
        assert torch.equal(drawn, torch.full((4, 1), round(np.exp(1.3))).double())
    mixture = GaussianMixture(3)
    rows = mixture.at(raw_of(mixture, 2), 2)
    best = rows.mean[0, rows.logits[0].argmax()]
    assert torch.equal(rows.sample(0.0, torch.Generator().manual_seed(0))[0], best)


@pytest.mark.parametrize("family", REAL + COUNTS, ids=str)
def test_any_raw_outputs_have_a_finite_log_p_and_gradient(family):
    raw = torch.tensor([[-1e4], [0.0], [1e4]]).double().repeat(1, family.n_raw(2)).requires_grad_()
    y = torch.ones(3, 2).double()
    log_p = family.at(raw, 2).log_prob(y)
    assert not log_p.isnan().any()
    log_p[1].backward()
    assert torch.isfinite(raw.grad).all()


def test_a_mixture_of_nothing_is_refused():
    with pytest.raises(UserError, match="components is 0; it must be 1 to"):
        GaussianMixture(0)
