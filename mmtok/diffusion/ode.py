"""Explicit Runge-Kutta steps and the probability-flow ODE, for samplers and the likelihood."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mmtok.diffusion.predictions import Denoiser
from mmtok.diffusion.schedules import Path

State = tuple[Tensor, ...]


@dataclass(frozen=True)
class Tableau:
    """A Butcher tableau.

    Attributes:
        order: that it reaches.
        nodes: c.
        rows: the strictly lower triangle of A.
        weights: b.
    """

    order: int
    nodes: tuple[float, ...]
    rows: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]


EULER = Tableau(1, (0.0,), ((),), (1.0,))
MIDPOINT = Tableau(2, (0.0, 0.5), ((), (0.5,)), (0.0, 1.0))
HEUN = Tableau(2, (0.0, 1.0), ((), (1.0,)), (0.5, 0.5))
CLASSIC = Tableau(
    4, (0.0, 0.5, 0.5, 1.0), ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)
)


def explicit_step(
    slope: Callable[[State, float], State], state: State, t: float, t_next: float, tableau: Tableau
) -> State:
    """The state at t_next, from dstate/dt = slope(state, t): a tuple of tensors in, one out."""
    h = t_next - t
    slopes: list[State] = []
    for node, row in zip(tableau.nodes, tableau.rows, strict=True):
        # exact at the end, so that its point on the path is not computed twice
        now = t_next if node == 1 else t + node * h
        slopes.append(slope(_moved(state, slopes, row, h), now))
    return _moved(state, slopes, tableau.weights, h)


def _moved(state: State, slopes: list[State], weights: tuple[float, ...], h: float) -> State:
    """state + h * sum of weight * slope."""
    for slope, weight in zip(slopes, weights, strict=True):
        if weight:
            state = tuple(x + (h * weight) * dx for x, dx in zip(state, slope, strict=True))
    return state


@dataclass(frozen=True)
class PathPoint:
    """A path at one time, in plain numbers: t, sigma(t), d sigma / d t, s(sigma), d s / d sigma."""

    t: float
    sigma: float
    sigma_slope: float
    s: float
    s_slope: float


def path_points(path: Path, times: Tensor) -> list[PathPoint]:
    """The path at each of `times` (n,).

    At sigma = 0 slopes may be infinite or NaN; no step uses them there.
    """
    times = times.double().cpu()
    sigma = path.sigma(times)
    columns = (
        times,
        sigma,
        path.sigma_slope(times),
        path.scaling(sigma),
        path.scaling_slope(sigma),
    )
    return [PathPoint(*row) for row in zip(*(x.tolist() for x in columns), strict=True)]


def path_point(path: Path, t: float) -> PathPoint:
    """The path at time t."""
    return path_points(path, torch.tensor([t], dtype=torch.float64))[0]


def denoised_at(denoiser: Denoiser, x: Tensor, at: PathPoint) -> Tensor:
    """D(x / s; sigma) of a state x (B, ...) on a path."""
    return denoiser(x / at.s, x.new_full((len(x),), at.sigma))


def drift(x: Tensor, denoised: Tensor, at: PathPoint) -> Tensor:
    """dx/dt of the probability-flow ODE: (sigma'/sigma + s'/s) x - (sigma' s / sigma) D.

    Source: Karras et al. 2022, algorithm 1, line 4; s' is ds/dt.
    """
    return at.sigma_slope * ((1 / at.sigma + at.s_slope / at.s) * x - (at.s / at.sigma) * denoised)
