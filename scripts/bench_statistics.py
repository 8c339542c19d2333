"""How long nulls of two-sample tests take, in seconds of one processor.

    python scripts/bench_statistics.py --points 10000 --coordinates 5 --toys 200

Times `toys` draws of two sets each, for every test alone and for all five together, and says what
10,000 would take on two cores. Set ATEN_CPU_CAPABILITY, OPENBLAS_CORETYPE and
NPY_DISABLE_CPU_FEATURES to make a newer processor behave like an AVX2 one, and OMP_NUM_THREADS=1.
"""

import argparse
import time

import numpy as np

from mmtok.metrics.deformations import epsilon_limit
from mmtok.metrics.statistics import SCALED, TESTS, _statistics, toys

FIVE = tuple(name for name in TESTS if name != "c2st")
PUBLISHED_TOYS = 10_000
CORES = 2


def correlated_gaussian(d: int, seed: int = 0):
    """Sampler of the paper's reference CG.

    N(mu, S): mu of U(-5, 5)^d, S the covariance of a mixture of three diagonal Gaussians.
    """
    rng = np.random.default_rng(seed)
    weights = rng.uniform(size=3)
    at = rng.uniform(-5, 5, (3, d))
    scales = rng.uniform(0, 1, (3, d))
    of = rng.choice(3, 100_000, p=weights / weights.sum())
    mixture = at[of] + scales[of] * rng.normal(size=(len(of), d))
    root = np.linalg.cholesky(np.cov(mixture, rowvar=False))
    mean = rng.uniform(-5, 5, d)

    def sample(n: int, generator: np.random.Generator) -> np.ndarray:
        return mean + generator.normal(size=(n, d)) @ root.T

    return sample


def limits(reference, n: int, d: int, n_toys: int) -> None:
    """Prints the epsilon limits at 95 % of each test for a moved mean and lost correlations."""
    null = toys(reference, n, n, FIVE, n_toys, seed=1)
    print(f"\n| test | 95 % of {n_toys} toys | mean | correlation |\n|---|---|---|---|")
    for name in FIVE:
        threshold = float(np.quantile(null[name], 0.95))
        (statistic,) = _statistics(d, [name])

        def measure(x, y, statistic=statistic, name=name):
            return statistic.measure(x, y)[name]

        cells = []
        for kind in ("mean", "correlation"):
            try:
                found = epsilon_limit(measure, reference, kind, threshold, n, tolerance=0.05)
                cells.append(f"{found.epsilon:.4f} ({found.low:.4f} to {found.high:.4f})")
            except ValueError as error:
                cells.append(str(error))
        scale = 1.0
        if name in SCALED:
            scale = np.sqrt(n / 2)
        print(f"| {name} | {threshold * scale:.4g} | {cells[0]} | {cells[1]} |", flush=True)


def main() -> None:
    """Prints a table, and limits where they are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, default=10_000, help="of each set")
    parser.add_argument("--coordinates", type=int, default=5)
    parser.add_argument("--toys", type=int, default=50)
    parser.add_argument("--limits", action="store_true", help="print epsilon limits as well")
    asked = parser.parse_args()
    n = asked.points
    reference = correlated_gaussian(asked.coordinates)
    print("| tests | CPU ms per toy | 10,000 toys on two cores, s |\n|---|---|---|")
    for names in (*((name,) for name in FIVE), FIVE):
        toys(reference, n, n, names, 2)
        start = time.process_time()
        toys(reference, n, n, names, asked.toys)
        seconds = (time.process_time() - start) / asked.toys
        total = seconds * PUBLISHED_TOYS / CORES
        print(f"| {', '.join(names)} | {seconds * 1e3:.1f} | {total:.0f} |", flush=True)
    if asked.limits:
        limits(reference, n, asked.coordinates, asked.toys)


if __name__ == "__main__":
    main()
