"""log p against closed forms. Rows 13, 14, 15, 31 and 32 of the table of laws."""

import itertools
import math

import pytest
import torch

from mmtok.diffusion.likelihood import (
    Bins,
    GaussianPrior,
    exact_trace,
    hutchinson,
    latent_bound,
    log_likelihood,
    log_normal,
    log_spaced,
    spline_weights,
)
from mmtok.diffusion.ode import HEUN
from mmtok.diffusion.random import rademacher_like


@pytest.fixture(scope="module")
def points(mixture):
    return mixture.sample(20, torch.Generator().manual_seed(0))


def matched(mixture, sigma=80.0):
    return GaussianPrior(mixture.mean, mixture.covariance, sigma)


class TestFlow:
    def test_log_density_of_the_mixture(self, mixture, points):
        """Row 13: exact trace, exact p_T; the error falls with the fourth power of the step."""
        errors = []
        for n in (100, 200, 400):
            log_p = log_likelihood(
                mixture.denoise,
                points,
                log_spaced(0.002, 80, n),
                lambda x: mixture.log_density(x, 80.0),
            )
            errors.append((log_p - mixture.log_density(points, 0.002)).abs().max().item())
        assert errors[-1] < 1e-7
        assert [math.log2(a / b) for a, b in zip(errors, errors[1:])] == pytest.approx(
            [4, 4], abs=0.3
        )

    def test_moment_matched_prior(self, mixture, points):
        """Row 14: what the prior alone changes; a prior around 0 is much worse."""
        prior = matched(mixture)
        gap = []
        for log_prior in (
            lambda x: mixture.log_density(x, 80.0),
            prior.log_density,
            lambda x: log_normal(x, 0.0, 80.0),
        ):
            gap.append(
                log_likelihood(mixture.denoise, points, log_spaced(0.002, 80, 60), log_prior)
            )
        assert (gap[1] - gap[0]).abs().max() < 1e-4
        assert (gap[2] - gap[0]).abs().max() > 1e-3

    def test_traces_at_some_levels_alone(self, mixture, points):
        """Both ends are among them whatever the count; a quarter of the traces costs less than 1e-4
        nats here.
        """
        counted = []

        def divergence(f, x):
            counted.append(1)
            return exact_trace(f, x)

        def prior(x):
            return mixture.log_density(x, 80.0)

        found = log_likelihood(
            mixture.denoise, points, log_spaced(0.002, 80, 201), prior, divergence, every=4
        )
        assert (
            len(counted) == 52 and (found - mixture.log_density(points, 0.002)).abs().max() < 1e-4
        )

    def test_the_spline_is_exact_for_cubics_at_uneven_nodes(self):
        for nodes, powers in (
            ([-1.0, 2.0], 1),
            ([0.0, 1.0, 3.0], 2),
            ([-2.0, -1.5, 0.0, 0.3, 4.0], 3),
        ):
            weights = spline_weights(nodes)
            for k in range(powers + 1):
                exact = (nodes[-1] ** (k + 1) - nodes[0] ** (k + 1)) / (k + 1)
                assert sum(w * x**k for w, x in zip(weights, nodes)) == pytest.approx(
                    exact, abs=1e-9
                )

    def test_hutchinson_is_unbiased_along_a_trajectory(self, mixture, generator):
        x = torch.tensor([[0.3, 0.1]], dtype=torch.float64).expand(4000, 2)
        sigmas = log_spaced(0.05, 20, 30)
        prior = matched(mixture, 20.0).log_density
        estimates = log_likelihood(
            mixture.denoise, x, sigmas, prior, hutchinson(rademacher_like(x, generator))
        )
        exact = log_likelihood(mixture.denoise, x[:1], sigmas, prior)
        assert estimates.std() > 0.01
        assert estimates.mean().item() == pytest.approx(
            exact.item(), abs=4 * estimates.std().item() / math.sqrt(4000)
        )

    def test_pictures_and_other_tableaus(self, gaussian):
        """Six independent Gaussians in the shape of a picture: d times one dimension."""
        x = torch.linspace(-1, 1, 12, dtype=torch.float64).view(2, 1, 2, 3)

        def denoise(z, sigma):
            return z * (0.25 / (0.25 + sigma**2)).view(-1, 1, 1, 1)

        prior = GaussianPrior(
            torch.zeros(6, dtype=torch.float64), torch.full((6,), 0.25, dtype=torch.float64), 80.0
        )
        exact = log_normal(x, 0.0, math.sqrt(0.25 + 0.002**2))
        log_p = log_likelihood(denoise, x, log_spaced(0.002, 80, 200), prior.log_density)
        torch.testing.assert_close(log_p, exact, rtol=0, atol=1e-5)
        heun = [
            log_likelihood(denoise, x, log_spaced(0.002, 80, n), prior.log_density, tableau=HEUN)
            for n in (50, 100)
        ]
        errors = [(log_p - exact).abs().max().item() for log_p in heun]
        assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.2)

    def test_what_cannot_be_integrated_is_refused(self, mixture, points):
        for sigmas in (torch.tensor([1.0]), torch.tensor([2.0, 1.0]), torch.tensor([0.0, 1.0])):
            with pytest.raises(ValueError, match="must rise from above 0"):
                log_likelihood(mixture.denoise, points, sigmas, mixture.log_density)
        with pytest.raises(ValueError, match="sigma_min 80"):
            log_spaced(80, 0.002, 10)
        with pytest.raises(FloatingPointError, match="after step 1 of 5"):
            log_likelihood(
                lambda x, s: x * torch.nan, points, log_spaced(0.1, 1, 5), mixture.log_density
            )


class TestDivergence:
    """Row 15, on a linear field whose Jacobian is known."""

    @pytest.fixture
    def jacobian(self, generator):
        return torch.randn(4, 4, generator=generator, dtype=torch.float64)

    def test_exact_trace(self, jacobian, generator):
        x = torch.randn(7, 2, 2, generator=generator, dtype=torch.float64)
        y, trace = exact_trace(lambda z: (z.flatten(1) @ jacobian.T).tanh().view_as(z), x)
        slope = 1 - (x.flatten(1) @ jacobian.T).tanh() ** 2
        torch.testing.assert_close(trace, slope @ jacobian.diagonal())
        assert not y.requires_grad and not trace.requires_grad

    @pytest.mark.parametrize("signs", [True, False])
    def test_mean_and_variance(self, jacobian, generator, signs):
        n = 400_000
        x = torch.zeros(n, 4, dtype=torch.float64)
        probe = (
            rademacher_like(x, generator)
            if signs
            else torch.randn(n, 4, generator=generator, dtype=torch.float64)
        )
        traces = hutchinson(probe)(lambda z: z @ jacobian.T, x)[1]
        s = (jacobian + jacobian.T) / 2
        variance = 2 * (s.square().sum() - (s.diagonal().square().sum() if signs else 0)).item()
        centred = (traces - jacobian.trace()).square()
        assert traces.mean().item() == pytest.approx(
            jacobian.trace().item(), abs=4 * traces.std().item() / math.sqrt(n)
        )
        assert centred.mean().item() == pytest.approx(
            variance, abs=4 * centred.std().item() / math.sqrt(n)
        )

    def test_signs_are_exact_where_the_jacobian_is_diagonal(self, generator):
        x = torch.randn(50, 6, generator=generator, dtype=torch.float64)
        exact = exact_trace(torch.tanh, x)[1]
        torch.testing.assert_close(
            hutchinson(rademacher_like(x, generator))(torch.tanh, x)[1], exact, rtol=0, atol=1e-12
        )


class TestPrior:
    def test_density_is_torchs_own(self, mixture, generator):
        x = 5 * torch.randn(9, 2, generator=generator, dtype=torch.float64)
        full = torch.distributions.MultivariateNormal(
            mixture.mean, mixture.covariance + 4 * torch.eye(2, dtype=torch.float64)
        )
        torch.testing.assert_close(matched(mixture, 2.0).log_density(x), full.log_prob(x))
        diagonal = GaussianPrior(mixture.mean, mixture.covariance.diagonal(), 2.0)
        apart = torch.distributions.Normal(mixture.mean, (mixture.covariance.diagonal() + 4).sqrt())
        torch.testing.assert_close(diagonal.log_density(x), apart.log_prob(x).sum(1))

    @pytest.mark.parametrize("diagonal", [False, True])
    def test_draws_have_the_moments_that_were_matched(self, mixture, generator, diagonal):
        data = mixture.sample(5000, generator).view(-1, 1, 2)
        prior = GaussianPrior.matched(data, 0.5, diagonal)
        drawn = prior.sample(torch.zeros(40_000, 1, 2), generator)
        assert drawn.shape == (40_000, 1, 2) and drawn.dtype == torch.float32
        wanted = data[:, 0].T.cov() + 0.25 * torch.eye(2)
        wanted = wanted.diagonal().diag() if diagonal else wanted
        assert (drawn[:, 0].T.cov() - wanted).abs().max() < 0.02


class TestBins:
    """Row 32: what a density on a scaled axis is worth in bits per dimension of the levels."""

    @pytest.mark.parametrize(
        "levels, offset",
        [
            (Bins(256), 7.0),
            (Bins(256, -1, -1 + 256 / 127.5), 6.994353436858858),
            (Bins(256, 0, 1), 8.0),
        ],
    )
    def test_offsets(self, levels, offset):
        assert levels.bits_per_dim(torch.zeros(1, dtype=torch.float64), 10).item() == pytest.approx(
            offset, abs=1e-9
        )

    @pytest.mark.parametrize("levels", [Bins(256), Bins(17), Bins(17, 0, 1), Bins(3, -5, 40)])
    def test_the_uniform_density_costs_log2_of_the_levels(self, levels):
        d = 64
        uniform = torch.full((1,), -d * math.log(levels.high - levels.low), dtype=torch.float64)
        assert levels.bits_per_dim(uniform, d).item() == pytest.approx(
            math.log2(levels.n_bins), abs=1e-9
        )

    def test_dequantised_codes_come_back(self, generator):
        levels = Bins(17)
        codes = torch.arange(17).repeat(50)
        x = levels.dequantised(codes, generator)
        assert (
            (levels.codes(x) == codes).all()
            and (levels.codes(levels.centres(codes)) == codes).all()
            and x.dtype == torch.float64
        )
        assert (levels.codes(torch.tensor([-9.0, 9.0])) == torch.tensor([0, 16])).all()

    def test_impossible_levels_are_refused(self):
        for n_levels, low, high in ((0, -1, 1), (4, 1, 1)):
            with pytest.raises(ValueError, match="at least 1"):
                Bins(n_levels, low, high)

    @pytest.mark.parametrize("std", [1e-3, 0.1, 5.0])
    def test_masses_sum_to_one(self, std):
        levels = Bins(17)
        mean = torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None]
        log_mass = levels.log_mass(torch.arange(17), mean, std)
        torch.testing.assert_close(
            log_mass.logsumexp(1), torch.zeros(41, dtype=torch.float64), rtol=0, atol=1e-12
        )
        assert torch.isfinite(log_mass).all() or std < 0.01

    def test_dequantisation_bounds_from_below(self, generator):
        """log P(code) >= E log p(code + u) + ln w for a Gaussian cut into levels."""
        levels = Bins(8, -2, 2)
        codes = torch.arange(1, 7)
        x = levels.dequantised(codes.expand(20_000, -1), generator)
        inside = torch.distributions.Normal(0.0, 0.7).log_prob(x).mean(0) + math.log(levels.width)
        assert (inside < levels.log_mass(codes, torch.zeros(1, dtype=torch.float64), 0.7)).all()


class TestLatentBound:
    def test_codes_of_a_deterministic_encoder(self, generator):
        """Row 31: log p(x) >= log p(z(x)) + log p(x | z(x)), over every x of a toy that can be
        summed over.
        """
        prior = torch.randn(4, generator=generator, dtype=torch.float64).log_softmax(0)
        decoder = torch.randn(4, 3, 5, generator=generator, dtype=torch.float64).log_softmax(
            -1
        )  # z, position, value
        x = torch.tensor(list(itertools.product(range(5), repeat=3)))
        given = decoder[:, torch.arange(3), x].sum(-1)  # (4, 125)
        log_p = (prior[:, None] + given).logsumexp(0)
        assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-12)
        for encoder in (given.argmax(0), torch.randint(0, 4, (125,), generator=generator)):
            bound = latent_bound(prior[encoder], given[encoder, torch.arange(125)])
            assert (bound <= log_p + 1e-12).all()

    def test_levels_through_a_little_noise(self, generator):
        """With the true p(z) and the true p(x | z) the term is log P(x) whatever the noise: the
        bound is tight.
        """
        levels = Bins(5)
        sigma = 0.15
        log_p = torch.randn(5, generator=generator, dtype=torch.float64).log_softmax(0)
        codes = torch.arange(5).repeat_interleave(100)
        centre = levels.centres(codes)[:, None]
        z = centre + sigma * torch.randn(500, 1, generator=generator, dtype=torch.float64)
        centres = levels.centres(torch.arange(5)).repeat(500)[:, None]
        log_joint = log_p + log_normal(z.expand(-1, 5).reshape(-1, 1), centres, sigma).view(500, 5)
        log_z = log_joint.logsumexp(1)
        given = (log_joint - log_z[:, None])[torch.arange(500), codes]
        bound = latent_bound(log_z, given, log_normal(z, centre, sigma))
        torch.testing.assert_close(bound, log_p[codes], rtol=0, atol=1e-12)
        cut = latent_bound(
            log_z, levels.log_mass(codes, z[:, 0], sigma), log_normal(z, centre, sigma)
        )
        assert (cut.view(5, 100).mean(1) * log_p.exp()).sum() < (
            log_p * log_p.exp()
        ).sum()  # another decoder, on average over data
