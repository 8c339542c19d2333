"""Distances of two sets of points by their moments: Fréchet's, and the quartic kernel's (MMD).

Letters: n and m points of the two sets, N = n + m, d coordinates.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

N_BLOCKS = 60  # a set is cut into so many, and subsets are unions of blocks
N_SIZES = 10
N_BATCHES = 20  # subsets of each size
SUBSET_SEED = 0
BLOCK_ROWS = 1_000  # rows of a kernel matrix that are in memory at once


class Frechet:
    """The Fréchet distance of two Gaussians, extrapolated to infinitely many points.

    Of n points the squared distance is too large by about c / n. It is measured of random subsets,
    of N_SIZES sizes evenly spaced in 1 / n between n / 3 and n, N_BATCHES of each, drawn without
    replacement; a line in 1 / n is fitted, and its value at 0 is the statistic. It may be negative:
    cut at 0 it would have no null. Source: Chong and Forsyth 2020; Kansal et al. 2023
    (arXiv 2211.10295), section III.
    """

    names = ("fgd",)

    def __init__(self, seed: int = SUBSET_SEED):
        self._seed = seed

    def measure(self, x: np.ndarray, y: np.ndarray) -> dict[str, float]:
        """The statistic of points x (n, d) and y (m, d), in their unit squared."""
        rng = np.random.default_rng(self._seed)
        x = x[rng.permutation(len(x))]  # files come sorted
        y = y[rng.permutation(len(y))]
        centre = (x.mean(0) + y.mean(0)) / 2
        return {"fgd": self._extrapolated(x - centre, y - centre)}

    def permuter(self, z: np.ndarray, n: int) -> Callable[[np.ndarray], dict[str, float]]:
        """The statistic of pooled points z (N, d) as a function of an order (N,) of them."""
        z = z - z.mean(0)

        def measure(order: np.ndarray) -> dict[str, float]:
            return {"fgd": self._extrapolated(z[order[:n]], z[order[n:]])}

        return measure

    def _extrapolated(self, x: np.ndarray, y: np.ndarray) -> float:
        n_blocks = min(N_BLOCKS, len(x), len(y))
        chosen = _subsets(n_blocks, self._seed)  # (S, n_blocks)
        squares = frechet_squared(*_gaussians(x, chosen), *_gaussians(y, chosen))
        inverse_sizes = n_blocks / chosen.sum(1)
        slope = np.cov(inverse_sizes, squares)[0, 1] / inverse_sizes.var(ddof=1)
        return float(squares.mean() - slope * inverse_sizes.mean())


def _subsets(n_blocks: int, seed: int) -> np.ndarray:
    """Subsets of blocks as rows of 0 and 1, (N_SIZES * N_BATCHES, n_blocks)."""
    rng = np.random.default_rng(seed)
    sizes = np.rint(n_blocks / np.linspace(1, 3, N_SIZES)).astype(int)
    ranks = rng.random((N_SIZES, N_BATCHES, n_blocks)).argsort(-1)
    return (ranks < np.maximum(sizes, 1)[:, None, None]).reshape(-1, n_blocks).astype(np.float64)


def _gaussians(x: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means (S, d) and covariances (S, d, d) of the points of each union of blocks."""
    blocks = np.array_split(x, chosen.shape[1])
    counts = chosen @ np.array([len(block) for block in blocks])
    sums = chosen @ np.stack([block.sum(0) for block in blocks])
    products = np.stack([block.T @ block for block in blocks])
    d = x.shape[1]
    squares = (chosen @ products.reshape(len(blocks), -1)).reshape(-1, d, d)
    means = sums / counts[:, None]
    spread = squares - counts[:, None, None] * means[:, :, None] * means[:, None, :]
    return means, spread / np.maximum(counts - 1, 1)[:, None, None]


def frechet_squared(
    mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray
) -> np.ndarray:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of Gaussians.

    Means are (..., d), covariances (..., d, d). Source: Dowson and Landau 1982.
    """
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(np.clip(values, 0, None))[..., None, :]) @ np.swapaxes(
        vectors, -1, -2
    )
    eigenvalues = np.linalg.eigvalsh(root @ cov_b @ root)  # of S_a S_b: similar, but symmetric
    cross = np.sqrt(np.clip(eigenvalues, 0, None)).sum(-1)
    traces = np.trace(cov_a, axis1=-2, axis2=-1) + np.trace(cov_b, axis1=-2, axis2=-1)
    return np.square(mean_a - mean_b).sum(-1) + traces - 2 * cross


class Mmd:
    """The squared maximum mean discrepancy with the kernel (x . y / d + 1)^4, unbiased.

    It may be negative. Few coordinates are summed by their moments up to the fourth, which is exact
    and linear in N; many by blocks of the kernel matrix. Source: Gretton et al. 2012, lemma 6;
    Kansal et al. 2023 (arXiv 2211.10295).
    """

    names = ("mmd",)

    def measure(self, x: np.ndarray, y: np.ndarray) -> dict[str, float]:
        """The statistic of points x (n, d) and y (m, d), n and m at least 2."""
        n = len(x)
        z = np.concatenate((x, y))
        return self.permuter(z, n)(np.arange(len(z)))

    def permuter(self, z: np.ndarray, n: int) -> Callable[[np.ndarray], dict[str, float]]:
        """The statistic of pooled points z (N, d) as a function of an order (N,) of them."""
        m = len(z) - n
        own = (np.square(z).sum(1) / z.shape[1] + 1) ** 4  # k(z_i, z_i)
        within = _kernel_sums(z)

        def measure(order: np.ndarray) -> dict[str, float]:
            first, second, cross = within(order[:n], order[n:])
            of_x = (first - own[order[:n]].sum()) / (n * (n - 1))
            of_y = (second - own[order[n:]].sum()) / (m * (m - 1))
            return {"mmd": float(of_x + of_y - 2 * cross / (n * m))}

        return measure


KernelSums = Callable[[np.ndarray, np.ndarray], tuple[float, float, float]]


def _kernel_sums(z: np.ndarray) -> KernelSums:
    """Sums of the kernel over pairs within a first set of indices, within a second, and between.

    With pairs of a point with itself. Together the sets are all points.
    """
    d = z.shape[1]
    n_quadratic = (d + 1) * (d + 2) // 2
    if n_quadratic**2 > len(z):
        return _blocked_sums(z)
    # k(x, y) = (x~ . y~)^4 with x~ = (1, x / sqrt d), and (x~ . y~)^2 = q(x) . q(y): so the sum
    # over pairs is the inner product of the matrices sum q q^T
    rows, columns = np.triu_indices(d + 1)
    longer = np.concatenate((np.ones((len(z), 1)), z / np.sqrt(d)), axis=1)
    weights = np.where(rows == columns, 1.0, np.sqrt(2.0))
    quadratic = longer[:, rows] * longer[:, columns] * weights
    total = quadratic.T @ quadratic

    def sums(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
        chosen = quadratic[first]
        a = chosen.T @ chosen
        b = total - a
        return float(np.vdot(a, a)), float(np.vdot(b, b)), float(np.vdot(a, b))

    return sums


def _blocked_sums(z: np.ndarray) -> KernelSums:
    """`_kernel_sums` by the kernel matrix, BLOCK_ROWS of its rows at a time."""
    d = z.shape[1]

    def sums(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
        is_first = np.zeros(len(z))
        is_first[first] = 1.0
        labels = np.stack((is_first, 1 - is_first), 1)
        pairs = np.zeros((2, 2))
        for start in range(0, len(z), BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            kernel = (z[rows] @ z.T / d + 1) ** 2
            np.square(kernel, out=kernel)
            pairs += labels[rows].T @ (kernel @ labels)
        return pairs[0, 0], pairs[1, 1], pairs[0, 1]

    return sums
