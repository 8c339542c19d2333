"""log p of data: by the probability-flow ODE, by a variational bound, and in bits per dimension.

The ODE gives the density at noise level sigma_min: exact up to the solver's error with
`exact_trace`, an unbiased estimate with `hutchinson`, and for dequantised data a lower bound of
log P. `latent_bound` is a lower bound in expectation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from mmtok.diffusion.ode import CLASSIC, State, Tableau, explicit_step
from mmtok.diffusion.predictions import Denoiser
from mmtok.diffusion.random import normal_like, uniform

Field = Callable[[Tensor], Tensor]
Divergence = Callable[[Field, Tensor], tuple[Tensor, Tensor]]
"""(f, x (B, ...)) -> f(x) (B, ...) and the trace of its Jacobian, row by row (B,).

f must treat rows apart: no batch statistics.
"""


def exact_trace(f: Field, x: Tensor) -> tuple[Tensor, Tensor]:
    """One backward pass per dimension: for d up to some hundred."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y = f(x)
        outputs = y.flatten(1).unbind(1)
        trace = x.new_zeros(len(x))
        for i, output in enumerate(outputs):
            (gradient,) = torch.autograd.grad(output.sum(), x, retain_graph=i + 1 < len(outputs))
            trace += gradient.flatten(1)[:, i]
    return y.detach(), trace


def hutchinson(probe: Tensor) -> Divergence:
    """probe^T J probe, unbiased for E[probe probe^T] = I.

    Source: Hutchinson 1990; Grathwohl et al. 2019 (arXiv 1810.01367). probe (B, ...) stays the same
    along a trajectory, so that the ODE has a right-hand side. Over symmetric S = (J + J^T) / 2 the
    variance is 2 sum_(i != j) S_ij^2 for signs (`rademacher_like`), and 2 |S|^2 for normal numbers.
    """

    def divergence(f: Field, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y = f(x)
            (pulled,) = torch.autograd.grad(y, x, probe)
        return y.detach(), (pulled * probe).flatten(1).sum(1)

    return divergence


@torch.no_grad()
def log_likelihood(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    log_prior: Callable[[Tensor], Tensor],
    divergence: Divergence = exact_trace,
    tableau: Tableau = CLASSIC,
    every: int = 1,
) -> Tensor:
    """log p(x; sigmas[0]) in nats (B,), for unscaled states x (B, ...) at noise level sigmas[0].

    Source: Song et al. 2021 (arXiv 2011.13456), eq. 39, in ln sigma: dx / dln sigma = x - D, so
    log p_0 = log p_T + the integral of tr(I - J_D). Best in float64.

    Args:
        denoiser: D(x, sigma).
        x: Data, or data with noise of deviation sigmas[0].
        sigmas: (n + 1,), rising from above 0.
        log_prior: Nats (B,) of states at sigmas[-1].
        divergence: How the trace is computed.
        tableau: Of the ODE's steps.
        every: The trace is taken at each `every`-th noise level and at both ends. It costs far more
            than the ODE's steps, which do not depend on it, and it is smooth in ln sigma: its
            integral is that of the spline through these values, of order 4 at any spacing.

    Raises:
        ValueError: For noise levels that do not rise from above 0.
        FloatingPointError: At the first step whose state is not finite.
    """
    rising = sigmas.dim() == 1 and len(sigmas) > 1 and bool((sigmas.diff() > 0).all())
    if not (rising and sigmas[0] > 0):
        raise ValueError(
            "a likelihood's noise levels must rise from above 0, at least two of them, got"
            f" {sigmas.tolist()}"
        )
    clock = sigmas.double().log().tolist()
    n_steps = len(clock) - 1
    nodes = sorted({*range(0, n_steps, every), n_steps})
    weights = dict(zip(nodes, spline_weights([clock[i] for i in nodes]), strict=True))

    def slope(state: State, t: float) -> State:
        return (_scaled_slope(denoiser, state[0], t),)

    z = x / _scale(clock[0])
    integral = x.new_zeros(len(x))
    for i, t in enumerate(clock):
        if i:
            (z,) = explicit_step(slope, (z,), clock[i - 1], t, tableau)
        x = z * _scale(t)
        if i in weights:
            sigma = x.new_full((len(x),), math.exp(t))
            _, trace = divergence(partial(_ode_slope, denoiser, sigma), x)
            integral = integral + weights[i] * trace
        if not bool(torch.isfinite(x).all() and torch.isfinite(integral).all()):
            raise FloatingPointError(
                f"the likelihood's state is not finite after step {max(i, 1)} of {n_steps} (sigma"
                f" {math.exp(t):.4g}): the denoiser or its derivative returned NaN or infinity"
                " there"
            )
    return log_prior(x) + integral


def _ode_slope(denoiser: Denoiser, sigma: Tensor, x: Tensor) -> Tensor:
    """dx / dln sigma = x - D(x, sigma)."""
    return x - denoiser(x, sigma)


def _scale(clock: float) -> float:
    """sqrt(1 + sigma^2), about the size of a state."""
    return math.hypot(1, math.exp(clock))


def _scaled_slope(denoiser: Denoiser, z: Tensor, clock: float) -> Tensor:
    """dz / dln sigma of z = x / sqrt(1 + sigma^2).

    At large noise z is nearly constant, while x grows and a solver errs on it.
    """
    scale = _scale(clock)
    return z / scale**2 - denoiser(z * scale, z.new_full((len(z),), math.exp(clock))) / scale


def spline_weights(nodes: list[float]) -> list[float]:
    """Weights of values at these rising nodes for the integral of the cubic spline through them.

    With two nodes the spline is a line.
    """
    from scipy.interpolate import CubicSpline

    return CubicSpline(nodes, np.eye(len(nodes))).integrate(nodes[0], nodes[-1]).tolist()


def log_spaced(sigma_min: float, sigma_max: float, n_steps: int) -> Tensor:
    """Rising noise levels, even in ln sigma: (n_steps + 1,) float64."""
    if not (0 < sigma_min < sigma_max and n_steps >= 1):
        raise ValueError(
            f"needs 0 < sigma_min < sigma_max and a step, got sigma_min {sigma_min}, sigma_max"
            f" {sigma_max}, n_steps {n_steps}"
        )
    return torch.linspace(
        math.log(sigma_min), math.log(sigma_max), n_steps + 1, dtype=torch.float64
    ).exp()


@dataclass(frozen=True)
class GaussianPrior:
    """N(mean, covariance + sigma^2 I) over flattened states: noisy data to second order.

    With the data's own moments ("moment-matched") its error at sigma_max is of third order in data
    / sigma_max; that of N(0, sigma_max^2), of first order in the data's mean.
    mean (d,), covariance (d, d) or its diagonal (d,), both float64.
    """

    mean: Tensor
    covariance: Tensor
    sigma: float

    @classmethod
    def matched(cls, data: Tensor, sigma: float, diagonal: bool = False) -> GaussianPrior:
        """With the mean and covariance of data (N, ...), or its diagonal where d x d is too big."""
        flat = data.flatten(1).double()
        centred = flat - flat.mean(0)
        covariance = centred.square().mean(0) if diagonal else centred.T @ centred / len(flat)
        return cls(flat.mean(0), covariance, sigma)

    def log_density(self, x: Tensor) -> Tensor:
        """Nats: (B, ...) -> (B,)."""
        centred = x.flatten(1).double() - self.mean
        root = self._root()
        if root.dim() == 1:
            whitened = centred / root
            log_volume = root.log().sum()
        else:
            whitened = torch.linalg.solve_triangular(root, centred.T, upper=False).T
            log_volume = root.diagonal().log().sum()
        constant = x[0].numel() / 2 * math.log(2 * math.pi)
        return (-whitened.square().sum(1) / 2 - log_volume - constant).to(x.dtype)

    def sample(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Unscaled states to start a sampler from, of `like`'s shape (B, ...), dtype and device."""
        noise = normal_like(like, generator).flatten(1).double()
        root = self._root()
        scaled = noise * root if root.dim() == 1 else noise @ root.T
        return (self.mean + scaled).to(like.dtype).view_as(like)

    def _root(self) -> Tensor:
        """Standard deviations (d,), or the Cholesky factor (d, d)."""
        if self.covariance.dim() == 1:
            return (self.covariance + self.sigma**2).sqrt()
        noise = torch.full_like(self.mean, self.sigma**2).diag()
        return torch.linalg.cholesky(self.covariance + noise)


@dataclass(frozen=True)
class Bins:
    """Whole numbers 0 ... n_bins - 1 on an axis from low to high.

    Bin k is [low + k w, low + (k + 1) w).
    """

    n_bins: int
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.n_bins < 1 or not self.low < self.high:
            raise ValueError(
                "bins must be at least 1 in number, on an axis that rises from low to high, got"
                f" {self.n_bins} from {self.low} to {self.high}"
            )

    @property
    def width(self) -> float:
        """w, the width of one bin."""
        return (self.high - self.low) / self.n_bins

    def dequantised(self, codes: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """codes + u on the axis, u uniform in [0, 1): float64.

        Then log P(codes) >= E log p + d ln w, over u (Theis et al. 2016, arXiv 1511.01844).
        """
        return self.low + self.width * (codes + uniform(codes.shape, codes, generator))

    def centres(self, codes: Tensor) -> Tensor:
        """The centre of each bin: float64."""
        return self.low + self.width * (codes.double() + 0.5)

    def codes(self, x: Tensor) -> Tensor:
        """The bin that x lies in: long. The outer bins are open outwards."""
        return ((x - self.low) / self.width).floor().long().clamp(0, self.n_bins - 1)

    def log_mass(self, codes: Tensor, mean: Tensor, std: Tensor | float) -> Tensor:
        """log P(code) of N(mean, std^2) cut into bins, elementwise.

        The outer bins are open outwards (Ho et al. 2020, eq. 13).
        """
        std = torch.as_tensor(std, dtype=torch.float64, device=codes.device)
        below = (self.low + self.width * codes.double() - mean) / std
        above = below + self.width / std
        below = below.masked_fill(codes == 0, -math.inf)
        above = above.masked_fill(codes == self.n_bins - 1, math.inf)
        # mirrored above the mean, as the lower tail keeps its digits
        mirrored = below > 0
        lower = torch.where(mirrored, -above, below)
        upper = torch.where(mirrored, -below, above)
        high = torch.special.log_ndtr(upper)
        low = torch.special.log_ndtr(lower)
        return high + torch.log(-torch.expm1(low - high))

    def bits_per_dim(self, log_density: Tensor, n_dims: int) -> Tensor:
        """log p of a density on this axis, per example -> bits per dimension of the bins.

        -log p / (d ln 2) - log2 w.
        """
        return -log_density / (n_dims * math.log(2)) - math.log2(self.width)


def latent_bound(
    log_prior: Tensor, log_decoder: Tensor, log_encoder: Tensor | float = 0.0
) -> Tensor:
    """The term to average over z ~ q, nats.

    log p(x) >= E_q [log p(z) + log p(x | z) - log q(z | x)], where p(x) is the sum over z of
    p(z) p(x | z).

    A deterministic encoder into codes (VQ, FSQ) has log q = 0 and then needs no average: the sum
    over z holds its own code's term.
    Discrete data through a little noise: z = x + sigma n, log p(z) by the ODE, log p(x | z) by
    `Bins.log_mass`, log q by `log_normal`; that replaces dequantisation (the L_0 term of Ho et
    al. 2020).
    """
    return log_prior + log_decoder - log_encoder


def log_normal(x: Tensor, mean: Tensor, std: float) -> Tensor:
    """log N(x; mean, std^2 I) nats: (B, ...) -> (B,)."""
    z = ((x - mean) / std).flatten(1)
    return -z.square().sum(1) / 2 - z.shape[1] * (math.log(std) + math.log(2 * math.pi) / 2)
