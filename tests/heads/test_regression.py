"""Regression heads: scores are in the caller's unit, and bad pairs of data and family refused."""

import numpy as np
import pytest
import torch
from scipy import stats

from mmtok.core.segment import Signature
from mmtok.errors import UserError
from mmtok.heads.base import HeadConfig
from mmtok.heads.densities import Gaussian, GaussianMixture, NegativeBinomial, Poisson, Student
from mmtok.heads.diffusion import FrameDiffusion
from mmtok.heads.regression import Regression
from mmtok.heads.sampling import Sampling

SCALES = (250.0, 0.02)
VECTOR = Signature("theta", latent_size=2, frames=1, scales=SCALES)
LATENTS = Signature("theta", latent_size=2, frames=1)
TALLY = Signature("hits", latent_size=2, frames=1, counts=True)


def built(config: HeadConfig, signature):
    torch.manual_seed(0)
    return config.build(8, signature)


@pytest.mark.parametrize("family", [Gaussian(), Student(), GaussianMixture(3)], ids=str)
def test_the_density_is_in_the_callers_unit(family):
    head = built(Regression(family), VECTOR).double()
    plain = built(Regression(family), LATENTS).double()
    h = torch.randn(5, 8).double()
    y = torch.randn(5, 2).double()
    shift = np.log(SCALES).sum()
    assert torch.allclose(head.log_prob(h, y), plain.log_prob(h, y) - shift, atol=1e-12)
    assert torch.allclose(head.loss(h, y), -head.log_prob(h, y))


def test_it_integrates_to_one_over_quantities():
    """By a grid over x = scale z, not over the latents z."""
    head = built(Regression(Gaussian()), VECTOR).double()
    z = torch.linspace(-9, 9, 181, dtype=torch.float64)
    grid = torch.cartesian_prod(z, z)
    h = torch.ones(1, 8).double().expand(len(grid), -1)
    cell = float(z[1] - z[0]) ** 2 * SCALES[0] * SCALES[1]
    assert abs(float(head.log_prob(h, grid).detach().exp().sum()) * cell - 1) < 1e-9


def test_a_linear_gaussian_head_equals_scipy():
    head = built(Regression(Gaussian(), hidden=0), VECTOR).double()
    h = torch.randn(1, 8).double()
    found = head.density([h])
    z = torch.tensor([[0.3, -1.0]]).double()
    scales = np.array(SCALES)
    covariance = (found.tril @ found.tril.mT)[0].detach().numpy() * np.outer(scales, scales)
    mean = found.mean[0].detach().numpy() * scales
    wanted = stats.multivariate_normal(mean, covariance).logpdf(z[0].numpy() * scales)
    assert abs(float(head.log_prob(h, z).detach()) - wanted) < 1e-8


@pytest.mark.parametrize("family", [Poisson(), NegativeBinomial()], ids=str)
def test_counts_come_back_and_sum_to_one(family):
    head = built(Regression(family), TALLY)
    counts = torch.cartesian_prod(torch.arange(60), torch.arange(60)).double()
    h = torch.ones(1, 8).expand(len(counts), -1)
    p = head.log_prob(h, torch.log1p(counts).float()).detach().exp()
    assert abs(float(p.sum()) - 1) < 1e-6
    drawn = head.sample([h[:100]], Sampling(), torch.Generator().manual_seed(0))
    back = torch.expm1(drawn)
    assert torch.allclose(back, back.round(), atol=1e-9) and back.max() > 0


def test_every_parameter_has_a_gradient_and_an_empty_batch_too():
    for config, signature in ((Regression(), VECTOR), (Regression(Poisson()), TALLY)):
        head = built(config, signature)
        for n in (3, 0):
            head.zero_grad()
            head.loss(torch.randn(n, 8), torch.rand(n, 2)).sum().backward()
            assert all(p.grad is not None for p in head.parameters())


def test_guidance_of_one_is_the_condition_and_draws_repeat():
    head = built(Regression(), VECTOR)
    hs = [torch.randn(6, 8), torch.randn(6, 8)]

    def drawn(states, **settings):
        generator = torch.Generator().manual_seed(4)
        return head.sample(states, Sampling(**settings), generator)

    assert torch.allclose(drawn(hs), drawn(hs[:1]), atol=1e-5)
    assert not torch.allclose(drawn(hs, guidance=3.0), drawn(hs[:1]))
    assert torch.equal(drawn(hs[:1]), drawn(hs[:1]))


def test_a_diffusion_over_quantities_is_in_their_unit_too():
    config = FrameDiffusion(ode_steps=2)
    h = torch.randn(2, 8)
    y = torch.randn(2, 2)
    shift = np.log(SCALES).sum()
    found = built(config, VECTOR).log_prob(h, y)
    assert torch.allclose(found, built(config, LATENTS).log_prob(h, y) - shift, atol=1e-9)
    assert not FrameDiffusion.fits(TALLY)


def test_what_does_not_fit_is_refused_in_one_line():
    with pytest.raises(UserError, match="hits holds counts, but Gaussian is of real numbers"):
        built(Regression(), TALLY)
    with pytest.raises(UserError, match="theta holds real numbers, but Poisson is of counts"):
        built(Regression(Poisson()), VECTOR)
    with pytest.raises(UserError, match="continuous latents, or counts"):
        built(Regression(), Signature("image", latent_size=4, frames=4, cells=16))
    with pytest.raises(UserError, match="hidden is -1"):
        Regression(hidden=-1)
    with pytest.raises(UserError, match="top_k"):
        built(Regression(), VECTOR).validate(Sampling(top_k=3))


@pytest.mark.parametrize("hidden", [0, 128])
@pytest.mark.parametrize("family", [Gaussian(), Student(), GaussianMixture(3)], ids=str)
def test_the_loss_under_autocast_is_that_of_float32(family, hidden):
    head = built(Regression(family, hidden), VECTOR)
    with torch.no_grad():
        for p in head.parameters():
            p.add_(0.5 * torch.randn(p.shape))
    h = torch.randn(200, 8).bfloat16()
    y = torch.randn(200, 2)
    with torch.autocast("cpu", torch.bfloat16):
        found = head.loss(h, y)
        scored = head.log_prob(h, y)
    assert torch.equal(found, head.loss(h.float(), y)) and torch.equal(scored, -found)
