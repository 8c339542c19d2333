"""Constituents of jets in numbers of about one size: what learned codes and latents are made of.

ln(pt_gev), and asinh(angle / core) of eta_rel and phi_rel: within the core angles stay as they are,
further out they are logarithms. Letters: P constituents of all jets, D = 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmtok.errors import UserError
from mmtok.nn.angles import wrap
from mmtok.tokenizers.jet_clipping import Clipping
from mmtok.tokenizers.jet_order import ordered, particles

FEATURES = ("pt_gev", "eta_rel", "phi_rel")
CORE = 0.03  # radians
# A step of ln pt that matters as much as one of asinh(angle / CORE): both change masses alike.
PT_SCALE = 1.0
MOST_ASINH = 10.0  # of an angle of 330 radians, so that no decoded one overflows
MOST_LOG_PT = 12.0


def stretched(values: np.ndarray) -> np.ndarray:
    """pt_gev, eta_rel and phi_rel (P, 3) -> numbers (P, 3) float64."""
    values = np.asarray(values, np.float64)
    angles = np.stack([values[:, 1], wrap(values[:, 2])], 1)
    return np.concatenate([PT_SCALE * np.log(values[:, :1]), np.arcsinh(angles / CORE)], 1)


def unstretched(numbers: np.ndarray) -> np.ndarray:
    """The inverse of `stretched`, float32; what is too large for a jet is cut."""
    numbers = np.asarray(numbers, np.float64)
    log_pt = np.clip(numbers[:, :1] / PT_SCALE, -MOST_LOG_PT, MOST_LOG_PT)
    angles = np.clip(numbers[:, 1:], -MOST_ASINH, MOST_ASINH)
    return np.concatenate([np.exp(log_pt), CORE * np.sinh(angles)], 1).astype(np.float32)


def lengths_of(signals: Sequence[np.ndarray]) -> list[int]:
    """P of each jet (P, 3). Raises UserError for another shape or type."""
    lengths = []
    for i, signal in enumerate(signals):
        signal = np.asarray(signal)
        if signal.ndim != 2 or signal.shape[1] != len(FEATURES) or signal.dtype.kind not in "fiu":
            raise UserError(
                f"jet {i}: expected numbers (P, 3) with {', '.join(FEATURES)}, got shape"
                f" {signal.shape} of {signal.dtype}"
            )
        lengths.append(len(signal))
    return lengths


def hardest(
    signals: Sequence[np.ndarray], most: int, count: Clipping
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The `most` hardest constituents of each jet, by falling pt, then angles; padding left out.

    Returns their values (P, 3) float64, the number per jet (N,), and which jets have more (N,).
    Raises UserError for what is no jet. `count` gets all constituents.
    """
    lengths = lengths_of(signals)
    values = np.concatenate([np.zeros((0, len(FEATURES))), *signals])
    values, jet = particles(values, np.repeat(np.arange(len(lengths)), lengths))
    values, _ = ordered(values, np.zeros((len(values), 1), np.int64), jet, (1,))
    n = np.bincount(jet, minlength=len(lengths))
    count.add(values, np.full(values.shape, -1), n)
    rank = np.arange(len(values)) - np.repeat(np.cumsum(n) - n, n)
    n_kept = np.minimum(n, most)
    return values[rank < most], n_kept, n > n_kept


def counted(most: int) -> Clipping:
    """A count of jets that are cut to `most` constituents; nothing is clipped."""
    return Clipping(FEATURES, np.zeros((len(FEATURES), 2)), most)
