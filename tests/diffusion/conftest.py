"""Data whose ideal denoiser is known in closed form: one Gaussian, and a mixture of three in the
plane.
"""

import math

import pytest
import torch

from mmtok.diffusion.predictions import append_dims


class Mixture:
    """sum_k pi_k N(mu_k, s_k^2 I) in d dimensions, float64, and its noisy relatives."""

    def __init__(self, weights, means, stds):
        self.weights, self.means, self.stds = (
            torch.tensor(x, dtype=torch.float64) for x in (weights, means, stds)
        )

    def log_parts(self, x, sigma):
        """log pi_k N(x; mu_k, (s_k^2 + sigma^2) I): (B, d) -> (B, k)."""
        variance = self.stds**2 + append_dims(sigma, x) ** 2
        square = (x[:, None] - self.means).square().sum(-1)
        return (
            self.weights.log()
            - square / (2 * variance)
            - x.shape[1] / 2 * (2 * math.pi * variance).log()
        )

    def log_density(self, x, sigma=0.0):
        return self.log_parts(x, sigma).logsumexp(1)

    def denoise(self, x, sigma):
        """E[y | x]: the ideal D(x; sigma)."""
        weights = self.log_parts(x, sigma).softmax(1)
        shrink = self.stds**2 / (self.stds**2 + append_dims(sigma, x) ** 2)
        shrunk = self.means + shrink[..., None] * (x[:, None] - self.means)
        return (weights[..., None] * shrunk).sum(1)

    def sample(self, n, generator):
        part = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means[part] + self.stds[part, None] * noise

    @property
    def mean(self):
        return self.weights @ self.means

    @property
    def covariance(self):
        spread = torch.einsum(
            "k,ki,kj->ij", self.weights, self.means - self.mean, self.means - self.mean
        )
        return spread + (self.weights @ self.stds**2) * torch.eye(
            self.means.shape[1], dtype=torch.float64
        )


@pytest.fixture(scope="session")
def mixture():
    """Fixture M of the tests' table."""
    return Mixture([0.2, 0.3, 0.5], [[-1, 0.3], [0.7, 0.8], [0.2, -0.9]], [0.3, 0.2, 0.4])


@pytest.fixture(scope="session")
def gaussian():
    """Fixture G: one dimension, N(0, 1/4)."""
    return Mixture([1.0], [[0.0]], [0.5])
