"""What data leave open of a head's weights: the KL divergence, and Bayes' rule where known."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from mmtok.core.segment import Signature
from mmtok.errors import UserError
from mmtok.heads.densities import Gaussian, Poisson
from mmtok.heads.epistemic import BayesianLastLayer, DropoutEnsemble, MeanFieldLinear
from mmtok.heads.quantiles import AbsoluteError, Quantiles, SquaredError
from mmtok.heads.regression import Regression
from mmtok.heads.sampling import Sampling
from mmtok.nn.weight_decay import decay_groups

VECTOR = Signature("y", latent_size=1, frames=1)
BAYES = BayesianLastLayer(n_examples=100)
DROPOUT = DropoutEnsemble(0.3)


def built(config, signature=VECTOR, width=4):
    torch.manual_seed(0)
    return config.build(width, signature)


def test_the_kl_divergence_is_torchs():
    torch.manual_seed(0)
    layer = MeanFieldLinear(5, 3, prior=2.0)
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.3 * torch.randn(p.shape))
    prior = Normal(0.0, 2.0 / math.sqrt(6))
    pairs = ((layer.weight, layer.log_sd), (layer.bias, layer.log_sd_bias))
    wanted = sum(kl_divergence(Normal(mean, sd.exp()), prior).sum() for mean, sd in pairs)
    assert torch.allclose(layer.kl(), wanted)


def test_draws_have_the_variance_of_the_weights():
    torch.manual_seed(0)
    layer = MeanFieldLinear(3, 2, prior=1.0)
    x = torch.randn(1, 3)
    drawn = layer.draw(x.expand(40_000, -1)).detach()
    variance = x.square() @ (2 * layer.log_sd).exp().T + (2 * layer.log_sd_bias).exp()
    assert torch.allclose(drawn.var(0), variance[0], rtol=0.04)
    assert torch.allclose(drawn.mean(0), layer(x)[0], atol=0.002)


def test_the_posterior_of_a_slope_is_bayes_where_the_noise_is_known():
    """Mean-field is exact for one slope and one intercept of centred data.

    The precision of the slope is 1 / prior^2 + sum x^2 / noise^2.
    """
    n = 40
    x = torch.linspace(-1, 1, n)[:, None]
    noise = 0.5
    y = 0.7 * x + noise * torch.randn(n, 1, generator=torch.Generator().manual_seed(1))
    layer = MeanFieldLinear(1, 1, prior=1.0)
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.02)
    torch.manual_seed(0)
    for step in range(600):
        for group in optimiser.param_groups:
            group["lr"] = 0.04 * (1 - step / 600)
        optimiser.zero_grad()
        drawn = layer.draw(x.repeat(16, 1)).view(16, n, 1)
        (0.5 * ((y - drawn) / noise).square().mean(0).sum() + layer.kl()).backward()
        optimiser.step()
    precision = 1 / layer.prior_sd**2 + float(x.square().sum()) / noise**2
    assert abs(float(layer.log_sd.detach().exp()) * math.sqrt(precision) - 1) < 0.05
    mean = float((x * y).sum()) / noise**2 / precision
    assert abs(float(layer.weight.detach()) - mean) < 0.1 / math.sqrt(precision)


@torch.no_grad()
def test_members_of_the_ensemble_have_that_variance_too():
    torch.manual_seed(0)
    layer = MeanFieldLinear(3, 2, prior=1.0)
    x = torch.randn(1, 3)
    members = torch.cat([layer.member(x, k) for k in range(4000)])
    variance = x.square() @ (2 * layer.log_sd).exp().T + (2 * layer.log_sd_bias).exp()
    assert torch.allclose(members.var(0), variance[0], rtol=0.1)


@pytest.mark.parametrize("weights", [BAYES, DROPOUT], ids=str)
@torch.no_grad()
def test_the_ensemble_is_one_normalised_distribution_that_draws_follow(weights):
    head = built(Regression(Gaussian(), weights=weights))
    assert (head.kind, head.loss_kind) == ("exact", "bound")
    for p in head.parameters():
        p.add_(0.3 * torch.randn(p.shape))
    h = torch.randn(1, 4)
    grid = torch.linspace(-60, 60, 6001, dtype=torch.float64)[:, None]
    p = head.log_prob(h.expand(6001, -1), grid).exp()
    assert abs(float(p.sum()) * 0.02 - 1) < 1e-6
    draws = head.sample([h.expand(20_000, -1)], Sampling(), torch.Generator().manual_seed(0))
    mean = float((p * grid[:, 0]).sum()) * 0.02
    variance = float((p * grid[:, 0].square()).sum()) * 0.02 - mean**2
    assert abs(float(draws.mean()) - mean) < 5 * math.sqrt(variance / 20_000)
    assert abs(float(draws.var()) / variance - 1) < 0.1
    # wider than the noise alone: by what the weights leave open
    members = [head.member(h, k) for k in range(weights.members)]
    noise = np.mean([float(member.tril[0, 0, 0]) ** 2 for member in members])
    left_open = np.var([float(member.mean[0, 0]) for member in members])
    assert variance == pytest.approx(noise + left_open, rel=1e-4) and left_open > 1e-4
    centre = head.sample([h.expand(9, -1)], Sampling(temperature=0), torch.Generator())
    assert torch.allclose(centre, head.density([h]).mean.expand(9, -1), atol=1e-5)


def test_less_data_leave_more_open():
    spreads = []
    for n in (20, 2000):
        layer = built(Regression(Gaussian(), hidden=0, weights=BayesianLastLayer(n)), width=2)
        h = torch.randn(n, 2, generator=torch.Generator().manual_seed(0))
        y = h[:, :1] + 0.3 * torch.randn(n, 1, generator=torch.Generator().manual_seed(1))
        optimiser = torch.optim.Adam(layer.parameters(), lr=0.04)
        for _ in range(200):
            rows = torch.randint(n, (min(n, 200),))
            optimiser.zero_grad()
            layer.loss(h[rows], y[rows]).mean().backward()
            optimiser.step()
        spreads.append(float(layer.network[-1].log_sd.exp()[0].detach().mean()))
    assert spreads[0] > 4 * spreads[1]


@pytest.mark.parametrize("weights", [BAYES, DROPOUT], ids=str)
def test_every_parameter_has_a_gradient_and_counts_work(weights):
    tally = Signature("hits", latent_size=1, frames=1, counts=True)
    head = built(Regression(weights=weights))
    for n in (3, 0):
        head.zero_grad()
        head.loss(torch.randn(n, 4), torch.rand(n, 1)).sum().backward()
        assert all(p.grad is not None for p in head.parameters())
    head = built(Regression(Poisson(), weights=weights), tally)
    counts = torch.arange(200.0)[:, None]
    p = head.log_prob(torch.ones(200, 4), torch.log1p(counts)).detach().exp()
    assert abs(float(p.sum()) - 1) < 1e-6


def test_the_prior_takes_the_place_of_weight_decay():
    head = built(Regression(Gaussian(), weights=BAYES))
    decaying, others = (group["params"] for group in decay_groups(0.1, head))
    last = head.network[-1]
    assert not any(p is q for p in last.parameters() for q in decaying)
    assert np.array([any(p is q for q in others) for p in last.parameters()]).all()


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="n_examples is not said; set it to the number"):
        BayesianLastLayer()
    with pytest.raises(UserError, match="rate is 1.0"):
        DropoutEnsemble(1.0)
    with pytest.raises(UserError, match="drawn anew for every draw.*leave out guidance"):
        built(Regression(weights=DROPOUT)).validate(Sampling(guidance=2.0))


@pytest.mark.parametrize("family", [Quantiles(), SquaredError(), AbsoluteError()], ids=str)
def test_a_loss_that_is_no_likelihood_has_no_evidence_bound(family):
    with pytest.raises(UserError, match=f"{type(family).__name__} is not trained by its likelih"):
        Regression(family, weights=BAYES)
    assert built(Regression(family, weights=DROPOUT)).loss_kind == "estimate"


def test_an_epoch_has_the_kl_once_however_many_frames_an_example_has():
    """The frames of an epoch, at an error of 0 and no spread: their loss is the KL alone."""
    n = BAYES.n_examples
    for t in (1, 4):
        head = built(Regression(weights=BAYES), Signature("y", latent_size=1, frames=t))
        with torch.no_grad():
            head.network[-1].log_sd.fill_(-30.0)
            head.network[-1].log_sd_bias.fill_(-30.0)
        h = torch.randn(n * t, 4)
        y = torch.zeros(n * t, 1)
        alone = -head.density([h]).log_prob(y).sum()
        assert float((head.loss(h, y).sum() - alone).detach()) == pytest.approx(
            float(head.network[-1].kl().detach()), rel=1e-4
        )


def test_segments_of_any_number_of_frames_are_refused():
    speech = Signature("speech", latent_size=2)
    with pytest.raises(UserError, match="speech has segments of any number of them; set model"):
        Regression(weights=BAYES).build(4, speech)
    Regression(weights=DROPOUT).build(4, speech)
