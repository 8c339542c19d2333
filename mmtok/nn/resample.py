"""Sound at another rate, by the library soxr: bounded memory, no delay, whatever the two rates are."""

from __future__ import annotations

import numpy as np

from mmtok.errors import UserError

LOWEST_HZ, HIGHEST_HZ = 1_000, 768_000  # what sound is recorded at, from toys to laboratories
QUALITY = "HQ"


def resample(samples: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """Samples (N,) at one rate -> float32 (ceil(N * to_hz / from_hz),) at another.

    So there is a sample at every multiple of 1 / to_hz before the clip's end, and none of a clip
    is lost to rounding. Linear phase without delay. Up to 0.92 of the lower Nyquist frequency the
    gain is 1 within 0.02 dB; what would alias comes out below -120 dB. Equal rates give the samples
    themselves. Raises UserError for rates that no sound has.
    """
    samples = np.ascontiguousarray(samples, dtype=np.float32)
    if from_hz == to_hz:
        return samples
    check_rate(from_hz)
    check_rate(to_hz)
    import soxr

    n_out = n_resampled(len(samples), from_hz, to_hz)
    # soxr rounds to the nearest length: some silence after the end lets it give one sample more
    after = np.zeros(2 * -(-from_hz // to_hz), np.float32)
    return soxr.resample(np.concatenate([samples, after]), from_hz, to_hz, QUALITY)[:n_out]


def n_resampled(n_samples: int, from_hz: int, to_hz: int) -> int:
    """How many samples `resample` makes of so many, in integers: ceil(N * to_hz / from_hz)."""
    return -(-n_samples * to_hz // from_hz)


def check_rate(rate_hz: int) -> None:
    """Raise UserError for a rate outside LOWEST_HZ to HIGHEST_HZ."""
    if not LOWEST_HZ <= rate_hz <= HIGHEST_HZ:
        raise UserError(
            f"a rate of {rate_hz:,} Hz cannot be resampled: "
            f"sound has {LOWEST_HZ:,} to {HIGHEST_HZ:,} samples a second"
        )
