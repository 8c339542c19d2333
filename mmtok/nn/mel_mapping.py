"""The log-mel spectrogram of one spec as that of another, as far as the one says the other.

Between frames and between bands values are straight lines in log10; beyond the first and the last
they stay. Windows, filters and rates differ in gain: that of white noise is exact. (On speech the
gains of two usual specs differ from it by 0.003 on average within the range of the bands.)

Letters: T frames, C mel channels of the one, D of the other.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mmtok.nn.audio import MelSpec, analysis_window, hz_from_mel, mel_filters, mel_from_hz


class MelMapping:
    """log10 mel (T, C) of `of` -> log10 mel (T', D) of `to`, for as many frames as asked.

    Frame t of `to` is centred at sample `to_first` + t hop of its rate.
    """

    def __init__(self, of: MelSpec, to: MelSpec, to_first: float | None = None):
        """`to_first`: None: as the spec says."""
        self.of = of
        self.to = to
        self.to_first = first_middle(to)
        if to_first is not None:
            self.to_first = to_first
        rows = [
            np.interp(band_middles_hz(to), band_middles_hz(of), row) for row in np.eye(of.n_mels)
        ]
        lines = np.stack(rows)
        self.bands = torch.from_numpy(lines.astype(np.float32))  # (C, D)
        gains = white_noise_log_mel(to) - white_noise_log_mel(of) @ lines
        self.gains = torch.from_numpy(gains.astype(np.float32))  # (D,), in log10

    def __call__(self, log_mel: Tensor, n_frames: int) -> Tensor:
        """(T, C), T >= 1 -> (n_frames, D)."""
        middles = self.to_first + torch.arange(n_frames, dtype=torch.float64) * self.to.hop_samples
        middles *= self.of.rate_hz / self.to.rate_hz
        places = (middles - first_middle(self.of)) / self.of.hop_samples
        places = places.clamp(0, len(log_mel) - 1)
        before = places.long()
        after = (before + 1).clamp_max(len(log_mel) - 1)
        share = (places - before).float()[:, None]
        return torch.lerp(log_mel[before], log_mel[after], share) @ self.bands + self.gains

    def __str__(self) -> str:
        """In words: "12.5 ms a frame, 80 bands from 80 to 7,600 Hz as 11.6 ms, ..."."""
        return f"{_in_words(self.of)} as {_in_words(self.to)}"


def first_middle(spec: MelSpec) -> float:
    """The sample in the middle of frame 0."""
    if spec.causal:
        return spec.hop_samples - spec.n_fft / 2
    return 0.0


def band_middles_hz(spec: MelSpec) -> np.ndarray:
    """The peaks of the mel filters (C,)."""
    low, high = mel_from_hz(np.array([spec.fmin_hz, spec.fmax_hz]))
    return hz_from_mel(np.linspace(low, high, spec.n_mels + 2))[1:-1]


def white_noise_log_mel(spec: MelSpec) -> np.ndarray:
    """log10 mel (C,) of white noise of one power per Hz, up to a constant of all specs.

    Its magnitudes are those of the window, as E|X|^2 = sum(w^2) times the variance of a sample,
    which grows with the rate.
    """
    window = analysis_window(spec).double().numpy()
    filters = mel_filters(spec).double().numpy().sum(0)
    magnitude = np.sqrt(np.square(window).sum() * spec.rate_hz)
    return np.log10(np.maximum(magnitude * filters, 1e-12))


def _in_words(spec: MelSpec) -> str:
    ms = 1000 * spec.hop_samples / spec.rate_hz
    return (
        f"{ms:.3g} ms a frame, {spec.n_mels} bands from {spec.fmin_hz:,.0f} to"
        f" {spec.fmax_hz:,.0f} Hz"
    )
