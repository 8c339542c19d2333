"""Are posteriors and probabilities as sure as they should be? Ranks, coverage, pulls, TARP, CRPS.

Posteriors are given by draws: truth (N,) with draws (N, L), or (N, d) with (N, L, d), as tensors or
arrays. All is computed in float64. Letters: N truths, L draws of each posterior, d coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmtok.errors import UserError

LEVELS = tuple(np.round(np.linspace(0.05, 0.95, 19), 2).tolist())
N_BINS = 10
N_PERMUTATIONS = 200
N_SIMULATED = 500


# ---- ranks


def ranks(truth: Any, draws: Any, seed: int = 0) -> np.ndarray:
    """How many draws lie below the truth: (N,) or (N, d) integers from 0 to L.

    Of calibrated posteriors they are uniform. Among equal values the truth's place is random.
    Source: Talts et al. 2018 (arXiv 1804.06788), algorithm 1.

    Raises UserError for shapes that do not belong together.
    """
    truth, draws = _posteriors(truth, draws)
    rng = np.random.default_rng(seed)
    below = (draws < truth[:, None]).sum(1)
    equal = (draws == truth[:, None]).sum(1)
    return below + rng.integers(0, equal + 1)


def pit(truth: Any, draws: Any, seed: int = 0) -> np.ndarray:
    """Probability integral transforms (N,) or (N, d): uniform on 0 to 1 for calibrated posteriors.

    (rank + u) / (L + 1) with u of U(0, 1), which is uniform for any number of draws.
    """
    found = ranks(truth, draws, seed)
    n_draws = np.shape(draws)[1]
    return (found + np.random.default_rng((seed, 1)).random(found.shape)) / (n_draws + 1)


@dataclass(frozen=True)
class Uniformity:
    """How far values are from uniform on 0 to 1.

    Attributes:
        n: Values.
        max_deviation: Of their distribution function from the diagonal.
        band: What 95 % of uniform samples stay below, about 1.358 / sqrt(n).
        ks_p: p-value of the maximal deviation (Kolmogorov and Smirnov).
        chi2_p: p-value of the counts in N_BINS bins (Pearson).
        mean: Of the values; above 1/2 where draws lie too low.
    """

    n: int
    max_deviation: float
    band: float
    ks_p: float
    chi2_p: float
    mean: float


def uniformity(values: Any) -> Uniformity:
    """Tests of values of all shapes, taken as one sample.

    Raises UserError for none, or values outside 0 to 1.
    """
    from scipy.stats import chisquare, kstest, kstwo

    x = _array(values).ravel()
    if not len(x) or not (x >= 0).all() or not (x <= 1).all():
        raise UserError("uniformity: needs values from 0 to 1")
    test = kstest(x, "uniform")
    counts = np.histogram(x, N_BINS, (0, 1))[0]
    return Uniformity(
        len(x),
        float(test.statistic),
        float(kstwo.ppf(0.95, len(x))),
        float(test.pvalue),
        float(chisquare(counts).pvalue),
        float(x.mean()),
    )


# ---- coverage


@dataclass(frozen=True)
class Coverage:
    """How often credible regions hold the truth.

    Attributes:
        levels: What they claim (K,).
        observed: How often they do (K,).
        error: Standard deviations (K,) of `observed` if the claims are right,
            sqrt(level (1 - level) / N).
    """

    levels: np.ndarray
    observed: np.ndarray
    error: np.ndarray


def coverage(truth: Any, draws: Any, levels: Sequence[float] = LEVELS, seed: int = 0) -> Coverage:
    """Coverage of the central intervals of one number, or of d numbers taken as N d truths.

    An interval of level c holds the truth where its PIT is within c / 2 of 1/2.
    """
    return _coverage(2 * np.abs(pit(truth, draws, seed) - 0.5).ravel(), levels)


def _coverage(values: np.ndarray, levels: Sequence[float]) -> Coverage:
    """How often values (N,) are at most each level."""
    c = np.asarray(levels, np.float64)
    observed = (values[:, None] <= c).mean(0)
    return Coverage(c, observed, np.sqrt(c * (1 - c) / len(values)))


def coverage_of_scaled_width(level: Any, scale: float) -> np.ndarray:
    """Coverage of normal posteriors that claim `scale` times the true standard deviation.

    2 Phi(s Phi^-1((1 + c) / 2)) - 1: at s = 0.8 the intervals of 0.68 hold 0.574.
    """
    from scipy.stats import norm

    return 2 * norm.cdf(scale * norm.ppf((1 + np.asarray(level, np.float64)) / 2)) - 1


# ---- pulls


@dataclass(frozen=True)
class Pulls:
    """(truth - mean) / sd of posteriors: N(0, 1) for calibrated normal ones, and only for these.

    Attributes:
        values: (N,).
        mean: Of the values.
        mean_error: Its standard deviation.
        sd: Of the values; above 1 where posteriors are too narrow.
        sd_error: Its standard deviation, of normal values.
        p_value: Of N(0, 1) (Kolmogorov and Smirnov).
    """

    values: np.ndarray
    mean: float
    mean_error: float
    sd: float
    sd_error: float
    p_value: float


def pulls(truth: Any, mean: Any, sd: Any) -> Pulls:
    """Pulls of truths (N,) with the means and standard deviations (N,) of their posteriors.

    Raises UserError for fewer than 2, or a standard deviation that is not above 0.
    """
    from scipy.stats import kstest

    widths = _array(sd)
    if widths.size < 2 or not (widths > 0).all():
        raise UserError("pulls: needs at least 2 posteriors, with standard deviations above 0")
    z = ((_array(truth) - _array(mean)) / widths).ravel()
    spread = float(z.std(ddof=1))
    return Pulls(
        z,
        float(z.mean()),
        spread / len(z) ** 0.5,
        spread,
        spread / (2 * (len(z) - 1)) ** 0.5,
        float(kstest(z, "norm").pvalue),
    )


# ---- TARP


@dataclass(frozen=True)
class Tarp:
    """Coverage of regions around random points.

    Attributes:
        values: (N,) share of the draws that are nearer to the reference point than the truth is;
            uniform for calibrated posteriors.
        coverage: Expected coverage by level.
        p_value: Of uniform values, by a one-sample test: N enters it. (A two-sample test between
            the curve and its levels, as some packages have it, has no null.)
    """

    values: np.ndarray
    coverage: Coverage
    p_value: float


def tarp(
    truth: Any,
    draws: Any,
    references: Any = None,
    levels: Sequence[float] = LEVELS,
    seed: int = 0,
) -> Tarp:
    """Tests of accuracy with random points (Lemos et al. 2023, arXiv 2302.03026, algorithm 2).

    Distances are Euclidean, of coordinates scaled to the truths' ranges.

    Args:
        truth: (N, d) or (N,).
        draws: (N, L, d) or (N, L).
        references: Points (N, d); None draws them uniformly over the truths' ranges. Such ones do
            not depend on the data, and cannot see that a posterior is only the prior: points that
            do, as the data themselves scaled, can; so does `skill`.
        levels: Of the coverage.
        seed: Of references, and of equal distances.

    Raises UserError for shapes that do not belong together.
    """
    truth, draws = _posteriors(truth, draws)
    truth = truth.reshape(len(truth), -1)
    draws = draws.reshape(*draws.shape[:2], -1)
    low = truth.min(0)
    reach = truth.max(0) - low
    reach[reach == 0] = 1.0
    rng = np.random.default_rng((seed, 2))
    points = rng.random(truth.shape)
    if references is not None:
        given = _array(references)
        if given.size != truth.size or len(given) != len(truth):
            raise UserError(
                f"tarp: references {given.shape} and truths {truth.shape} do not belong together"
            )
        points = (given.reshape(truth.shape) - low) / reach
    of_truth = np.linalg.norm((truth - low) / reach - points, axis=1)
    of_draws = np.linalg.norm((draws - low) / reach - points[:, None], axis=2)
    values = pit(of_truth, of_draws, seed)
    return Tarp(values, _coverage(values, levels), uniformity(values).ks_p)


# ---- sharpness


def crps(truth: Any, draws: Any) -> np.ndarray:
    """Continuous ranked probability scores (N,) or (N, d), in the truth's unit; lower is better.

    E|X - y| - E|X - X'| / 2, with the second mean over pairs of different draws, so that it does
    not depend on L. Source: Gneiting and Raftery 2007, equation 21; Ferro 2014 for the pairs.

    Raises UserError for fewer than 2 draws.
    """
    truth, draws = _posteriors(truth, draws)
    return np.abs(draws - truth[:, None]).mean(1) - _half_spread(draws)


def _half_spread(draws: np.ndarray) -> np.ndarray:
    """E|X - X'| / 2 of different draws (N, L, ...), along the second axis."""
    n = draws.shape[1]
    if n < 2:
        raise UserError(f"crps: {n} draws of each posterior; at least 2 are needed")
    weights = 2 * np.arange(n) - n + 1
    weights = weights.reshape(-1, *[1] * (draws.ndim - 2))
    return (np.sort(draws, axis=1) * weights).sum(1) / (n * (n - 1))


def crps_normal(truth: Any, mean: Any, sd: Any) -> np.ndarray:
    """CRPS of normal posteriors in closed form.

    sd (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt pi) with z = (truth - mean) / sd.
    """
    from scipy.stats import norm

    widths = _array(sd)
    z = (_array(truth) - _array(mean)) / widths
    return widths * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - np.pi**-0.5)


def sharpness(draws: Any, level: float = 0.68) -> np.ndarray:
    """Widths (N,) or (N, d) of the central intervals of posteriors, in the draws' unit."""
    tails = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(_array(draws), tails, axis=1)
    return high - low


@dataclass(frozen=True)
class Skill:
    """How much posteriors know of their own truths.

    Attributes:
        crps: Mean score of the posteriors.
        crps_exchanged: Mean score where posteriors are exchanged between truths at random.
        skill: 1 - crps / crps_exchanged: 0 where posteriors are all the prior, 1 where they know
            the truth.
        p_value: How often exchanged posteriors score as well; large where the posteriors know
            nothing of their truths, which ranks and TARP do not see.
    """

    crps: float
    crps_exchanged: float
    skill: float
    p_value: float


def skill(truth: Any, draws: Any, n_permutations: int = N_PERMUTATIONS, seed: int = 0) -> Skill:
    """Permutation test of whether posteriors depend on what they are given. One number each.

    Raises UserError for shapes other than (N,) and (N, L).
    """
    truth, draws = _posteriors(truth, draws)
    if truth.ndim != 1:
        raise UserError(f"skill: truths are {truth.shape}; test each coordinate alone, (N,)")
    rng = np.random.default_rng(seed)
    spread = _half_spread(draws).mean()
    seen = np.abs(draws - truth[:, None]).mean() - spread
    exchanged = np.array(
        [np.abs(draws - rng.permutation(truth)[:, None]).mean() for _ in range(n_permutations)]
    )
    exchanged -= spread
    as_good = np.count_nonzero(exchanged <= seen * (1 + 1e-12))
    typical = float(exchanged.mean())
    gained = 0.0
    if typical > 0:
        gained = 1 - float(seen) / typical
    return Skill(float(seen), typical, gained, (1 + as_good) / (1 + n_permutations))


# ---- classifiers


@dataclass(frozen=True)
class Reliability:
    """Predicted probabilities of classes beside how often they come true.

    Attributes:
        predicted: Mean probability of each bin that is not empty (K,).
        observed: Share of labels that are 1, of each (K,).
        error: Standard deviation (K,) of `observed` if the probabilities are right.
        counts: Predictions in each bin (K,).
        ece: Expected calibration error: mean of |observed - predicted|, weighted by counts.
        largest: The largest |observed - predicted|.
        brier: Mean squared error of the probabilities.
        p_value: How often labels drawn from the probabilities have as large an ece.
    """

    predicted: np.ndarray
    observed: np.ndarray
    error: np.ndarray
    counts: np.ndarray
    ece: float
    largest: float
    brier: float
    p_value: float


def reliability(
    probabilities: Any, labels: Any, n_bins: int = N_BINS, seed: int = 0
) -> Reliability:
    """Calibration of probabilities (N,) with labels (N,) of 0 and 1; or (N, K) with labels (N,).

    Of K classes each probability is compared with whether the label is that class. Bins are of
    equal width. The p-value's null draws a label from each row's probabilities (Bröcker and Smith
    2007, consistency resampling).

    Raises UserError for shapes and values that do not belong together.
    """
    p = _array(probabilities)
    y = _array(labels)
    if y.shape != (len(p),) or not len(p) or (p < 0).any() or (p > 1).any():
        raise UserError(
            f"reliability: probabilities {p.shape} from 0 to 1 and labels {y.shape} do not belong"
            " together; (N,) or (N, K) and (N,) are needed"
        )
    rng = np.random.default_rng(seed)
    if p.ndim == 1:
        p = np.stack((1 - p, p), 1)
        shown = slice(1, 2)
    else:
        shown = slice(None)
    cumulative = np.cumsum(p, 1)

    def hits(classes: np.ndarray) -> np.ndarray:
        return (classes[:, None] == np.arange(p.shape[1]))[:, shown].ravel()

    claimed = p[:, shown].ravel()
    bins = np.minimum((claimed * n_bins).astype(int), n_bins - 1)
    counts = np.bincount(bins, minlength=n_bins)
    sums = np.bincount(bins, claimed, n_bins)

    def errors(truth: np.ndarray) -> np.ndarray:
        return np.abs(np.bincount(bins, truth, n_bins) - sums)

    truth = hits(y)
    seen = errors(truth).sum()
    simulated = []
    for _ in range(N_SIMULATED):
        drawn = (cumulative < rng.random((len(p), 1)) * cumulative[:, -1:]).sum(1)
        simulated.append(errors(hits(drawn)).sum())
    as_large = np.count_nonzero(np.array(simulated) >= seen * (1 - 1e-12))
    filled = counts > 0
    variances = np.bincount(bins, claimed * (1 - claimed), n_bins)[filled]
    return Reliability(
        sums[filled] / counts[filled],
        np.bincount(bins, truth, n_bins)[filled] / counts[filled],
        np.sqrt(variances) / counts[filled],
        counts[filled],
        float(seen / len(claimed)),
        float((errors(truth)[filled] / counts[filled]).max()),
        float(np.square(claimed - truth).mean()),
        (1 + as_large) / (1 + N_SIMULATED),
    )


# ---- arrays


def _array(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    return np.asarray(values, np.float64)


def _posteriors(truth: Any, draws: Any) -> tuple[np.ndarray, np.ndarray]:
    """Truths and draws as arrays.

    Raises UserError for shapes that do not belong together, and what is not finite.
    """
    y = _array(truth)
    x = _array(draws)
    if y.ndim not in (1, 2) or not y.size or x.shape != (len(y), *x.shape[1:2], *y.shape[1:]):
        raise UserError(
            f"truths {y.shape} and draws {x.shape} do not belong together; (N,) and (N, L), or"
            " (N, d) and (N, L, d) are needed"
        )
    if not np.isfinite(y).all() or not np.isfinite(x).all():
        raise UserError("truths and draws must be finite; leave out those that are not")
    return y, x
