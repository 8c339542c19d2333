"""What all tokenizers of speech share: what a clip is, the spectrogram's settings, the way back to
sound, the error of a round trip.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from mmtok.core.segment import Segment
from mmtok.errors import UserError
from mmtok.io import memory_budget
from mmtok.nn.audio import MelSpec, log_mel, stoi
from mmtok.tokenizers.base import Batched
from mmtok.tokenizers.vocoders import GriffinLim, GriffinLimConfig

PEAK_OF_NO_FLOAT = 100.0  # samples beyond this are integers that were cast, not scaled


class MelConfig:
    """Of a config with `mel`, which spectrogram, and `vocoder`, how frames become sound again: what
    follows from them.
    """

    modality: ClassVar[str] = "speech"

    mel: MelSpec
    vocoder: GriffinLimConfig

    def __post_init__(self):
        try:
            self.mel.check()
        except ValueError as error:
            raise UserError(f"{type(self).__name__}: {error}") from None

    @property
    def takes(self) -> dict[str, int]:
        """The signals that its tokenizer takes: mono at this rate."""
        return {"rate_hz": self.mel.rate_hz}

    @classmethod
    def apple_80hz(cls) -> Self:
        """The vocoder setting of Bai et al. 2024: a frame every 12.5 ms."""
        return cls()

    @classmethod
    def apple_40hz(cls) -> Self:
        """The default of their package: a frame every 25 ms."""
        return cls(mel=MelSpec(hop_samples=400))

    def as_dict(self) -> dict:
        """JSON-able fields, those of mel and vocoder as dicts of their own."""
        return asdict(self)

    @property
    def meaning(self) -> dict:
        """The part of `as_dict` that a fingerprint is of: the vocoder changes no frame."""
        return {name: value for name, value in self.as_dict().items() if name != "vocoder"}


class MelTokenizer(Batched):
    """np.float32 (N,) mono <-> the frames of a log-mel spectrogram: `_frame` makes them of it,
    `log_mel` gives it back.

    Sound comes back by the config's vocoder: N samples exactly, with the magnitudes but not the
    phase of the original.
    """

    def __init__(self, config: MelConfig):
        self.config = config
        memory_budget.check(
            6 * 8 * config.mel.n_fft // 2 * config.mel.n_mels,
            type(config).__name__,
            "the filters of mel bands",
        )
        self.vocoder = config.vocoder.build(config.mel)

    def encode_batch(self, signals: Sequence[np.ndarray]) -> list[Segment]:
        """Samples (N,) each -> segments of T frames, equal to the single calls.

        Raises UserError, see `checked_samples`.
        """
        clips = [checked_samples(signal) for signal in signals]
        rate_hz = self.config.mel.rate_hz
        return [
            Segment("speech", **self._frame(mel), info={"n_samples": len(clip), "rate_hz": rate_hz})
            for clip, mel in zip(clips, log_mel(clips, self.config.mel))
        ]

    def decode_batch(self, segments: Sequence[Segment]) -> list[np.ndarray]:
        """Segments -> samples: info's n_samples where that fits T frames, else (sampled, truncated)
        as many as T frames give.

        As the single calls, to some 1e-3 of rounding (see vocoders.py), and faster. A clip whose
        peak would exceed 1 is scaled down as a whole to a peak of 1, so that nothing clips in a
        file.
        """
        return sounds(self.vocoder, [self.log_mel(segment) for segment in segments], segments)

    def _frame(self, mel: Tensor) -> dict[str, Any]:
        """log10 mel (T, C) -> `codes` or `latents` of a segment."""
        raise NotImplementedError

    def log_mel(self, segment: Segment) -> Tensor:
        """A segment's frames -> log10 mel (T, C) float32.

        Raises UserError on what is no frame of this tokenizer.
        """
        raise NotImplementedError

    def fidelity(self, signals: Sequence[np.ndarray]) -> dict[str, float]:
        """Of the round trip: mean STOI over stretches of at least two seconds (short clips are
        joined; left out without pystoi), and what the class adds; {} of no clips.
        """
        clips = [checked_samples(signal) for signal in signals]
        if not clips:
            return {}
        segments = self.encode_batch(signals)
        error = sound_error(clips, lambda: self.decode_batch(segments), self.config.mel.rate_hz)
        return {**error, **self._figures(clips, segments)}

    def _figures(self, clips: Sequence[Tensor], segments: Sequence[Segment]) -> dict[str, float]:
        """What a class says of its own frames."""
        raise NotImplementedError


def checked_samples(signal) -> Tensor:
    """A clip as float32 (N,).

    Raises UserError unless it is one-dimensional, floating, finite and not empty.

    Peaks above 1 pass as they are: nothing is clipped or rescaled, and the levels reach some 20 dB
    beyond full scale.
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
    if peak > PEAK_OF_NO_FLOAT:
        raise UserError(
            f"speech: peak {peak:.0f}, expected samples within [-1, 1]; divide 16-bit samples by"
            " 32768"
        )
    return torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))


def sounds(
    vocoder: GriffinLim, mels: Sequence[Tensor], segments: Sequence[Segment]
) -> list[np.ndarray]:
    """log10 mel spectrograms (T, C) of these segments -> samples: info's n_samples where that fits
    T frames, else as many as T frames give.

    A clip whose peak would exceed 1 is scaled down as a whole. Raises UserError for a segment at
    another rate than the vocoder's.
    """
    spec = vocoder.spec
    for segment in segments:
        if segment.info.get("rate_hz", spec.rate_hz) != spec.rate_hz:
            raise UserError(
                f"speech: the segment is at {segment.info['rate_hz']} Hz, this tokenizer at"
                f" {spec.rate_hz} Hz"
            )
    known = [int(segment.info.get("n_samples", 0)) for segment in segments]
    lengths = [
        n if n >= 1 and spec.n_frames(n) == len(mel) else spec.n_samples(len(mel))
        for n, mel in zip(known, mels)
    ]
    full = [i for i, mel in enumerate(mels) if len(mel)]
    clips = vocoder([mels[i] for i in full], [lengths[i] for i in full])
    signals = [np.zeros(0, np.float32)] * len(mels)
    for i, clip in zip(full, clips):
        signals[i] = (clip / clip.abs().max().clamp_min(1)).numpy()
    return signals


def sound_error(
    clips: Sequence[Tensor], again: Callable[[], list[np.ndarray]], rate_hz: int
) -> dict[str, float]:
    """Mean STOI of clips that `again` gives back, over stretches of at least two seconds (short
    clips are joined); {} without pystoi.
    """
    if not find_spec("pystoi"):
        return {}
    stretches = _stretches([clip.numpy() for clip in clips], again(), 2 * rate_hz)
    return {"stoi": float(np.mean([stoi(a, b, rate_hz) for a, b in stretches]))}


def _stretches(
    originals: list[np.ndarray], decoded: list[np.ndarray], n_least: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of clips joined in order until each is at least n_least samples; a short rest joins the
    last.
    """
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
