"""A fair part of a long stream: folders and tables come sorted, so that their first rows are a few
classes only.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def random_subset(stream: Iterable[T], n: int, seed: int = 0) -> list[T]:
    """N items of a stream, each n of them equally likely, in the stream's order; all of a shorter
    stream.

    Holds n items at a time. Source: Vitter 1985, Random sampling with a reservoir, algorithm R.
    """
    draw, kept = random.Random(seed), []
    for i, item in enumerate(stream):
        if i < n:
            kept.append((i, item))
        elif (k := draw.randrange(i + 1)) < n:
            kept[k] = (i, item)
    return [item for _, item in sorted(kept, key=lambda pair: pair[0])]
