"""Resampling of sound by the library soxr: any two rates, bounded memory, no delay."""

from __future__ import annotations

import numpy as np

from mmtok.errors import UserError

# rates at which sound is recorded, from toys to laboratories
LOWEST_HZ = 1_000
HIGHEST_HZ = 768_000
QUALITY = "HQ"


def resample(samples: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """Samples (N,) at one rate -> float32 (ceil(N * to_hz / from_hz),) at another.

    There is a sample at every multiple of 1 / to_hz before the clip's end, so that rounding loses
    nothing of a clip. The filter has linear phase without delay. Up to 0.92 of the lower Nyquist
    frequency its gain is 1 within 0.02 dB; what would alias is below -120 dB. Equal rates give the
    samples themselves.

    Raises UserError for rates that `check_rate` refuses.
    """
    samples = np.ascontiguousarray(samples, dtype=np.float32)
    if from_hz == to_hz:
        return samples
    check_rate(from_hz)
    check_rate(to_hz)
    import soxr

    n_out = n_resampled(len(samples), from_hz, to_hz)
    # soxr rounds the length to the nearest number; silence after the end makes it round up
    after = np.zeros(2 * -(-from_hz // to_hz), np.float32)
    return soxr.resample(np.concatenate([samples, after]), from_hz, to_hz, QUALITY)[:n_out]


def n_resampled(n_samples: int, from_hz: int, to_hz: int) -> int:
    """How many samples `resample` makes of n_samples: ceil(N * to_hz / from_hz)."""
    return -(-n_samples * to_hz // from_hz)


def check_rate(rate_hz: int) -> None:
    """Raise UserError for a rate outside LOWEST_HZ to HIGHEST_HZ."""
    if not LOWEST_HZ <= rate_hz <= HIGHEST_HZ:
        raise UserError(
            f"a rate of {rate_hz:,} Hz cannot be resampled: "
            f"sound has {LOWEST_HZ:,} to {HIGHEST_HZ:,} samples a second"
        )
