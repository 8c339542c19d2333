"""Speech as dMel: a log-mel spectrogram with every value rounded to one of 16 levels.

Bai et al. 2024, "dMel: Speech Tokenization made Simple", arXiv 2407.15835; tokens equal those of
the authors' PyPI package `dmel` (dmel presets) and of the Inkling front end in `transformers`
(inkling preset). Deliberate differences: levels are an exact linspace (theirs rounds the step to
four decimals, which breaks beyond 12 bits); no pad, bos or eos among the codes (those belong to the
shared vocabulary); a clip's codes never depend on the batch; clips shorter than half a window are
accepted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from mmtok.core.segment import Segment, Signature
from mmtok.errors import UserError
from mmtok.nn.audio import MelSpec, log_mel, log_mel_of_frames
from mmtok.tokenizers.base import checked_codes, fingerprint, load_config, write_config
from mmtok.tokenizers.dequantiser import (
    CodeDequantiser,
    DequantiserConfig,
    DequantiserDescription,
)
from mmtok.tokenizers.mel import (
    DirectFrames,
    FrameStream,
    MelConfig,
    MelTokenizer,
    checked_samples,
)
from mmtok.tokenizers.vocoders import DEFAULT_VOCODER, AnyVocoder

MOST_STACKED = 16  # frames of the spectrogram in one of the stream


@dataclass(frozen=True)
class DMelConfig(MelConfig):
    """Which spectrogram, and the levels that its log10 values are rounded to.

    The default is the preset dmel_80hz, 25.6 kbps; the others are dmel_40hz and dmel_40hz_causal
    (12.8 kbps), and inkling_20hz (6.4 kbps).

    Attributes:
        low: the lowest level.
        high: the highest level.
        n_levels: evenly spaced, both ends included.
        reduction_factor: how many frames of the spectrogram one frame of the stream holds (Wang et
            al. 2017, "Tacotron", section 3.3; Bai et al. 2024: up to 4 work alike). Channel
            k * c + j is mel band c of frame j. The last frame is filled up with the lowest level.
        vocoder: how a spectrogram becomes sound again.
        dequantiser: how codes become the spectrogram before that; None: their levels are it.
            Neither is in the fingerprint, as they change no code.
    """

    presets: ClassVar[tuple[str, ...]] = (
        "dmel_80hz",
        "dmel_40hz",
        "dmel_40hz_causal",
        "inkling_20hz",
    )

    mel: MelSpec = MelSpec()
    low: float = -7.0
    high: float = 2.0
    n_levels: int = 16
    reduction_factor: int = 1
    vocoder: AnyVocoder = field(default_factory=DEFAULT_VOCODER)
    dequantiser: DequantiserConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise UserError(f"DMelConfig: needs finite low < high, got {self.low} and {self.high}")
        if not 2 <= self.n_levels <= 65536:
            raise UserError(f"DMelConfig: n_levels must be 2 to 65536, got {self.n_levels}")
        if not 1 <= self.reduction_factor <= MOST_STACKED:
            raise UserError(
                f"DMelConfig: reduction_factor must be 1 to {MOST_STACKED}, got"
                f" {self.reduction_factor}"
            )

    @property
    def kbps(self) -> float:
        """Bits of the codes per millisecond, at log2(n_levels) bits each."""
        bits_per_frame = self.mel.n_mels * math.log2(self.n_levels)
        return bits_per_frame * self.mel.rate_hz / self.mel.hop_samples / 1000

    @property
    def meaning(self) -> dict[str, Any]:
        """As of any spectrogram; without a reduction factor of 1, which changes nothing."""
        fields = super().meaning
        if self.reduction_factor == 1:
            del fields["reduction_factor"]
        return fields

    def rate_texts(self, signature: Signature, fidelity: Mapping[str, float]) -> list[str]:
        """Frames and bits per second, and how many frames of the spectrogram a frame holds."""
        k = self.reduction_factor
        texts = super().rate_texts(signature, fidelity)
        if k > 1:
            frames_per_s = self.mel.rate_hz / self.mel.hop_samples / k
            texts = [f"{frames_per_s:.4g} frames/s of {k} spectra", f"{self.kbps * 1000:.5g} bit/s"]
        return texts

    @property
    def levels(self) -> np.ndarray:
        """The log10 mel magnitude of each code: (n_levels,) float64, from low to high exactly."""
        return np.linspace(self.low, self.high, self.n_levels)

    def signature(self) -> Signature:
        """Complete without any weights."""
        channels = (self.n_levels,) * (self.mel.n_mels * self.reduction_factor)
        return Signature("speech", channels, fingerprint=fingerprint("DMel", self.meaning))

    def check(self) -> None:
        """Raise UserError where weights are missing, or of other codes or spectrograms."""
        spec = self.mel
        description = self.dequantised()
        if description is not None:
            spec = description.fine_spec
        self.vocoder.check(spec)

    def dequantised(self, saved: Path | None = None) -> DequantiserDescription | None:
        """What the de-quantiser of these codes is; None: there is none.

        Raises UserError where its weights are missing, or of other codes.
        """
        if self.dequantiser is None:
            return None
        return self.dequantiser.describe(self.mel, self.low, self.high, self.n_levels, saved)

    @property
    def has_training(self) -> bool:
        """Whether vocoder or de-quantiser are trained with the tokenizer."""
        own = self.dequantiser is not None and self.dequantiser.training is not None
        return own or super().has_training

    def build(self, saved: Path | None = None) -> DMel:
        """The tokenizer: no code is to be learned.

        saved: a folder with the weights of networks that were trained with it.
        """
        return DMel(self, saved)

    def load(self, folder: Path) -> DMel:
        """Open the tokenizer that was saved in `folder`."""
        return DMel.load(folder)


class DMel(MelTokenizer):
    """np.float32 (N,) mono <-> codes (T, n_mels * reduction_factor).

    In range, a log10 mel value comes back within half a step (6 dB at 16 levels).
    """

    config_type: ClassVar[type] = DMelConfig

    def __init__(self, config: DMelConfig, saved: Path | None = None):
        self.dequantiser: CodeDequantiser | None = None
        sound_spec = config.mel
        own = saved and saved / "dequantiser"
        description = config.dequantised(own)
        if config.dequantiser is not None and description is not None:
            self.dequantiser = config.dequantiser.build(description, own)
            sound_spec = description.fine_spec
        super().__init__(config, saved, sound_spec)
        levels = config.levels
        self._levels = torch.from_numpy(levels.astype(np.float32))
        # halfway between levels: a value goes to the nearest level, a tie to the lower one
        midpoints = (levels[:-1] + levels[1:]) / 2
        self._borders = torch.from_numpy(midpoints.astype(np.float32))
        self.signature = config.signature()

    def quantise(self, log_mels: Tensor) -> np.ndarray:
        """log10 mel (T, C) -> codes (T, C) of the nearest levels, which clips at both ends.

        They are not stacked yet.
        """
        codes: np.ndarray = torch.bucketize(log_mels, self._borders, out_int32=True).numpy()
        return codes

    def _segment(self, log_mel: Tensor, info: Mapping[str, int]) -> Segment:
        codes = stacked(self.quantise(log_mel), self.config.reduction_factor)
        return Segment("speech", codes=codes, info=info)

    def log_mel(self, segment: Segment) -> Tensor:
        """A segment's codes -> log10 mel (n, n_mels) float32 of its spectrogram's n frames.

        Raises UserError on codes that are not of this tokenizer.
        """
        return self._levels[self.spectrum_codes(segment)]

    def spectrum_codes(self, segment: Segment) -> Tensor:
        """A segment's codes, not stacked: (n, n_mels) int64 of its spectrogram's n frames.

        Raises UserError on codes that are not of this tokenizer.
        """
        codes = checked_codes(segment, self.signature)
        frames = unstacked(codes, self.config.reduction_factor)[: self.n_units(segment)]
        return torch.from_numpy(frames.astype(np.int64))

    def n_units(self, segment: Segment) -> int:
        """How many frames its spectrogram has, without those that fill the last frame up.

        So scores of all reduction factors have one unit. Where the clip's length is not known, or
        does not fit, as of sampled and truncated segments, none is taken for filling.
        """
        k = self.config.reduction_factor
        most = k * len(segment)
        n_samples = int(segment.info.get("n_samples", 0))
        if n_samples >= 1 and most - k < (n := self.config.mel.n_frames(n_samples)) <= most:
            return n
        return most

    def sound_mel(self, segment: Segment, n_samples: int) -> Tensor:
        """A segment's codes -> what its vocoder makes N samples of: log10 mel (T', C) float32."""
        if self.dequantiser is None or not len(segment):
            return self.log_mel(segment)
        codes = self.spectrum_codes(segment)
        return self.dequantiser(codes)[: self.vocoder.spec.n_frames(n_samples)]

    def frame_stream(self) -> FrameStream:
        """`sound_mel` of codes that arrive in pieces."""
        if self.dequantiser is None:
            return DirectFrames(self)
        return DequantisedFrames(self, self.dequantiser)

    def save_networks(self, folder: Path) -> None:
        """Write the weights of vocoder and de-quantiser, where there are any."""
        super().save_networks(folder)
        if self.dequantiser is not None:
            self.dequantiser.save(Path(folder) / "dequantiser")

    def save(self, folder: Path) -> None:
        """Write the config and the weights of the networks."""
        self.save_networks(folder)
        write_config(Path(folder), "DMel", self.config.as_dict())

    @classmethod
    def load(cls, folder: Path) -> DMel:
        """Open what `save` wrote.

        Raises UserError for a folder of another class, or a damaged one.
        """
        return cls(load_config(folder, "DMel", DMelConfig), Path(folder))

    def stream(self) -> DMelStream:
        """An encoder for samples that arrive in pieces.

        Raises UserError for a centred spectrogram, which needs later samples.
        """
        return DMelStream(self)

    def _figures(self, clips: Sequence[Tensor], segments: Sequence[Segment]) -> dict[str, float]:
        """The share of mel values beyond the end levels, and kilobits per second."""
        values = torch.cat(log_mel(clips, self.config.mel))
        half = (self.config.high - self.config.low) / (self.config.n_levels - 1) / 2
        outside = (values < self.config.low - half) | (values > self.config.high + half)
        figures = {"clipped_share": outside.float().mean().item(), "kbps": self.config.kbps}
        if self.config.reduction_factor > 1:
            n_stacked = sum(map(len, segments)) * self.config.reduction_factor
            figures["filled_share"] = 1 - len(values) / n_stacked
        return figures


def stacked(codes: np.ndarray, k: int) -> np.ndarray:
    """Codes (n, C) -> (ceil(n / k), C k): k neighbouring frames side by side, band by band.

    So neighbouring channels are of neighbouring bands, which masks in training rely on. What is
    missing in the last one is code 0.
    """
    n, n_channels = codes.shape
    filled = np.pad(codes, ((0, -n % k), (0, 0)))
    return filled.reshape(-1, k, n_channels).swapaxes(1, 2).reshape(-1, n_channels * k)


def unstacked(codes: np.ndarray, k: int) -> np.ndarray:
    """The inverse of `stacked`, with what was filled up: (T, C k) -> (T k, C)."""
    n_channels = codes.shape[1] // k
    return codes.reshape(-1, n_channels, k).swapaxes(1, 2).reshape(-1, n_channels)


class DequantisedFrames:
    """The `FrameStream` of codes through a de-quantiser."""

    def __init__(self, tokenizer: DMel, dequantiser: CodeDequantiser):
        self.tokenizer = tokenizer
        self.delay_s = dequantiser.delay_s
        self.values = dequantiser.stream()

    def push(self, segment: Segment) -> Tensor:
        """Further codes -> the log10 mel (n, C) that is complete."""
        return self.values.push(self.tokenizer.spectrum_codes(segment))

    def finish(self) -> Tensor:
        """The log10 mel (n, C) that is left."""
        return self.values.finish()


class DMelStream:
    """Codes of samples as they arrive: `push` returns complete frames, `finish` the last one.

    Joined, they equal the codes of the whole clip, however it is cut.
    """

    def __init__(self, tokenizer: DMel):
        self.tokenizer = tokenizer
        self.spec = tokenizer.config.mel
        if not self.spec.causal:
            raise UserError(
                "speech: a centred spectrogram cannot be streamed, it looks half a window ahead;"
                " use the preset dmel_40hz_causal or inkling_20hz"
            )
        self.tail = torch.zeros(self.spec.left_samples)  # samples of frames to come
        self.waiting = np.zeros((0, self.spec.n_mels), np.int32)  # codes of frames to be stacked
        self.n_samples = 0

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Samples (n,) -> codes (t, C) of the frames that they complete, t >= 0.

        An empty piece gives none.
        """
        if not len(samples):
            return self._stack(self._codes(self.tail))
        piece = checked_samples(samples)
        self.n_samples += len(piece)
        return self._stack(self._codes(torch.cat([self.tail, piece])))

    def finish(self) -> np.ndarray:
        """Codes (0 or 1, C) of the last frame, which is filled up with zeros."""
        n_missing = -self.n_samples % self.spec.hop_samples
        last = self._codes(torch.nn.functional.pad(self.tail, (0, n_missing)))
        return stacked(np.concatenate([self.waiting, last]), self.tokenizer.config.reduction_factor)

    def _stack(self, codes: np.ndarray) -> np.ndarray:
        """Codes (n, n_mels) of the next frames -> those (t, C) that are complete; others wait."""
        k = self.tokenizer.config.reduction_factor
        codes = np.concatenate([self.waiting, codes])
        n = len(codes) // k * k
        self.waiting = codes[n:]
        return stacked(codes[:n], k)

    def _codes(self, samples: Tensor) -> np.ndarray:
        """Codes (n, n_mels) of the frames that these samples complete; the tail is kept."""
        hop = self.spec.hop_samples
        n_frames = max(0, (len(samples) - self.spec.n_fft) // hop + 1)
        self.tail = samples[n_frames * hop :]
        if not n_frames:
            return np.zeros((0, self.spec.n_mels), np.int32)
        starts = torch.arange(n_frames) * hop
        return self.tokenizer.quantise(log_mel_of_frames(samples, starts, self.spec))
