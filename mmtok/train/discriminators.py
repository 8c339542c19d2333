"""Discriminators that vocoders and de-quantisers are trained against.

Each maps what is judged to (scores, features of its layers). Kong et al. 2020 (HiFi-GAN, arXiv
2010.05646, section 2.3) for periods; Jang et al. 2021 (UnivNet, arXiv 2106.07889, section 2.2) for
resolutions, here of complex spectra with logarithmic magnitudes.

Letters: B clips, N samples, T frames, F frequencies, C mel channels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.1
PERIODS = (2, 3, 5, 7, 11)
QUIET = 1e-4  # magnitudes are compressed as log(magnitude / QUIET + 1)
Judged = tuple[Tensor, list[Tensor]]


def _conv(n_in: int, n_out: int, kernel: tuple[int, int], stride: tuple[int, int]) -> nn.Module:
    conv = nn.Conv2d(n_in, n_out, kernel, stride, (kernel[0] // 2, kernel[1] // 2))
    return nn.utils.parametrizations.weight_norm(conv)


class Discriminator(nn.Module):
    """Layers of convolutions over a plane, and one more for the scores."""

    layers: nn.ModuleList
    last: nn.Module

    def judge(self, plane: Tensor) -> Judged:
        """(B, channels, height, width) -> scores and features."""
        features = []
        for layer in self.layers:
            plane = F.leaky_relu(layer(plane), SLOPE)
            features.append(plane)
        return self.last(plane), features


class PeriodDiscriminator(Discriminator):
    """Samples (B, N) as rows of `period` samples; convolutions go down the columns."""

    def __init__(self, period: int, widths: tuple[int, ...] = (16, 32, 64, 128)):
        super().__init__()
        self.period = period
        channels = (1, *widths)
        self.layers = nn.ModuleList(
            _conv(n_in, n_out, (5, 1), (3, 1))
            for n_in, n_out in zip(channels[:-1], channels[1:], strict=True)
        )
        self.last = _conv(channels[-1], 1, (3, 1), (1, 1))

    def forward(self, samples: Tensor) -> Judged:
        """(B, N) -> scores and features."""
        padded = F.pad(samples, (0, -samples.shape[1] % self.period), "reflect")
        return self.judge(padded.view(len(samples), 1, -1, self.period))


class ResolutionDiscriminator(Discriminator):
    """Complex spectra of samples (B, N), by windows of one length."""

    window: Tensor

    def __init__(self, window_samples: int, width: int = 24):
        super().__init__()
        self.register_buffer("window", torch.hann_window(window_samples))
        self.layers = nn.ModuleList(
            [
                _conv(2, width, (3, 9), (1, 2)),
                _conv(width, width, (3, 9), (1, 2)),
                _conv(width, width, (3, 9), (1, 2)),
                _conv(width, width, (3, 3), (1, 1)),
            ]
        )
        self.last = _conv(width, 1, (3, 3), (1, 1))

    def forward(self, samples: Tensor) -> Judged:
        """(B, N) -> scores and features."""
        n = len(self.window)
        spectra = torch.stft(samples, n, n // 4, window=self.window, return_complex=True)
        spectra = torch.view_as_real(spectra) * (4 / self.window.norm())  # (B, F, T, 2)
        magnitude = (spectra.square().sum(-1, keepdim=True) + QUIET**2).sqrt()
        compressed = spectra / magnitude * torch.log(magnitude / QUIET) / 3
        return self.judge(compressed.permute(0, 3, 2, 1))


def wave_discriminators(n_fft: int) -> nn.ModuleList:
    """Of sound: three resolutions and five periods."""
    of_windows = [ResolutionDiscriminator(n_fft // part) for part in (1, 2, 4)]
    return nn.ModuleList([*of_windows, *map(PeriodDiscriminator, PERIODS)])


class MelDiscriminator(Discriminator):
    """Patches of a log10 mel spectrogram (B, T, C), each value with its distance from its base.

    base: what the codes say without a network, (B, T, C); `spread` is half a cell.
    """

    def __init__(self, spread: float, width: int = 32):
        super().__init__()
        self.spread = spread
        self.layers = nn.ModuleList(
            [
                _conv(2, width, (3, 5), (1, 1)),
                _conv(width, width, (3, 5), (1, 2)),
                _conv(width, 2 * width, (3, 5), (2, 2)),
                _conv(2 * width, 2 * width, (3, 3), (1, 1)),
            ]
        )
        self.last = _conv(2 * width, 1, (3, 3), (1, 1))

    def forward(self, log_mel: Tensor, base: Tensor) -> Judged:
        """(B, T, C) -> scores and features."""
        return self.judge(torch.stack(((log_mel + 3) / 2, (log_mel - base) / self.spread), 1))


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """What a discriminator lowers (Lim and Ye 2017, arXiv 1705.02894, eq. 3)."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def matching_loss(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """The mean distance of features, each relative to its size."""
    parts = [
        (a - b).abs().mean() / (a.abs().mean() + 1e-6) for a, b in zip(real, fake, strict=True)
    ]
    return torch.stack(parts).mean()


def resolutions_of(rate_hz: int) -> list[tuple[int, int]]:
    """(window in samples, mel bands) of the distances between sounds: 128 to 8 ms."""
    longest = 2 ** round(math.log2(0.128 * rate_hz))
    return [(longest >> i, 160 >> i) for i in range(5)]
