"""Predictions and their conversions; the ideal denoiser that the other tests stand on.

Rows 1, 2, 5 and 16.
"""

import itertools

import pytest
import torch

from mmtok.diffusion.ode import drift, path_point
from mmtok.diffusion.predictions import (
    DENOISED,
    NOISE,
    SCORE,
    VELOCITY,
    append_dims,
    convert,
    denoiser_from,
    preconditioned,
)
from mmtok.diffusion.schedules import EDM, IDDPM, VE, VP, CondOT

KINDS = [DENOISED, NOISE, SCORE, VELOCITY]
COLUMNS = [VP(), VE(), IDDPM(), EDM(), CondOT()]


@pytest.fixture
def noisy(mixture, generator):
    """400 states of the mixture with their noise levels, from 0.002 to 80."""
    sigma = torch.logspace(-2.69, 1.9, 400, dtype=torch.float64)
    return (
        mixture.sample(400, generator)
        + sigma[:, None] * torch.randn(400, 2, generator=generator, dtype=torch.float64),
        sigma,
    )


@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0, 20.0])
def test_ideal_denoiser_is_the_posterior_mean(mixture, generator, sigma):
    """Row 1: against quadrature over a grid that reaches 14 standard deviations."""
    axis = torch.linspace(-6.5, 6.5, 521, dtype=torch.float64)
    y = torch.cartesian_prod(axis, axis)
    x = mixture.sample(5, generator) + sigma * torch.randn(
        5, 2, generator=generator, dtype=torch.float64
    )
    log_joint = mixture.log_density(y) - (x[:, None] - y).square().sum(-1) / (2 * sigma**2)
    torch.testing.assert_close(
        mixture.denoise(x, sigma), log_joint.softmax(1) @ y, rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0])
def test_tweedie(mixture, generator, sigma):
    """Row 2: (D - x) / sigma^2 is the gradient of log p, here by central differences."""
    x = mixture.sample(50, generator) + sigma * torch.randn(
        50, 2, generator=generator, dtype=torch.float64
    )
    h = 1e-5 * torch.eye(2, dtype=torch.float64)
    slope = torch.stack(
        [(mixture.log_density(x + e, sigma) - mixture.log_density(x - e, sigma)) / 2e-5 for e in h],
        1,
    )
    torch.testing.assert_close(
        SCORE.of(mixture.denoise(x, sigma), x, sigma), slope, rtol=0, atol=1e-7
    )


@pytest.mark.parametrize(
    "source, target", list(itertools.permutations(KINDS, 2)), ids=lambda k: k.name
)
def test_conversions_invert(mixture, noisy, source, target):
    """Row 5: there and back."""
    x, sigma = noisy
    value = source.of(mixture.denoise(x, sigma), x, sigma)
    back = convert(convert(value, x, sigma, source, target), x, sigma, target, source)
    torch.testing.assert_close(back, value, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
def test_any_prediction_gives_the_denoiser_back(mixture, noisy, kind):
    x, sigma = noisy
    denoise = denoiser_from(lambda z, s: kind.of(mixture.denoise(z, s), z, s), kind)
    torch.testing.assert_close(denoise(x, sigma), mixture.denoise(x, sigma), rtol=0, atol=1e-10)


@pytest.mark.parametrize("schedule", COLUMNS, ids=lambda c: type(c).__name__)
def test_every_preconditioning_holds_the_same_denoiser(mixture, noisy, schedule):
    """Row 5: F* = (D - c_skip x) / c_out, fed back through each column."""
    x, sigma = noisy
    c = schedule.coefficients(sigma)

    def ideal(scaled, c_noise):
        torch.testing.assert_close(c_noise, c.c_noise)
        z = scaled / c.c_in[:, None]
        return (mixture.denoise(z, sigma) - c.c_skip[:, None] * z) / c.c_out[:, None]

    torch.testing.assert_close(
        preconditioned(ideal, schedule)(x, sigma), mixture.denoise(x, sigma), rtol=0, atol=1e-10
    )


def test_predictions_say_what_their_names_say(generator):
    y, n = torch.randn(2, 6, 3, 4, generator=generator, dtype=torch.float64)
    sigma = torch.linspace(0.1, 9, 6, dtype=torch.float64)
    x = y + append_dims(sigma, y) * n
    for kind, value in (
        (DENOISED, y),
        (NOISE, n),
        (VELOCITY, n - y),
        (SCORE, -n / append_dims(sigma, y)),
    ):
        torch.testing.assert_close(kind.of(y, x, sigma), value, rtol=0, atol=1e-10)
        torch.testing.assert_close(kind.denoised(value, x, sigma), y, rtol=0, atol=1e-10)


def test_flow_matching_network_is_the_velocity(mixture, noisy):
    x, sigma = noisy
    velocity = VELOCITY.of(mixture.denoise(x, sigma), x, sigma)
    denoise = preconditioned(lambda scaled, tau: velocity, CondOT())
    torch.testing.assert_close(denoise(x, sigma), mixture.denoise(x, sigma), rtol=0, atol=1e-10)


@pytest.mark.parametrize("path", [VP(), VE(), EDM(), CondOT()], ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("sigma", [0.05, 1.0, 20.0])
def test_velocity_and_score(mixture, generator, path, sigma):
    """Row 16: with alpha = s and b = s sigma, dx/dt = (alpha'/alpha) x + (b^2 alpha'/alpha - b b')
    score of p_t, whichever way time runs.

    The score of x = s (y + sigma n) is that of x / s, over s.
    """
    at = path_point(path, path.time(torch.tensor(sigma, dtype=torch.float64)).item())
    x = at.s * (
        mixture.sample(20, generator)
        + sigma * torch.randn(20, 2, generator=generator, dtype=torch.float64)
    )
    denoised = mixture.denoise(x / at.s, sigma)
    velocity = drift(x, denoised, at)
    score = SCORE.of(denoised, x / at.s, sigma) / at.s
    d_alpha = at.s_slope * at.sigma_slope
    b = at.s * sigma
    d_b = at.sigma_slope * (at.s_slope * sigma + at.s)
    identity = d_alpha / at.s * x + (b**2 * d_alpha / at.s - b * d_b) * score
    torch.testing.assert_close(velocity, identity, rtol=0, atol=1e-10)
    if isinstance(path, CondOT):
        torch.testing.assert_close(
            velocity, VELOCITY.of(denoised, x / at.s, sigma), rtol=0, atol=1e-10
        )


def test_the_network_computes_in_its_own_precision(mixture, noisy):
    x, sigma = noisy

    def network(scaled, c_noise):
        assert scaled.dtype == c_noise.dtype == torch.float32
        return torch.zeros_like(scaled)

    assert preconditioned(network, EDM(), torch.float32)(x, sigma).dtype == torch.float64
    assert (
        preconditioned(network, EDM(), torch.float32)(x.float(), torch.tensor(3.0)).dtype
        == torch.float32
    )
