"""How sure a figure is: bootstrap intervals of means and error rates, p-values of differences.

NaN stands for what could not be measured, and is left out. Letters: n signals, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEVEL = 0.95  # of all intervals
N_RESAMPLES = 2_000
N_SIGNS = 10_000  # random sign flips of a permutation test


class Estimate(NamedTuple):
    """A figure with its interval at LEVEL, and of how many signals it is.

    All are NaN of no signals; the interval is NaN of one signal, which says nothing of others.
    """

    value: float
    low: float
    high: float
    n: int

    def named(self, name: str) -> dict[str, float]:
        """{name, name_low, name_high}, without those that are NaN or infinite."""
        keys = (name, f"{name}_low", f"{name}_high")
        values = (self.value, self.low, self.high)
        return {key: x for key, x in zip(keys, values, strict=True) if np.isfinite(x)}

    def __str__(self) -> str:
        if not np.isfinite(self.low):
            return f"{self.value:.3g}"
        return f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g})"


def ratio_estimate(
    numerators: Sequence[float] | np.ndarray,
    denominators: Sequence[float] | np.ndarray,
    seed: int = 0,
) -> Estimate:
    """The sum of `numerators` (n,) over that of `denominators` (n,), such as edits over words.

    Signals are resampled with replacement, numerator and denominator together (percentile
    bootstrap; Efron and Tibshirani 1993, chapter 13). Signals with a NaN are left out.
    """
    a = np.asarray(numerators, float)
    b = np.asarray(denominators, float)
    measured = np.isfinite(a) & np.isfinite(b)
    a = a[measured]
    b = b[measured]
    n = len(a)
    if not n or not b.sum():
        return Estimate(np.nan, np.nan, np.nan, n)
    value = float(a.sum() / b.sum())
    if n == 1:
        return Estimate(value, np.nan, np.nan, n)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), N_RESAMPLES)  # (R, n)
    sums = counts @ b
    resampled = (counts @ a)[sums > 0] / sums[sums > 0]
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high), n)


def mean_estimate(values: Sequence[float] | np.ndarray, seed: int = 0) -> Estimate:
    """The mean of `values` (n,), with its bootstrap interval."""
    return ratio_estimate(values, np.ones(len(values)), seed)


def width_estimate(
    values: Sequence[float] | np.ndarray, seed: int = 0, level: float = 0.68
) -> Estimate:
    """Half of the central interval of `values` (n,) at a level, with its bootstrap interval.

    Of a normal distribution at 0.68 it is about the standard deviation; outliers do not count.
    """
    x = np.asarray(values, float)
    x = x[np.isfinite(x)]
    n = len(x)
    if not n:
        return Estimate(np.nan, np.nan, np.nan, n)
    ends = [(1 - level) / 2, (1 + level) / 2]

    def width(rows: np.ndarray) -> np.ndarray:
        low, high = np.quantile(rows, ends, -1)
        return (high - low) / 2

    value = float(width(x))
    if n == 1:
        return Estimate(value, np.nan, np.nan, n)
    rng = np.random.default_rng(seed)
    resampled = [float(width(x[rng.integers(0, n, n)])) for _ in range(N_RESAMPLES)]
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high), n)


def paired_difference(
    ours: Sequence[float] | np.ndarray, theirs: Sequence[float] | np.ndarray, seed: int = 0
) -> tuple[Estimate, float]:
    """The mean of ours - theirs, of values (n,) of the same n signals, and a p-value.

    The p-value is that of a difference as large by chance, if the sign of each were a coin's
    (a two-sided permutation test; Fisher 1935). NaN of no pairs.

    Raises ValueError for other than as many values.
    """
    a = np.asarray(ours, float)
    b = np.asarray(theirs, float)
    if a.shape != b.shape:
        raise ValueError(f"paired_difference: {a.shape} values and {b.shape} are no pairs")
    differences = (a - b)[np.isfinite(a) & np.isfinite(b)]
    if not len(differences):
        return mean_estimate(differences), float("nan")
    rng = np.random.default_rng(seed)
    signs = rng.integers(0, 2, (N_SIGNS, len(differences))) * 2 - 1
    by_chance = np.abs(signs @ differences)
    seen = abs(differences.sum())
    n_as_large = np.count_nonzero(by_chance >= seen * (1 - 1e-9))
    return mean_estimate(differences, seed), (n_as_large + 1) / (N_SIGNS + 1)


def mean_difference(
    ours: Sequence[float] | np.ndarray, theirs: Sequence[float] | np.ndarray, seed: int = 0
) -> Estimate:
    """The mean of `ours` (n,) less that of `theirs` (m,), two sets of different signals.

    Each set is resampled on its own. `n` is the number of the smaller set.
    """
    a = np.asarray(ours, float)
    b = np.asarray(theirs, float)
    a = a[np.isfinite(a)]
    b = b[np.isfinite(b)]
    n = min(len(a), len(b))
    if not n:
        return Estimate(np.nan, np.nan, np.nan, n)
    value = float(a.mean() - b.mean())
    if n == 1:
        return Estimate(value, np.nan, np.nan, n)
    rng = np.random.default_rng(seed)
    resampled = _resampled_means(a, rng) - _resampled_means(b, rng)
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high), n)


def _resampled_means(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means (R,) of resamples of values (n,)."""
    n = len(values)
    return rng.multinomial(n, np.full(n, 1 / n), N_RESAMPLES) @ values / n
