"""Speech as latents, which diffusion heads draw: a log-mel spectrogram as it is, each band standardised over the training clips.

The spectrograms are those of `DMel` (speech.py) without the rounding to levels, and sound comes back the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from mmtok.files import write_tensors
from mmtok.nn.audio import MEL_FLOOR, MelSpec, log_mel
from mmtok.segment import BadInput, Segment, Signature
from mmtok.tokenizers.base import checked_latents, fingerprint, load_weights, read_config, weights_of, write_config
from mmtok.tokenizers.speech import checked_samples, sound_error, sounds
from mmtok.tokenizers.vocoders import GriffinLimConfig

CLIPS_AT_ONCE = 64  # bounds the memory of fitting
LEAST_SPREAD = 1e-3  # of log10 mel, 0.02 dB: a band that spreads less is silent, and its rounding errors are not blown up
LOUDEST = 4.0  # log10 mel; samples within [-1, 1] stay below 2, so this only keeps wild draws among the numbers


@dataclass(frozen=True)
class LogMelConfig:
    """Which spectrogram; `fit` learns what standardises it. The default is 80 Hz.

    vocoder  how latents become sound again; not part of the fingerprint, since it changes no latent
    """

    modality: ClassVar[str] = "speech"

    mel: MelSpec = field(default_factory=MelSpec)
    vocoder: GriffinLimConfig = field(default_factory=GriffinLimConfig)

    def __post_init__(self):
        try:
            self.mel.check()
        except ValueError as error:
            raise BadInput(f"LogMelConfig: {error}") from None

    @classmethod
    def apple_80hz(cls) -> LogMelConfig:
        """As `DMelConfig.apple_80hz`: a frame every 12.5 ms."""
        return cls()

    @classmethod
    def apple_40hz(cls) -> LogMelConfig:
        """As `DMelConfig.apple_40hz`: a frame every 25 ms."""
        return cls(mel=MelSpec(hop_samples=400))

    def as_dict(self) -> dict:
        """JSON-able fields, those of mel and vocoder as dicts of their own."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict) -> LogMelConfig:
        """Inverse of `as_dict`. Raises BadInput when a field is missing, unknown or wrong."""
        try:
            rest = {k: v for k, v in fields.items() if k not in ("mel", "vocoder")}
            return cls(mel=MelSpec(**fields["mel"]), vocoder=GriffinLimConfig(**fields["vocoder"]), **rest)
        except (TypeError, KeyError) as error:
            raise BadInput(f"not the settings of a LogMel tokenizer: {error}") from None

    def fit(self, signals: Sequence[np.ndarray]) -> LogMel:
        """Learn each band's mean and spread over all frames of the clips. Raises BadInput where there is no clip, see `checked_samples`."""
        n, total, squares = 0, 0.0, 0.0
        for start in range(0, len(signals), CLIPS_AT_ONCE):
            clips = [checked_samples(signal) for signal in signals[start : start + CLIPS_AT_ONCE]]
            frames = torch.cat(log_mel(clips, self.mel)).double()
            n, total, squares = n + len(frames), total + frames.sum(0), squares + frames.square().sum(0)
        if not n:
            raise BadInput("LogMelConfig: no clips to learn from; give at least one")
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


class LogMel:
    """np.float32 (N,) mono <-> latents (T, n_mels), each band with mean 0 and variance 1 over the training clips.

    The spectrogram comes back to float32's rounding, sound by the config's vocoder: N samples exactly, with the magnitudes but not the
    phase of the original.
    """

    def __init__(self, config: LogMelConfig, bands: Bands):
        self.config, self.bands = config, bands
        self.vocoder = config.vocoder.build(config.mel)
        meaning = {k: v for k, v in config.as_dict().items() if k != "vocoder"}
        learned = [value.numpy().tobytes() for _, value in sorted(weights_of(bands).items())]
        self.signature = Signature("speech", latent_size=config.mel.n_mels, fingerprint=fingerprint("LogMel", meaning, *learned))

    def encode(self, signal: np.ndarray) -> Segment:
        """Samples (N,) -> latents (T, C) float32. Raises BadInput, see `checked_samples`."""
        return self.encode_batch([signal])[0]

    def encode_batch(self, signals: Sequence[np.ndarray]) -> list[Segment]:
        """Equal, number for number, to the single calls."""
        clips = [checked_samples(signal) for signal in signals]
        rate_hz = self.config.mel.rate_hz
        return [
            Segment("speech", latents=((mel - self.bands.shift) / self.bands.scale).numpy(), info={"n_samples": len(clip), "rate_hz": rate_hz})
            for clip, mel in zip(clips, log_mel(clips, self.config.mel))
        ]

    def decode(self, segment: Segment) -> np.ndarray:
        """Latents (T, C) -> samples: info's n_samples where that fits T frames, else (sampled, truncated) as many as T frames give.

        A clip whose peak would exceed 1 is scaled down as a whole to a peak of 1, so that nothing clips in a file.
        """
        return self.decode_batch([segment])[0]

    def decode_batch(self, segments: Sequence[Segment]) -> list[np.ndarray]:
        """As the single calls, to some 1e-3 of rounding (see vocoders.py), and faster."""
        return sounds(self.vocoder, [self.log_mel(segment) for segment in segments], segments)

    def log_mel(self, segment: Segment) -> Tensor:
        """A segment's latents -> log10 mel (T, C) float32. Raises BadInput on another shape, and on what is no number."""
        latents = checked_latents(segment, self.config.mel.n_mels)
        mel = torch.from_numpy(np.ascontiguousarray(latents, np.float32)) * self.bands.scale + self.bands.shift
        return mel.clamp(float(np.log10(MEL_FLOOR)), LOUDEST)

    def fidelity(self, signals: Sequence[np.ndarray]) -> dict[str, float]:
        """Of the round trip: mean STOI as `DMel.fidelity` (left out without pystoi); `spread_least` and `spread_most`: of the bands, the
        standard deviations of the least and the most spread one, which are 1 over the training clips."""
        clips = [checked_samples(signal) for signal in signals]
        if not clips:
            return {}
        segments = self.encode_batch(signals)
        spread = np.concatenate([segment.latents for segment in segments]).std(0, dtype=np.float64)
        error = sound_error(clips, lambda: self.decode_batch(segments), self.config.mel.rate_hz)
        return {**error, "spread_least": float(spread.min()), "spread_most": float(spread.max())}

    def save(self, folder: Path) -> None:
        write_tensors(Path(folder) / "weights.safetensors", weights_of(self.bands))
        write_config(Path(folder), "LogMel", self.config.as_dict())

    @classmethod
    def load(cls, folder: Path) -> LogMel:
        """Open what `save` wrote. Raises BadInput when the constants are missing, broken or of other sizes."""
        config = LogMelConfig.from_dict(read_config(Path(folder), "LogMel"))
        bands = Bands(config.mel.n_mels)
        load_weights(folder, bands)
        return cls(config, bands)
