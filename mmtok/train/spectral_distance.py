"""The distance of sounds by their spectra at one resolution, for trainings of vocoders."""

from __future__ import annotations

import torch
from torch import Tensor

from mmtok.nn.audio import MelSpec, mel_filters

MEL_FLOOR = 1e-5
STFT_FLOOR = 1e-4


class Scale:
    """The distance of sounds at one resolution: of log mel and of log spectral magnitudes, L1.

    Beside them, as Yamamoto et al. 2020 (arXiv 1910.11480, eq. 6), spectral convergence.
    """

    weight_of_bins = 0.3
    weight_of_convergence = 0.3

    def __init__(self, rate_hz: int, window_samples: int, n_mels: int):
        n = window_samples
        spec = MelSpec(rate_hz, n, n, max(1, n // 4), n_mels, 0.0, rate_hz / 2)
        self.filters = mel_filters(spec)
        self.window = torch.hann_window(n)

    def distance(self, made: Tensor, wanted: Tensor) -> Tensor:
        """Between sounds (B, N)."""
        own, own_mel = self._spectra(made)
        other, other_mel = self._spectra(wanted)
        of_mels = _log_distance(own_mel, other_mel, MEL_FLOOR)
        of_bins = _log_distance(own, other, STFT_FLOOR)
        convergence = (own - other).norm() / other.norm()
        return of_mels + self.weight_of_bins * of_bins + self.weight_of_convergence * convergence

    def _spectra(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N) -> magnitudes (B, F, T), and those of mel bands (B, T, C)."""
        n = len(self.window)
        spectra = torch.stft(samples, n, n // 4, window=self.window, return_complex=True)
        magnitudes = (torch.view_as_real(spectra).square().sum(-1) + 1e-10).sqrt()
        return magnitudes, magnitudes.transpose(1, 2) @ self.filters


def _log_distance(a: Tensor, b: Tensor, floor: float) -> Tensor:
    return ((a + floor).log() - (b + floor).log()).abs().mean()
