"""Samplers: from noise to data with any denoiser, along any path. They know no network.

    times = schedule.times(18)
    y = Heun()(denoiser, schedule.start(noise, times[0]), times, schedule)

The state x is the path's own, x = s (y + sigma n); denoisers are always given x / s. A sampler is a
small frozen value, so that a recipe can hold it; one loop (`Sampler.__call__`) steps, checks and
calls back, and each class below is one step.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from mmtok.diffusion.ode import (
    CLASSIC,
    EULER,
    HEUN,
    MIDPOINT,
    PathPoint,
    State,
    Tableau,
    denoised_at,
    drift,
    explicit_step,
    path_point,
    path_points,
)
from mmtok.diffusion.predictions import Denoiser
from mmtok.diffusion.random import normal_like
from mmtok.diffusion.schedules import LINEAR, Path

Callback = Callable[[int, Tensor], None]
"""callback(step, x) after each step; steps count from 0."""


class Walk(NamedTuple):
    """What every step needs besides the state."""

    denoiser: Denoiser
    path: Path
    n_steps: int
    generator: torch.Generator | None


@dataclass(frozen=True)
class Sampler(ABC):
    """Base class: the loop."""

    least_steps: ClassVar[int] = 1

    def __call__(
        self,
        denoiser: Denoiser,
        x: Tensor,
        times: Tensor,
        path: Path = LINEAR,
        generator: torch.Generator | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """x (B, ...) at times[0] -> (B, ...) at times[-1], in x's dtype.

        times: (n + 1,), falling; the last may be 0. Raises ValueError for times that do not fall or
        are too few, FloatingPointError at the first step whose state is not finite.
        """
        points = self._checked(times, path)
        walk = Walk(denoiser, path, len(times) - 1, generator)
        memory = None
        for i, (at, to) in enumerate(pairwise(points)):
            x, memory = self.step(walk, x, at, to, memory)
            if not bool(torch.isfinite(x).all()):
                raise FloatingPointError(
                    f"the sampler's state is not finite after step {i + 1} of {walk.n_steps} (sigma"
                    f" {at.sigma:.4g} to {to.sigma:.4g}): the denoiser returned NaN or infinity"
                    " there"
                )
            if callback is not None:
                callback(i, x)
        return x

    def tempered(self, temperature: float) -> Sampler:
        """The same, with all noise that it adds in its steps scaled; most add none."""
        return self

    @abstractmethod
    def step(
        self, walk: Walk, x: Tensor, at: PathPoint, to: PathPoint, memory: Any
    ) -> tuple[Tensor, Any]:
        """The state at `to` from the state at `at`, and the next step's memory (None at first)."""

    def _checked(self, times: Tensor, path: Path) -> list[PathPoint]:
        if times.dim() != 1 or len(times) - 1 < self.least_steps:
            raise ValueError(
                f"{type(self).__name__} needs at least {self.least_steps} step(s), so"
                f" {self.least_steps + 1} times, got times of shape {tuple(times.shape)}"
            )
        points = path_points(path, times)
        sigmas = [point.sigma for point in points]
        falling = all(a > b for a, b in pairwise(sigmas))
        if not (falling and sigmas[-1] >= 0 and math.isfinite(sigmas[0])):
            raise ValueError(
                f"a sampler's noise levels must fall from step to step, to 0 or above, got {sigmas}"
            )
        return points


@dataclass(frozen=True)
class Churn:
    """Noise added before a step, so that old errors fade.

    Source: S_churn, S_tmin, S_tmax, S_noise of Karras et al. 2022, algorithm 2. s_noise above 1
    makes up for a network that takes away too much; with an ideal denoiser it widens the samples by
    s_noise^2.
    """

    s_churn: float
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        if self.s_churn < 0 or self.s_noise < 0 or self.s_tmin > self.s_tmax:
            raise ValueError(
                "churn and its noise must not be negative, nor s_tmin above s_tmax, got s_churn"
                f" {self.s_churn}, s_noise {self.s_noise}, s_tmin {self.s_tmin}, s_tmax"
                f" {self.s_tmax}"
            )

    def raised(self, walk: Walk, x: Tensor, at: PathPoint) -> tuple[Tensor, PathPoint]:
        """Lines 4 to 6 on any path: the state at sigma_hat = (1 + gamma) sigma, and its point."""
        gamma = min(self.s_churn / walk.n_steps, math.sqrt(2) - 1)
        if gamma == 0 or not self.s_tmin <= at.sigma <= self.s_tmax:
            return x, at
        sigma_hat = torch.tensor(at.sigma * (1 + gamma), dtype=torch.float64)
        hat = path_point(walk.path, walk.path.time(sigma_hat).item())
        added = math.sqrt(hat.sigma**2 - at.sigma**2) * self.s_noise
        return hat.s * (x / at.s + added * normal_like(x, walk.generator)), hat


@dataclass(frozen=True)
class RungeKutta(Sampler):
    """Integrates the probability-flow ODE in t.

    A step to sigma = 0 is Euler's, as the drift is not defined there.
    """

    tableau: ClassVar[Tableau]
    churn: Churn | None = None

    def tempered(self, temperature: float) -> RungeKutta:
        """Churn is all the noise that there is."""
        if self.churn is None:
            return self
        churn = replace(self.churn, s_noise=self.churn.s_noise * temperature)
        return replace(self, churn=churn)

    def step(
        self, walk: Walk, x: Tensor, at: PathPoint, to: PathPoint, memory: Any
    ) -> tuple[Tensor, Any]:
        """One explicit step of the tableau in t, after the churn if there is any."""
        if self.churn is not None:
            x, at = self.churn.raised(walk, x, at)

        known = {at.t: at, to.t: to}

        def slope(state: State, t: float) -> State:
            now = known.get(t) or path_point(walk.path, t)
            return (drift(state[0], denoised_at(walk.denoiser, state[0], now), now),)

        tableau = self.tableau if to.sigma > 0 else EULER
        (x,) = explicit_step(slope, (x,), at.t, to.t, tableau)
        return x, None


@dataclass(frozen=True)
class Euler(RungeKutta):
    """Order 1; n evaluations."""

    tableau = EULER


@dataclass(frozen=True)
class Midpoint(RungeKutta):
    """Order 2; 2 n evaluations, the last step 1."""

    tableau = MIDPOINT
    least_steps = 2


@dataclass(frozen=True)
class Heun(RungeKutta):
    """Order 2; 2 n - 1 evaluations down to 0.

    Algorithm 1 of Karras et al. 2022, and with churn their algorithm 2.
    """

    tableau = HEUN
    least_steps = 2


@dataclass(frozen=True)
class RungeKutta4(RungeKutta):
    """Order 4; 4 n evaluations, the last step 1. For references, not for speed."""

    tableau = CLASSIC
    least_steps = 2


@dataclass(frozen=True)
class DDIM(Sampler):
    """Song et al. 2021 (arXiv 2010.02502), eq. 12, in sigma, so for every path; n evaluations.

    Attributes:
        eta: 0 is deterministic (then the same as Euler's step in sigma), 1 is DDPM's ancestral step
            (their eq. 16).
        temperature: scales the noise that eta brings in (Li et al. 2024, arXiv 2406.11838).
    """

    eta: float = 0.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1 or self.temperature < 0:
            raise ValueError(
                f"eta must be in [0, 1] and the temperature not negative, got {self.eta} and"
                f" {self.temperature}"
            )

    def tempered(self, temperature: float) -> DDIM:
        """Its own temperature times this one."""
        return replace(self, temperature=self.temperature * temperature)

    def step(
        self, walk: Walk, x: Tensor, at: PathPoint, to: PathPoint, memory: Any
    ) -> tuple[Tensor, Any]:
        """Eq. 12 in sigma: the denoised state, the old noise scaled down, and fresh noise."""
        denoised = denoised_at(walk.denoiser, x, at)
        noise = (x / at.s - denoised) / at.sigma
        fresh = self.eta * to.sigma * math.sqrt(1 - (to.sigma / at.sigma) ** 2)
        unscaled = denoised + math.sqrt(to.sigma**2 - fresh**2) * noise
        if fresh > 0:
            unscaled = unscaled + fresh * self.temperature * normal_like(x, walk.generator)
        return to.s * unscaled, None


@dataclass(frozen=True)
class DPMSolver2M(Sampler):
    """DPM-Solver++(2M): order 2 in lambda = -ln sigma; n evaluations.

    Source: Lu et al. 2022 (arXiv 2211.01095), algorithm 2. The first step, and a last one to sigma
    = 0, are of order 1 (DPM-Solver++(1), which is DDIM). `order=1` makes all of them so.
    """

    least_steps = 2
    order: int = 2

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise ValueError(f"DPM-Solver++ is here of order 1 or 2, got {self.order}")

    def step(
        self, walk: Walk, x: Tensor, at: PathPoint, to: PathPoint, memory: Any
    ) -> tuple[Tensor, Any]:
        """A step of algorithm 2, in sigma. Its memory is the denoised state and the step in lambda.

        Without a memory it is of order 1.
        """
        denoised = denoised_at(walk.denoiser, x, at)
        ratio = to.sigma / at.sigma  # e^-h
        ahead = denoised
        if memory is not None and to.sigma > 0 and self.order == 2:
            denoised_before, h_before = memory
            r = h_before / -math.log(ratio)
            ahead = (1 + 1 / (2 * r)) * denoised - denoised_before / (2 * r)
        x = to.s * (ratio * (x / at.s) + (1 - ratio) * ahead)
        if to.sigma == 0:
            return x, None
        return x, (denoised, -math.log(ratio))
