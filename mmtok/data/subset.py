"""A random part of a long stream.

Folders and tables come sorted, so that their first rows are of a few classes only.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def random_subset(stream: Iterable[T], n: int, seed: int = 0) -> list[T]:
    """A random n items of a stream, in the stream's order; all of a shorter stream.

    Every choice of n items is equally likely. Holds n items at a time.

    Source: Vitter 1985, Random sampling with a reservoir, algorithm R.
    """
    rng = random.Random(seed)
    kept: list[tuple[int, T]] = []
    for i, item in enumerate(stream):
        if i < n:
            kept.append((i, item))
        elif (k := rng.randrange(i + 1)) < n:
            kept[k] = (i, item)
    return [item for _, item in sorted(kept, key=lambda pair: pair[0])]
