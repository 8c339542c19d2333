"""What the tokenizers of speech share: checks of a clip, spectrogram, vocoder, round-trip error."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from mmtok.core.segment import Segment, Signature
from mmtok.errors import UserError
from mmtok.io import memory_budget
from mmtok.io.serialize import to_plain
from mmtok.nn.audio import MelSpec, log_mel, stoi
from mmtok.tokenizers.base import BatchTokenizer, TokenizerConfig
from mmtok.tokenizers.vocoder_base import Vocoder
from mmtok.tokenizers.vocoders import AnyVocoder

LARGEST_PEAK = 100.0  # samples beyond this are integers that were cast to float, not scaled
NETWORKS = ("vocoder", "dequantiser")  # fields that change no frame, and folders of their weights


class MelConfig(TokenizerConfig):
    """A config of frames of a log-mel spectrogram.

    Attributes:
        mel: which spectrogram.
        vocoder: how frames become sound again.
    """

    modality: ClassVar[str] = "speech"

    mel: MelSpec
    vocoder: AnyVocoder

    def __post_init__(self) -> None:
        try:
            self.mel.check()
        except ValueError as error:
            raise UserError(f"{type(self).__name__}: {error}") from None

    @property
    def has_training(self) -> bool:
        """Whether networks are trained with the tokenizer: its vocoder, for instance."""
        return self.vocoder.training is not None

    def check(self) -> None:
        """Raise UserError where the vocoder's files are missing or of other spectrograms."""
        self.vocoder.check(self.mel)

    @property
    def takes(self) -> dict[str, int]:
        """The signals that the tokenizer takes: mono at this rate."""
        return {"rate_hz": self.mel.rate_hz}

    def rate_texts(self, signature: Signature, fidelity: Mapping[str, float]) -> list[str]:
        """Frames and, of codes, bits per second."""
        frames_per_s = self.mel.rate_hz / self.mel.hop_samples
        texts = [f"{frames_per_s:.4g} frames/s"]
        if signature.bits_per_frame:
            texts.append(f"{signature.bits_per_frame * frames_per_s:.5g} bit/s")
        return texts

    @classmethod
    def dmel_80hz(cls) -> Self:
        """The vocoder setting of Bai et al. 2024: a frame every 12.5 ms."""
        return cls()

    @classmethod
    def dmel_40hz(cls) -> Self:
        """The default of their package: a frame every 25 ms."""
        return cls._of(MelSpec(hop_samples=400))

    @classmethod
    def dmel_40hz_causal(cls) -> Self:
        """The same filters every 25 ms, without a sample ahead: it can be streamed."""
        return cls._of(MelSpec(hop_samples=400, causal=True))

    @classmethod
    def inkling_20hz(cls) -> Self:
        """The front end of Inkling, a frame every 50 ms: causal, so it can be streamed."""
        mel = MelSpec(
            n_fft=1600,
            window_samples=1600,
            hop_samples=800,
            fmin_hz=0.0,
            fmax_hz=8000.0,
            causal=True,
        )
        return cls._of(mel)

    @classmethod
    def _of(cls, mel: MelSpec) -> Self:
        return replace(cls(), mel=mel)  # type: ignore[type-var]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able fields, those of mel as a dict of their own, networks with their kind."""
        plain = asdict(self)  # type: ignore[call-overload]
        for name in NETWORKS:
            if name in plain:
                plain[name] = to_plain(getattr(self, name))
        return plain

    @property
    def meaning(self) -> dict[str, Any]:
        """The fields that a fingerprint is of: vocoder and de-quantiser change no frame."""
        return {name: value for name, value in self.as_dict().items() if name not in NETWORKS}

    def build(self, saved: Path | None = None) -> MelTokenizer:
        """The tokenizer; `saved`: a folder with the weights of networks trained with it."""
        raise TypeError(f"{type(self).__name__} is learned: give it signals")

    def fit(self, signals: Sequence[Any], saved: Path | None = None) -> MelTokenizer:
        """The tokenizer, learned from signals; `saved` as in `build`."""
        raise TypeError(f"{type(self).__name__} learns nothing: build it")


class FrameStream(Protocol):
    """log10 mel frames for the vocoder, from segments of a clip's frames as they arrive."""

    @property
    def delay_s(self) -> float:
        """By how much they are behind the frames pushed, in seconds."""

    def push(self, segment: Segment) -> Tensor:
        """Further frames -> the log10 mel (n, C) that is complete."""

    def finish(self) -> Tensor:
        """The log10 mel (n, C) that is left."""


class DirectFrames:
    """The `FrameStream` of a tokenizer whose frames are its vocoder's."""

    delay_s = 0.0

    def __init__(self, tokenizer: MelTokenizer):
        self.tokenizer = tokenizer

    def push(self, segment: Segment) -> Tensor:
        """Further frames -> as many of log10 mel."""
        return self.tokenizer.log_mel(segment)

    def finish(self) -> Tensor:
        """Nothing is left."""
        return torch.zeros(0, self.tokenizer.config.mel.n_mels)


class MelTokenizer(BatchTokenizer):
    """np.float32 (N,) mono <-> frames of a log-mel spectrogram.

    The config's vocoder makes exactly N samples again, with the magnitudes but not the phase of the
    original.
    """

    vocoder: Vocoder

    def __init__(
        self, config: MelConfig, saved: Path | None = None, sound_spec: MelSpec | None = None
    ):
        """Open the vocoder.

        Args:
            config: of the tokenizer.
            saved: its folder, in which the weights of its networks are looked for.
            sound_spec: of the spectrogram that the vocoder is given; None: the tokenizer's.
        """
        self.config = config
        n_bytes = 6 * 8 * config.mel.n_fft // 2 * config.mel.n_mels
        memory_budget.check(n_bytes, type(config).__name__, "the filters of mel bands")
        self.vocoder = config.vocoder.build(sound_spec or config.mel, saved and saved / "vocoder")

    @property
    def speaks_by(self) -> str:
        """What makes the sound, as figures say it."""
        if getattr(self.config, "dequantiser", None) is None:
            return self.vocoder.name
        return f"{self.vocoder.name} after a de-quantiser"

    @abstractmethod
    def _segment(self, log_mel: Tensor, info: Mapping[str, int]) -> Segment:
        """log10 mel (T, C) -> the frames of a segment."""

    @abstractmethod
    def log_mel(self, segment: Segment) -> Tensor:
        """A segment's frames -> log10 mel (T, C) float32.

        Raises UserError for frames that are not of this tokenizer.
        """

    def sound_mel(self, segment: Segment, n_samples: int) -> Tensor:
        """A segment's frames -> what its vocoder makes N samples of: log10 mel (T', C) float32."""
        return self.log_mel(segment)

    def frame_stream(self) -> FrameStream:
        """`sound_mel` of frames that arrive in pieces."""
        return DirectFrames(self)

    def _figures(self, clips: Sequence[Tensor], segments: Sequence[Segment]) -> dict[str, float]:
        """Figures of a class's own frames."""
        return {}

    def encode_batch(self, signals: Sequence[np.ndarray]) -> list[Segment]:
        """Samples (N,) each -> segments of T frames, equal to the single calls.

        Raises UserError, see `checked_samples`.
        """
        clips = [checked_samples(signal) for signal in signals]
        mels = log_mel(clips, self.config.mel)
        return [
            self._segment(mel, {"n_samples": len(clip), "rate_hz": self.config.mel.rate_hz})
            for clip, mel in zip(clips, mels, strict=True)
        ]

    def decode_batch(self, segments: Sequence[Segment]) -> list[np.ndarray]:
        """Segments -> samples.

        As many as info's n_samples, where T frames fit it, else as many as T frames give. Equal to
        the single calls, of Griffin-Lim to some 1e-3 of rounding (see griffin_lim.py). A clip whose
        peak would exceed 1 is scaled down as a whole, so that a file holds it unclipped.

        Raises UserError for a segment at another rate than the tokenizer's.
        """
        lengths = [self._length(segment) for segment in segments]
        mels = [self.sound_mel(*pair) for pair in zip(segments, lengths, strict=True)]
        full = [i for i, mel in enumerate(mels) if len(mel)]
        clips = self.vocoder([mels[i] for i in full], [lengths[i] for i in full])
        signals = [np.zeros(0, np.float32)] * len(mels)
        for i, clip in zip(full, clips, strict=True):
            signals[i] = (clip / clip.abs().max().clamp_min(1)).numpy()
        return signals

    def _length(self, segment: Segment) -> int:
        """How many samples a segment stands for."""
        spec = self.config.mel
        if segment.info.get("rate_hz", spec.rate_hz) != spec.rate_hz:
            raise UserError(
                f"speech: the segment is at {segment.info['rate_hz']} Hz, this tokenizer at"
                f" {spec.rate_hz} Hz"
            )
        n_samples = int(segment.info.get("n_samples", 0))
        n_frames = self.n_units(segment)
        if n_samples < 1 or spec.n_frames(n_samples) != n_frames:  # sampled, or truncated
            n_samples = spec.n_samples(n_frames)
        return n_samples

    def save_networks(self, folder: Path) -> None:
        """Write the weights of vocoder and de-quantiser, where there are any."""
        self.vocoder.save(Path(folder) / "vocoder")

    def fidelity(self, signals: Sequence[np.ndarray]) -> dict[str, float]:
        """`sound_error` of the round trip, and the class's own figures; {} of no clips."""
        clips = [checked_samples(signal) for signal in signals]
        if not clips:
            return {}
        segments = self.encode_batch(signals)
        error = sound_error(clips, lambda: self.decode_batch(segments), self.config.mel.rate_hz)
        return {**error, **self._figures(clips, segments)}


def checked_samples(signal: Any) -> Tensor:
    """A clip as float32 (N,).

    Raises UserError unless it is one-dimensional, floating, finite and not empty. Peaks above 1 are
    neither clipped nor rescaled: dMel's levels reach some 20 dB beyond full scale.
    """
    samples = np.asarray(signal)
    if samples.ndim != 1:
        raise UserError(
            f"speech: expected mono samples of shape (n,), got {samples.shape}; "
            "mmtok.data.speech_preparation.SpeechPreparation takes one channel or mixes them"
        )
    if samples.dtype.kind != "f":
        raise UserError(
            f"speech: expected floating samples within [-1, 1], got {samples.dtype}; divide 16-bit"
            " samples by 32768"
        )
    if not len(samples):
        raise UserError("speech: the clip has no samples")
    peak = np.abs(samples).max()
    if not np.isfinite(peak):
        raise UserError(f"speech: sample {int(np.argmin(np.isfinite(samples)))} is NaN or infinite")
    if peak > LARGEST_PEAK:
        raise UserError(
            f"speech: peak {peak:.0f}, expected samples within [-1, 1]; divide 16-bit samples by"
            " 32768"
        )
    return torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))


def sound_error(
    clips: Sequence[Tensor], again: Callable[[], list[np.ndarray]], rate_hz: int
) -> dict[str, float]:
    """Mean STOI of the clips that `again` decodes; {} without pystoi.

    It is measured over at least two seconds at a time; shorter clips are joined.
    """
    if not find_spec("pystoi"):
        return {}
    stretches = _stretches([clip.numpy() for clip in clips], again(), 2 * rate_hz)
    return {"stoi": float(np.mean([stoi(a, b, rate_hz) for a, b in stretches]))}


def _stretches(
    originals: list[np.ndarray], decoded: list[np.ndarray], n_least: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of clips, joined in order to at least n_least samples each; the last takes the rest."""
    groups: list[list[int]] = [[]]
    for i in range(len(originals)):
        if sum(len(originals[j]) for j in groups[-1]) >= n_least:
            groups.append([])
        groups[-1].append(i)
    if len(groups) > 1 and sum(len(originals[j]) for j in groups[-1]) < n_least:
        rest = groups.pop()
        groups[-1] += rest
    return [
        (np.concatenate([originals[i] for i in g]), np.concatenate([decoded[i] for i in g]))
        for g in groups
    ]
