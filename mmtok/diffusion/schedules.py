"""Noise schedules: those of Karras et al. 2022 (arXiv 2206.00364), table 1, and flow matching.

The room's one convention of time: noise grows with t, and t = 0 is data. A state at time t is

    x = s (y + sigma n),    y data, n ~ N(0, I), sigma = sigma(t), s = s(sigma(t)),

and y + sigma n = x / s is the unscaled state, which is what a denoiser D(x, sigma) is always given.
Flow matching papers run time the other way (t = 1 is data): our tau is their 1 - t, and our
velocity n - y is minus theirs.

A schedule answers three questions: where to step (`times`), what the network's input and output are
(`coefficients`), and how it is trained (`training_sigma`, `weight`). They need not come from the
same schedule: any sampler may follow any path with any denoiser. All functions take tensors of any
shape, elementwise, and are meant for float64: their cost is small next to a network's.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor


class Coefficients(NamedTuple):
    """Preconditioning of a network F, eq. 7: D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


@dataclass(frozen=True)
class Path:
    """sigma(t) and s(sigma) of a probability path; here sigma = t, s = 1."""

    def sigma(self, t: Tensor) -> Tensor:
        """Noise level at time t."""
        return t

    def sigma_slope(self, t: Tensor) -> Tensor:
        """d sigma / d t."""
        return torch.ones_like(t)

    def time(self, sigma: Tensor) -> Tensor:
        """The inverse of `sigma`."""
        return sigma

    def scaling(self, sigma: Tensor) -> Tensor:
        """s, as a function of the noise level."""
        return torch.ones_like(sigma)

    def scaling_slope(self, sigma: Tensor) -> Tensor:
        """d s / d sigma."""
        return torch.zeros_like(sigma)

    def start(self, noise: Tensor, t: Tensor | float) -> Tensor:
        """The state at time t for data at 0: s sigma n (B, ...), n ~ N(0, I)."""
        sigma = self.sigma(torch.as_tensor(t, dtype=torch.float64))
        return noise * (self.scaling(sigma) * sigma).item()


LINEAR = Path()


class NoiseSchedule(Path, ABC):
    """A path with its time steps, its preconditioning and its training distribution."""

    sigma_data = 1.0
    """The root mean square that it takes the data to have, per dimension."""

    has_sigma_data = False
    """Whether sigma_data is a field, to be set to the data's own."""

    def times(self, n_steps: int) -> Tensor:
        """t_0 > ... > t_(n-1) > t_n = 0: (n_steps + 1,) float64."""
        if n_steps < 1:
            raise ValueError(f"a sampler needs at least 1 step, got {n_steps}")
        return torch.cat([self._noisy_times(n_steps), torch.zeros(1, dtype=torch.float64)])

    @abstractmethod
    def _noisy_times(self, n_steps: int) -> Tensor:
        """t_0 > ... > t_(n-1) > 0: (n_steps,) float64."""

    def sigmas(self, n_steps: int) -> Tensor:
        """The noise levels of `times`: (n_steps + 1,) float64, the last 0."""
        return self.sigma(self.times(n_steps))

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The least noise level above 0 and the most that it steps through."""
        sigmas = self.sigmas(self.most_steps)
        return float(sigmas[-2]), float(sigmas[0])

    @property
    def most_steps(self) -> int:
        """In how many steps `sigma_range` is found."""
        return 1000

    @abstractmethod
    def coefficients(self, sigma: Tensor) -> Coefficients:
        """Preconditioning at noise level sigma (section 5 of the paper)."""

    @abstractmethod
    def training_sigma(self, u: Tensor) -> Tensor:
        """The noise level at quantile u in (0, 1) of the training distribution."""

    def weight(self, sigma: Tensor) -> Tensor:
        """lambda(sigma) of the loss lambda |D - y|^2 (eq. 8)."""
        return 1 / sigma**2


@dataclass(frozen=True)
class EDM(NoiseSchedule):
    """Karras et al. 2022; sigma_data is the root mean square of the data, per dimension."""

    has_sigma_data = True

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    sigma_data: float = 0.5
    p_mean: float = -1.2
    p_std: float = 1.2

    def __post_init__(self) -> None:
        _require(
            0 < self.sigma_min < self.sigma_max,
            f"sigma_min must be above 0 and below sigma_max, got {self.sigma_min} and"
            f" {self.sigma_max}",
        )
        for name in ("sigma_data", "p_std", "rho"):
            _require(getattr(self, name) > 0, f"{name} must be above 0, got {getattr(self, name)}")

    def _noisy_times(self, n_steps: int) -> Tensor:
        fraction = _fractions(n_steps)
        # eq. 5
        top = self.sigma_max ** (1 / self.rho)
        bottom = self.sigma_min ** (1 / self.rho)
        return (top + fraction * (bottom - top)) ** self.rho

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """Input and output of unit variance (appendix B.6)."""
        total = sigma**2 + self.sigma_data**2
        return Coefficients(
            self.sigma_data**2 / total,
            sigma * self.sigma_data * total.rsqrt(),
            total.rsqrt(),
            sigma.log() / 4,
        )

    def training_sigma(self, u: Tensor) -> Tensor:
        """ln sigma is normal, of mean p_mean and deviation p_std."""
        return (self.p_mean + self.p_std * torch.special.ndtri(u)).exp()

    def weight(self, sigma: Tensor) -> Tensor:
        """1 / c_out^2."""
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2


@dataclass(frozen=True)
class VP(NoiseSchedule):
    """Variance preserving (Song et al. 2021, arXiv 2011.13456)."""

    beta_d: float = 19.9
    beta_min: float = 0.1
    eps_s: float = 1e-3
    eps_t: float = 1e-5
    m: int = 1000

    def __post_init__(self) -> None:
        _require(
            0 < self.eps_s < 1 and 0 < self.eps_t < 1,
            f"eps_s and eps_t must be between 0 and 1, got {self.eps_s} and {self.eps_t}",
        )
        _require(
            self.beta_d > 0 and self.beta_min >= 0,
            f"beta_d must be above 0 and beta_min not below, got {self.beta_d} and {self.beta_min}",
        )

    def sigma(self, t: Tensor) -> Tensor:
        """sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1)."""
        return torch.expm1(self.beta_d * t**2 / 2 + self.beta_min * t).sqrt()

    def sigma_slope(self, t: Tensor) -> Tensor:
        """(beta_d t + beta_min) (sigma^2 + 1) / (2 sigma)."""
        sigma = self.sigma(t)
        return (self.beta_d * t + self.beta_min) * (sigma**2 + 1) / (2 * sigma)

    def time(self, sigma: Tensor) -> Tensor:
        """The positive root of sigma(t) = sigma."""
        b = self.beta_min
        return ((b**2 + 2 * self.beta_d * torch.log1p(sigma**2)).sqrt() - b) / self.beta_d

    def scaling(self, sigma: Tensor) -> Tensor:
        """1 / sqrt(1 + sigma^2), so that the state's variance stays 1."""
        return (1 + sigma**2).rsqrt()

    def scaling_slope(self, sigma: Tensor) -> Tensor:
        """-sigma (1 + sigma^2)^(-3/2)."""
        return -sigma * (1 + sigma**2) ** -1.5

    def _noisy_times(self, n_steps: int) -> Tensor:
        fraction = _fractions(n_steps)
        return 1 + fraction * (self.eps_s - 1)

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """The network predicts the noise; c_noise is the discrete time step."""
        return Coefficients(
            torch.ones_like(sigma), -sigma, (sigma**2 + 1).rsqrt(), (self.m - 1) * self.time(sigma)
        )

    def training_sigma(self, u: Tensor) -> Tensor:
        """t is uniform from eps_t to 1."""
        return self.sigma(self.eps_t + u * (1 - self.eps_t))


@dataclass(frozen=True)
class VE(NoiseSchedule):
    """Variance exploding (Song et al. 2021)."""

    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def __post_init__(self) -> None:
        _require(
            0 < self.sigma_min < self.sigma_max,
            f"sigma_min must be above 0 and below sigma_max, got {self.sigma_min} and"
            f" {self.sigma_max}",
        )

    def sigma(self, t: Tensor) -> Tensor:
        """sqrt(t)."""
        return t.sqrt()

    def sigma_slope(self, t: Tensor) -> Tensor:
        """1 / (2 sqrt(t))."""
        return t.rsqrt() / 2

    def time(self, sigma: Tensor) -> Tensor:
        """sigma^2."""
        return sigma**2

    def _noisy_times(self, n_steps: int) -> Tensor:
        fraction = _fractions(n_steps)
        return self.sigma_max**2 * (self.sigma_min / self.sigma_max) ** (2 * fraction)

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """The network predicts minus the noise."""
        return Coefficients(
            torch.ones_like(sigma), sigma, torch.ones_like(sigma), (sigma / 2).log()
        )

    def training_sigma(self, u: Tensor) -> Tensor:
        """ln sigma is uniform from ln sigma_min to ln sigma_max."""
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** u


@dataclass(frozen=True)
class IDDPM(NoiseSchedule):
    """Nichol and Dhariwal 2021 (arXiv 2102.09672) with DDIM's steps.

    It has m discrete noise levels u_0 > ... > u_(m-1), of which u_(j_0) is the first used.
    """

    c_1: float = 0.001
    c_2: float = 0.008
    m: int = 1000
    j_0: int = 8

    def __post_init__(self) -> None:
        _require(
            0 <= self.j_0 < self.m,
            f"j_0 must be one of the m noise levels, got {self.j_0} of {self.m}",
        )

    @cached_property
    def noise_levels(self) -> Tensor:
        """u_0 ... u_(m-1): (m,) float64."""
        return torch.tensor(_iddpm_noise_levels(self.m, self.c_1, self.c_2), dtype=torch.float64)

    @property
    def most_steps(self) -> int:
        """The number of noise levels in use."""
        return self.m - self.j_0

    def times(self, n_steps: int) -> Tensor:
        """As in the base class. Raises ValueError for more steps than noise levels in use."""
        if n_steps > self.most_steps:
            raise ValueError(
                f"iDDPM has {self.most_steps} noise levels to step through, got {n_steps} steps"
            )
        return super().times(n_steps)

    def _noisy_times(self, n_steps: int) -> Tensor:
        fraction = _fractions(n_steps)
        j = (self.j_0 + (self.m - 1 - self.j_0) * fraction + 0.5).floor().long()
        return self.noise_levels[j]

    def nearest(self, sigma: Tensor) -> Tensor:
        """argmin_j |u_j - sigma|: long, shaped as sigma."""
        return (self.noise_levels.to(sigma.device) - sigma.double()[..., None]).abs().argmin(-1)

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """The network predicts the noise; c_noise is the discrete time step."""
        c_noise = (self.m - 1 - self.nearest(sigma)).to(sigma.dtype)
        return Coefficients(torch.ones_like(sigma), -sigma, (sigma**2 + 1).rsqrt(), c_noise)

    def training_sigma(self, u: Tensor) -> Tensor:
        """Uniform over the m noise levels."""
        j = (u * self.m).long().clamp(max=self.m - 1)
        return self.noise_levels.to(u.device)[j].to(u.dtype)


@dataclass(frozen=True)
class CondOT(NoiseSchedule):
    """Flow matching on the conditional optimal-transport path; also called rectified flow.

    Source: Lipman et al. 2023 (arXiv 2210.02747), example II. In tau = sigma / (1 + sigma), a state
    is x = (1 - tau) y + tau n, so s = 1 - tau, and the network's output is the velocity dx / dtau =
    n - y. At tau = 1 nothing of y is left and sigma is infinite: samplers start at tau_max, just
    below.
    """

    tau_max: float = 0.999
    eps_tau: float = 1e-5

    def __post_init__(self) -> None:
        _require(
            0 < self.tau_max < 1 and 0 < self.eps_tau < 0.5,
            f"tau_max must be in (0, 1) and eps_tau in (0, 0.5), got {self.tau_max} and"
            f" {self.eps_tau}",
        )

    def sigma(self, t: Tensor) -> Tensor:
        """t / (1 - t), for t = tau."""
        return t / (1 - t)

    def sigma_slope(self, t: Tensor) -> Tensor:
        """1 / (1 - t)^2."""
        return (1 - t) ** -2

    def time(self, sigma: Tensor) -> Tensor:
        """sigma / (1 + sigma)."""
        return sigma / (1 + sigma)

    def scaling(self, sigma: Tensor) -> Tensor:
        """1 / (1 + sigma), which is 1 - t."""
        return 1 / (1 + sigma)

    def scaling_slope(self, sigma: Tensor) -> Tensor:
        """-1 / (1 + sigma)^2."""
        return -((1 + sigma) ** -2)

    def _noisy_times(self, n_steps: int) -> Tensor:
        # even in tau from tau_max on; the last step, to 0, is as long as the others
        return self.tau_max * (1 - torch.arange(n_steps, dtype=torch.float64) / n_steps)

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """The network reads the path's own state and tau, and predicts the velocity n - y."""
        s = 1 / (1 + sigma)
        return Coefficients(s, -sigma * s, s, sigma * s)

    def training_sigma(self, u: Tensor) -> Tensor:
        """tau is uniform in (0, 1), kept eps_tau away from its ends."""
        return self.sigma(u.clamp(self.eps_tau, 1 - self.eps_tau))

    def weight(self, sigma: Tensor) -> Tensor:
        """1 / c_out^2, so that the loss is that of the velocity."""
        return ((1 + sigma) / sigma) ** 2


@lru_cache(maxsize=4)
def _iddpm_noise_levels(m: int, c_1: float, c_2: float) -> tuple[float, ...]:
    """u_0 ... u_(m-1) by the recursion of table 1.

    u_m = 0, u_(j-1)^2 = (u_j^2 + 1) / max(abar_(j-1) / abar_j, c_1) - 1.
    """
    a_bar = [math.sin(math.pi / 2 * j / (m * (c_2 + 1))) ** 2 for j in range(m + 1)]
    u = [0.0]
    for j in range(m, 0, -1):
        u.append(math.sqrt((u[-1] ** 2 + 1) / max(a_bar[j - 1] / a_bar[j], c_1) - 1))
    return tuple(u[:0:-1])


def _fractions(n_steps: int) -> Tensor:
    """i / (n - 1) for i < n, from 0 (most noise) to 1; a single one is 0: (n_steps,) float64."""
    return torch.arange(n_steps, dtype=torch.float64) / max(1, n_steps - 1)


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ValueError(message)
