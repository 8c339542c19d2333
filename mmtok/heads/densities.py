"""Closed distributions of D numbers, each with its exact log p, its draws and its temperature.

A `Family` is the settings; `Family.at` makes it a `Density` from a network's raw outputs, which may
be any numbers. Letters: N rows, D numbers, P raw outputs, K components.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmtok.diffusion.random import inverse_cdf, normal_like, uniform
from mmtok.errors import UserError
from mmtok.heads.base import Kind

LOG_2PI = math.log(2 * math.pi)
MOST_LOG_SCALE = 12.0  # scales are within exp(-12) to exp(12) of the latents' own unit
MOST_LOG_RATE = 16.0  # of counts: beyond, float32 latents no longer tell neighbours apart
MOST_COMPONENTS = 1024


class Density(ABC):
    """Distributions of D numbers, one for each of N rows."""

    @abstractmethod
    def log_prob(self, y: Tensor) -> Tensor:
        """Log p of y (N, D), in nats: (N,)."""

    def loss(self, y: Tensor) -> Tensor:
        """What training lowers (N,): -log p, unless the family is trained by another loss."""
        return -self.log_prob(y)

    @abstractmethod
    def sample(self, temperature: float, generator: torch.Generator) -> Tensor:
        """Draw (N, D) in float64.

        The temperature multiplies a draw's distance from the centre: 1 draws from p, 0 gives the
        centre itself (the location; of counts the mean, rounded; of a mixture the mean of the
        likeliest component).
        """


class Family(ABC):
    """Base of a family's settings, which are a frozen dataclass.

    counts: whether it is of counts, 0, 1, 2 and so on; else of real numbers.
    kind: what its log p is.
    no_score: why there is no log p; "" where there is one.
    loss_name: what its loss is called where that is not -log p.
    """

    counts: ClassVar[bool] = False
    kind: ClassVar[Kind] = "exact"
    no_score: ClassVar[str] = ""
    loss_name: ClassVar[str] = "training loss"

    @abstractmethod
    def n_raw(self, size: int) -> int:
        """P, for D = size numbers."""

    @abstractmethod
    def at(self, raw: Tensor, size: int) -> Density:
        """The distributions that raw outputs (N, P) stand for."""

    def initial(self, size: int) -> Tensor:
        """Raw outputs (P,) to start training from."""
        return torch.zeros(self.n_raw(size))


def bounded_log_scale(raw: Tensor) -> Tensor:
    """Any number -> a log scale in the legal range; near 0 the number itself."""
    return MOST_LOG_SCALE * torch.tanh(raw / MOST_LOG_SCALE)


def _between(raw: Tensor, low: float, high: float, start: float) -> Tensor:
    """Any number -> (low, high) on a log scale; 0 -> start."""
    share = math.log(start / low) / math.log(high / low)
    return low * torch.exp(
        math.log(high / low) * torch.sigmoid(raw + math.log(share / (1 - share)))
    )


def _gamma(shape: Tensor, generator: torch.Generator) -> Tensor:
    """Draws of Gamma(shape, 1), on the generator's device and then moved."""
    drawn = torch._standard_gamma(shape.to(generator.device), generator=generator)
    return drawn.to(shape.device)


# ---- real numbers


@dataclass(frozen=True)
class Gaussian(Family):
    """N(mean, L L^T), of mean and log variances; with `full` L is any lower triangular matrix.

    log p = -D/2 log 2 pi - sum log L_ii - |L^-1 (y - mean)|^2 / 2. full: numbers may be correlated
    given the condition; else L is diagonal.
    """

    full: bool = True

    def n_raw(self, size: int) -> int:
        """Means, log variances, and what is below the diagonal."""
        return 2 * size + self.full * (size * (size - 1) // 2)

    def at(self, raw: Tensor, size: int) -> Density:
        """Raw outputs: D means, D log variances, then rows of L below the diagonal, over L_ii."""
        mean, log_variance, below = raw.split([size, size, raw.shape[1] - 2 * size], 1)
        log_diagonal = bounded_log_scale(log_variance / 2)
        unit = torch.eye(size, dtype=raw.dtype, device=raw.device).repeat(len(raw), 1, 1)
        if self.full:
            rows, columns = torch.tril_indices(size, size, -1, device=raw.device)
            unit = unit.index_put(
                (torch.arange(len(raw), device=raw.device)[:, None], rows, columns), below
            )
        return GaussianDensity(mean, log_diagonal.exp()[:, :, None] * unit)


@dataclass(frozen=True, eq=False)
class GaussianDensity(Density):
    """mean (N, D); tril (N, D, D), lower triangular with a positive diagonal."""

    mean: Tensor
    tril: Tensor

    def log_prob(self, y: Tensor) -> Tensor:
        """The density."""
        z = torch.linalg.solve_triangular(self.tril, (y - self.mean)[:, :, None], upper=False)
        log_det = self.tril.diagonal(dim1=1, dim2=2).log().sum(1)
        return -0.5 * z.square().sum((1, 2)) - log_det - 0.5 * LOG_2PI * y.shape[1]

    def sample(self, temperature: float, generator: torch.Generator) -> Tensor:
        """mean + temperature L e, with e of N(0, 1)."""
        e = normal_like(self.mean.double(), generator)
        return self.mean + temperature * (self.tril.double() @ e[:, :, None])[:, :, 0]


@dataclass(frozen=True)
class GeneralisedNormal(Family):
    """Independent numbers of p = beta / (2 alpha Gamma(1/beta)) exp(-|y - mu|^beta / alpha^beta).

    Nadarajah 2005, "A generalized normal distribution", equation 1. beta 1 is Laplace's, 2 Gauss';
    it is learned between 0.5 and 8.
    """

    def n_raw(self, size: int) -> int:
        """mu, log alpha and beta of each number."""
        return 3 * size

    def at(self, raw: Tensor, size: int) -> Density:
        """Raw outputs: D mu, D log alpha, D of beta."""
        mean, scale, shape = raw.split(size, 1)
        return GeneralisedNormalDensity(
            mean, bounded_log_scale(scale), _between(shape, 0.5, 8.0, 2.0)
        )


@dataclass(frozen=True, eq=False)
class GeneralisedNormalDensity(Density):
    """mu, log alpha and beta (N, D)."""

    mean: Tensor
    log_scale: Tensor
    beta: Tensor

    def log_prob(self, y: Tensor) -> Tensor:
        """The density."""
        z = ((y - self.mean).abs() * torch.exp(-self.log_scale)).clamp_min(1e-12)
        norm = self.beta.log() - math.log(2) - self.log_scale - torch.lgamma(1 / self.beta)
        return (norm - torch.exp(self.beta * z.log())).sum(1)

    def sample(self, temperature: float, generator: torch.Generator) -> Tensor:
        """mu +- temperature alpha G^(1/beta), with G of Gamma(1/beta, 1)."""
        beta = self.beta.double()
        z = _gamma(1 / beta, generator) ** (1 / beta)
        sign = torch.where(uniform(tuple(z.shape), z, generator) < 0.5, -1.0, 1.0)
        return self.mean + temperature * sign * self.log_scale.double().exp() * z


@dataclass(frozen=True)
class Student(Family):
    """Independent numbers of Student's t with location, scale and degrees of freedom.

    The degrees nu are learned between 0.5 and 200; tails fall as |y|^-(nu + 1).
    """

    def n_raw(self, size: int) -> int:
        """Location, log scale and degrees of freedom of each number."""
        return 3 * size

    def at(self, raw: Tensor, size: int) -> Density:
        """Raw outputs: D locations, D log scales, D of nu."""
        mean, scale, freedom = raw.split(size, 1)
        return StudentDensity(mean, bounded_log_scale(scale), _between(freedom, 0.5, 200.0, 8.0))


@dataclass(frozen=True, eq=False)
class StudentDensity(Density):
    """Location, log scale and nu (N, D)."""

    mean: Tensor
    log_scale: Tensor
    freedom: Tensor

    def log_prob(self, y: Tensor) -> Tensor:
        """The density."""
        nu = self.freedom
        z = (y - self.mean) * torch.exp(-self.log_scale)
        norm = torch.lgamma((nu + 1) / 2) - torch.lgamma(nu / 2) - 0.5 * torch.log(math.pi * nu)
        tail = (nu + 1) / 2 * torch.log1p(z.square() / nu)
        return (norm - self.log_scale - tail).sum(1)

    def sample(self, temperature: float, generator: torch.Generator) -> Tensor:
        """Location + temperature scale e / sqrt(2 G / nu), with G of Gamma(nu / 2, 1)."""
        nu = self.freedom.double()
        e = normal_like(nu, generator)
        t = e / torch.sqrt(2 * _gamma(nu / 2, generator) / nu)
        return self.mean + temperature * self.log_scale.double().exp() * t


@dataclass(frozen=True)
class GaussianMixture(Family):
    """sum_k w_k N(mean_k, diag(scale_k^2)): a mixture density network (Bishop 1994, equation 23).

    components: K.
    """

    components: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.components <= MOST_COMPONENTS:
            raise UserError(
                f"GaussianMixture: components is {self.components}; it must be 1 to"
                f" {MOST_COMPONENTS}"
            )

    def n_raw(self, size: int) -> int:
        """K logits, K D means and K D log scales."""
        return self.components * (1 + 2 * size)

    def initial(self, size: int) -> Tensor:
        """Means drawn from N(0, 1), always the same, so that components do not start as one."""
        k = self.components
        means = torch.randn(k * size, generator=torch.Generator().manual_seed(0))
        return torch.cat([torch.zeros(k), means, torch.zeros(k * size)])

    def at(self, raw: Tensor, size: int) -> Density:
        """Raw outputs: the logits of w, then the means, then the log scales."""
        k = self.components
        logits, mean, scale = raw.split([k, k * size, k * size], 1)
        shape = (-1, k, size)
        return MixtureDensity(logits, mean.reshape(shape), bounded_log_scale(scale.reshape(shape)))


@dataclass(frozen=True, eq=False)
class MixtureDensity(Density):
    """Logits of the weights (N, K); means and log scales (N, K, D)."""

    logits: Tensor
    mean: Tensor
    log_scale: Tensor

    def log_prob(self, y: Tensor) -> Tensor:
        """The density."""
        z = (y[:, None] - self.mean) * torch.exp(-self.log_scale)
        parts = (-0.5 * z.square() - self.log_scale - 0.5 * LOG_2PI).sum(2)
        return torch.logsumexp(self.logits.log_softmax(1) + parts, 1)

    def sample(self, temperature: float, generator: torch.Generator) -> Tensor:
        """A component, then its mean + temperature scale e.

        The temperature also divides the logits of the components, as of other choices.
        """
        logits = self.logits.double()
        chosen = logits.argmax(1)
        if temperature > 0:
            p = (logits / temperature).softmax(1)
            chosen = inverse_cdf(p, uniform((len(p),), p, generator))
        rows = torch.arange(len(chosen), device=chosen.device)
        mean = self.mean.double()[rows, chosen]
        scale = self.log_scale.double()[rows, chosen].exp()
        return mean + temperature * scale * normal_like(mean, generator)


# ---- counts


def _cooled(counts: Tensor, mean: Tensor, temperature: float) -> Tensor:
    """Counts with their distance from the mean multiplied, rounded, and not below 0."""
    if temperature == 1:
        return counts
    return (mean + temperature * (counts - mean)).round().clamp_min(0)


@dataclass(frozen=True)
class Poisson(Family):
    """Independent counts of p(n) = rate^n e^-rate / n!."""

    counts = True

    def n_raw(self, size: int) -> int:
        """The log rate of each number."""
        return size

    def at(self, raw: Tensor, size: int) -> Density:
        """Raw outputs: D log rates."""
        return PoissonDensity(raw.clamp(-MOST_LOG_RATE, MOST_LOG_RATE))


@dataclass(frozen=True, eq=False)
class PoissonDensity(Density):
    """Log rates (N, D)."""

    log_rate: Tensor

    def log_prob(self, y: Tensor) -> Tensor:
        """The probability of counts y (N, D)."""
        return (y * self.log_rate - self.log_rate.exp() - torch.lgamma(y + 1)).sum(1)

    def sample(self, temperature: float, generator: torch.Generator) -> Tensor:
        """Counts."""
        rate = self.log_rate.double().exp()
        drawn = torch.poisson(rate.to(generator.device), generator=generator).to(rate.device)
        return _cooled(drawn, rate, temperature)


@dataclass(frozen=True)
class NegativeBinomial(Family):
    """Independent counts of mean mu and variance mu + mu^2 / r: overdispersed where r is small.

    p(n) = Gamma(n + r) / (n! Gamma(r)) (r / (r + mu))^r (mu / (r + mu))^n; a Poisson distribution
    whose rate is drawn of a gamma distribution. r is learned between 0.01 and 10,000.
    """

    counts = True

    def n_raw(self, size: int) -> int:
        """Log mean and r of each number."""
        return 2 * size

    def at(self, raw: Tensor, size: int) -> Density:
        """Raw outputs: D log means, D of r."""
        mean, dispersion = raw.split(size, 1)
        mean = mean.clamp(-MOST_LOG_RATE, MOST_LOG_RATE)
        return NegativeBinomialDensity(mean, _between(dispersion, 0.01, 1e4, 10.0))


@dataclass(frozen=True, eq=False)
class NegativeBinomialDensity(Density):
    """Log mean and r (N, D)."""

    log_mean: Tensor
    r: Tensor

    def log_prob(self, y: Tensor) -> Tensor:
        """The probability of counts y (N, D), in float64: Gamma's logarithms nearly cancel."""
        y = y.double()
        r = self.r.double()
        log_mean = self.log_mean.double()
        log_total = torch.log(r + log_mean.exp())
        choices = torch.lgamma(y + r) - torch.lgamma(y + 1) - torch.lgamma(r)
        return (choices + r * (r.log() - log_total) + y * (log_mean - log_total)).sum(1)

    def sample(self, temperature: float, generator: torch.Generator) -> Tensor:
        """Counts."""
        r = self.r.double()
        mean = self.log_mean.double().exp()
        rate = (_gamma(r, generator) * mean / r).to(generator.device)
        drawn = torch.poisson(rate, generator=generator).to(mean.device)
        return _cooled(drawn, mean, temperature)
