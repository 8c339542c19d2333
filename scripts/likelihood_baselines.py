"""What held-out digits cost under models that anyone can write down, in bits per dimension: read
beside bench_likelihood.py's table.

Their constants are near the best for the held-out scans, so that nothing is gained by beating a
poor baseline.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from mmtok.sources.images import load_scans

LEVELS = 17
WIDTH = 2 / LEVELS  # of a level on the axis -1..1
ADDED = 0.5  # to every count of a pixel's levels
BEHIND = 20.0  # counts that a pixel's own levels are worth where the pixel before it is known too
RIDGE = 1e-3  # to the variance of every pixel: some never vary

_PLACE = np.arange(64)


def baselines() -> dict[str, float]:
    """Name -> bits per dimension of the held-out scans."""
    (train, labels), (test, _) = (_codes(split) for split in ("train", "heldout"))
    return {
        "uniform": math.log2(LEVELS),
        "each pixel on its own": _bits(np.log(_alone(train))[_PLACE, test].sum(1)),
        "each pixel given the one before": _bits(_given_the_one_before(train, test)),
        "one Gaussian": _bits(_gaussians(train, np.zeros_like(labels), test)),
        "a Gaussian per digit": _bits(_gaussians(train, labels, test)),
    }


def _codes(split: str) -> tuple[np.ndarray, np.ndarray]:
    """(N, 64) levels and (N,) labels of a split."""
    scans, labels = load_scans(split)
    return (
        np.stack(scans).reshape(len(scans), -1).astype(int) * (2 * LEVELS - 2) + 255
    ) // 510, np.asarray(labels)


def _bits(log_p: np.ndarray) -> float:
    """Nats of whole scans (N,) -> mean bits per dimension."""
    return float(-log_p.mean() / 64 / math.log(2))


def _alone(train: np.ndarray) -> np.ndarray:
    """P (64, LEVELS) of each pixel's levels, by counts."""
    counts = np.stack([np.bincount(column, minlength=LEVELS) for column in train.T]) + ADDED
    return counts / counts.sum(1, keepdims=True)


def _given_the_one_before(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Log p (N,) by counts per pixel, given the pixel before it in raster order (0 before the
    first).
    """
    before = lambda x: np.concatenate([np.zeros((len(x), 1), int), x[:, :-1]], 1)
    counts = BEHIND * np.repeat(_alone(train)[:, None], LEVELS, 1)
    np.add.at(counts, (_PLACE, before(train), train), 1)
    return np.log(counts / counts.sum(2, keepdims=True))[_PLACE, before(test), test].sum(1)


def _gaussians(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Log p (N,) of levels spread evenly over their cells (a bound), under one full-covariance
    Gaussian per label.
    """
    rng = np.random.default_rng(0)
    spread = lambda x: -1 + WIDTH * (x + rng.random(x.shape))
    x, y, terms = spread(train), spread(test), []
    for label in np.unique(labels):
        mine = x[labels == label]
        normal = multivariate_normal(mine.mean(0), np.cov(mine.T) + RIDGE * np.eye(x.shape[1]))
        terms.append(normal.logpdf(y) + math.log(len(mine) / len(x)))
    return logsumexp(terms, axis=0) + y.shape[1] * math.log(WIDTH)
