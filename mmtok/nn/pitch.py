"""Pitch: bins that a network says it in, and a tracker that finds it in sound.

The tracker is normalised cross-correlation with the sound some lags later, and the best path over
its peaks (Talkin 1995, "A Robust Algorithm for Pitch Tracking").

Letters: B clips, N samples, T frames.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LOWEST_HZ = 60.0
HIGHEST_HZ = 500.0
N_BINS = 128  # evenly spaced in log frequency, both ends included: 3 % apart
AROUND_PEAK = 3  # bins on both sides of the likeliest that the pitch is averaged over

WINDOW_S = 0.064  # that is compared with the sound a lag later; rounded to a power of two samples
N_PEAKS = 6  # candidates of a frame, besides that it is unvoiced
UNVOICED = 0.5  # the correlation that a voiced frame has at least
LAG_COST = 9.6  # per second of lag: of two periods of equal sounds the shorter is the pitch
OCTAVE_COST = 2.0  # of a step of one octave from frame to frame, at most this for larger ones
VOICING_COST = 0.25  # of a step from voiced to unvoiced or back
SMOOTHING_S = 0.0003  # of the sound before, so that peaks are wider than a sample
QUIET = 1e-4  # added to the product of energies, so that silence correlates with nothing
NEVER = -9.0  # worse than any path
BLOCK_FRAMES = 2048  # whose correlations are computed at a time, which bounds the memory


# ---- bins


def bins_of(f0_hz: Tensor) -> Tensor:
    """Pitch in Hz -> place among the bins, 0 to N_BINS - 1."""
    octaves = (f0_hz.clamp(LOWEST_HZ, HIGHEST_HZ) / LOWEST_HZ).log()
    return octaves * ((N_BINS - 1) / math.log(HIGHEST_HZ / LOWEST_HZ))


def hz_of(bins: Tensor) -> Tensor:
    """The inverse of `bins_of`."""
    return LOWEST_HZ * (bins * (math.log(HIGHEST_HZ / LOWEST_HZ) / (N_BINS - 1))).exp()


def pitch_of(logits: Tensor) -> Tensor:
    """A network's logits of the bins and of voicing (..., N_BINS + 1) -> pitch in Hz, 0: unvoiced.

    It is the mean over the bins around the likeliest one.
    """
    p = logits[..., :N_BINS].softmax(-1)
    around = torch.arange(-AROUND_PEAK, AROUND_PEAK + 1, device=p.device)
    bins = (p.argmax(-1, keepdim=True) + around).clamp(0, N_BINS - 1)
    weights = p.gather(-1, bins)
    mean = (weights * bins).sum(-1) / weights.sum(-1)
    return torch.where(logits[..., N_BINS] > 0, hz_of(mean), 0.0)


def pitch_loss(logits: Tensor, f0_hz: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropies of a network's logits (..., N_BINS + 1): of the bins, and of voicing.

    The first is of voiced frames alone, with the bins around the pitch as targets.
    f0_hz: the pitch (...), 0 where a frame is unvoiced.
    """
    voiced = (f0_hz > 0).float()
    distances = torch.arange(N_BINS, device=f0_hz.device) - bins_of(f0_hz)[..., None]
    targets = (-0.5 * distances.square()).softmax(-1)
    of_bins = -(targets * logits[..., :N_BINS].log_softmax(-1)).sum(-1)
    of_voicing = F.binary_cross_entropy_with_logits(logits[..., N_BINS], voiced)
    return (of_bins * voiced).sum() / voiced.sum().clamp_min(1), of_voicing


# ---- the tracker


def track_pitch(samples: Tensor, rate_hz: int, hop_samples: int) -> Tensor:
    """A clip (N,) -> its pitch in Hz (T,), 0 where it is unvoiced; frame t is at sample t hop."""
    n_frames = len(samples) // hop_samples + 1
    scores, lags = _peaks(_smoothed(samples.float(), rate_hz), n_frames, rate_hz, hop_samples)
    path = _best_path(scores, np.log2(lags))
    voiced = path < N_PEAKS
    chosen = lags[np.arange(n_frames), np.minimum(path, N_PEAKS - 1)]
    return torch.from_numpy(np.where(voiced, rate_hz / chosen, 0.0).astype(np.float32))


def _smoothed(samples: Tensor, rate_hz: int) -> Tensor:
    """(N,) -> the same through a short window."""
    half = round(SMOOTHING_S * rate_hz / 2)
    window = torch.hann_window(2 * half + 3, periodic=False)[1:-1]
    kernel = (window / window.sum())[None, None]
    return F.conv1d(samples[None, None], kernel, padding=half)[0, 0]


def _peaks(
    samples: Tensor, n_frames: int, rate_hz: int, hop_samples: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best peaks of every frame's correlation: scores and lags in samples (T, N_PEAKS)."""
    n = 2 ** round(math.log2(WINDOW_S * rate_hz))
    lags = torch.arange(int(rate_hz / HIGHEST_HZ), math.ceil(rate_hz / LOWEST_HZ) + 1)
    longest = int(lags[-1])
    last = (n_frames - 1) * hop_samples + n + longest
    stretch = F.pad(samples, (n // 2, max(0, last - n // 2 - len(samples))))
    windows = stretch.unfold(0, n + longest, hop_samples)[:n_frames]
    found = []
    for block in windows.split(BLOCK_FRAMES):
        later = block - block[:, :n].mean(1, keepdim=True)
        own = later[:, :n]
        product = torch.fft.rfft(own, 2 * n).conj() * torch.fft.rfft(later, 2 * n)
        correlation = torch.fft.irfft(product, 2 * n)[:, lags]
        energy = F.pad(later.square(), (1, 0)).cumsum(1)
        energies = energy[:, n : n + 1] * (energy[:, lags + n] - energy[:, lags])
        scores = correlation / (energies + QUIET).sqrt() - LAG_COST / rate_hz * lags
        found.append(_best_peaks(scores, lags))
    all_scores, all_lags = (torch.cat(parts).double().numpy() for parts in zip(*found, strict=True))
    return all_scores, all_lags


def _best_peaks(scores: Tensor, lags: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of lags (T, L) -> the best local maxima and their lags, between samples too."""
    before = scores[:, :-2]
    middle = scores[:, 1:-1]
    after = scores[:, 2:]
    is_peak = (middle > before) & (middle >= after)
    best, place = torch.where(is_peak, middle, NEVER).topk(N_PEAKS, 1)
    y = [part.gather(1, place) for part in (before, middle, after)]
    # the top of the parabola through three points
    shift = 0.5 * (y[0] - y[2]) / (y[0] - 2 * y[1] + y[2]).clamp_max(-1e-9)
    return best, lags[1:-1][place] + shift.clamp(-0.5, 0.5)


def _best_path(scores: np.ndarray, octaves: np.ndarray) -> np.ndarray:
    """The candidate of every frame (T,), N_PEAKS where it is unvoiced, by Viterbi's algorithm.

    octaves: log2 of the lags (T, N_PEAKS).
    """
    n_frames = len(scores)
    own = np.concatenate([scores, np.full((n_frames, 1), UNVOICED)], 1)
    steps = np.full((N_PEAKS + 1, N_PEAKS + 1), -VOICING_COST)
    steps[-1, -1] = 0
    total = own[0]
    back = np.zeros((n_frames, N_PEAKS + 1), int)
    for t in range(1, n_frames):
        jumps = np.abs(octaves[t - 1][:, None] - octaves[t])
        steps[:-1, :-1] = -OCTAVE_COST * np.minimum(1, jumps)
        ways = total[:, None] + steps
        back[t] = ways.argmax(0)
        total = ways.max(0) + own[t]
    path = np.zeros(n_frames, int)
    state = int(total.argmax())
    for t in range(n_frames - 1, -1, -1):
        path[t] = state
        state = back[t, state]
    return path
