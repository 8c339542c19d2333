"""Speech as latents, which diffusion heads draw: a log-mel spectrogram as it is, each band
standardised over the training clips.

The spectrograms are those of `DMel` (speech.py) without the rounding to levels, and sound comes
back the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
from mmtok.tokenizers.vocoders import GriffinLimConfig

CLIPS_AT_ONCE = 64  # bounds the memory of fitting
# of log10 mel, 0.02 dB: a band that spreads less is silent, and its rounding errors are not blown
# up
LEAST_SPREAD = 1e-3
# log10 mel; samples within [-1, 1] stay below 2, so this only keeps wild draws among the numbers
LOUDEST = 4.0


@dataclass(frozen=True)
class LogMelConfig(MelConfig):
    """Which spectrogram; `fit` learns what standardises it. The default is 80 Hz.

    vocoder  how latents become sound again; not part of the fingerprint, since it changes no latent
    """

    mel: MelSpec = field(default_factory=MelSpec)
    vocoder: GriffinLimConfig = field(default_factory=GriffinLimConfig)

    def fit(self, signals: Sequence[np.ndarray]) -> LogMel:
        """Learn each band's mean and spread over all frames of the clips.

        Raises UserError where there is no clip, see `checked_samples`.
        """
        n, total, squares = 0, 0.0, 0.0
        for start in range(0, len(signals), CLIPS_AT_ONCE):
            clips = [checked_samples(signal) for signal in signals[start : start + CLIPS_AT_ONCE]]
            frames = torch.cat(log_mel(clips, self.mel)).double()
            n, total, squares = (
                n + len(frames),
                total + frames.sum(0),
                squares + frames.square().sum(0),
            )
        if not n:
            raise UserError("LogMelConfig: no clips to learn from; give at least one")
        bands, mean = Bands(self.mel.n_mels), total / n
        bands.shift.copy_(mean)
        spread = (squares / n - mean.square()).clamp_min(0).sqrt()
        bands.scale.copy_(torch.where(spread > LEAST_SPREAD, spread, 1.0))
        return LogMel(self, bands)


class Bands(nn.Module):
    """The constants of C bands: latents are (log10 mel - shift) / scale."""

    def __init__(self, n_mels: int):
        super().__init__()
        self.register_buffer("shift", torch.zeros(n_mels))
        self.register_buffer("scale", torch.ones(n_mels))


class LogMel(MelTokenizer):
    """np.float32 (N,) mono <-> latents (T, n_mels), each band with mean 0 and variance 1 over the
    training clips.

    The spectrogram comes back to float32's rounding. `fidelity` adds the `spreads` of the bands.
    """

    def __init__(self, config: LogMelConfig, bands: Bands):
        super().__init__(config)
        self.bands = bands
        mark = fingerprint("LogMel", config.meaning, *learned(bands))
        self.signature = Signature("speech", latent_size=config.mel.n_mels, fingerprint=mark)

    def _frame(self, mel: Tensor) -> dict[str, Any]:
        return {"latents": ((mel - self.bands.shift) / self.bands.scale).numpy()}

    def log_mel(self, segment: Segment) -> Tensor:
        """A segment's latents -> log10 mel (T, C) float32.

        Raises UserError on another shape, and on what is no number.
        """
        latents = checked_latents(segment, self.config.mel.n_mels)
        mel = (
            torch.from_numpy(np.ascontiguousarray(latents, np.float32)) * self.bands.scale
            + self.bands.shift
        )
        return mel.clamp(float(np.log10(MEL_FLOOR)), LOUDEST)

    def _figures(self, clips: Sequence[Tensor], segments: Sequence[Segment]) -> dict[str, float]:
        return spreads(segments)

    def save(self, folder: Path) -> None:
        write_learned(Path(folder), "LogMel", self.config.as_dict(), self.bands)

    @classmethod
    def load(cls, folder: Path) -> LogMel:
        """Open what `save` wrote.

        Raises UserError when the constants are missing, broken or of other sizes.
        """
        config = load_config(folder, "LogMel", LogMelConfig)
        return cls(config, with_weights(folder, lambda: Bands(config.mel.n_mels)))
