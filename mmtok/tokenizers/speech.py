"""Speech as dMel: a log-mel spectrogram of which every value is rounded to one of 16 levels.

Bai et al. 2024, "dMel: Speech Tokenization made Simple", arXiv 2407.15835; tokens equal those of the authors' PyPI package
`dmel` (apple presets) and of the Inkling front end in `transformers` (inkling preset). Deliberate differences: levels are an
exact linspace (theirs rounds the step to four decimals, which breaks beyond 12 bits); no pad, bos or eos among the codes (those
belong to the shared vocabulary); a clip's codes never depend on the batch; clips shorter than half a window are accepted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from mmtok.nn.audio import MelSpec, log_mel, log_mel_of_frames, resample, stoi
from mmtok.segment import BadInput, Segment, Signature
from mmtok.tokenizers.base import fingerprint, read_config, write_config
from mmtok.tokenizers.vocoders import GriffinLim, GriffinLimConfig

PEAK_OF_NO_FLOAT = 100.0  # samples beyond this are integers that were cast, not scaled


@dataclass(frozen=True)
class DMelConfig:
    """Which spectrogram, and the levels that its log10 values are rounded to (both ends included). The default is 80 Hz, 25.6 kbps.

    vocoder  how codes become sound again; not part of the fingerprint, since it changes no code
    """

    modality: ClassVar[str] = "speech"

    mel: MelSpec = MelSpec()
    low: float = -7.0
    high: float = 2.0
    n_levels: int = 16
    vocoder: GriffinLimConfig = field(default_factory=GriffinLimConfig)

    def __post_init__(self):
        try:
            self.mel.check()
        except ValueError as error:
            raise BadInput(f"DMelConfig: {error}") from None
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise BadInput(f"DMelConfig: needs finite low < high, got {self.low} and {self.high}")
        if not 2 <= self.n_levels <= 65536:
            raise BadInput(f"DMelConfig: n_levels must be 2 to 65536, got {self.n_levels}")

    @classmethod
    def apple_80hz(cls) -> DMelConfig:
        """The paper's vocoder setting: a frame every 12.5 ms."""
        return cls()

    @classmethod
    def apple_40hz(cls) -> DMelConfig:
        """The package's default: a frame every 25 ms, 12.8 kbps."""
        return cls(mel=MelSpec(hop_samples=400))

    @classmethod
    def inkling_20hz(cls) -> DMelConfig:
        """Causal, so it can be streamed: a frame every 50 ms, 6.4 kbps."""
        return cls(mel=MelSpec(n_fft=1600, window_samples=1600, hop_samples=800, fmin_hz=0.0, fmax_hz=8000.0, causal=True))

    @property
    def kbps(self) -> float:
        """Bits of the codes per millisecond, at log2(n_levels) bits each."""
        return self.mel.n_mels * math.log2(self.n_levels) * self.mel.rate_hz / self.mel.hop_samples / 1000

    @property
    def levels(self) -> np.ndarray:
        """log10 mel magnitude that each code stands for, (n_levels,) float64, from low to high exactly."""
        return np.linspace(self.low, self.high, self.n_levels)

    def as_dict(self) -> dict:
        """JSON-able fields, those of mel and vocoder as dicts of their own."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict) -> DMelConfig:
        """Inverse of `as_dict`. Raises BadInput when a field is missing, unknown or wrong."""
        try:
            rest = {k: v for k, v in fields.items() if k not in ("mel", "vocoder")}
            return cls(mel=MelSpec(**fields["mel"]), vocoder=GriffinLimConfig(**fields["vocoder"]), **rest)
        except (TypeError, KeyError) as error:
            raise BadInput(f"not the settings of a DMel tokenizer: {error}") from None

    def build(self) -> DMel:
        """The tokenizer: nothing is to be learned."""
        return DMel(self)


def checked_samples(signal) -> Tensor:
    """A clip as float32 (N,). Raises BadInput unless it is one-dimensional, floating, finite and not empty.

    Peaks above 1 pass as they are: nothing is clipped or rescaled, and the levels reach some 20 dB beyond full scale.
    """
    samples = np.asarray(signal)
    if samples.ndim != 1:
        raise BadInput(f"speech: expected mono samples of shape (n,), got {samples.shape}; average the channels first")
    if samples.dtype.kind != "f":
        raise BadInput(f"speech: expected floating samples within [-1, 1], got {samples.dtype}; divide 16-bit samples by 32768")
    if not len(samples):
        raise BadInput("speech: the clip has no samples")
    peak = np.abs(samples).max()
    if not np.isfinite(peak):
        raise BadInput(f"speech: sample {int(np.argmin(np.isfinite(samples)))} is NaN or infinite")
    if peak > PEAK_OF_NO_FLOAT:
        raise BadInput(f"speech: peak {peak:.0f}, expected samples within [-1, 1]; divide 16-bit samples by 32768")
    return torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))


def resampled(samples: np.ndarray, from_hz: int, rate_hz: int) -> np.ndarray:
    """Mono samples (N,) at one rate -> float32 (ceil(N * rate_hz / from_hz),) at another.

    Raises BadInput where torchaudio does not load.
    """
    try:
        return resample(torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32)), from_hz, rate_hz).numpy()
    except (ImportError, OSError) as error:
        raise BadInput(f"resampling needs the torchaudio that was made with torch {torch.__version__}: {error}") from None


class DMel:
    """np.float32 (N,) mono <-> codes (T, n_mels). In range, a log10 mel value comes back within half a step (6 dB at 16 levels).

    Sound comes back by the config's vocoder: N samples exactly, with the magnitudes but not the phase of the original.
    """

    def __init__(self, config: DMelConfig):
        self.config = config
        self.vocoder = config.vocoder.build(config.mel)
        levels = config.levels
        self._levels = torch.from_numpy(levels.astype(np.float32))
        self._borders = torch.from_numpy(((levels[:-1] + levels[1:]) / 2).astype(np.float32))  # the nearest level, ties downwards
        meaning = {k: v for k, v in config.as_dict().items() if k != "vocoder"}
        self.signature = Signature("speech", (config.n_levels,) * config.mel.n_mels, fingerprint=fingerprint("DMel", meaning))

    def quantise(self, log_mels: Tensor) -> np.ndarray:
        """log10 mel (T, C) -> codes (T, C) of the nearest levels; what lies outside goes to the end levels."""
        return torch.bucketize(log_mels, self._borders, out_int32=True).numpy()

    def encode(self, signal: np.ndarray) -> Segment:
        """Samples (N,) -> codes (T, C). Raises BadInput, see `checked_samples`."""
        return self.encode_batch([signal])[0]

    def encode_batch(self, signals: Sequence[np.ndarray]) -> list[Segment]:
        """Equal, code for code, to the single calls."""
        clips = [checked_samples(signal) for signal in signals]
        rate_hz = self.config.mel.rate_hz
        return [
            Segment("speech", codes=self.quantise(mel), info={"n_samples": len(clip), "rate_hz": rate_hz})
            for clip, mel in zip(clips, log_mel(clips, self.config.mel))
        ]

    def decode(self, segment: Segment) -> np.ndarray:
        """Codes (T, C) -> samples: info's n_samples where that fits T frames, else (sampled, truncated) as many as T frames give.

        A clip whose peak would exceed 1 is scaled down as a whole to a peak of 1, so that nothing clips in a file.
        """
        return self.decode_batch([segment])[0]

    def decode_batch(self, segments: Sequence[Segment]) -> list[np.ndarray]:
        """As the single calls, to some 1e-3 of rounding (see vocoders.py), and faster."""
        return sounds(self.vocoder, [self.dequantise(segment) for segment in segments], segments)

    def dequantise(self, segment: Segment) -> Tensor:
        """A segment's codes -> log10 mel (T, C) float32. Raises BadInput on codes that are not of this tokenizer."""
        codes, config = segment.codes, self.config
        if codes is None or codes.shape[1] != config.mel.n_mels:
            raise BadInput(f"speech: expected codes of shape (T, {config.mel.n_mels}), got {segment.values.shape}")
        if codes.size and not (codes.min() >= 0 and codes.max() < config.n_levels):
            raise BadInput(f"speech: codes run from {codes.min()} to {codes.max()}, this tokenizer has 0 to {config.n_levels - 1}")
        return self._levels[torch.from_numpy(codes.astype(np.int64))]

    def stream(self) -> DMelStream:
        """An encoder for samples that arrive in pieces. Raises BadInput for a centred spectrogram, which would need the future."""
        return DMelStream(self)

    def fidelity(self, signals: Sequence[np.ndarray]) -> dict[str, float]:
        """Of the round trip: mean STOI over stretches of at least two seconds (short clips are joined; left out without pystoi),
        the share of mel values outside the levels' range, kilobits per second."""
        clips = [checked_samples(signal) for signal in signals]
        segments = self.encode_batch(signals)
        values = torch.cat(log_mel(clips, self.config.mel))
        half = (self.config.high - self.config.low) / (self.config.n_levels - 1) / 2
        outside = (values < self.config.low - half) | (values > self.config.high + half)
        error = sound_error(clips, lambda: self.decode_batch(segments), self.config.mel.rate_hz)
        return {**error, "clipped_share": outside.float().mean().item(), "kbps": self.config.kbps}

    def save(self, folder: Path) -> None:
        write_config(Path(folder), "DMel", self.config.as_dict())

    @classmethod
    def load(cls, folder: Path) -> DMel:
        return cls(DMelConfig.from_dict(read_config(Path(folder), "DMel")))


def sounds(vocoder: GriffinLim, mels: Sequence[Tensor], segments: Sequence[Segment]) -> list[np.ndarray]:
    """log10 mel spectrograms (T, C) of these segments -> samples: info's n_samples where that fits T frames, else as many as T frames give.

    A clip whose peak would exceed 1 is scaled down as a whole. Raises BadInput for a segment at another rate than the vocoder's.
    """
    spec = vocoder.spec
    for segment in segments:
        if segment.info.get("rate_hz", spec.rate_hz) != spec.rate_hz:
            raise BadInput(f"speech: the segment is at {segment.info['rate_hz']} Hz, this tokenizer at {spec.rate_hz} Hz")
    known = [int(segment.info.get("n_samples", 0)) for segment in segments]
    lengths = [n if n >= 1 and spec.n_frames(n) == len(mel) else spec.n_samples(len(mel)) for n, mel in zip(known, mels)]
    full = [i for i, mel in enumerate(mels) if len(mel)]
    clips = vocoder([mels[i] for i in full], [lengths[i] for i in full])
    signals = [np.zeros(0, np.float32)] * len(mels)
    for i, clip in zip(full, clips):
        signals[i] = (clip / clip.abs().max().clamp_min(1)).numpy()
    return signals


def sound_error(clips: Sequence[Tensor], again: Callable[[], list[np.ndarray]], rate_hz: int) -> dict[str, float]:
    """Mean STOI of clips that `again` gives back, over stretches of at least two seconds (short clips are joined); {} without pystoi."""
    if not find_spec("pystoi"):
        return {}
    stretches = _stretches([clip.numpy() for clip in clips], again(), 2 * rate_hz)
    return {"stoi": float(np.mean([stoi(a, b, rate_hz) for a, b in stretches]))}


def _stretches(originals: list[np.ndarray], decoded: list[np.ndarray], n_least: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of clips joined in order until each is at least n_least samples; a short rest joins the last."""
    groups: list[list[int]] = [[]]
    for i in range(len(originals)):
        if sum(len(originals[j]) for j in groups[-1]) >= n_least:
            groups.append([])
        groups[-1].append(i)
    if len(groups) > 1 and sum(len(originals[j]) for j in groups[-1]) < n_least:
        rest = groups.pop()
        groups[-1] += rest
    return [(np.concatenate([originals[i] for i in g]), np.concatenate([decoded[i] for i in g])) for g in groups]


class DMelStream:
    """Codes as the samples come: `push` gives the frames that are complete, `finish` the last one.

    Joined, they equal the codes of the whole clip, whatever the pieces.
    """

    def __init__(self, tokenizer: DMel):
        self.tokenizer, self.spec = tokenizer, tokenizer.config.mel
        if not self.spec.causal:
            raise BadInput("speech: a centred spectrogram cannot be streamed, it looks half a window ahead; use the inkling_20hz preset")
        self.tail = torch.zeros(self.spec.left_samples)  # what the next frame still needs
        self.n_samples = 0

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Samples (n,) -> codes (t, C) of the frames that they complete, t >= 0. An empty piece gives none."""
        if not len(samples):
            return self._codes(self.tail)
        piece = checked_samples(samples)
        self.n_samples += len(piece)
        return self._codes(torch.cat([self.tail, piece]))

    def finish(self) -> np.ndarray:
        """Codes (0 or 1, C) of the last, unfilled frame."""
        return self._codes(torch.nn.functional.pad(self.tail, (0, -self.n_samples % self.spec.hop_samples)))

    def _codes(self, stretch: Tensor) -> np.ndarray:
        n_frames = max(0, (len(stretch) - self.spec.n_fft) // self.spec.hop_samples + 1)
        self.tail = stretch[n_frames * self.spec.hop_samples :]
        if not n_frames:
            return np.zeros((0, self.spec.n_mels), np.int32)
        return self.tokenizer.quantise(log_mel_of_frames(stretch, torch.arange(n_frames) * self.spec.hop_samples, self.spec))
