"""Are two sets of points of one distribution? Two-sample tests with p-values and their power.

`two_sample` takes points (n, d) and (m, d), as tensors or arrays, and computes in float64. The
statistics themselves are in `sliced`, `moments` and `classifier_test`; this file makes their nulls.
Source: Grossi, Letizia and Torre 2024, "Refereeing the referees" (arXiv 2409.16336).

Letters: n and m points of the two sets, N = n + m, d coordinates, B draws of a null.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmtok.errors import UserError
from mmtok.metrics.classifier_test import Classifier, ClassifierTest, classifier_test
from mmtok.metrics.deformations import Deformation
from mmtok.metrics.moments import Frechet, Mmd
from mmtok.metrics.sliced import DIRECTION_SEED, N_DIRECTIONS, Sliced
from mmtok.metrics.sliced import NAMES as SLICED

TESTS = (*SLICED, "fgd", "mmd", "c2st")  # and "llr", where log densities are given
SCALED = SLICED  # statistics that fall as 1 / sqrt(n) if both sets are alike
NULLS = ("permutation", "toys")
QUANTILES = (0.5, 0.68, 0.95, 0.99)
N_NULL = 1_000
N_POWER = 50
N_POWER_TRAINED = 10  # of the classifier test, which trains anew for each
LEAST_POINTS = 8
REJECT_BELOW = 0.05  # the p-value that power is about
ALIKE = 1e-12  # two values of a statistic that are one, but for rounding

# (number of points, generator) -> points (n, d) of the reference distribution
Sampler = Callable[[int, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class TestResult:
    """One statistic of two sets, and how often chance alone makes it as large.

    Attributes:
        name: One of TESTS, or "llr".
        statistic: Its value. "ks", "sks": distances of distribution functions, 0 to 1; "sw": in the
            unit of the coordinates; "fgd": in their unit squared; "mmd": a number; "c2st": an AUC;
            "llr": nats per point.
        scaled: sqrt(n m / (n + m)) times the statistic, which does not shrink with more points; of
            "ks", "sks" and "sw" only, else the statistic.
        p_value: (1 + number of null values that are as large) / (B + 1).
        p_error: Its standard deviation, as the null is of B draws.
        quantiles: Those of the null, at QUANTILES, in the unit of `statistic`.
        n_null: B.
        power: How often the test says p < 0.05 of the declared alternative; NaN where not asked.
        power_error: Its standard deviation.
        seconds: Of computing.
    """

    __test__ = False  # no test of pytest's

    name: str
    statistic: float
    scaled: float
    p_value: float
    p_error: float
    quantiles: dict[float, float]
    n_null: int
    power: float
    power_error: float
    seconds: float


@dataclass(frozen=True)
class TwoSample:
    """What `two_sample` found.

    Attributes:
        tests: name -> its result.
        n: Points of the first set.
        m: Of the second.
        d: Coordinates.
        null: "permutation" or "toys".
        alternative: The deformation that power is of, in words; "" for none.
        n_directions: Directions of the sliced statistics.
        seed: Of all that is random but the directions, which are always the same.
    """

    tests: dict[str, TestResult]
    n: int
    m: int
    d: int
    null: str
    alternative: str
    n_directions: int
    seed: int

    def __getitem__(self, name: str) -> TestResult:
        return self.tests[name]


@dataclass(frozen=True)
class NullOf:
    """Null values (B,) of each statistic, and the two sets' own."""

    seen: dict[str, float]
    values: dict[str, np.ndarray] = field(repr=False)


def two_sample(
    x: Any,
    y: Any,
    tests: Sequence[str] = TESTS,
    *,
    null: str = "permutation",
    n_null: int = N_NULL,
    reference: Sampler | None = None,
    alternative: Deformation | None = None,
    n_power: int = N_POWER,
    classifier: str | Classifier = "boosted",
    log_ratio: tuple[Any, Any] | None = None,
    n_directions: int = N_DIRECTIONS,
    seed: int = 0,
) -> TwoSample:
    """Compare points x (n, d) with points y (m, d).

    Args:
        x: The first set, tensor or array.
        y: The second set.
        tests: Names of TESTS; "llr" as well where `log_ratio` is given.
        null: "permutation": labels at random, for any two sets; "toys": both sets are drawn anew
            from `reference`, the distribution of the first. "c2st" and "llr" always permute.
        n_null: Draws of the null.
        reference: Needed for toys.
        alternative: Power is how often p < 0.05 where the first set is of the null and the second
            is deformed; without one it is not computed.
        n_power: Pairs of sets that power is of; of "c2st" N_POWER_TRAINED at most.
        classifier: Of "c2st".
        log_ratio: log p_y - log p_x of the points of x (n,) and of y (m,), in nats, where both
            likelihoods are known. "llr" is the difference of the means, y less x: no other test has
            more power (Neyman and Pearson 1933).
        n_directions: Of the sliced tests.
        seed: Of all that is random.

    Raises UserError for sets that cannot be compared, and for unknown names.
    """
    x = points_of(x, "the first set")
    y = points_of(y, "the second set")
    _refuse_unlike(x, y)
    names = _known(tests, log_ratio is not None)
    if null not in NULLS:
        raise UserError(f"null {null!r} is unknown; one of {', '.join(NULLS)}")
    if null == "toys" and reference is None:
        raise UserError("a null of toys needs `reference`, which draws points of the first set")
    draw = None
    if null == "toys":
        draw = reference
    results: dict[str, TestResult] = {}
    for statistic in _statistics(x.shape[1], names, n_directions):
        start = time.process_time()
        found = _null(statistic, x, y, draw, n_null, seed)
        powers = _powers(statistic, found, x, y, draw, alternative, n_power, seed)
        seconds = (time.process_time() - start) / len(statistic.names)
        for name in statistic.names:
            results[name] = _result(name, found, powers.get(name), seconds, len(x), len(y))
    if "c2st" in names:
        results["c2st"] = _c2st(x, y, classifier, alternative, n_power, n_null, seed)
    if "llr" in names and log_ratio is not None:
        results["llr"] = _llr(log_ratio, len(x), len(y), n_null, seed)
    declared = ""
    if alternative is not None:
        declared = str(alternative)
    return TwoSample(
        {name: results[name] for name in names},
        len(x),
        len(y),
        x.shape[1],
        null,
        declared,
        n_directions,
        seed,
    )


def points_of(values: Any, what: str) -> np.ndarray:
    """Points (n, d) in float64, of a tensor or an array; (n,) is (n, 1).

    Raises UserError for other shapes, too few points, and values that are not finite.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    points = np.asarray(values, np.float64)
    if points.ndim == 1:
        points = points[:, None]
    if points.ndim != 2 or len(points) < LEAST_POINTS or not points.shape[1]:
        raise UserError(
            f"{what} has the shape {points.shape}; tests need (n, d) with n >= {LEAST_POINTS}"
        )
    wrong = np.count_nonzero(~np.isfinite(points).all(1))
    if wrong:
        raise UserError(f"{what}: {wrong} of {len(points)} points are not finite; leave them out")
    return points


def _refuse_unlike(x: np.ndarray, y: np.ndarray) -> None:
    if x.shape[1] != y.shape[1]:
        raise UserError(
            f"the first set has {x.shape[1]} coordinates and the second {y.shape[1]};"
            " they must be the same"
        )


def _known(tests: Sequence[str], has_ratio: bool) -> list[str]:
    known: tuple[str, ...] = TESTS
    if has_ratio:
        known = (*TESTS, "llr")
    for name in tests:
        if name not in known:
            raise UserError(f"test {name!r} is unknown; one of {', '.join(known)}")
    return list(dict.fromkeys(tests))


# ---- nulls


def _statistics(d: int, names: Sequence[str], n_directions: int = N_DIRECTIONS) -> list[Any]:
    """What measures these tests, but for the classifier's and the likelihood ratio's."""
    found: list[Any] = []
    sliced = [name for name in names if name in SLICED]
    if sliced:
        found.append(Sliced(d, sliced, n_directions, DIRECTION_SEED))
    if "fgd" in names:
        found.append(Frechet())
    if "mmd" in names:
        found.append(Mmd())
    return found


def _null(
    statistic: Any, x: np.ndarray, y: np.ndarray, draw: Sampler | None, n_null: int, seed: int
) -> NullOf:
    """The statistic of x and y, and of B pairs of sets that are alike."""
    rng = np.random.default_rng(seed)
    n = len(x)
    if draw is not None:
        seen = statistic.measure(x, y)
        rows = [statistic.measure(draw(n, rng), draw(len(y), rng)) for _ in range(n_null)]
    else:
        z = np.concatenate((x, y))
        measure = statistic.permuter(z, n)
        # one order of each set: a statistic may depend on it, as the subsets of "fgd" do
        seen = measure(np.concatenate((rng.permutation(n), n + rng.permutation(len(y)))))
        rows = [measure(rng.permutation(len(z))) for _ in range(n_null)]
    values = {name: np.array([row[name] for row in rows]) for name in statistic.names}
    return NullOf(seen, values)


def toys(
    reference: Sampler,
    n: int,
    m: int,
    tests: Sequence[str],
    n_toys: int,
    n_directions: int = N_DIRECTIONS,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Null values (B,) of tests, of sets of n and m points that are both of the reference."""
    rng = np.random.default_rng(seed)
    statistics: list[Any] = []
    found: dict[str, list[float]] = {name: [] for name in tests}
    for _ in range(n_toys):
        x = reference(n, rng)
        y = reference(m, rng)
        statistics = statistics or _statistics(x.shape[1], tests, n_directions)
        for statistic in statistics:
            for name, value in statistic.measure(x, y).items():
                found[name].append(value)
    return {name: np.array(values) for name, values in found.items()}


def _powers(
    statistic: Any,
    found: NullOf,
    x: np.ndarray,
    y: np.ndarray,
    draw: Sampler | None,
    alternative: Deformation | None,
    n_power: int,
    seed: int,
) -> dict[str, np.ndarray]:
    """Statistic -> whether it finds the alternative, (n_power,) bool."""
    if alternative is None:
        return {}
    rows = []
    for a, b in _alternatives(x, y, draw, alternative, n_power, seed):
        rows.append(statistic.measure(a, b))
    return {
        name: np.array([row[name] for row in rows]) > np.quantile(null, 1 - REJECT_BELOW)
        for name, null in found.values.items()
    }


def _alternatives(
    x: np.ndarray,
    y: np.ndarray,
    draw: Sampler | None,
    alternative: Deformation,
    n_power: int,
    seed: int,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of sets of n and m points, the second deformed.

    Without a reference they are of the pooled points, cut in two at random.
    """
    rng = np.random.default_rng((seed, 1))
    n = len(x)
    pooled = np.concatenate((x, y))
    pairs = []
    for _ in range(n_power):
        if draw is not None:
            a = draw(n, rng)
            b = draw(len(y), rng)
        else:
            order = rng.permutation(len(pooled))
            a = pooled[order[:n]]
            b = pooled[order[n:]]
        pairs.append((a, alternative(b, rng)))
    return pairs


def p_of(seen: float, null: np.ndarray) -> tuple[float, float]:
    """The p-value of a value against null values (B,), large being extreme; its Monte-Carlo error.

    p = (1 + number as large) / (B + 1); its error is that of a share, sqrt(p (1 - p) / B).
    """
    as_large = np.count_nonzero(null >= seen - ALIKE * max(abs(seen), 1e-300))
    p = (1 + as_large) / (1 + len(null))
    return float(p), float(np.sqrt(p * (1 - p) / max(len(null), 1)))


def _result(
    name: str, found: NullOf, found_at: np.ndarray | None, seconds: float, n: int, m: int
) -> TestResult:
    seen = found.seen[name]
    null = found.values[name]
    scale = 1.0
    if name in SCALED:
        scale = np.sqrt(n * m / (n + m))
    power = float("nan")
    power_error = float("nan")
    if found_at is not None:
        power = float(found_at.mean())
        power_error = float(np.sqrt(power * (1 - power) / len(found_at)))
    p, p_error = p_of(seen, null)
    quantiles = dict(zip(QUANTILES, map(float, np.quantile(null, QUANTILES)), strict=True))
    return TestResult(
        name,
        seen,
        float(seen * scale),
        p,
        p_error,
        quantiles,
        len(null),
        power,
        power_error,
        seconds,
    )


def _c2st(
    x: np.ndarray,
    y: np.ndarray,
    classifier: str | Classifier,
    alternative: Deformation | None,
    n_power: int,
    n_null: int,
    seed: int,
) -> TestResult:
    start = time.process_time()
    test = classifier_test(x, y, classifier, seed, n_null)
    found_at = None
    if alternative is not None:
        n_trained = min(n_power, N_POWER_TRAINED)
        pairs = _alternatives(x, y, None, alternative, n_trained, seed)
        p_values = [classifier_test(a, b, classifier, seed, 200).p_value for a, b in pairs]
        found_at = np.array(p_values) < REJECT_BELOW
    return of_classifier("c2st", test, time.process_time() - start, found_at)


def of_classifier(
    name: str, test: ClassifierTest, seconds: float, found_at: np.ndarray | None = None
) -> TestResult:
    """A classifier's test as one of the others; found_at: whether p < 0.05, by pair."""
    found = NullOf({name: test.auc}, {name: test.null})
    return _result(name, found, found_at, seconds, test.n, test.m)


def _llr(log_ratio: tuple[Any, Any], n: int, m: int, n_null: int, seed: int) -> TestResult:
    """The likelihood ratio's test.

    Raises UserError for other than one ratio per point.
    """
    start = time.process_time()
    a = np.asarray(log_ratio[0], np.float64)
    b = np.asarray(log_ratio[1], np.float64)
    if a.shape != (n,) or b.shape != (m,):
        raise UserError(
            f"log_ratio has the shapes {a.shape} and {b.shape}; one number per point is needed,"
            f" ({n},) and ({m},)"
        )
    rng = np.random.default_rng(seed)
    pooled = np.concatenate((a, b))
    total = pooled.sum()
    sums = np.array([rng.permutation(pooled)[:n].sum() for _ in range(n_null)])
    found = NullOf({"llr": float(b.mean() - a.mean())}, {"llr": (total - sums) / m - sums / n})
    return _result("llr", found, None, time.process_time() - start, n, m)
