"""Figures of restored pictures: draws of the posterior p(picture | degraded picture).

Letters: N pictures, K draws of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mmtok.core.units import psnr_db
from mmtok.data.subset import random_subset
from mmtok.evaluation.task import TaskEvaluation
from mmtok.io.terminal import print_status
from mmtok.metrics.calibration import coverage
from mmtok.metrics.distance_tests import frechet_test
from mmtok.metrics.images import FITTED_ROWS, frechet, principal_components
from mmtok.metrics.intervals import Estimate, mean_estimate, ratio_estimate
from mmtok.sources.degraded import Degradation, Degraded, shown_of

N_DRAWS = 16  # of each picture
LEVELS = (0.5, 0.9)
N_SAVED = 12  # pictures whose draws are written
N_SAVED_DRAWS = 4  # of each

Pictures = Sequence[np.ndarray]


@dataclass(frozen=True)
class HeldOut:
    """Held-out pictures.

    Attributes:
        degraded: N of them, as the model reads them.
        truth: the same before that.
        others: at most N more, for distances.
    """

    degraded: Pictures
    truth: Pictures
    others: Pictures


def held_out(task: TaskEvaluation) -> HeldOut:
    """Random held-out pictures, the same for a seed: at most n_samples, and half of all."""
    n = task.run.recipe.n_samples
    rows = random_subset(task.rows("heldout"), 2 * n, task.seed)
    order = np.random.default_rng(task.seed).permutation(len(rows))  # folders come sorted
    n_chosen = (len(rows) + 1) // 2
    chosen = [rows[i] for i in order[:n_chosen]]
    others = [rows[i][1] for i in order[n_chosen:]]
    return HeldOut([x for x, _ in chosen], [y for _, y in chosen], others)


def restored_figures(task: TaskEvaluation) -> dict[str, float]:
    """Of N held-out pictures, with N_DRAWS draws of each; intervals are over pictures.

    Keys:

    - psnr_mean_db, psnr_draw_db, psnr_baseline_db: of the mean of the draws, of single draws, and
      of what a viewer shows of the degraded picture (`Degradation.shown`); psnr_gain_db is the
      first over the last, of the same pictures.
    - error, spread: root mean squares of the mean's error and of the draws' standard deviation, in
      grey values; spread_over_error is 1 of a calibrated posterior, whose squared error has
      (1 + 1/K) times the draws' variance.
    - coverage_50, coverage_90: the share of pixel values within central intervals of the draws,
      by ranks (`mmtok.metrics.calibration.coverage`). A value that equals some draws has a random
      place among them, so that a calibrated posterior of few values (the levels of pixels, what
      codes decode to) is covered as it claims. coverage_50_coded, coverage_90_coded: of the truth
      after the tokenizer's round trip, where that changes it. settled: the share of values that
      all draws have right, which are covered as claimed in any case.
    - frechet, frechet_baseline, frechet_real: on principal components of training pictures, from
      other held-out pictures: of one draw of each, of the baselines, of the truths.
    """
    tokenizer = task.target_tokenizer
    if tokenizer.signature.rows:
        print_status(f"no figures of {task}: its pictures are of any size, drawn ones too")
        return {}
    found = held_out(task)
    repeated = [x for x in found.degraded for _ in range(N_DRAWS)]
    sampled = task.sample(repeated)
    pictures = np.stack(task.decode(sampled))
    draws = pictures.reshape(len(found.truth), N_DRAWS, *pictures.shape[1:])  # (N, K, ...)
    stems = [(i, k) for i in range(min(N_SAVED, len(draws))) for k in range(N_SAVED_DRAWS)]
    task.save_samples(
        task.name,
        [f"heldout-{i}" for i, _ in stems],
        [sampled[i * N_DRAWS + k] for i, k in stems],
        [f"heldout-{i}-{k}" for i, k in stems],
    )
    targets = (y for _, y in task.clean_rows())
    training = random_subset(targets, FITTED_ROWS, task.seed)
    mean = np.mean(np.stack(training), 0)
    baseline = [shown_of(x, _degradations(task), mean) for x in found.degraded]
    coded = tokenizer.decode_batch(tokenizer.encode_batch(found.truth))
    return {
        "n": len(draws),
        "n_draws": N_DRAWS,
        **error_figures(found.truth, draws, baseline),
        **coverage_figures(found.truth, draws, task.seed),
        **_coded_coverage(found.truth, coded, draws, task.seed),
        **_distances(training, found, list(draws[:, 0]), baseline),
    }


def _degradations(task: TaskEvaluation) -> Sequence[Degradation]:
    """What happened to the pictures, where a source of the package says it."""
    for source in task.run.recipe.sources:
        if isinstance(source, Degraded) and set(task.task.fields) <= set(source.fields):
            return source.degradations
    return ()


def error_figures(truth: Pictures, draws: np.ndarray, baseline: Pictures) -> dict[str, float]:
    """Errors of the mean of draws (N, K, ...), of draws and of baselines, and the draws' spread.

    See `restored_figures`.
    """
    n_draws = draws.shape[1]
    values = draws.reshape(len(draws), n_draws, -1).astype(np.float64)
    y = np.stack(truth).reshape(len(draws), -1).astype(np.float64)
    of_mean = np.square(values.mean(1) - y).mean(1)  # (N,)
    of_draws = np.square(values - y[:, None]).mean((1, 2))
    of_baseline = np.square(np.stack(baseline).reshape(y.shape) - y).mean(1)
    variance = values.var(1, ddof=1).mean(1)
    expected = (1 + 1 / n_draws) * variance
    found = {
        "psnr_mean_db": _mapped(mean_estimate(of_mean), psnr_db),
        "psnr_draw_db": _mapped(mean_estimate(of_draws), psnr_db),
        "psnr_baseline_db": _mapped(mean_estimate(of_baseline), psnr_db),
        "psnr_gain_db": _mapped(ratio_estimate(of_baseline, of_mean), _decibels),
        "error": _mapped(mean_estimate(of_mean), np.sqrt),
        "spread": _mapped(mean_estimate(variance), np.sqrt),
        "spread_over_error": _mapped(ratio_estimate(expected, of_mean), np.sqrt),
    }
    return _named(found)


def coverage_figures(truth: Pictures, draws: np.ndarray, seed: int = 0) -> dict[str, float]:
    """How often central intervals of draws (N, K, ...) hold the truth's values.

    See `restored_figures`.
    """
    held = []
    settled = []
    for i, (picture, some) in enumerate(zip(truth, draws, strict=True)):
        y = np.ravel(picture)  # (values,)
        x = some.reshape(len(some), -1).T  # (values, K)
        held.append(coverage(y, x, LEVELS, seed + i).observed)
        settled.append((x == y[:, None]).all(1).mean())
    found = {
        f"coverage_{round(100 * level)}": mean_estimate(shares)
        for level, shares in zip(LEVELS, np.transpose(held), strict=True)
    }
    return _named({**found, "settled": mean_estimate(settled)})


def _coded_coverage(
    truth: Pictures, coded: Pictures, draws: np.ndarray, seed: int
) -> dict[str, float]:
    """The coverage of what the tokenizer makes of the truth; {} where that is the same."""
    if all(np.array_equal(a, b) for a, b in zip(truth, coded, strict=True)):
        return {}
    found = coverage_figures(coded, draws, seed)
    named = {}
    for key, value in found.items():
        name, *end = key.split("_", 2)
        if name == "coverage":
            named["_".join((name, end[0], "coded", *end[1:]))] = value
    return named


def _distances(
    training: Pictures, found: HeldOut, drawn: Pictures, baseline: Pictures
) -> dict[str, float]:
    """Fréchet distances from other held-out pictures; {} of too few for a covariance."""
    if min(len(found.others), len(found.truth)) < 2:
        return {}
    sets = (found.others, drawn, baseline, found.truth)
    others, *points = principal_components(training, *sets)
    figures: dict[str, float] = {}
    names = ("frechet", "frechet_baseline", "frechet_real")
    for name, some in zip(names, points, strict=True):
        figures[name] = frechet(some, others)
        figures |= frechet_test(some, others).named(name)
    return figures


def _mapped(estimate: Estimate, function: Callable[[float], float]) -> Estimate:
    """A monotone function of a figure: the ends of its interval are those of the figure's."""
    value, *ends = (float(function(x)) for x in estimate[:3])
    return Estimate(value, min(ends), max(ends), estimate.n)


def _decibels(ratio: float) -> float:
    with np.errstate(divide="ignore"):  # minus infinity of no error
        return 10 * float(np.log10(ratio))


def _named(found: dict[str, Estimate]) -> dict[str, float]:
    return {key: value for name, x in found.items() for key, value in x.named(name).items()}
