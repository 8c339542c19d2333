"""Laws of physics that predicted numbers should obey, as losses beside that of `Regression`.

A law c(y) = 0 gives each row y (N, D), in the caller's unit, a cost in nats: c^2 / (2 width^2),
-log of a Gaussian of that width but for its constant (physics-informed losses: Raissi, Perdikaris
and Karniadakis 2019, J. Comput. Phys. 378, 686, equations 3 and 4). A frozen dataclass of one's own
with the same two methods is a law too. Letters: N rows, D numbers, P particles, whose momenta are
the vector, one behind the other.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from mmtok.errors import UserError

COMPONENTS = (2, 3)  # of a momentum: across the beam, or all
LEAST_SQUARE = 1e-12  # of a mass: at 0 the root's slope is infinite


class Law(ABC):
    """Base of laws; a subclass is a frozen dataclass."""

    @abstractmethod
    def __call__(self, y: Tensor) -> Tensor:
        """What y (N, D) in the caller's unit costs: (N,) nats, 0 where the law holds."""

    @abstractmethod
    def check(self, size: int) -> None:
        """Raise UserError for vectors of D = size numbers that the law cannot be about."""

    def _refuse(self, why: str) -> None:
        raise UserError(f"{type(self).__name__}: {why}")

    def _check_width(self, width: float) -> None:
        if not 0 < width < math.inf:
            self._refuse(f"width is {width}; it must be above 0, and finite")


@dataclass(frozen=True)
class MomentumBalance(Law):
    """The momenta of a vector sum to zero: |sum_i p_i|^2 / (2 width^2).

    Attributes:
        components: of each momentum: 2, across the beam, or 3.
        width: of the sum's components, in the vector's unit: how far from 0 they are in truth.
    """

    components: int = 2
    width: float = 10.0

    def __post_init__(self) -> None:
        self._check_width(self.width)
        if self.components not in COMPONENTS:
            self._refuse(f"components is {self.components}; a momentum has 2 or 3 of them here")

    def check(self, size: int) -> None:
        """Raise UserError for what is no whole number of momenta, two at least."""
        if size % self.components or size < 2 * self.components:
            self._refuse(
                f"{size} numbers are not two or more momenta of {self.components} components"
            )

    def __call__(self, y: Tensor) -> Tensor:
        """(N,) of momenta (N, P components)."""
        total = y.unflatten(1, (-1, self.components)).sum(1)
        return (total / self.width).square().sum(1) / 2


@dataclass(frozen=True)
class MassConstraint(Law):
    """Massless particles have a known invariant mass: (m - mass)^2 / (2 width^2).

        m^2 = 2 sum_{i<j} (|p_i| |p_j| - p_i . p_j)

    which is (sum E)^2 - |sum p|^2 without the difference of large numbers.

    Attributes:
        mass: in the vector's unit.
        width: of m, in the same: the resonance's own, or the resolution.
        particles: their places in the vector, from 0; (): all of them.
    """

    mass: float = 80.4
    width: float = 2.1
    particles: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self._check_width(self.width)
        if not 0 <= self.mass < math.inf:
            self._refuse(f"mass is {self.mass}; it must not be negative, and finite")
        chosen = self.particles
        if chosen and (len(chosen) < 2 or len(set(chosen)) < len(chosen) or min(chosen) < 0):
            self._refuse(f"particles are {chosen}; name two or more different places, from 0")

    def check(self, size: int) -> None:
        """Raise UserError for what is no whole number of momenta, two at least, and those named."""
        if size % 3 or size < 6:
            self._refuse(f"{size} numbers are not two or more momenta of 3 components")
        if self.particles and max(self.particles) >= size // 3:
            self._refuse(f"there is no particle {max(self.particles)} among {size // 3}, from 0")

    def __call__(self, y: Tensor) -> Tensor:
        """(N,) of momenta (N, 3 P)."""
        p = y.unflatten(1, (-1, 3))
        if self.particles:
            p = p[:, list(self.particles)]
        return (invariant_mass(p / self.width) - self.mass / self.width).square() / 2


def invariant_mass(p: Tensor) -> Tensor:
    """The mass (N,) of massless particles with momenta p (N, P, 3); 1e-6 of p's unit at least."""
    first, second = torch.triu_indices(p.shape[1], p.shape[1], 1, device=p.device)
    energy = p.square().sum(2).clamp_min(LEAST_SQUARE).sqrt()
    products = energy[:, first] * energy[:, second] - (p[:, first] * p[:, second]).sum(2)
    return (2 * products.sum(1)).clamp_min(LEAST_SQUARE).sqrt()
