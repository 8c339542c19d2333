"""Simple baselines for bench_likelihood.py: held-out digits in bits per dimension.

Their constants are near the best for the held-out scans, so that beating them means something.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from mmtok.sources.images import load_scans

LEVELS = 17
N_PIXELS = 64
WIDTH = 2 / LEVELS  # of a level on the axis -1..1
PSEUDOCOUNT = 0.5  # of each level of a pixel
PRIOR_COUNT = 20.0  # weight of a pixel's own distribution, where the pixel before it is known
RIDGE = 1e-3  # added to the variance of every pixel: some never vary

_PIXELS = np.arange(N_PIXELS)


def baselines() -> dict[str, float]:
    """Name -> bits per dimension of the held-out scans."""
    train, labels = _levels("train")
    test, _ = _levels("heldout")
    independent = np.log(_marginals(train))[_PIXELS, test].sum(1)
    return {
        "uniform": math.log2(LEVELS),
        "each pixel on its own": _bits(independent),
        "each pixel given the one before": _bits(_first_order(train, test)),
        "one Gaussian": _bits(_gaussians(train, np.zeros_like(labels), test)),
        "a Gaussian per digit": _bits(_gaussians(train, labels, test)),
    }


def _levels(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The levels (N, 64) and labels (N,) of a split."""
    scans, labels = load_scans(split)
    grey = np.stack(scans).reshape(len(scans), -1).astype(int)
    return (grey * (2 * LEVELS - 2) + 255) // 510, np.asarray(labels)


def _bits(log_p: np.ndarray) -> float:
    """Log-probabilities of scans (N,) in nats -> mean bits per dimension."""
    return float(-log_p.mean() / N_PIXELS / math.log(2))


def _marginals(train: np.ndarray) -> np.ndarray:
    """P (64, LEVELS) of each pixel's levels, by counts."""
    counts = np.stack([np.bincount(pixel, minlength=LEVELS) for pixel in train.T]) + PSEUDOCOUNT
    return counts / counts.sum(1, keepdims=True)


def _first_order(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Log p (N,) by counts per pixel, given the pixel before it in row-major order."""
    counts = PRIOR_COUNT * np.repeat(_marginals(train)[:, None], LEVELS, 1)
    np.add.at(counts, (_PIXELS, _previous(train), train), 1)
    p = counts / counts.sum(2, keepdims=True)
    return np.log(p)[_PIXELS, _previous(test), test].sum(1)


def _previous(x: np.ndarray) -> np.ndarray:
    """The pixel before each one (N, 64); 0 before the first."""
    return np.concatenate([np.zeros((len(x), 1), int), x[:, :-1]], 1)


def _gaussians(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Log p (N,) under one full-covariance Gaussian per label.

    Levels are spread evenly over their cells, so this is a bound.
    """
    rng = np.random.default_rng(0)
    x = _dequantised(train, rng)
    y = _dequantised(test, rng)
    terms = []
    for label in np.unique(labels):
        mine = x[labels == label]
        normal = multivariate_normal(mine.mean(0), np.cov(mine.T) + RIDGE * np.eye(N_PIXELS))
        terms.append(normal.logpdf(y) + math.log(len(mine) / len(x)))
    return logsumexp(terms, axis=0) + N_PIXELS * math.log(WIDTH)


def _dequantised(levels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Levels on the axis -1..1, spread evenly over their cells."""
    return -1 + WIDTH * (levels + rng.random(levels.shape))
