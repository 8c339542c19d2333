"""The delay pattern of residual codebooks: codebook q of frame t stands in frame t + q.

Copet et al. 2023, "Simple and Controllable Music Generation" (MusicGen), section 2.1. A head that
draws the channels of a frame independently then still knows the codebooks before: those of the same
moment stand in earlier frames. Cells before the first and after the last moment hold a code of
their own, `fill`; so T moments are T + Q - 1 frames, and nothing is lost.
"""

from __future__ import annotations

import numpy as np


def delayed(codes: np.ndarray, fill: int) -> np.ndarray:
    """Codes (T, Q) -> (T + Q - 1, Q); no moments are no frames."""
    n, n_codebooks = codes.shape
    if not n:
        return codes
    frames = np.full((n + n_codebooks - 1, n_codebooks), fill, codes.dtype)
    for q in range(n_codebooks):
        frames[q : q + n, q] = codes[:, q]
    return frames


def n_moments(n_frames: int, n_codebooks: int) -> int:
    """How many moments have all their codebooks in so many frames."""
    return max(0, n_frames - n_codebooks + 1)


def undelayed(frames: np.ndarray) -> np.ndarray:
    """The inverse of `delayed`: frames (T, Q) -> codes (`n_moments`, Q).

    Of frames that were cut off before their end, moments without all codebooks are left out.
    """
    n_codebooks = frames.shape[1]
    n = n_moments(len(frames), n_codebooks)
    return np.stack([frames[q : q + n, q] for q in range(n_codebooks)], 1)
