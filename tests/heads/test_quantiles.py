"""Quantiles do not cross, are what the pinball loss is least at, and draws are as they say."""

import numpy as np
import pytest
import torch
from scipy import stats

from mmtok.core.segment import Signature
from mmtok.errors import UserError
from mmtok.heads.densities import Gaussian
from mmtok.heads.quantiles import AbsoluteError, Quantiles, SquaredError
from mmtok.heads.regression import Regression
from mmtok.heads.sampling import Sampling

VECTOR = Signature("theta", latent_size=2, frames=1, scales=(250.0, 0.02))
N_DRAWS = 40_000


def raw_of(family, size, n=1):
    generator = torch.Generator().manual_seed(3)
    return 0.7 * torch.randn((n, family.n_raw(size)), generator=generator).double()


def test_quantiles_rise_whatever_the_network_says():
    family = Quantiles(9)
    raw = torch.tensor([[-1e4], [-3.0], [3.0], [1e4]]).double().repeat(1, family.n_raw(2))
    raw[:, :2] = 0.0  # the medians: of far ones float64 would not hold the gaps
    assert (family.at(raw, 2).quantiles.diff(dim=2) > 0).all()
    zero = family.at(torch.zeros(1, family.n_raw(1)).double(), 1).quantiles[0, 0]
    assert torch.allclose(zero, torch.from_numpy(stats.norm.ppf(np.arange(1, 10) / 10)))


def test_the_implied_density_integrates_to_one_and_is_that_of_the_draws():
    family = Quantiles(9)
    y = torch.linspace(-60, 60, 600_001, dtype=torch.float64)
    rows = family.at(raw_of(family, 1).expand(len(y), -1), 1)
    p = rows.log_prob(y[:, None]).exp()
    assert abs(float(torch.trapezoid(p, y)) - 1) < 1e-4
    cdf = torch.cumulative_trapezoid(p, y)
    many = family.at(raw_of(family, 1).expand(N_DRAWS, -1), 1)
    draws = many.sample(1.0, torch.Generator().manual_seed(0))[:, 0]
    pit = cdf[torch.searchsorted(y, draws).clamp_max(len(cdf) - 1)].clamp(0, 1)
    assert stats.kstest(pit.numpy(), "uniform").pvalue > 1e-3
    # and the quantiles are the draws' own
    for k, q in enumerate(many.quantiles[0, 0], 1):
        share = float((draws < q).double().mean())
        assert abs(share - k / 10) < 4 * 0.5 / N_DRAWS**0.5


def test_the_pinball_loss_is_least_at_the_quantiles_of_the_data():
    family = Quantiles(9)
    y = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0)).double().exp()
    raw = torch.zeros(1, family.n_raw(1), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([raw], lr=0.05)
    for _ in range(400):
        optimiser.zero_grad()
        family.at(raw.expand(len(y), -1), 1).loss(y).mean().backward()
        optimiser.step()
    found = family.at(raw, 1).quantiles[0, 0].detach().numpy()
    wanted = np.quantile(y.numpy(), np.arange(1, 10) / 10)
    assert np.abs(found / wanted - 1).max() < 0.03


def test_temperature_zero_is_the_median():
    family = Quantiles(5)
    rows = family.at(raw_of(family, 3, 4), 3)
    assert torch.equal(rows.sample(0.0, torch.Generator()), rows.quantiles[:, :, 2])


@pytest.mark.parametrize("family", [Quantiles(), SquaredError(), AbsoluteError()], ids=str)
def test_heads_train_by_the_familys_loss_and_say_so(family):
    torch.manual_seed(0)
    head = Regression(family).build(8, VECTOR)
    h = torch.randn(5, 8)
    y = torch.randn(5, 2)
    loss = head.loss(h, y)
    assert torch.equal(loss, head.density([h]).loss(y.double())) and head.kind == "estimate"
    loss.sum().backward()
    assert all(p.grad is not None for p in head.parameters())
    assert head.sample([h], Sampling(), torch.Generator()).shape == (5, 2)
    if family.no_score:
        with pytest.raises(UserError, match="theta: .* has no probability; for scores train with"):
            head.log_prob(h, y)
    else:
        found = head.density([h]).log_prob(y.double())
        shift = np.log(VECTOR.scales).sum()
        assert torch.allclose(head.log_prob(h, y), found - shift)
    assert Regression(Gaussian()).build(8, VECTOR).kind == "exact"


def test_points_are_the_mean_and_the_median_of_skewed_data():
    y = torch.randn(4000, 1, generator=torch.Generator().manual_seed(1)).double().exp()
    grid = torch.linspace(0.5, 2.5, 401).double()[:, None]
    for family, wanted in ((SquaredError(), y.mean()), (AbsoluteError(), y.median())):
        losses = torch.stack([family.at(g[None], 1).loss(y).mean() for g in grid])
        assert abs(float(grid[losses.argmin()]) - float(wanted)) < 0.01


def test_an_even_number_of_quantiles_is_refused():
    with pytest.raises(UserError, match="quantiles is 4; it must be odd"):
        Quantiles(4)
