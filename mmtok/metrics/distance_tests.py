"""Intervals and p-values of figures that compare two sets: W1 ratios, Fréchet distances, shares.

Letters: n and m signals of the two sets, d coordinates, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mmtok.metrics.intervals import LEVEL, mean_estimate
from mmtok.metrics.jets import OBSERVABLES, ratio_floor, w1
from mmtok.metrics.moments import frechet_squared
from mmtok.metrics.sliced import Sliced
from mmtok.metrics.statistics import p_of

N_PERMUTATIONS = 400
N_RESAMPLES = 200
HALVES = 0.95  # quantile of what two halves of real signals are apart


class Comparison(NamedTuple):
    """What stands beside a figure that compares two sets.

    The ends of its interval at LEVEL, NaN of one signal; and how often two sets that are alike have
    as large a figure.
    """

    low: float
    high: float
    p_value: float

    def named(self, name: str) -> dict[str, float]:
        """{name_low, name_high, name_p}, without those that are NaN."""
        keys = (f"{name}_low", f"{name}_high", f"{name}_p")
        return {key: x for key, x in zip(keys, self, strict=True) if np.isfinite(x)}


# ---- distances of one number


def w1_p(a: np.ndarray, b: np.ndarray, seed: int = 0) -> float:
    """p-value of the Wasserstein-1 distance of numbers (n,) and (m,), by permutation."""
    n = len(a)
    z = np.concatenate((a, b)).astype(np.float64)[:, None]
    measure = Sliced(1, ("sw",), 1).permuter(z, n)
    rng = np.random.default_rng(seed)
    null = [measure(rng.permutation(len(z)))["sw"] for _ in range(N_PERMUTATIONS)]
    return p_of(measure(np.arange(len(z)))["sw"], np.array(null))[0]


def w1_halves(real: np.ndarray, n: int, seed: int = 0) -> float:
    """What W1 of two random parts of real numbers, n and the others, stays below: at HALVES."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(N_PERMUTATIONS):
        order = rng.permutation(len(real))
        found.append(w1(real[order[:n]], real[order[n:]]))
    return float(np.quantile(found, HALVES))


def w1_ratio_test(
    generated: np.ndarray,
    reference: np.ndarray,
    real_a: np.ndarray,
    real_b: np.ndarray,
    seed: int = 0,
) -> Comparison:
    """The interval and the p-value of `mmtok.metrics.jets.w1_ratio`.

    All sets are resampled; `reference` and `real_a`, the same signals, together. Resampling adds
    distance of its own, so the interval has the resamples' deviations from their mean (Efron and
    Tibshirani 1993, chapter 10). It ends at 0. The p-value is of generated against reference.
    """
    rng = np.random.default_rng(seed)
    floor = ratio_floor(real_a, real_b)

    def ratio(ours: np.ndarray, to: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
        return w1(ours, to) / (max(w1(a, b), floor) or 1.0)

    value = ratio(generated, reference, real_a, real_b)
    p = w1_p(generated, reference, seed)
    if min(map(len, (generated, reference, real_b))) < 2:
        return Comparison(np.nan, np.nan, p)
    found = []
    for _ in range(N_RESAMPLES):
        same = rng.integers(0, len(real_a), len(real_a))
        ours = rng.choice(generated, len(generated))
        found.append(ratio(ours, reference[same], real_a[same], rng.choice(real_b, len(real_b))))
    return Comparison(*_about(value, np.array(found)), p)


def _about(value: float, resampled: np.ndarray) -> tuple[float, float]:
    """Quantiles of resampled values about their mean, put about `value`; at least 0."""
    low, high = np.quantile(resampled - resampled.mean(), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return max(value + float(low), 0.0), max(value + float(high), 0.0)


def jet_tests(
    generated: Sequence[np.ndarray],
    detokenised: Sequence[np.ndarray],
    real_a: Sequence[np.ndarray],
    real_b: Sequence[np.ndarray],
) -> dict[str, float]:
    """What stands beside the figures of `jet_distances`, with its arguments.

    Returns:
        NAME_low, NAME_high and NAME_p of each figure, and OBSERVABLE_w1_halves: the ratio that two
        halves of the real jets stay below in 95 of 100 draws. A generator below it is as near to
        real jets as they are to each other.
    """
    figures: dict[str, float] = {}
    for name, observable in OBSERVABLES.items():
        ours = observable(generated)
        a = observable(real_a)
        b = observable(real_b)
        tokenised = observable(detokenised)
        figures |= w1_ratio_test(ours, tokenised, a, b).named(f"{name}_w1")
        figures |= w1_ratio_test(ours, a, a, b).named(f"{name}_w1_raw")
        unit = max(w1(a, b), ratio_floor(a, b)) or 1.0
        figures[f"{name}_w1_halves"] = w1_halves(np.concatenate((a, b)), len(a)) / unit
    return figures


# ---- Fréchet distances


def frechet_test(a: np.ndarray, b: np.ndarray, seed: int = 0) -> Comparison:
    """The interval and the p-value of the plain Fréchet distance of points (n, d) and (m, d).

    As of `w1_ratio_test`; both sets are resampled.
    """
    rng = np.random.default_rng(seed)
    n = len(a)
    pooled = np.concatenate((a, b)).astype(np.float64)
    value = _frechet(pooled[:n], pooled[n:])
    null = []
    for _ in range(N_PERMUTATIONS):
        order = rng.permutation(len(pooled))
        null.append(_frechet(pooled[order[:n]], pooled[order[n:]]))
    found = []
    for _ in range(N_RESAMPLES):
        found.append(_frechet(rng.choice(pooled[:n], n), rng.choice(pooled[n:], len(b))))
    return Comparison(*_about(value, np.array(found)), p_of(value, np.array(null))[0])


def _frechet(a: np.ndarray, b: np.ndarray) -> float:
    of_a = a.mean(0), np.atleast_2d(np.cov(a, rowvar=False))
    return float(frechet_squared(*of_a, b.mean(0), np.atleast_2d(np.cov(b, rowvar=False))))


# ---- shares, and other figures of labels


def label_test(
    ours: Sequence[str],
    theirs: Sequence[str],
    measure: Callable[[Sequence[str]], float],
    seed: int = 0,
) -> Comparison:
    """The interval of a figure of labels (n,), such as their entropy, as of `w1_ratio_test`.

    The p-value is that of a figure of `theirs` (m,) as different, if labels were exchanged at
    random.
    """
    if not ours or not theirs:
        return Comparison(np.nan, np.nan, np.nan)
    rng = np.random.default_rng(seed)
    labels = [*ours, *theirs]
    n = len(ours)

    def apart(order: np.ndarray) -> float:
        chosen = [labels[i] for i in order]
        return abs(measure(chosen[:n]) - measure(chosen[n:]))

    null = [apart(rng.permutation(len(labels))) for _ in range(N_PERMUTATIONS)]
    found = [measure([labels[i] for i in rng.integers(0, n, n)]) for _ in range(N_RESAMPLES)]
    p = p_of(apart(np.arange(len(labels))), np.array(null))[0]
    return Comparison(*_about(measure(ours), np.array(found)), p)


def share_test(
    ours: Sequence[bool] | np.ndarray, theirs: Sequence[bool] | np.ndarray
) -> Comparison:
    """The interval of the share of `ours` (n,) that hold, and how far it is from `theirs` (m,).

    The p-value is that of as different shares by chance (Fisher's exact test, two-sided).
    """
    from scipy.stats import fisher_exact

    a = np.asarray(ours, bool)
    b = np.asarray(theirs, bool)
    estimate = mean_estimate(a)
    p = np.nan
    if len(a) and len(b):
        table = [[a.sum(), (~a).sum()], [b.sum(), (~b).sum()]]
        p = float(fisher_exact(table).pvalue)
    return Comparison(estimate.low, estimate.high, p)
