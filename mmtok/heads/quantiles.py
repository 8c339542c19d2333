"""Families that are not trained by their likelihood: quantiles, and points.

Letters: N rows, D numbers, K quantiles of each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmtok.diffusion.random import uniform
from mmtok.errors import UserError
from mmtok.heads.base import Kind
from mmtok.heads.densities import Density, Family, bounded_log_scale

MOST_QUANTILES = 999


# ---- quantiles


@dataclass(frozen=True)
class Quantiles(Family):
    """Quantiles of independent numbers, at k / (K + 1), trained by the pinball loss.

    max(tau (y - q), (tau - 1) (y - q)), a mean over levels tau (Koenker and Bassett 1978). They
    never cross: each is the one before it and a positive gap. No shape is assumed, but draws and
    scores need one between them: p is even between two quantiles, and falls exponentially beyond
    the outermost, without a step. So log p is an estimate.

    quantiles: K; 39 has the ends of the central 50, 90 and 95 % among them.
    """

    kind: ClassVar[Kind] = "estimate"
    loss_name: ClassVar[str] = "pinball loss"

    quantiles: int = 39

    def __post_init__(self) -> None:
        if not 3 <= self.quantiles <= MOST_QUANTILES or self.quantiles % 2 == 0:
            raise UserError(
                f"Quantiles: quantiles is {self.quantiles}; it must be odd, so that the median is"
                f" one of them, and 3 to {MOST_QUANTILES}"
            )

    def n_raw(self, size: int) -> int:
        """Median, log scale and K - 1 gaps of each number."""
        return (self.quantiles + 1) * size

    def at(self, raw: Tensor, size: int) -> QuantileDensity:
        """Raw outputs: D medians, D log scales, D (K - 1) log gaps over those of N(0, 1)."""
        k = self.quantiles
        median, log_scale, log_gaps = raw.split([size, size, (k - 1) * size], 1)
        normal = torch.special.ndtri(_levels(k)).diff().to(raw)
        gaps = bounded_log_scale(log_gaps.reshape(-1, size, k - 1)).exp() * normal
        gaps = gaps * bounded_log_scale(log_scale).exp()[:, :, None]
        up = gaps.cumsum(2)
        middle = (k - 1) // 2
        places = torch.cat([torch.zeros_like(up[:, :, :1]), up], 2)
        return QuantileDensity(places - places[:, :, middle, None] + median[:, :, None])


@dataclass(frozen=True, eq=False)
class QuantileDensity(Density):
    """Quantiles (N, D, K), rising."""

    quantiles: Tensor

    def loss(self, y: Tensor) -> Tensor:
        """The pinball loss, summed over numbers: (N,)."""
        tau = _levels(self.quantiles.shape[2]).to(self.quantiles)
        off = y[:, :, None] - self.quantiles
        return torch.maximum(tau * off, (tau - 1) * off).mean(2).sum(1)

    def log_prob(self, y: Tensor) -> Tensor:
        """Of the distribution that draws have; see `Quantiles`."""
        q = self.quantiles
        k = q.shape[2]
        gaps = q.diff(dim=2)
        place = torch.searchsorted(q, y[:, :, None].contiguous())[:, :, 0]
        width = gaps.gather(2, (place - 1).clamp(0, k - 2)[:, :, None])[:, :, 0]
        beyond = (q[:, :, 0] - y).clamp_min(0) + (y - q[:, :, -1]).clamp_min(0)
        return (-width.log() - beyond / width).sum(1) - q.shape[1] * math.log(k + 1)

    def sample(self, temperature: float, generator: torch.Generator) -> Tensor:
        """The quantile at a random level; its distance from the median times the temperature."""
        q = self.quantiles.double()
        n, d, k = q.shape
        u = uniform((n, d), q, generator)
        place = u * (k + 1) - 1  # 0 at the first quantile, K - 1 at the last
        left = place.floor().long().clamp(0, k - 2)
        ends = q.gather(2, torch.stack([left, left + 1], 2))
        gap = ends[:, :, 1] - ends[:, :, 0]
        y = ends[:, :, 0] + (place - left).clamp(0, 1) * gap
        low = gap * torch.log((place + 1).clamp(1e-300, 1))
        high = gap * torch.log((k - place).clamp(1e-300, 1))
        y = y + low - high
        median = q[:, :, (k - 1) // 2]
        return median + temperature * (y - median)


def _levels(k: int) -> Tensor:
    """k / (K + 1) in float64: (K,)."""
    return torch.arange(1, k + 1, dtype=torch.float64) / (k + 1)


# ---- points


@dataclass(frozen=True)
class SquaredError(Family):
    """The mean alone, by (y - mean)^2: a baseline, as it says nothing of its error.

    Draws are all the mean, and there is no score. `Gaussian()` learns its error too.
    """

    kind: ClassVar[Kind] = "estimate"
    loss_name: ClassVar[str] = "squared error"
    no_score: ClassVar[str] = (
        "SquaredError learns a mean, which has no probability; for scores train with Gaussian()"
    )

    def n_raw(self, size: int) -> int:
        """D means."""
        return size

    def at(self, raw: Tensor, size: int) -> Density:
        """Raw outputs: D means."""
        return Point(raw, power=2)


@dataclass(frozen=True)
class AbsoluteError(Family):
    """The median alone, by |y - median|; as `SquaredError` in all else."""

    kind: ClassVar[Kind] = "estimate"
    loss_name: ClassVar[str] = "absolute error"
    no_score: ClassVar[str] = (
        "AbsoluteError learns a median, which has no probability; for scores train with"
        " GeneralisedNormal() or Quantiles()"
    )

    def n_raw(self, size: int) -> int:
        """D medians."""
        return size

    def at(self, raw: Tensor, size: int) -> Density:
        """Raw outputs: D medians."""
        return Point(raw, power=1)


@dataclass(frozen=True, eq=False)
class Point(Density):
    """Points (N, D), and the power of the error that they are trained by."""

    point: Tensor
    power: int

    def loss(self, y: Tensor) -> Tensor:
        """Summed over numbers: (N,)."""
        return ((y - self.point).abs() ** self.power).sum(1)

    def log_prob(self, y: Tensor) -> Tensor:
        """Raises UserError: see `no_score`."""
        raise UserError("a point has no probability")

    def sample(self, temperature: float, generator: torch.Generator) -> Tensor:
        """The point, at any temperature."""
        return self.point.double()
