"""A fair part of a stream."""

import itertools
from collections import Counter

from mmtok.data.subset import random_subset


def test_every_subset_is_as_likely_as_any_other():
    n_seeds = 6000
    counts = Counter(tuple(random_subset(iter("abcde"), 2, seed)) for seed in range(n_seeds))
    assert set(counts) == set(itertools.combinations("abcde", 2))  # in the stream's order
    expected = n_seeds / 10
    chi_square = sum((k - expected) ** 2 / expected for k in counts.values())
    assert chi_square < 27.9  # 9 degrees of freedom, one in a thousand


def test_a_short_stream_is_kept_whole():
    assert random_subset(range(3), 5) == [0, 1, 2]


def test_the_seed_decides():
    assert (
        random_subset(range(1000), 10, 1)
        == random_subset(range(1000), 10, 1)
        != random_subset(range(1000), 10, 2)
    )
