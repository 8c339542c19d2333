"""One-dimensional distances of two sets of points: along their axes, and along random directions.

Every direction is sorted once, and all three statistics are read from the two sorted rows. They are
exact: no distribution function is put on a grid. Source: Grossi, Letizia and Torre 2024 (arXiv
2409.16336). Letters: n and m points of the two sets, N = n + m, d coordinates, K directions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

NAMES = ("ks", "sks", "sw")
N_DIRECTIONS = 100
DIRECTION_SEED = 0  # data, toys and alternatives share the directions


def directions(d: int, n_directions: int = N_DIRECTIONS, seed: int = DIRECTION_SEED) -> np.ndarray:
    """Random unit vectors (K, d), uniform on the sphere."""
    raw = np.random.default_rng(seed).normal(size=(n_directions, d))
    return raw / np.linalg.norm(raw, axis=1, keepdims=True)


class Sliced:
    """Mean KS over the axes, and mean KS and mean Wasserstein-1 over shared random directions.

    Attributes:
        names: Which of NAMES are measured. "ks": the mean over the d axes of the Kolmogorov-Smirnov
            distance sup |F - G|; "sks": its mean over the K directions; "sw": the mean over them of
            the Wasserstein-1 distance, in the unit of the coordinates.
    """

    def __init__(
        self,
        d: int,
        names: Sequence[str] = NAMES,
        n_directions: int = N_DIRECTIONS,
        seed: int = DIRECTION_SEED,
    ):
        self.names = tuple(name for name in NAMES if name in names)
        axes = np.eye(d)
        if "ks" not in self.names:
            axes = axes[:0]
        oblique = directions(d, n_directions, seed)
        if self.names == ("ks",):
            oblique = oblique[:0]
        self._n_axes = len(axes)
        self._rows = np.concatenate((axes, oblique))  # (R, d)

    def measure(self, x: np.ndarray, y: np.ndarray) -> dict[str, float]:
        """The statistics of points x (n, d) and y (m, d)."""
        a = np.sort(self._rows @ x.T, axis=1)
        b = np.sort(self._rows @ y.T, axis=1)
        ks = np.zeros(len(a))
        if {"ks", "sks"} & set(self.names):
            ks = np.array([_ks_of_sorted(p, q) for p, q in zip(a, b, strict=True)])
        sw = np.zeros(len(a))
        if "sw" in self.names:
            sw[self._n_axes :] = _w1_of_sorted(a[self._n_axes :], b[self._n_axes :])
        return self._means(ks, sw)

    def permuter(self, z: np.ndarray, n: int) -> Callable[[np.ndarray], dict[str, float]]:
        """The statistics of pooled points z (N, d) as a function of an order (N,) of them.

        The first n of the order are the first set. Nothing is sorted again.
        """
        values = self._rows @ z.T
        orders = np.argsort(values, axis=1)
        gaps = np.diff(np.take_along_axis(values, orders, axis=1), axis=1)
        ends = [_ends_of_ties(gap) for gap in gaps]
        m = len(z) - n
        of_second = np.arange(1, len(z) + 1) / m

        def measure(order: np.ndarray) -> dict[str, float]:
            is_first = np.zeros(len(z), np.int32)
            is_first[order[:n]] = 1
            ks = np.zeros(len(orders))
            sw = np.zeros(len(orders))
            for r, by_value in enumerate(orders):
                # F - G = c / n - (k - c) / m, with c of the first set among the k lowest values
                apart = np.cumsum(is_first[by_value]) * (1 / n + 1 / m)
                apart -= of_second
                np.abs(apart, out=apart)
                sw[r] = apart[:-1] @ gaps[r]
                ks[r] = apart[ends[r]].max()
            return self._means(ks, sw)

        return measure

    def _means(self, ks: np.ndarray, sw: np.ndarray) -> dict[str, float]:
        """Means over the axes and over the directions, of one value per row."""
        k = self._n_axes
        means = {"ks": ks[:k], "sks": ks[k:], "sw": sw[k:]}
        return {name: float(means[name].mean()) for name in self.names}


def _ends_of_ties(gaps: np.ndarray) -> slice | np.ndarray:
    """Where distribution functions may be compared: at the last of equal values."""
    if gaps.all():
        return slice(None)
    return np.append(gaps > 0, True)


def _ks_of_sorted(a: np.ndarray, b: np.ndarray) -> float:
    """sup |F_a - F_b| of two sorted rows (n,) and (m,); exact, also for ties.

    F_a - F_b is largest at a value of a, and smallest just below one.
    """
    n = len(a)
    m = len(b)
    up_to = np.searchsorted(b, a, side="right")
    below = up_to
    if (b[np.maximum(up_to - 1, 0)] == a).any():  # some values are in both
        below = np.searchsorted(b, a, side="left")
    steps = np.arange(n + 1) / n
    return float(max((steps[1:] - up_to / m).max(), (below / m - steps[:-1]).max()))


def _w1_of_sorted(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Wasserstein-1 distances (K,) of sorted rows (K, n) and (K, m)."""
    if a.shape == b.shape:
        return np.abs(a - b).mean(1)
    n = a.shape[1]
    m = b.shape[1]
    # quantile functions are steps; between all steps' ends both are constant
    levels = np.union1d(np.arange(1, n) * m, np.arange(1, m) * n)  # in units of 1 / (n m)
    edges = np.concatenate(([0], levels, [n * m]))
    widths = np.diff(edges) / (n * m)
    return np.abs(a[:, edges[:-1] // m] - b[:, edges[:-1] // n]) @ widths
