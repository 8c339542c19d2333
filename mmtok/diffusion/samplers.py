"""Samplers: from noise to data with any denoiser, along any path. They know no network.

    times = column.times(18)
    y = Heun()(denoiser, column.start(noise, times[0]), times, column)

The state x is the path's own, x = s (y + sigma n); denoisers are always given x / s. A sampler is a
small frozen value, so that a recipe can hold it; one loop (`Sampler.__call__`) steps, checks and
shows, and each class below is one step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from mmtok.diffusion.ode import (
    CLASSIC,
    EULER,
    HEUN,
    MIDPOINT,
    Here,
    Tableau,
    along,
    denoised_at,
    drift,
    explicit_step,
    here,
)
from mmtok.diffusion.predictions import Denoiser
from mmtok.diffusion.random import normal_like
from mmtok.diffusion.schedules import LINEAR, Path

Callback = Callable[[int, Tensor], None]
"""Is called after every step with its number, from 0, and the state: for strips of pictures and
progress.
"""


class Walk(NamedTuple):
    """What every step needs: who denoises, where, and from which dice."""

    denoiser: Denoiser
    path: Path
    n_steps: int
    generator: torch.Generator | None


@dataclass(frozen=True)
class Sampler:
    """Common to all: the loop."""

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
        """X (B, ...) at times[0] -> (B, ...) at times[-1], in x's dtype. times: (n + 1,), falling;
        the last may be 0.

        Raises ValueError for times that do not fall or are too few, FloatingPointError at the first
        step whose state is not finite.
        """
        stations = self._checked(times, path)
        walk, memory = Walk(denoiser, path, len(times) - 1, generator), None
        for i, (at, to) in enumerate(zip(stations, stations[1:])):
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
        """The same, with all noise that it adds on its way scaled; most add none."""
        return self

    def step(self, walk: Walk, x: Tensor, at: Here, to: Here, memory: Any) -> tuple[Tensor, Any]:
        """The state at `to` from the state at `at`, and what the next step is to remember (None at
        first).
        """
        raise NotImplementedError

    def _checked(self, times: Tensor, path: Path) -> list[Here]:
        if times.dim() != 1 or len(times) - 1 < self.least_steps:
            raise ValueError(
                f"{type(self).__name__} needs at least {self.least_steps} step(s), so"
                f" {self.least_steps + 1} times, got times of shape {tuple(times.shape)}"
            )
        stations = along(path, times)
        sigmas = [station.sigma for station in stations]
        if not (
            all(a > b for a, b in zip(sigmas, sigmas[1:]))
            and sigmas[-1] >= 0
            and math.isfinite(sigmas[0])
        ):
            raise ValueError(
                f"a sampler's noise levels must fall from step to step, to 0 or above, got {sigmas}"
            )
        return stations


@dataclass(frozen=True)
class Churn:
    """Noise added before a step, to forget old errors: S_churn, S_tmin, S_tmax, S_noise of Karras
    et al. 2022, algorithm 2.

    s_noise above 1 makes up for a network that takes away too much; with an ideal denoiser it
    widens the samples by s_noise^2.
    """

    s_churn: float
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.0

    def __post_init__(self):
        if self.s_churn < 0 or self.s_noise < 0 or self.s_tmin > self.s_tmax:
            raise ValueError(
                "churn and its noise must not be negative, nor s_tmin above s_tmax, got s_churn"
                f" {self.s_churn}, s_noise {self.s_noise}, s_tmin {self.s_tmin}, s_tmax"
                f" {self.s_tmax}"
            )

    def raised(self, walk: Walk, x: Tensor, at: Here) -> tuple[Tensor, Here]:
        """Lines 4 to 6 on any path: sigma_hat = (1 + gamma) sigma, and the state with the noise
        that belongs to it.
        """
        gamma = (
            min(self.s_churn / walk.n_steps, math.sqrt(2) - 1)
            if self.s_tmin <= at.sigma <= self.s_tmax
            else 0.0
        )
        if gamma == 0:
            return x, at
        sigma_hat = torch.tensor(at.sigma * (1 + gamma), dtype=torch.float64)
        hat = here(walk.path, walk.path.time(sigma_hat).item())
        added = math.sqrt(hat.sigma**2 - at.sigma**2) * self.s_noise
        return hat.s * (x / at.s + added * normal_like(x, walk.generator)), hat


@dataclass(frozen=True)
class RungeKutta(Sampler):
    """Integrates the probability-flow ODE in t.

    A step to sigma = 0 is Euler's, as the drift has no value there.
    """

    tableau: ClassVar[Tableau]
    churn: Churn | None = None

    def tempered(self, temperature):
        """Churn is all the noise that there is."""
        return (
            self
            if self.churn is None
            else replace(self, churn=replace(self.churn, s_noise=self.churn.s_noise * temperature))
        )

    def step(self, walk, x, at, to, memory):
        """One explicit step of the tableau in t, from where the churn (if any) has raised the state
        to; it remembers nothing.
        """
        if self.churn is not None:
            x, at = self.churn.raised(walk, x, at)

        def slope(state, t):
            now = at if t == at.t else to if t == to.t else here(walk.path, t)
            return (drift(state[0], denoised_at(walk.denoiser, state[0], now), now),)

        return (
            explicit_step(slope, (x,), at.t, to.t, self.tableau if to.sigma > 0 else EULER)[0],
            None,
        )


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
    """Song et al. 2021 (arXiv 2010.02502), eq. 12, written in sigma so that it holds on every path;
    n evaluations.

    eta: 0 is deterministic (then the same as Euler's step in sigma), 1 is DDPM's ancestral step
    (their eq. 16).
    temperature: scales the noise that eta brings in (Li et al. 2024, arXiv 2406.11838).
    """

    eta: float = 0.0
    temperature: float = 1.0

    def __post_init__(self):
        if not 0 <= self.eta <= 1 or self.temperature < 0:
            raise ValueError(
                f"eta must be in [0, 1] and the temperature not negative, got {self.eta} and"
                f" {self.temperature}"
            )

    def tempered(self, temperature):
        """On top of its own temperature."""
        return replace(self, temperature=self.temperature * temperature)

    def step(self, walk, x, at, to, memory):
        """Eq. 12 in sigma: what the denoiser sees, the old noise shrunk, and eta's share of fresh
        noise; it remembers nothing.
        """
        denoised = denoised_at(walk.denoiser, x, at)
        noise = (x / at.s - denoised) / at.sigma
        fresh = self.eta * to.sigma * math.sqrt(1 - (to.sigma / at.sigma) ** 2)
        unscaled = denoised + math.sqrt(to.sigma**2 - fresh**2) * noise
        if fresh > 0:
            unscaled = unscaled + fresh * self.temperature * normal_like(x, walk.generator)
        return to.s * unscaled, None


@dataclass(frozen=True)
class DPMSolver2M(Sampler):
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2); order 2 in lambda = -ln
    sigma; n evaluations.

    The first step, and a last one to sigma = 0, are of order 1 (DPM-Solver++(1), which is DDIM).
    `order=1` makes all of them so.
    """

    least_steps = 2
    order: int = 2

    def __post_init__(self):
        if self.order not in (1, 2):
            raise ValueError(f"DPM-Solver++ is here of order 1 or 2, got {self.order}")

    def step(self, walk, x, at, to, memory):
        """A step of algorithm 2, in sigma; it remembers the denoised state and the step h in
        lambda, and starts anew without them.
        """
        denoised = denoised_at(walk.denoiser, x, at)
        ratio = to.sigma / at.sigma  # e^-h
        ahead = denoised
        if memory is not None and to.sigma > 0 and self.order == 2:
            denoised_before, h_before = memory
            r = h_before / -math.log(ratio)
            ahead = (1 + 1 / (2 * r)) * denoised - denoised_before / (2 * r)
        x = to.s * (ratio * (x / at.s) + (1 - ratio) * ahead)
        return x, (denoised, -math.log(ratio)) if to.sigma > 0 else None
