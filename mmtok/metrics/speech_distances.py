"""How far a sound is from its original: STOI, ESTOI, PESQ, and distances of spectra.

All compare frame with frame, of clips (N,) of equal length that begin together; nothing is aligned
first, as the random phase of Griffin-Lim gives false shifts. A distance is NaN where it cannot be
measured: of silence, and of clips too short for it. Letters: T frames, F frequencies, C bands.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

from mmtok.errors import UserError, missing_extra
from mmtok.nn import audio
from mmtok.nn.audio import MelSpec, mel_filters
from mmtok.nn.resample import resample

# What is this far below the original's loudest value counts as that: inaudible differences of
# digital silence would outweigh all others.
RANGE_DB = 80.0
N_CEPSTRA = 13  # c_1 to c_13 of the mel-cepstral distortion
PESQ_S = 20.0  # PESQ holds at most 50 utterances in memory, so it hears pieces of so many seconds
PESQ_RATES_HZ = {"wb": 16_000, "nb": 8_000}
# n_fft, hop, window. Source: Yamamoto, Song and Kim 2020, "Parallel WaveGAN", table 1
RESOLUTIONS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))
LOG_FLOOR = 1e-7  # of magnitudes in the multi-resolution distance


def stoi(reference: np.ndarray, degraded: np.ndarray, rate_hz: int) -> float:
    """Short-time objective intelligibility of `degraded` (N,) against `reference` (N,), up to 1.

    NaN when less than some 0.4 s of the reference is sound. Source: Taal et al. 2011.

    Raises UserError without pystoi, or when the shapes differ.
    """
    return _stoi(reference, degraded, rate_hz, extended=False)


def estoi(reference: np.ndarray, degraded: np.ndarray, rate_hz: int) -> float:
    """Extended STOI, which also hears modulated noise. Source: Jensen and Taal 2016.

    Otherwise as `stoi`.
    """
    return _stoi(reference, degraded, rate_hz, extended=True)


def _stoi(reference: np.ndarray, degraded: np.ndarray, rate_hz: int, extended: bool) -> float:
    _check_pair(reference, degraded)
    if not reference.any():
        return math.nan
    try:
        return audio.stoi(reference, degraded, rate_hz, extended)
    except ImportError:
        raise missing_extra("intelligibility (STOI)", "eval") from None


def pesq(reference: np.ndarray, degraded: np.ndarray, rate_hz: int, band: str = "wb") -> float:
    """Perceptual evaluation of speech quality, from 1 to 4.64 (wb) or 4.55 (nb).

    The mean over pieces of at most PESQ_S seconds. NaN of silence and of clips below 0.25 s. Other
    rates than 16 kHz (wb) and 8 kHz (nb) are resampled. Source: ITU-T P.862.2 and P.862.1.

    Raises UserError without the package pesq, for another band, or when the shapes differ.
    """
    _check_pair(reference, degraded)
    if band not in PESQ_RATES_HZ:
        raise UserError(f"PESQ: band is {band!r}; it is wb or nb")
    module = _pesq_module()
    rate = PESQ_RATES_HZ[band]
    x = resample(reference, rate_hz, rate)
    y = resample(degraded, rate_hz, rate)
    n_pieces = max(1, math.ceil(len(x) / (PESQ_S * rate)))
    pieces = zip(np.array_split(x, n_pieces), np.array_split(y, n_pieces), strict=True)
    values = []
    for a, b in pieces:
        if not (a.any() and b.any()):
            continue
        try:
            values.append(float(module.pesq(rate, a, b, band)))
        except module.PesqError:  # no utterance, or too short
            continue
    measured = [value for value in values if math.isfinite(value)]
    return float(np.mean(measured)) if measured else math.nan


@cache
def _pesq_module():  # type: ignore[no-untyped-def]
    try:
        import pesq
    except ImportError:
        raise UserError(
            "PESQ needs the package pesq, which must be compiled: pip install pesq"
        ) from None
    return pesq


# ---- distances of spectra


def distance_spec(rate_hz: int) -> MelSpec:
    """The spectrogram of the distances below: 25 ms every 10 ms, 80 bands up to 8 kHz.

    It is that of no tokenizer.
    """
    window_samples = round(0.025 * rate_hz)
    return MelSpec(
        rate_hz,
        n_fft=2 ** math.ceil(math.log2(2 * window_samples)),
        window_samples=window_samples,
        hop_samples=round(0.01 * rate_hz),
        n_mels=80,
        fmin_hz=0.0,
        fmax_hz=min(8000.0, rate_hz / 2),
    )


def mel_cepstral_distortion(reference: np.ndarray, degraded: np.ndarray, rate_hz: int) -> float:
    """The distance of two spectral envelopes in dB, the loudness c_0 left out.

    10 / ln 10 * sqrt(2 * sum of (c_m - c'_m)^2, m = 1..13), the mean over frames (Kubichek 1993).
    c_m is the m-th coefficient of the cosine series of the natural log of 80 mel magnitudes, so
    that it is the root mean square of the difference of the smoothed envelopes in dB.
    """
    a, b = _log_mels_db(reference, degraded, rate_hz)
    if a is None or b is None:
        return math.nan
    cepstra = (a - b) @ _cosines(a.shape[1])  # (T, 13), in dB
    return float(cepstra.square().sum(1).div(2).sqrt().mean())


def log_mel_distance(reference: np.ndarray, degraded: np.ndarray, rate_hz: int) -> float:
    """The mean absolute difference of two log-mel spectrograms, in dB."""
    a, b = _log_mels_db(reference, degraded, rate_hz)
    if a is None or b is None:
        return math.nan
    return float((a - b).abs().mean())


def log_spectral_distance(reference: np.ndarray, degraded: np.ndarray, rate_hz: int) -> float:
    """The root mean square over frequencies of two log spectra's difference, in dB.

    The mean over frames. Source: Gray and Markel 1976.
    """
    _check_pair(reference, degraded)
    spec = distance_spec(rate_hz)
    sizes = (spec.n_fft, spec.hop_samples, spec.window_samples)
    a, b = _in_db(_magnitudes(reference, *sizes), _magnitudes(degraded, *sizes))
    if a is None or b is None:
        return math.nan
    return float((a - b).square().mean(1).sqrt().mean())


def multi_resolution_stft(
    reference: np.ndarray, degraded: np.ndarray, rate_hz: int
) -> tuple[float, float]:
    """Spectral convergence, and the mean absolute difference of natural log magnitudes.

    Each is the mean over three resolutions. Source: Yamamoto, Song and Kim 2020, equations 4 to 6,
    whose window sizes are of 16 to 24 kHz, whatever the rate here.
    """
    _check_pair(reference, degraded)
    if not reference.any():
        return math.nan, math.nan
    convergences = []
    log_differences = []
    for n_fft, hop, window in RESOLUTIONS:
        a = _magnitudes(reference, n_fft, hop, window)
        b = _magnitudes(degraded, n_fft, hop, window)
        convergences.append(float((a - b).norm() / a.norm()))
        difference = a.clamp_min(LOG_FLOOR).log() - b.clamp_min(LOG_FLOOR).log()
        log_differences.append(float(difference.abs().mean()))
    return float(np.mean(convergences)), float(np.mean(log_differences))


def _check_pair(reference: np.ndarray, degraded: np.ndarray) -> None:
    if np.shape(reference) != np.shape(degraded) or np.ndim(reference) != 1:
        raise UserError(
            "a distance of sounds needs two mono clips of equal length, got shapes"
            f" {np.shape(reference)} and {np.shape(degraded)}"
        )


def _magnitudes(clip: np.ndarray, n_fft: int, hop: int, window: int) -> Tensor:
    """Magnitudes (T, F) of a clip (N,), with zeros around it."""
    samples = torch.from_numpy(np.ascontiguousarray(clip, dtype=np.float32))
    spectra = torch.stft(
        samples,
        n_fft,
        hop,
        window,
        torch.hann_window(window),
        pad_mode="constant",
        return_complex=True,
    )
    return spectra.abs().T


def _in_db(reference: Tensor, degraded: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Two magnitudes (T, F) in dB, floored at RANGE_DB below the reference's loudest value.

    None of a silent reference.
    """
    loudest = reference.max()
    if not loudest > 0:
        return None, None
    floor = loudest * 10 ** (-RANGE_DB / 20)
    a, b = (20 * x.clamp_min(floor).log10() for x in (reference, degraded))
    return a, b


def _log_mels_db(
    reference: np.ndarray, degraded: np.ndarray, rate_hz: int
) -> tuple[Tensor | None, Tensor | None]:
    """Mel magnitudes (T, C) of two clips in dB."""
    _check_pair(reference, degraded)
    spec = distance_spec(rate_hz)
    filters = mel_filters(spec)
    sizes = (spec.n_fft, spec.hop_samples, spec.window_samples)
    a, b = (_magnitudes(clip, *sizes) @ filters for clip in (reference, degraded))
    return _in_db(a, b)


@cache
def _cosines(n_bands: int) -> Tensor:
    """(C, 13): the m-th coefficient of the cosine series of values at C points."""
    points = (torch.arange(n_bands) + 0.5) / n_bands  # (C,)
    orders = torch.arange(1, N_CEPSTRA + 1)
    return torch.cos(torch.pi * points[:, None] * orders) * 2 / n_bands
