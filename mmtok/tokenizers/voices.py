"""Who speaks, as a condition: one frame of latents that a reference clip gives.

The vector holds how the log-mel spectrogram of the clip is distributed, and its pitch: statistics
over time, so that what is said averages out (the supervector of speaker recognition, Reynolds et
al. 2000, with one Gaussian). It is standardised and reduced by principal components of training
clips. What of it tells voices apart is learned by the linear layer through which the decoder reads
it. A level changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from mmtok.core.segment import Segment, Signature
from mmtok.errors import UserError
from mmtok.nn.audio import MelSpec, log_mel
from mmtok.tokenizers.base import (
    BatchTokenizer,
    TokenizerConfig,
    fingerprint,
    learned,
    load_config,
    spreads,
    with_weights,
    write_learned,
)
from mmtok.tokenizers.mel import checked_samples

CLIPS_AT_ONCE = 64  # bounds the memory of fitting
ACTIVE_RANGE = 1.5  # log10 of magnitude, 30 dB: frames further below the loudest are silence
PITCH_HZ = (60.0, 400.0)
PITCH_WINDOW_S = 0.05
LEAST_PERIODICITY = 0.5  # of a frame whose pitch counts: autocorrelation at its period
OCTAVE_SHARE = 0.9  # of the largest autocorrelation, from which a shorter period is taken
N_PITCH = 3  # median and spread of log2 of the pitch, share of voiced frames
LEAST_SPREAD = 1e-3  # what varies less over training clips is not enlarged


@dataclass(frozen=True)
class VoiceConfig(TokenizerConfig):
    """The vector of a voice; `fit` learns what standardises it.

    Attributes:
        mel: which spectrogram.
        size: numbers of the vector.
    """

    modality: ClassVar[str] = "voice"
    learns: ClassVar[bool] = True

    mel: MelSpec = field(default_factory=MelSpec)
    size: int = 32

    def __post_init__(self) -> None:
        try:
            self.mel.check()
        except ValueError as error:
            raise UserError(f"VoiceConfig: {error}") from None
        if not 1 <= self.size <= self.n_features:
            raise UserError(
                f"VoiceConfig: size is {self.size}; it must be 1 to {self.n_features}, the"
                " statistics that it is made of"
            )

    @property
    def is_input_only(self) -> bool:
        """A voice is read, never made."""
        return True

    @property
    def takes(self) -> dict[str, int]:
        """Mono at this rate."""
        return {"rate_hz": self.mel.rate_hz}

    @property
    def n_features(self) -> int:
        """Statistics of a clip, before they are reduced to `size`."""
        return 2 * self.mel.n_mels + N_PITCH

    def signature(self) -> Signature:
        """Without the fingerprint, which is of what was learned."""
        return Signature("voice", latent_size=self.size, frames=1)

    def fit(self, signals: Sequence[np.ndarray]) -> Voice:
        """Learn mean, spread and principal components of the statistics of clips.

        Raises UserError where there is no clip; see also `checked_samples`.
        """
        if not len(signals):
            raise UserError("VoiceConfig: no clips to learn from; give at least one")
        rows = torch.cat(
            [
                statistics(signals[start : start + CLIPS_AT_ONCE], self.mel)
                for start in range(0, len(signals), CLIPS_AT_ONCE)
            ]
        ).double()
        shift = rows.mean(0)
        spread = rows.std(0, correction=0)
        spread = torch.where(spread > LEAST_SPREAD, spread, 1.0)
        standard = (rows - shift) / spread
        variances, axes = torch.linalg.eigh(standard.T @ standard / len(rows))
        axes = axes.flip(1)[:, : self.size]
        scales = variances.flip(0)[: self.size].clamp_min(LEAST_SPREAD).sqrt()
        largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
        basis = Basis(self)
        basis.shift.copy_(shift)
        # an axis has no direction of its own: its largest entry is positive
        basis.axes.copy_(axes * largest.sign() / spread[:, None] / scales)
        return Voice(self, basis)

    def load(self, folder: Path) -> Voice:
        """Open the tokenizer that was saved in `folder`."""
        return Voice.load(folder)


class Basis(nn.Module):
    """What reduces statistics: latents are (statistics - shift) @ axes."""

    shift: Tensor
    axes: Tensor

    def __init__(self, config: VoiceConfig):
        super().__init__()
        self.register_buffer("shift", torch.zeros(config.n_features))
        self.register_buffer("axes", torch.zeros(config.n_features, config.size))


class Voice(BatchTokenizer):
    """np.float32 (N,) mono -> latents (1, size), each of mean 0 and variance 1 over training clips.

    There is no way back: a voice is only read.
    """

    config_type = VoiceConfig

    def __init__(self, config: VoiceConfig, basis: Basis):
        super().__init__(config)
        self.basis = basis
        mark = fingerprint("Voice", asdict(config), *learned(basis))
        self.signature = Signature("voice", latent_size=config.size, frames=1, fingerprint=mark)

    def encode_batch(self, signals: Sequence[np.ndarray]) -> list[Segment]:
        """Samples (N,) each -> one frame each.

        Raises UserError, see `checked_samples`.
        """
        if not len(signals):
            return []
        rows = statistics(signals, self.config.mel)
        # one by one: a matrix product's rounding depends on the number of rows
        latents = [((row - self.basis.shift) @ self.basis.axes)[None].numpy() for row in rows]
        return [Segment("voice", latents=latent) for latent in latents]

    def decode_batch(self, segments: Sequence[Segment]) -> list[np.ndarray]:
        """Raises UserError: the vector of a voice is no sound."""
        raise UserError("voice: the vector of a voice cannot be made into sound; it is only read")

    def fidelity(self, signals: Sequence[np.ndarray]) -> dict[str, float]:
        """The `spreads` of the numbers; {} of no clips."""
        if not len(signals):
            return {}
        return spreads(self.encode_batch(signals))

    def save(self, folder: Path) -> None:
        """Write the config and what was learned."""
        write_learned(Path(folder), "Voice", asdict(self.config), self.basis)

    @classmethod
    def load(cls, folder: Path) -> Voice:
        """Open what `save` wrote.

        Raises UserError when the weights are missing, broken or of other sizes.
        """
        config = load_config(folder, "Voice", VoiceConfig)
        return cls(config, with_weights(folder, lambda: Basis(config)))


def statistics(signals: Sequence[np.ndarray], spec: MelSpec) -> Tensor:
    """Clips (N,) each -> rows (B, 2 n_mels + 3).

    They are mean and standard deviation of each band of log10 mel over the frames that are not
    silent, less the mean of all bands; then the pitch, see `pitch_statistics`.
    """
    clips = [checked_samples(signal) for signal in signals]
    rows = []
    for clip, mel in zip(clips, log_mel(clips, spec), strict=True):
        level = mel.mean(1)
        active = mel[level >= level.max() - ACTIVE_RANGE]
        mean = active.mean(0)
        spread = active.std(0, correction=0)
        rows.append(torch.cat([mean - mean.mean(), spread, pitch_statistics(clip, spec.rate_hz)]))
    return torch.stack(rows)


def pitch_statistics(clip: Tensor, rate_hz: int) -> Tensor:
    """Median and standard deviation of log2 of the pitch over 100 Hz, and the voiced share: (3,).

    The pitch of a frame is the shortest lag between 60 and 400 Hz at which the normalised
    autocorrelation (Boersma 1993, eq. 9: divided by that of the window) has a maximum near its
    largest. Without a voiced frame all three are 0.
    """
    n_window = int(PITCH_WINDOW_S * rate_hz)
    clip = nn.functional.pad(clip, (0, max(0, n_window - len(clip))))
    frames = clip.unfold(0, n_window, n_window // 2)
    window = torch.hann_window(n_window)
    frames = (frames - frames.mean(1, keepdim=True)) * window
    correlation = _autocorrelation(frames) / _autocorrelation(window[None])
    # lags of up to the longest period, which are below half the window for any sensible pitch
    lags = torch.arange(int(rate_hz / PITCH_HZ[1]), int(rate_hz / PITCH_HZ[0]) + 1)
    correlation = correlation[:, lags.clamp_max(n_window - 1)]
    best = correlation.max(1).values
    at = _first_peak(correlation, OCTAVE_SHARE * best)
    energy = frames.square().sum(1)
    voiced = (best > LEAST_PERIODICITY) & (energy > energy.max() * 10 ** (-2 * ACTIVE_RANGE))
    if not voiced.any():
        return torch.zeros(N_PITCH)
    pitch = torch.log2(rate_hz / lags[at[voiced]] / 100)
    return torch.stack([pitch.median(), pitch.std(correction=0), voiced.float().mean()])


def _first_peak(rows: Tensor, least: Tensor) -> Tensor:
    """The place of the first local maximum of each row (B, L) of at least `least` (B,), else 0."""
    middle = rows[:, 1:-1]
    is_peak = (middle >= rows[:, :-2]) & (middle >= rows[:, 2:]) & (middle >= least[:, None])
    return nn.functional.pad(is_peak.int(), (1, 1)).argmax(1)


def _autocorrelation(frames: Tensor) -> Tensor:
    """Rows (B, N) -> (B, N), 1 at lag 0."""
    n = frames.shape[1]
    power = torch.fft.rfft(frames, 2 * n).abs().square()
    found = torch.fft.irfft(power)[:, :n]
    return found / found[:, :1].clamp_min(1e-12)
