"""Guidance and the noisy conditions of a cascade. Rows 29 and 36 of the table of laws."""

import pytest
import torch

from mmtok.diffusion.guidance import guided, noise_condition
from mmtok.diffusion.samplers import Heun
from mmtok.diffusion.schedules import EDM


def towards(mean, variance=0.25):
    """The ideal denoiser of N(mean, variance)."""

    def denoise(x, sigma):
        share = (variance / (variance + sigma**2))[:, None]
        return mean + share * (x - mean)

    return denoise


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, 3.0])
def test_guidance_of_gaussians(generator, weight):
    """Row 29: with equal variances D_w is the denoiser of the Gaussian with mean mu_u + w (mu_c -
    mu_u).
    """
    x = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    sigma = torch.logspace(-2, 1.9, 40, dtype=torch.float64)
    mixed = guided(towards(1.3), towards(-0.2), weight)
    torch.testing.assert_close(
        mixed(x, sigma), towards(-0.2 + weight * 1.5)(x, sigma), rtol=0, atol=1e-10
    )


def test_guidance_at_its_ends_calls_one_denoiser():
    conditional = towards(1.0)
    unconditional = towards(0.0)
    assert (
        guided(conditional, unconditional, 1) is conditional
        and guided(conditional, unconditional, 0) is unconditional
    )


def test_guided_samples_are_where_guidance_points(generator):
    x = 80 * torch.randn(500, 1, generator=generator, dtype=torch.float64)
    samples = Heun()(guided(towards(1.0), towards(0.0), 2.0), x, EDM().times(64))
    assert samples.mean().item() == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize(
    "level, gain, left",
    [(0.0, 1 / 1.01, 0.01 / 1.01), (0.3, 0.7**0.5 / 1.007, 0.307 / 1.007), (1.0, 0.0, 1.0)],
)
def test_cascade_between_its_ends(generator, level, gain, left):
    """Row 36: y ~ N(0, 1), c = y + 0.1 n; what the noised condition still says of y, and what it
    leaves open, exactly and by drawing.
    """
    # exactly: E[c_s y] and E[c_s^2] of the augmentation, from its two weights
    signal = noise_condition(
        torch.ones(1, 1, dtype=torch.float64), level, torch.Generator().manual_seed(0)
    )
    noise = noise_condition(
        torch.zeros(1, 1, dtype=torch.float64), level, torch.Generator().manual_seed(0)
    )
    unit = torch.randn(1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a = (signal - noise).item()
    b = (noise / unit).item()
    spread = a**2 * 1.01 + b**2
    assert a / spread == pytest.approx(gain, abs=1e-6) and 1 - a**2 / spread == pytest.approx(
        left, abs=1e-6
    )
    n = 50_000
    y, lens = torch.randn(2, n, 1, generator=generator, dtype=torch.float64)
    c = noise_condition(y + 0.1 * lens, torch.full((n,), level), generator)
    assert ((c * y).mean() / c.square().mean()).item() == pytest.approx(gain, abs=5 / n**0.5)


def test_a_level_that_is_no_variance_is_refused():
    with pytest.raises(ValueError, match="between 0 and 1"):
        noise_condition(torch.ones(2, 1), 1.5)
