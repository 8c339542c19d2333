"""How well a score tells two sets apart: ROC curves, and the area under them with its interval.

Letters: n scores of the first set, m of the second, which should be the larger ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmtok.metrics.intervals import LEVEL, N_RESAMPLES, Estimate


@dataclass(frozen=True, eq=False)
class ROC:
    """Shares above each threshold, from the highest down; both begin at 0 and end at 1.

    Attributes:
        false: of the first set (K,).
        true: of the second set (K,).
    """

    false: np.ndarray
    true: np.ndarray


def roc(a: np.ndarray, b: np.ndarray) -> ROC:
    """The curve of scores a (n,) and b (m,): a point for each threshold."""
    values, places = np.unique(np.concatenate((a, b)), return_inverse=True)
    of_a = np.bincount(places[: len(a)], minlength=len(values))[::-1]
    of_b = np.bincount(places[len(a) :], minlength=len(values))[::-1]
    false = np.concatenate(([0], np.cumsum(of_a))) / len(a)
    true = np.concatenate(([0], np.cumsum(of_b))) / len(b)
    return ROC(false, true)


def auc_estimate(a: np.ndarray, b: np.ndarray, seed: int = 0) -> Estimate:
    """How often a score of b (m,) is above one of a (n,), ties half, with a bootstrap interval.

    Each set is resampled on its own (Efron and Tibshirani 1993, chapter 8). `n` is the number of
    the smaller set.
    """
    return _estimate(*_resampled(a, b, seed), min(len(a), len(b)))


def auc_difference(
    ours: tuple[np.ndarray, np.ndarray], theirs: tuple[np.ndarray, np.ndarray], seed: int = 0
) -> Estimate:
    """The AUC of ours less that of theirs, of two scores (a, b) of the same signals.

    The same signals are drawn for both, so what is common to them cancels.

    Raises ValueError for other than as many scores.
    """
    for mine, other in zip(ours, theirs, strict=True):
        if len(mine) != len(other):
            raise ValueError(f"auc_difference: {len(mine)} and {len(other)} scores are no pairs")
    value, resampled = _resampled(*ours, seed)
    value_of_theirs, resampled_of_theirs = _resampled(*theirs, seed)
    n = min(map(len, ours))
    return _estimate(value - value_of_theirs, resampled - resampled_of_theirs, n)


def _estimate(value: float, resampled: np.ndarray, n: int) -> Estimate:
    if n < 2:
        return Estimate(value, np.nan, np.nan, n)
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high), n)


def _resampled(a: np.ndarray, b: np.ndarray, seed: int) -> tuple[float, np.ndarray]:
    """The AUC, and that of resamples (R,); signals are drawn by their place and the seed alone."""
    n = len(a)
    m = len(b)
    if not n or not m:
        return np.nan, np.full(N_RESAMPLES, np.nan)
    values, places = np.unique(np.concatenate((a, b)), return_inverse=True)

    def auc(counts_a: np.ndarray, counts_b: np.ndarray) -> float:
        """Of signals that are there so many times, (n,) and (m,)."""
        of_a = np.bincount(places[:n], counts_a, len(values))
        of_b = np.bincount(places[n:], counts_b, len(values))
        below = np.cumsum(of_a) - of_a / 2  # a tie is half
        return float(of_b @ below) / (n * m)

    rng = np.random.default_rng(seed)
    drawn_a = rng.multinomial(n, np.full(n, 1 / n), N_RESAMPLES)
    drawn_b = rng.multinomial(m, np.full(m, 1 / m), N_RESAMPLES)
    pairs = zip(drawn_a, drawn_b, strict=True)
    return auc(np.ones(n), np.ones(m)), np.array([auc(*pair) for pair in pairs])
