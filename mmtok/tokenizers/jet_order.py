"""A jet's constituents in the one order that all lists of them share; padding is left out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmtok.errors import UserError


def particles(values: np.ndarray, jet: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The particles of positive pt (all P, F), and the jet of each.

    Raises UserError for NaN, infinities and negative pt.
    """
    pt = values[:, 0]
    finite = np.isfinite(values).all(1)
    if not finite.all():
        raise UserError(
            f"jet {jet[np.argmin(finite)]}: has a NaN or infinite value; remove the jet, or pad"
            " with zeros"
        )
    if (pt < 0).any():
        raise UserError(
            f"jet {jet[np.argmax(pt < 0)]}: has a negative pt; give pt in GeV, not its logarithm"
        )
    if pt.all():
        return values, jet
    return values[pt > 0], jet[pt > 0]


def ordered(
    values: np.ndarray, codes: np.ndarray, jet: np.ndarray, bins: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Particles (all P, F) and their codes, jet by jet in falling lexicographic order of the codes.

    Among equal codes the values decide in the same way. So what is cut off at the cap, and how sums
    round, does not depend on the order that a jet comes in.
    """
    keys = _keys(jet, codes, bins)
    order = np.lexsort(keys[::-1])
    equals_next = np.all([np.diff(key[order]) == 0 for key in keys], 0)
    is_tied = np.zeros(len(order), bool)
    is_tied[1:] |= equals_next
    is_tied[:-1] |= equals_next
    tied = order[is_tied]
    finer_keys = (*-values[tied].T[::-1], *(key[tied] for key in keys[::-1]))
    order[is_tied] = tied[np.lexsort(finer_keys)]
    return values[order], codes[order]


def _keys(jet: np.ndarray, codes: np.ndarray, bins: Sequence[int]) -> list[np.ndarray]:
    """Sort keys, the first one deciding: they rise as the jets rise and as the codes fall.

    As few as 63 bits hold, since sorting takes time for each.
    """
    keys = [jet.astype(np.int64)]
    size = int(jet[-1]) + 1 if len(jet) else 1  # values that the last key can have
    for column, k in zip(codes.T, bins, strict=True):
        if size * k >= 2**63:
            keys.append(np.zeros_like(keys[0]))
            size = 1
        keys[-1] = keys[-1] * k + (k - 1 - column)
        size *= k
    return keys
