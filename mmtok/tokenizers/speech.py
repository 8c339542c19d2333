"""Speech as dMel: a log-mel spectrogram of which every value is rounded to one of 16 levels.

Bai et al. 2024, "dMel: Speech Tokenization made Simple", arXiv 2407.15835; tokens equal those of
the authors' PyPI package `dmel` (apple presets) and of the Inkling front end in `transformers`
(inkling preset). Deliberate differences: levels are an exact linspace (theirs rounds the step to
four decimals, which breaks beyond 12 bits); no pad, bos or eos among the codes (those belong to the
shared vocabulary); a clip's codes never depend on the batch; clips shorter than half a window are
accepted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmtok.core.segment import Segment, Signature
from mmtok.errors import UserError
from mmtok.nn.audio import MelSpec, log_mel, log_mel_of_frames
from mmtok.tokenizers.base import fingerprint, load_config, write_config
from mmtok.tokenizers.mel import MelConfig, MelTokenizer, checked_samples
from mmtok.tokenizers.vocoders import GriffinLimConfig


@dataclass(frozen=True)
class DMelConfig(MelConfig):
    """Which spectrogram, and the levels that its log10 values are rounded to (both ends included).

    The default is 80 Hz, 25.6 kbps.

    vocoder  how codes become sound again; not part of the fingerprint, since it changes no code
    """

    mel: MelSpec = MelSpec()
    low: float = -7.0
    high: float = 2.0
    n_levels: int = 16
    vocoder: GriffinLimConfig = field(default_factory=GriffinLimConfig)

    def __post_init__(self):
        super().__post_init__()
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise UserError(f"DMelConfig: needs finite low < high, got {self.low} and {self.high}")
        if not 2 <= self.n_levels <= 65536:
            raise UserError(f"DMelConfig: n_levels must be 2 to 65536, got {self.n_levels}")

    @classmethod
    def inkling_20hz(cls) -> DMelConfig:
        """Causal, so it can be streamed: a frame every 50 ms, 6.4 kbps."""
        return cls(
            mel=MelSpec(
                n_fft=1600,
                window_samples=1600,
                hop_samples=800,
                fmin_hz=0.0,
                fmax_hz=8000.0,
                causal=True,
            )
        )

    @property
    def kbps(self) -> float:
        """Bits of the codes per millisecond, at log2(n_levels) bits each."""
        return (
            self.mel.n_mels
            * math.log2(self.n_levels)
            * self.mel.rate_hz
            / self.mel.hop_samples
            / 1000
        )

    @property
    def levels(self) -> np.ndarray:
        """log10 mel magnitude that each code stands for, (n_levels,) float64, from low to high
        exactly.
        """
        return np.linspace(self.low, self.high, self.n_levels)

    def build(self) -> DMel:
        """The tokenizer: nothing is to be learned."""
        return DMel(self)


class DMel(MelTokenizer):
    """np.float32 (N,) mono <-> codes (T, n_mels).

    In range, a log10 mel value comes back within half a step (6 dB at 16 levels).
    """

    def __init__(self, config: DMelConfig):
        super().__init__(config)
        levels = config.levels
        self._levels = torch.from_numpy(levels.astype(np.float32))
        self._borders = torch.from_numpy(
            ((levels[:-1] + levels[1:]) / 2).astype(np.float32)
        )  # the nearest level, ties downwards
        mark = fingerprint("DMel", config.meaning)
        self.signature = Signature(
            "speech", (config.n_levels,) * config.mel.n_mels, fingerprint=mark
        )

    def quantise(self, log_mels: Tensor) -> np.ndarray:
        """log10 mel (T, C) -> codes (T, C) of the nearest levels; what lies outside goes to the end
        levels.
        """
        return torch.bucketize(log_mels, self._borders, out_int32=True).numpy()

    def _frame(self, mel: Tensor) -> dict[str, Any]:
        return {"codes": self.quantise(mel)}

    def log_mel(self, segment: Segment) -> Tensor:
        """A segment's codes -> log10 mel (T, C) float32.

        Raises UserError on codes that are not of this tokenizer.
        """
        codes, config = segment.codes, self.config
        if codes is None or codes.shape[1] != config.mel.n_mels:
            raise UserError(
                f"speech: expected codes of shape (T, {config.mel.n_mels}), got"
                f" {segment.values.shape}"
            )
        if codes.size and not (codes.min() >= 0 and codes.max() < config.n_levels):
            raise UserError(
                f"speech: codes run from {codes.min()} to {codes.max()}, this tokenizer has 0 to"
                f" {config.n_levels - 1}"
            )
        return self._levels[torch.from_numpy(codes.astype(np.int64))]

    def stream(self) -> DMelStream:
        """An encoder for samples that arrive in pieces.

        Raises UserError for a centred spectrogram, which would need the future.
        """
        return DMelStream(self)

    def _figures(self, clips: Sequence[Tensor], segments: Sequence[Segment]) -> dict[str, float]:
        """The share of mel values outside the levels' range, kilobits per second."""
        values = torch.cat(log_mel(clips, self.config.mel))
        half = (self.config.high - self.config.low) / (self.config.n_levels - 1) / 2
        outside = (values < self.config.low - half) | (values > self.config.high + half)
        return {"clipped_share": outside.float().mean().item(), "kbps": self.config.kbps}

    def save(self, folder: Path) -> None:
        write_config(Path(folder), "DMel", self.config.as_dict())

    @classmethod
    def load(cls, folder: Path) -> DMel:
        return cls(load_config(folder, "DMel", DMelConfig))


class DMelStream:
    """Codes as the samples come: `push` gives the frames that are complete, `finish` the last one.

    Joined, they equal the codes of the whole clip, whatever the pieces.
    """

    def __init__(self, tokenizer: DMel):
        self.tokenizer, self.spec = tokenizer, tokenizer.config.mel
        if not self.spec.causal:
            raise UserError(
                "speech: a centred spectrogram cannot be streamed, it looks half a window ahead;"
                " use the inkling_20hz preset"
            )
        self.tail = torch.zeros(self.spec.left_samples)  # what the next frame still needs
        self.n_samples = 0

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Samples (n,) -> codes (t, C) of the frames that they complete, t >= 0.

        An empty piece gives none.
        """
        if not len(samples):
            return self._codes(self.tail)
        piece = checked_samples(samples)
        self.n_samples += len(piece)
        return self._codes(torch.cat([self.tail, piece]))

    def finish(self) -> np.ndarray:
        """Codes (0 or 1, C) of the last, unfilled frame."""
        return self._codes(
            torch.nn.functional.pad(self.tail, (0, -self.n_samples % self.spec.hop_samples))
        )

    def _codes(self, stretch: Tensor) -> np.ndarray:
        n_frames = max(0, (len(stretch) - self.spec.n_fft) // self.spec.hop_samples + 1)
        self.tail = stretch[n_frames * self.spec.hop_samples :]
        if not n_frames:
            return np.zeros((0, self.spec.n_mels), np.int32)
        return self.tokenizer.quantise(
            log_mel_of_frames(stretch, torch.arange(n_frames) * self.spec.hop_samples, self.spec)
        )
