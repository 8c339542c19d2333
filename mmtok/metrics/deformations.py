"""Small, declared changes of a set of points, and the smallest that a test finds.

Source: Grossi, Letizia and Torre 2024 (arXiv 2409.16336), section on deformations; epsilon is their
parameter. Letters: n points, d coordinates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mmtok.errors import UserError

WIDEST = 1024.0  # epsilon at which a search gives up
MOST_CORRELATED = 1.0  # epsilon of "correlation", where no correlation is left


@dataclass(frozen=True)
class Deformation:
    """A change of points (n, d) by an amount epsilon.

    Attributes:
        kind: A key of KINDS.
        epsilon: How much; 0 changes nothing.
    """

    kind: str
    epsilon: float

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"deformation {self.kind!r} is unknown; one of {', '.join(KINDS)}")
        if not 0 <= self.epsilon < np.inf:
            raise UserError(f"deformation {self.kind}: epsilon is {self.epsilon}; it must be >= 0")

    def __call__(self, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The points (n, d), changed; what is random in it is of the generator."""
        return KINDS[self.kind](x, self.epsilon, rng)

    def __str__(self) -> str:
        return f"{self.kind} by epsilon = {self.epsilon:g}"


def _mean(x: np.ndarray, epsilon: float, rng: np.random.Generator) -> np.ndarray:
    """All points moved by one vector of U(-epsilon, epsilon)."""
    return x + rng.uniform(-epsilon, epsilon, x.shape[1])


def _shift(x: np.ndarray, epsilon: float, rng: np.random.Generator) -> np.ndarray:
    """All coordinates of all points moved by epsilon."""
    return x + epsilon


def _variance(x: np.ndarray, epsilon: float, rng: np.random.Generator) -> np.ndarray:
    """Coordinates scaled about their means by U(1, 1 + epsilon), each by its own."""
    mean = x.mean(0)
    return mean + (x - mean) * rng.uniform(1, 1 + epsilon, x.shape[1])


def _correlation(x: np.ndarray, epsilon: float, rng: np.random.Generator) -> np.ndarray:
    """Covariances of different coordinates times (1 - epsilon)^2, by a linear map.

    Raises UserError for epsilon above 1.
    """
    if epsilon > MOST_CORRELATED:
        raise UserError(f"deformation correlation: epsilon is {epsilon:g}; it is at most 1")
    mean = x.mean(0)
    covariance = np.atleast_2d(np.cov(x, rowvar=False))
    diagonal = np.diag(np.diag(covariance))
    target = diagonal + (covariance - diagonal) * (1 - epsilon) ** 2
    old = np.linalg.cholesky(covariance)
    new = np.linalg.cholesky(target)
    return mean + np.linalg.solve(old, (x - mean).T).T @ new.T


def _longer_tails(x: np.ndarray, epsilon: float, rng: np.random.Generator) -> np.ndarray:
    """sign(x) |x|^(1 + epsilon)."""
    return np.sign(x) * np.abs(x) ** (1 + epsilon)


def _shorter_tails(x: np.ndarray, epsilon: float, rng: np.random.Generator) -> np.ndarray:
    """sign(x) |x|^(1 - epsilon)."""
    return np.sign(x) * np.abs(x) ** (1 - epsilon)


def _normal_noise(x: np.ndarray, epsilon: float, rng: np.random.Generator) -> np.ndarray:
    """N(0, epsilon) added, epsilon being its standard deviation."""
    return x + epsilon * rng.normal(size=x.shape)


def _uniform_noise(x: np.ndarray, epsilon: float, rng: np.random.Generator) -> np.ndarray:
    """U(-epsilon, epsilon) added to each number."""
    return x + rng.uniform(-epsilon, epsilon, x.shape)


KINDS: dict[str, Callable[[np.ndarray, float, np.random.Generator], np.ndarray]] = {
    "shift": _shift,
    "mean": _mean,
    "variance": _variance,
    "correlation": _correlation,
    "longer_tails": _longer_tails,
    "shorter_tails": _shorter_tails,
    "normal_noise": _normal_noise,
    "uniform_noise": _uniform_noise,
}


@dataclass(frozen=True)
class EpsilonLimit:
    """The smallest epsilon at which a statistic's mean reaches a threshold.

    Attributes:
        epsilon: The limit.
        low: Where the mean plus one standard deviation of the statistic reaches it.
        high: Where the mean less one standard deviation does.
    """

    epsilon: float
    low: float
    high: float


def epsilon_limit(
    measure: Callable[[np.ndarray, np.ndarray], float],
    reference: Callable[[int, np.random.Generator], np.ndarray],
    kind: str,
    threshold: float,
    n: int,
    n_repeats: int = 20,
    tolerance: float = 0.01,
    seed: int = 0,
) -> EpsilonLimit:
    """Search, by bisection, the epsilon at which a test excludes a deformation.

    Args:
        measure: The statistic of two sets (n, d).
        reference: Draws n points of the reference.
        kind: Of `Deformation`.
        threshold: A quantile of the statistic's null.
        n: Points of each set.
        n_repeats: Pairs of sets that a mean is of; the same random numbers serve every epsilon.
        tolerance: Of epsilon, relative.
        seed: Of the pairs.

    Raises UserError where no epsilon reaches the threshold.
    """

    def values(epsilon: float) -> np.ndarray:
        found = []
        for i in range(n_repeats):
            rng = np.random.default_rng((seed, i))
            x = reference(n, rng)
            found.append(measure(x, Deformation(kind, epsilon)(reference(n, rng), rng)))
        return np.array(found)

    seen: dict[float, np.ndarray] = {}

    def reaches(epsilon: float, sign: float) -> bool:
        if epsilon not in seen:
            seen[epsilon] = values(epsilon)
        return bool(seen[epsilon].mean() + sign * seen[epsilon].std(ddof=1) >= threshold)

    found = [_crossing(reaches, sign, kind, tolerance) for sign in (0.0, 1.0, -1.0)]
    return EpsilonLimit(*found)


def _crossing(
    reaches: Callable[[float, float], bool], sign: float, kind: str, tolerance: float
) -> float:
    """The least epsilon that reaches the threshold, within the tolerance."""
    most = WIDEST
    if kind in ("correlation", "shorter_tails"):
        most = MOST_CORRELATED
    high = 2.0**-10
    while not reaches(high, sign):
        if high >= most:
            raise UserError(f"deformation {kind}: not even epsilon = {most:g} is excluded")
        high = min(2 * high, most)
    low = high / 2
    if high == 2.0**-10:
        low = 0.0
    while high - low > tolerance * high:
        middle = (low + high) / 2
        if reaches(middle, sign):
            high = middle
        else:
            low = middle
    return high
