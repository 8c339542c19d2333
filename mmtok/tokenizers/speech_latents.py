"""Speech as latents, for diffusion heads: a log-mel spectrogram with each band standardised.

The spectrograms are those of `DMel` (speech.py) without the rounding to levels, and sound comes
back the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from mmtok.core.segment import Segment, Signature
from mmtok.errors import UserError
from mmtok.nn.audio import MEL_FLOOR, MelSpec, log_mel
from mmtok.tokenizers.base import (
    checked_latents,
    fingerprint,
    learned,
    load_config,
    spreads,
    with_weights,
    write_learned,
)
from mmtok.tokenizers.mel import MelConfig, MelTokenizer, checked_samples
from mmtok.tokenizers.vocoders import DEFAULT_VOCODER, AnyVocoder

CLIPS_AT_ONCE = 64  # bounds the memory of fitting
# Standard deviation of log10 mel, 0.02 dB. A band that varies less is silent; dividing by its
# spread would only enlarge rounding errors.
LEAST_SPREAD = 1e-3
# log10 mel. Samples within [-1, 1] stay below 2; this only keeps extreme draws finite.
LOUDEST = 4.0
PICTURE_FRAMES = 80  # the most frames that a picture shows, from the first
PICTURE_RANGE = 3.0  # standard deviations from grey to white


@dataclass(frozen=True)
class LogMelConfig(MelConfig):
    """Which spectrogram; `fit` learns what standardises it. The default is 80 Hz.

    Attributes:
        vocoder: how latents become sound again; not in the fingerprint, as it changes no latent.
    """

    learns: ClassVar[bool] = True

    mel: MelSpec = field(default_factory=MelSpec)
    vocoder: AnyVocoder = field(default_factory=DEFAULT_VOCODER)

    def signature(self) -> Signature:
        """Without the fingerprint, which is of the constants of the bands."""
        return Signature("speech", latent_size=self.mel.n_mels)

    def fit(self, signals: Sequence[np.ndarray], saved: Path | None = None) -> LogMel:
        """Learn each band's mean and spread over all frames of the clips.

        saved: a folder with the weights of a vocoder that was trained with it.
        Raises UserError where there is no clip; see also `checked_samples`.
        """
        n = 0
        total = torch.zeros(self.mel.n_mels, dtype=torch.float64)
        squares = torch.zeros(self.mel.n_mels, dtype=torch.float64)
        for start in range(0, len(signals), CLIPS_AT_ONCE):
            clips = [checked_samples(signal) for signal in signals[start : start + CLIPS_AT_ONCE]]
            frames = torch.cat(log_mel(clips, self.mel)).double()
            n += len(frames)
            total += frames.sum(0)
            squares += frames.square().sum(0)
        if not n:
            raise UserError("LogMelConfig: no clips to learn from; give at least one")
        bands = Bands(self.mel.n_mels)
        mean = total / n
        bands.shift.copy_(mean)
        spread = (squares / n - mean.square()).clamp_min(0).sqrt()
        bands.scale.copy_(torch.where(spread > LEAST_SPREAD, spread, 1.0))
        return LogMel(self, bands, saved)

    def load(self, folder: Path) -> LogMel:
        """Open the tokenizer that was saved in `folder`."""
        return LogMel.load(folder)


class Bands(nn.Module):
    """The constants of C bands: latents are (log10 mel - shift) / scale."""

    shift: Tensor
    scale: Tensor

    def __init__(self, n_mels: int):
        super().__init__()
        self.register_buffer("shift", torch.zeros(n_mels))
        self.register_buffer("scale", torch.ones(n_mels))


def spectrograms(segments: Sequence[Segment]) -> list[np.ndarray]:
    """Latents (T, D) as uint8 pictures (D, T) of the first `PICTURE_FRAMES` frames.

    Time goes to the right, low bands are at the bottom, and grey values go from -PICTURE_RANGE (0)
    to PICTURE_RANGE (255) standard deviations.
    """
    pictures = []
    for segment in segments:
        shares = (segment.values[:PICTURE_FRAMES].T[::-1] / PICTURE_RANGE + 1) / 2
        pictures.append((shares * 255).clip(0, 255).round().astype(np.uint8))
    return pictures


class LogMel(MelTokenizer):
    """np.float32 (N,) mono <-> latents (T, n_mels).

    Each band has mean 0 and variance 1 over the training clips. The spectrogram comes back to
    float32's rounding. `fidelity` adds the `spreads` of the bands.
    """

    has_pictures = True

    def __init__(self, config: LogMelConfig, bands: Bands, saved: Path | None = None):
        super().__init__(config, saved)
        self.bands = bands
        mark = fingerprint("LogMel", config.meaning, *learned(bands))
        self.signature = Signature("speech", latent_size=config.mel.n_mels, fingerprint=mark)

    def pictures(self, segments: Sequence[Segment]) -> list[np.ndarray]:
        """Spectrograms."""
        return spectrograms(segments)

    def _segment(self, log_mel: Tensor, info: Mapping[str, int]) -> Segment:
        latents = (log_mel - self.bands.shift) / self.bands.scale
        return Segment("speech", latents=latents.numpy(), info=info)

    def log_mel(self, segment: Segment) -> Tensor:
        """A segment's latents -> log10 mel (T, C) float32.

        Raises UserError for another shape, and for NaN and infinities.
        """
        checked = np.ascontiguousarray(checked_latents(segment, self.signature), np.float32)
        mel = torch.from_numpy(checked) * self.bands.scale + self.bands.shift
        return mel.clamp(float(np.log10(MEL_FLOOR)), LOUDEST)

    def _figures(self, clips: Sequence[Tensor], segments: Sequence[Segment]) -> dict[str, float]:
        return spreads(segments)

    def save(self, folder: Path) -> None:
        """Write the config, the constants of the bands and the vocoder's weights."""
        self.save_networks(folder)
        write_learned(Path(folder), "LogMel", self.config.as_dict(), self.bands)

    @classmethod
    def load(cls, folder: Path) -> LogMel:
        """Open what `save` wrote.

        Raises UserError when the constants are missing, broken or of other sizes.
        """
        config = load_config(folder, "LogMel", LogMelConfig)
        return cls(config, with_weights(folder, lambda: Bands(config.mel.n_mels)), Path(folder))
