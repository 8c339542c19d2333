"""How much main memory one file may take.

A header of a few bytes may declare any size. So readers call `check` with the declared size before
they allocate, and a file that would not fit is refused in one line. `--max-memory` sets the budget.
"""

from __future__ import annotations

import re
from functools import lru_cache

from mmtok.errors import UserError

SHARE = 0.5  # of what is free when the first file is read
UNITS = {
    "": 1,
    "K": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "KI": 2**10,
    "MI": 2**20,
    "GI": 2**30,
    "TI": 2**40,
}
SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,9})?) *([KMGT]I?)?B?", re.IGNORECASE)

_limit: int | None = None  # None: half of what is free


def set_limit(size: str | None) -> None:
    """Set the budget to a size such as "8GB" or "500 MiB"; None: half of what is free.

    Raises UserError for what is no size.
    """
    global _limit
    _limit = None if size is None else parse_size(size)


def limit_bytes() -> int:
    """The budget in bytes."""
    if _limit is None:
        return _half_of_what_is_free()
    return _limit


def check(n_bytes: float, name: object, what: str = "it") -> None:
    """Raise UserError where reading the file `name` would take more than the budget.

    what: the part of the file that takes so much.
    """
    if n_bytes <= limit_bytes():
        return
    whose = "half of what is free" if _limit is None else "--max-memory"
    raise UserError(
        f"{name}: {what} would take {format_size(n_bytes)} of memory, and"
        f" {format_size(limit_bytes())} are allowed ({whose}); if its header is right, split or"
        " shrink it, or allow more with --max-memory"
    )


def parse_size(size: str) -> int:
    """The bytes of "8GB", "500 MiB" or "1000000". Raises UserError for anything else."""
    n_bytes = 0
    if match := SIZE.fullmatch(size.strip()):
        n_bytes = int(float(match[1]) * UNITS[(match[2] or "").upper()])
    if n_bytes < 1:
        raise UserError(f"--max-memory is {size[:40]!r}; give a size such as 8GB or 500MB")
    return n_bytes


def format_size(n_bytes: float) -> str:
    """Bytes as people read them: 1.5 GB."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= 1e15:  # no thousands of TB, but an exponent
            return f"{n_bytes / size:.3g} {unit}"
        if n_bytes >= size:
            return f"{n_bytes / size:,.3g} {unit}"
    return f"{n_bytes:.0f} bytes"


@lru_cache(maxsize=1)
def _half_of_what_is_free() -> int:
    import psutil

    return int(psutil.virtual_memory().available * SHARE)
