"""A vocoder of source and filter: log-mel spectrogram -> pitch, filters -> samples.

A ConvNeXt says per frame the pitch, whether there is one, and two filters. The spectra of a pulse
train at that pitch go through the first, those of white noise through the second, and their sum is
inverted. The parts are those of the harmonic-plus-noise model (Serra and Smith 1990) in the form of
neural source-filter vocoders (Wang et al. 2019, arXiv 1904.12088), with filters of short-time
spectra as in Vocos (Siuzdak 2023, arXiv 2306.00814).

Sources are functions of a seed and of the place in the clip, so that a clip sounds the same alone,
in a batch and in pieces. Their sample 0 is at the middle of frame 0, and frame t's at t hop.

Letters: B clips, N samples, T frames, C mel channels, F = n_fft // 2 + 1 frequencies.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.nn.audio import MelSpec, SpectraStream, inverse_stft, mel_filters
from mmtok.nn.convnext import ConvNeXt, ConvNeXtConfig, ConvNeXtStream
from mmtok.nn.pitch import N_BINS, pitch_of
from mmtok.nn.vocoder import LOUDEST, scaled

HIGHEST_HARMONIC = 0.4875  # of the rate: 7.8 kHz at 16 kHz
DEFAULT_HZ = 150.0  # of the source before the first voiced frame, where it is silent
# Natural logs of the filters beside the mel's own envelope, before training.
HARMONIC_GAIN = -0.3
NOISE_GAIN = -0.7
SOFTEST = 1e-5  # band of noise, below which it is not made louder
NOISE_BLOCK = 4096  # samples that are drawn at a time


class HarmonicVocoder(nn.Module):
    """log10 mel (B, T, C) -> samples (B, N), T = spec.n_frames(N)."""

    envelope: Tensor
    bands: Tensor

    def __init__(self, spec: MelSpec, config: ConvNeXtConfig):
        super().__init__()
        self.spec = spec
        self.n_frequencies = spec.n_fft // 2 + 1
        self.network = ConvNeXt(spec.n_mels, 3 * self.n_frequencies + N_BINS + 1, config)
        nn.init.trunc_normal_(self.network.out.weight, std=0.01)
        nn.init.zeros_(self.network.out.bias)
        self.register_buffer("envelope", band_lines(spec), persistent=False)
        self.register_buffer("bands", mel_filters(spec), persistent=False)

    def outputs(self, log_mel: Tensor) -> Tensor:
        """(B, T, C) -> what the network says (B, T, 3 F + N_BINS + 1)."""
        out: Tensor = self.network(scaled(log_mel))
        return out

    def pitch_logits(self, outputs: Tensor) -> Tensor:
        """Of the bins of pitch and of voicing: (..., N_BINS + 1)."""
        return outputs[..., 3 * self.n_frequencies :]

    def spectra(self, log_mel: Tensor, outputs: Tensor, sources: Tensor) -> Tensor:
        """Filtered sources: complex (..., T, F).

        sources: spectra of pulse train and noise (2, ..., T, F).

        The noise is flattened: its chance louder and softer bands are levelled, since what the mel
        says of a frame's bands is true of the sound and not of its expectation alone.
        """
        envelope = (log_mel @ self.envelope) * math.log(10)
        filters = outputs[..., : 3 * self.n_frequencies]
        magnitude, phase, noise_magnitude = filters.chunk(3, -1)
        harmonic = (envelope + magnitude + HARMONIC_GAIN).clamp(max=LOUDEST).exp()
        noise = (envelope + noise_magnitude + NOISE_GAIN).clamp(max=LOUDEST).exp()
        return torch.polar(harmonic, phase) * sources[0] + noise * self.flattened(sources[1])

    def flattened(self, noise: Tensor) -> Tensor:
        """Spectra (..., T, F) with every mel band at 1."""
        level = (noise.abs() @ self.bands).clamp_min(SOFTEST).log() @ self.envelope
        return noise * (-level).exp()

    def forward(
        self, log_mel: Tensor, n_samples: int, f0_hz: Tensor, start: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Samples (B, N) at a given pitch, and the logits of the network's own (B, T, N_BINS + 1).

        Args:
            log_mel: (B, T, C).
            n_samples: N.
            f0_hz: the pitch (B, T), 0 where a frame is unvoiced.
            start: the phase of the pulse train (B,) float64, in cycles.
            noise: white, of unit variance (B, `n_source_samples`).
        """
        outputs = self.outputs(log_mel)
        edge = edge_frames(self.spec)
        f0_hz = torch.cat([f0_hz[:, :1].expand(-1, edge), f0_hz, f0_hz[:, -1:].expand(-1, edge)], 1)
        pulses = PulseTrain(start, self.spec).push(f0_hz)
        sources = source_spectra(torch.stack([pulses, noise]), self.spec)
        spectra = self.spectra(log_mel, outputs, sources)
        return inverse_stft(spectra, self.spec, n_samples), self.pitch_logits(outputs)


def band_lines(spec: MelSpec) -> Tensor:
    """(C, F): values of mel bands -> straight lines between the middles of the bands."""
    filters = mel_filters(spec).numpy().astype(np.float64)  # (F, C)
    places = np.arange(len(filters))
    middles = (filters * places[:, None]).sum(0) / np.maximum(filters.sum(0), 1e-12)
    # bands too narrow for any frequency have no middle: that of the band below
    middles = np.maximum.accumulate(middles)
    lines = [np.interp(places, middles, row) for row in np.eye(spec.n_mels)]
    return torch.from_numpy(np.stack(lines).astype(np.float32))


# ---- sources


def edge_frames(spec: MelSpec) -> int:
    """How many frames sources go on beyond the first and the last one, for their windows."""
    return -(-spec.window_samples // (2 * spec.hop_samples))


def n_source_samples(spec: MelSpec, n_frames: int) -> int:
    """How many samples of the sources T frames are made of."""
    return (n_frames - 1 + 2 * edge_frames(spec)) * spec.hop_samples


class PulseTrain:
    """Pulses whose pitch arrives in pieces: the sum of the cosines of all harmonics.

    Between frames log pitch and loudness are straight lines. An unvoiced frame is silent, and has
    the pitch of the last voiced one.
    """

    def __init__(self, start: Tensor, spec: MelSpec):
        """`start`: the phase (B,) float64 in cycles."""
        self.rate_hz = spec.rate_hz
        self.hop = spec.hop_samples
        self.phase = start
        # of the frame that the next segment begins with, once there is one: (B, 0 or 1)
        self.pitch = torch.zeros(len(start), 0, dtype=torch.float64)
        self.loudness = self.pitch

    def push(self, f0_hz: Tensor) -> Tensor:
        """Pitch of further frames (B, t), 0: unvoiced -> samples (B, n) up to the last of them."""
        pitch = _last_voiced(torch.cat([self.pitch, f0_hz.double()], 1))
        loudness = torch.cat([self.loudness, (f0_hz > 0).double()], 1)
        self.pitch = pitch[:, -1:]
        self.loudness = loudness[:, -1:]
        if pitch.shape[1] < 2:
            return torch.zeros(len(pitch), 0)
        end = pitch[:, 1:, None]
        end = torch.where(end > 0, end, DEFAULT_HZ)
        start = pitch[:, :-1, None]
        start = torch.where(start > 0, start, end)
        share = torch.arange(self.hop, dtype=torch.float64) / self.hop
        hz = torch.lerp(start.log(), end.log(), share).exp().flatten(1)
        gain = torch.lerp(loudness[:, :-1, None], loudness[:, 1:, None], share).flatten(1)
        phase = self.phase[:, None] + (hz / self.rate_hz).cumsum(1)
        self.phase = phase[:, -1] % 1
        return (gain * (4 * hz / self.rate_hz).sqrt() * self._pulses(phase % 1, hz)).float()

    def _pulses(self, phase: Tensor, hz: Tensor) -> Tensor:
        """The sum of cos(k x), x = 2 pi phase, over harmonics k (Dirichlet's kernel).

        The last one fades out, so that it does not click where the pitch rises.
        """
        x = 2 * math.pi * phase
        n = HIGHEST_HARMONIC * self.rate_hz / hz
        last = n.floor()
        half = (x / 2).sin()
        is_peak = half.abs() < 1e-6
        kernel = ((last - 0.5) * x).sin() / torch.where(is_peak, 1.0, half)
        whole = torch.where(is_peak, last - 1, (kernel - 1) / 2)
        return whole + (n - last) * (last * x).cos()


def _last_voiced(f0_hz: Tensor) -> Tensor:
    """(B, T), each zero replaced by the last value before it that is none, where there is one."""
    places = torch.arange(f0_hz.shape[1]).expand(f0_hz.shape)
    return f0_hz.gather(1, torch.where(f0_hz > 0, places, 0).cummax(1).values)


class Noise:
    """White noise of unit variance, sample by sample a function of seed and place."""

    def __init__(self, seed: int):
        self.seed = seed
        self.n_blocks = 0
        self.drawn = torch.zeros(0)

    def next(self, n: int) -> Tensor:
        """The next n samples."""
        while len(self.drawn) < n:
            seed = (self.seed * 1_000_003 + self.n_blocks) % 2**63
            generator = torch.Generator().manual_seed(seed)
            self.drawn = torch.cat([self.drawn, torch.randn(NOISE_BLOCK, generator=generator)])
            self.n_blocks += 1
        out = self.drawn[:n]
        self.drawn = self.drawn[n:]
        return out


def source_spectra(stretch: Tensor, spec: MelSpec) -> Tensor:
    """Sources (..., n) from `edge_frames` before a frame on -> spectra (..., T, F) of all frames.

    T = 1 + n / hop - 2 edge_frames, of those whose windows are complete.
    """
    window = torch.hann_window(spec.window_samples)
    left = (spec.n_fft - spec.window_samples) // 2
    first = edge_frames(spec) * spec.hop_samples - spec.n_fft // 2 + left
    n_frames = stretch.shape[-1] // spec.hop_samples + 1 - 2 * edge_frames(spec)
    frames = stretch[..., first:].unfold(-1, spec.window_samples, spec.hop_samples)
    framed = F.pad(
        frames[..., :n_frames, :] * window, (left, spec.n_fft - spec.window_samples - left)
    )
    return torch.fft.rfft(framed)


class SourceStream:
    """Spectra of both sources of one clip whose pitch arrives in pieces."""

    def __init__(self, spec: MelSpec, seed: int):
        generator = torch.Generator().manual_seed(seed)
        start = torch.rand(1, generator=generator, dtype=torch.float64)
        self.spec = spec
        self.edge = edge_frames(spec)
        self.pulses = PulseTrain(start, spec)
        self.noise = Noise(seed)
        self.stretch = torch.zeros(2, 0)  # that windows of later frames need
        self.last: Tensor | None = None  # the pitch of the last frame (1,)

    def push(self, f0_hz: Tensor) -> Tensor:
        """Pitch (t,) -> the spectra (2, n, F) that are complete, `edge_frames` behind, n >= 0."""
        if not len(f0_hz):
            return torch.zeros(2, 0, self.spec.n_fft // 2 + 1, dtype=torch.complex64)
        if self.last is None:
            f0_hz = torch.cat([f0_hz[:1].expand(self.edge), f0_hz])
        self.last = f0_hz[-1:]
        pulses = self.pulses.push(f0_hz[None])[0]
        piece = torch.stack([pulses, self.noise.next(len(pulses))])
        self.stretch = torch.cat([self.stretch, piece], 1)
        hop = self.spec.hop_samples
        n_frames = self.stretch.shape[1] // hop + 1 - 2 * self.edge
        if n_frames < 1:
            return torch.zeros(2, 0, self.spec.n_fft // 2 + 1, dtype=torch.complex64)
        spectra = source_spectra(self.stretch, self.spec)
        self.stretch = self.stretch[:, n_frames * hop :]
        return spectra

    def finish(self) -> Tensor:
        """The spectra (2, n, F) that are left; nothing may be pushed after it."""
        if self.last is None:
            return self.push(torch.zeros(0))
        return self.push(self.last.expand(self.edge))


class HarmonicVocoderStream:
    """Samples of one clip whose log10 mel frames arrive in pieces; see `ConvNeXtStream`.

    The phase of the pulses is the sum of all pitches so far, so it would sum up what rounding does
    to them. That pieces change no bit of a pitch keeps higher harmonics in place.
    """

    def __init__(self, vocoder: HarmonicVocoder, seed: int):
        self.vocoder = vocoder
        self.features = ConvNeXtStream(vocoder.network)
        self.sources = SourceStream(vocoder.spec, seed)
        self.sound = SpectraStream(vocoder.spec)
        # of the frames whose sources are not complete
        self.log_mel = torch.zeros(0, vocoder.spec.n_mels)
        self.outputs = torch.zeros(0, vocoder.network.out.out_features)

    def push(self, log_mel: Tensor) -> Tensor:
        """(t, C) -> the samples (n,) that are complete, n >= 0."""
        self.log_mel = torch.cat([self.log_mel, log_mel])
        return self._push(self.features.push(scaled(log_mel)))

    def finish(self, n_samples: int | None = None) -> Tensor:
        """The samples that are left: of a clip of N samples, or of as many as the frames give."""
        pieces = [self._push(self.features.finish()), self._filter(self.sources.finish())]
        return torch.cat([*pieces, self.sound.finish(n_samples)])

    def _push(self, outputs: Tensor) -> Tensor:
        self.outputs = torch.cat([self.outputs, outputs])
        return self._filter(self.sources.push(pitch_of(self.vocoder.pitch_logits(outputs))))

    @torch.no_grad()
    def _filter(self, sources: Tensor) -> Tensor:
        """Spectra of the sources (2, n, F) -> samples."""
        n = sources.shape[1]
        spectra = self.vocoder.spectra(self.log_mel[:n], self.outputs[:n], sources)
        self.log_mel = self.log_mel[n:]
        self.outputs = self.outputs[n:]
        return self.sound.push(spectra)
