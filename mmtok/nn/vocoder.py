"""Networks between codes, log-mel spectrograms and sound.

`Dequantiser`: codes of levels -> a log-mel spectrogram, each value within the cell of its code.
`ISTFTVocoder`: log-mel spectrogram -> samples, by magnitudes and phases of short-time spectra
(Vocos, Siuzdak 2023, arXiv 2306.00814).

Letters: B clips, N samples, T frames, C mel channels, F = n_fft // 2 + 1 frequencies, r fine frames
per frame of codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmtok.nn.audio import MelSpec, SpectraStream, inverse_stft
from mmtok.nn.convnext import ConvNeXt, ConvNeXtConfig, ConvNeXtStream

LOUDEST = 5.0  # natural log of a spectral magnitude, at most: Vocos clips at 100
# log10 mel values are read as (value - CENTRE) / SPREAD
CENTRE = -2.5
SPREAD = 4.5
# Values stay this share of half a step away from the borders of their cell, so that rounding to
# float32 never moves one across.
INSIDE = 1 - 1e-3


class ISTFTVocoder(nn.Module):
    """log10 mel (B, T, C) -> samples (B, N), T = spec.n_frames(N)."""

    def __init__(self, spec: MelSpec, config: ConvNeXtConfig):
        super().__init__()
        self.spec = spec
        self.network = ConvNeXt(spec.n_mels, spec.n_fft + 2, config)
        nn.init.trunc_normal_(self.network.out.weight, std=0.02)
        nn.init.zeros_(self.network.out.bias)

    def forward(self, log_mel: Tensor, n_samples: int) -> Tensor:
        """(B, T, C) -> (B, N)."""
        return inverse_stft(spectra_of(self.network(scaled(log_mel))), self.spec, n_samples)


def scaled(log_mel: Tensor) -> Tensor:
    """log10 mel values as a network reads them: about -1 to 1."""
    return (log_mel - CENTRE) / SPREAD


def spectra_of(outputs: Tensor) -> Tensor:
    """(..., n_fft + 2), log magnitudes and phases -> complex spectra (..., F)."""
    log_magnitude, phase = outputs.float().chunk(2, -1)
    return torch.polar(log_magnitude.clamp(max=LOUDEST).exp(), phase)


class ISTFTVocoderStream:
    """Samples of one clip whose log10 mel frames arrive in pieces; see `ConvNeXtStream`."""

    def __init__(self, vocoder: ISTFTVocoder, n_samples: int | None = None):
        """`n_samples`: N, where it is known from the start."""
        self.n_samples = n_samples
        self.features = ConvNeXtStream(vocoder.network)
        self.sound = SpectraStream(vocoder.spec)

    def push(self, log_mel: Tensor) -> Tensor:
        """(t, C) -> the samples (n,) that are complete, n >= 0."""
        return self.sound.push(spectra_of(self.features.push(scaled(log_mel))))

    def finish(self, n_samples: int | None = None) -> Tensor:
        """The samples that are left: of a clip of N samples, or of as many as the frames give."""
        first = self.sound.push(spectra_of(self.features.finish()))
        return torch.cat([first, self.sound.finish(n_samples or self.n_samples)])


# ---- the de-quantiser


@dataclass(frozen=True)
class Cells:
    """Levels of codes, and how far a value may be from the level of its code.

    Attributes:
        low: the lowest level.
        high: the highest.
        n_levels: evenly spaced, both ends included.
        margin: how far a value may be beyond the end levels, where clipped values were.
    """

    low: float = -7.0
    high: float = 2.0
    n_levels: int = 16
    margin: float = 0.6

    def __post_init__(self) -> None:
        if not 2 <= self.n_levels <= 1024:
            raise ValueError(
                f"a de-quantiser is of 2 to 1,024 levels, whose cells float32 tells apart; got"
                f" {self.n_levels}"
            )
        if not self.margin >= 0:
            raise ValueError(f"a de-quantiser's margin is {self.margin}; it must be at least 0")

    @property
    def step(self) -> float:
        """From one level to the next."""
        return (self.high - self.low) / (self.n_levels - 1)

    def levels(self, codes: Tensor) -> Tensor:
        """The level of each code."""
        return self.low + self.step * codes

    def within(self, codes: Tensor, shares: Tensor) -> Tensor:
        """Values in the cells of the codes, at shares in [-1, 1] of the way to the borders."""
        half = self.step / 2 * INSIDE
        down = torch.where(codes == 0, max(self.margin, half), half)
        up = torch.where(codes == self.n_levels - 1, max(self.margin, half), half)
        return self.levels(codes) + shares * torch.where(shares < 0, down, up)

    def clamp(self, codes: Tensor, values: Tensor) -> Tensor:
        """The nearest values in the cells of the codes."""
        ones = torch.ones_like(values)
        return values.clamp(self.within(codes, -ones), self.within(codes, ones))


class Dequantiser(nn.Module):
    """Codes (B, T, C) -> log10 mel (B, r T, C) of the spectrogram with a hop r times shorter.

    A frame of codes is one of the r fine frames that stand for it, the first where frames are
    centred, the last where they are causal. There each value lies within the cell of its code, so
    that it is rounded to the same code again. The other fine frames lie between two frames of
    codes; there values begin as the straight line between the levels, and end where the network
    moves them, within the range of the cells. An untrained network gives levels and lines.
    """

    def __init__(self, spec: MelSpec, cells: Cells, r: int, config: ConvNeXtConfig):
        super().__init__()
        self.spec = spec
        self.cells = cells
        self.r = r
        self.network = ConvNeXt(spec.n_mels, r * spec.n_mels, config)
        nn.init.zeros_(self.network.out.weight)
        nn.init.zeros_(self.network.out.bias)

    @property
    def needs_next(self) -> bool:
        """Whether fine frames need the codes of the next frame."""
        return self.r > 1 and not self.spec.causal

    def forward(self, codes: Tensor) -> Tensor:
        """(B, T, C) -> (B, r T, C)."""
        codes = codes.float()
        return self.values(codes, self._neighbours(codes), self.network(self.scaled(codes)))

    def base(self, codes: Tensor) -> Tensor:
        """What the codes say without the network: levels, and lines between them (B, r T, C)."""
        codes = codes.float()
        outputs = torch.zeros_like(codes).repeat(1, 1, self.r)
        return self.values(codes, self._neighbours(codes), outputs)

    def _neighbours(self, codes: Tensor) -> Tensor:
        """The codes of the frames on whose side fine frames lie."""
        if self.needs_next:
            return torch.cat([codes[:, 1:], codes[:, -1:]], 1)
        return torch.cat([codes[:, :1], codes[:, :-1]], 1)

    def scaled(self, codes: Tensor) -> Tensor:
        """Codes as the network reads them: -1 to 1."""
        return codes * (2 / (self.cells.n_levels - 1)) - 1

    def values(self, codes: Tensor, other: Tensor, outputs: Tensor) -> Tensor:
        """The network's outputs (B, T, r C) -> log10 mel (B, r T, C).

        other: the codes of the next frame where the spectrogram is centred, else of the last.
        """
        cells = self.cells
        own = cells.within(codes, outputs[..., : codes.shape[-1]].tanh())
        if self.r == 1:
            return own
        moves = outputs[..., codes.shape[-1] :].unflatten(-1, (self.r - 1, -1))  # (B, T, r - 1, C)
        share = torch.arange(1, self.r, device=codes.device)[:, None] / self.r
        if self.spec.causal:  # from the last frame to this one
            start = other
            end = codes
        else:
            start = codes
            end = other
        line = torch.lerp(cells.levels(start)[..., None, :], cells.levels(end)[..., None, :], share)
        between = (line + moves).clamp(cells.low - cells.margin, cells.high + cells.margin)
        parts = [own[..., None, :], between]
        if self.spec.causal:
            parts.reverse()
        return torch.cat(parts, -2).flatten(1, 2)


class DequantiserStream:
    """Fine log10 mel frames of one clip whose codes arrive in pieces; see `ConvNeXtStream`.

    Where fine frames need the next frame, they wait for it at least.
    """

    def __init__(self, dequantiser: Dequantiser):
        self.dequantiser = dequantiser
        self.outputs = ConvNeXtStream(dequantiser.network)
        n_channels = dequantiser.spec.n_mels
        self.codes = torch.zeros(0, n_channels)  # whose values are not out yet
        self.ready = torch.zeros(0, n_channels * dequantiser.r)  # outputs for the first of them
        self.last: Tensor | None = None  # the codes before them

    def push(self, codes: Tensor) -> Tensor:
        """(t, C) -> the log10 mel (n, C) that is complete, n >= 0."""
        codes = codes.float()
        self.codes = torch.cat([self.codes, codes])
        self._take(self.outputs.push(self.dequantiser.scaled(codes)))
        n = len(self.ready)
        if self.dequantiser.needs_next:
            n = min(n, len(self.codes) - 1)
        return self._out(max(0, n))

    def finish(self) -> Tensor:
        """The log10 mel (n, C) that is left; nothing may be pushed after it."""
        self._take(self.outputs.finish())
        return self._out(len(self.codes))

    def _take(self, outputs: Tensor) -> None:
        self.ready = torch.cat([self.ready, outputs])

    @torch.no_grad()
    def _out(self, n: int) -> Tensor:
        """The values of the first n frames."""
        if not n:
            return torch.zeros(0, self.codes.shape[1])
        codes = self.codes[:n]
        if self.dequantiser.needs_next:
            after = self.codes[n : n + 1]
            if not len(after):
                after = codes[-1:]
            other = torch.cat([codes[1:], after])
        else:
            before = codes[:1] if self.last is None else self.last
            other = torch.cat([before, codes[:-1]])
        values = self.dequantiser.values(codes[None], other[None], self.ready[None, :n])
        self.last = codes[-1:]
        self.codes = self.codes[n:]
        self.ready = self.ready[n:]
        return values[0]
