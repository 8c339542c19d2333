"""Row 30 of the table of laws: the Frechet distance that samples of all these families are judged
by, and its bias at N samples.
"""

import numpy as np
import pytest

from mmtok.metrics.images import frechet


def test_nothing_from_nothing(rng):
    x = rng.normal(size=(1000, 64))
    assert frechet(x, x) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("n", [1000, 5000, 10_000])
def test_two_samples_of_one_gaussian(rng, n):
    """E = (2 d + d (d + 1) / 2) / N for N(0, I_d): the mean of eight pairs, as one alone varies by
    3 %.
    """
    d = 64
    bias = (2 * d + d * (d + 1) / 2) / n
    distances = [frechet(rng.normal(size=(n, d)), rng.normal(size=(n, d))) for _ in range(8)]
    assert np.mean(distances) == pytest.approx(bias, rel=0.05)
