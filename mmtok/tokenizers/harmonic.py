"""The source-filter vocoder of a tokenizer: a network of `mmtok.nn.harmonic`, from its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from mmtok.errors import UserError
from mmtok.io.serialize import Within
from mmtok.nn.audio import MelSpec
from mmtok.nn.convnext import ConvNeXtConfig
from mmtok.nn.harmonic import HarmonicVocoder, HarmonicVocoderStream, edge_frames
from mmtok.tokenizers.istft import VocoderTraining
from mmtok.tokenizers.vocoder_base import (
    NetworkDescription,
    NetworkVocoderConfig,
    Vocoder,
    WeightsKind,
    in_blocks,
    name_of_weights,
)

BLOCK_FRAMES = 256  # that are decoded at a time, which bounds the memory
# Frames of a stream are collected for so long: the network computes 32 in the time of one.
STREAM_BLOCK_S = 0.05
FRAME_S = 0.0125  # a vocoder's own frames are no longer than this, where a half of the hop helps
MOST_LINES = 2  # frames of a vocoder for one that it is given, at most


@dataclass(frozen=True)
class HarmonicDescription(NetworkDescription):
    """What the weights of a source-filter vocoder are."""

    def make(self) -> HarmonicVocoder:
        """The network, untrained."""
        return HarmonicVocoder(self.mel, self.network)


# Weights of harmonic.json were trained beside noise whose bands were not level (see
# `HarmonicVocoder.flattened`), and would speak with noise of another loudness.
WEIGHTS = WeightsKind("source_filter", HarmonicDescription, "vocoder")


@dataclass(frozen=True)
class HarmonicTraining(VocoderTraining):
    """How a source-filter vocoder is trained with its tokenizer.

    It sees spectrograms as coarse as codes are, another way every step.

    Attributes:
        network: sizes; at 192 x 8 it has 2.2 million parameters.
        low: the lowest level of codes.
        high: the highest.
        n_levels: of the codes that it is mostly trained on; 0: exact values.
        others: numbers of levels that are drawn from otherwise.
        others_share: of the steps with one of the others.
        lines_share: of the steps where every second frame is the line between its neighbours.
    """

    learning_rate: Annotated[float, Within(0, 1)] = 8e-4
    adversarial_from: Annotated[float, Within(0, 1)] = 0.4
    ema_decay: Annotated[float, Within(0, 0.99999)] = 0.998
    network: ConvNeXtConfig = ConvNeXtConfig(depth=8)
    low: float = -7.0
    high: float = 2.0
    n_levels: Annotated[int, Within(0, 65536)] = 16
    others: tuple[int, ...] = (8, 32, 64, 256, 0)
    others_share: Annotated[float, Within(0, 1)] = 0.25
    lines_share: Annotated[float, Within(0, 1)] = 0.375

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(n < 0 or n == 1 for n in (self.n_levels, *self.others)):
            raise UserError(
                f"HarmonicTraining: n_levels is {self.n_levels} and others {self.others}; numbers"
                " of levels are at least 2, or 0 for exact values"
            )
        if not self.low < self.high:
            raise UserError(f"HarmonicTraining: low {self.low} must be below high {self.high}")


@dataclass(frozen=True)
class HarmonicConfig(NetworkVocoderConfig):
    """A vocoder of source and filter: a pulse train at a predicted pitch, and noise.

    Its frames are of 12.5 ms. One that was made for a hop takes spectrograms of the doubled hop
    too, if they are centred: the missing frames are lines between their neighbours.

    Attributes:
        weights: their folder, a tokenizer's or a run's; "": the package's own.
        training: how it is trained with the tokenizer, instead of being opened.
        seed: of the noise and of the first phase, which are the same for every clip.
    """

    kind: ClassVar[WeightsKind] = WEIGHTS
    what: ClassVar[str] = "source-filter vocoder"

    weights: str = ""
    training: HarmonicTraining | None = None  # type: ignore[misc]
    seed: Annotated[int, Within(0)] = 0

    @classmethod
    def takes(cls, spec: MelSpec, own: MelSpec) -> bool:
        """Whether a network of spectrograms `own` takes those of `spec`."""
        return n_lines(spec, own) > 0

    def build(self, spec: MelSpec, saved: Path | None = None) -> Harmonic:
        """The vocoder with its weights."""
        folder = self.folder(spec, saved)
        description: HarmonicDescription = WEIGHTS.describe(folder)
        network = WEIGHTS.read(folder, description.make)
        return Harmonic(description, network, spec, self.seed)


def n_lines(spec: MelSpec, own: MelSpec) -> int:
    """How many frames of `own` stand for one of `spec`; 0: the one cannot be made of the other."""
    for r in range(1, MOST_LINES + 1):
        if spec == replace(own, hop_samples=r * own.hop_samples) and not (r > 1 and own.causal):
            return r
    return 0


def own_spec(spec: MelSpec) -> MelSpec:
    """The spectrogram that a vocoder of spectrograms `spec` is trained on."""
    is_long = spec.hop_samples > FRAME_S * spec.rate_hz
    if is_long and spec.hop_samples % MOST_LINES == 0 and not spec.causal:
        return replace(spec, hop_samples=spec.hop_samples // MOST_LINES)
    return spec


def with_lines(log_mel: Tensor, r: int) -> Tensor:
    """(..., T, C) -> (..., r T, C): each frame, and r - 1 on the line to the next one.

    After the last frame it stays.
    """
    after = torch.cat([log_mel[..., 1:, :], log_mel[..., -1:, :]], -2)
    share = torch.arange(r)[:, None] / r
    return torch.lerp(log_mel[..., None, :], after[..., None, :], share).flatten(-3, -2)


class Harmonic(Vocoder):
    """log10 mel spectrograms (T_i, C) -> samples (N_i,), by a source-filter vocoder.

    Every clip is decoded alone and in blocks, so neither a batch nor the length of a block changes
    a sample but for rounding (1e-5).
    """

    def __init__(
        self, description: HarmonicDescription, network: HarmonicVocoder, spec: MelSpec, seed: int
    ):
        self.description = description
        self.network = network
        self.spec = spec
        self.seed = seed
        self.n_lines = n_lines(spec, description.mel)
        ahead = description.network.ahead + edge_frames(description.mel)
        self.look_ahead = -(-ahead // self.n_lines)

    @cached_property
    def name(self) -> str:
        """With a digest of the weights."""
        return name_of_weights("source-filter", self.network)

    @torch.no_grad()
    def __call__(self, log_mels: Sequence[Tensor], n_samples: Sequence[int]) -> list[Tensor]:
        """The samples of each clip."""
        clips = []
        for log_mel, n in zip(log_mels, n_samples, strict=True):
            stream = HarmonicStream(self, n)
            clips.append(in_blocks(stream, log_mel, BLOCK_FRAMES, torch.empty(n)))
        return clips

    def stream(self) -> HarmonicStream:
        """A clip whose frames arrive in pieces: the samples of the whole clip, to rounding."""
        return HarmonicStream(self)

    def save(self, folder: Path) -> None:
        """Write the weights."""
        WEIGHTS.write(folder, self.description, self.network)


class HarmonicStream:
    """Samples of one clip whose log10 mel frames arrive in pieces."""

    def __init__(self, vocoder: Harmonic, n_samples: int | None = None):
        """`n_samples`: N, where it is known from the start."""
        self.spec = vocoder.spec
        self.n_samples = n_samples
        self.fine_spec = vocoder.network.spec
        self.n_lines = vocoder.n_lines
        self.sound = HarmonicVocoderStream(vocoder.network, vocoder.seed)
        self.block = max(1, round(STREAM_BLOCK_S * self.spec.rate_hz / self.spec.hop_samples))
        self.waiting = torch.zeros(0, self.spec.n_mels)  # frames of a block that is not complete
        self.last = self.waiting  # frame of the blocks so far, which waits for the next
        self.n_frames = 0
        n_fine = vocoder.description.network.ahead + edge_frames(self.fine_spec) + self.n_lines - 1
        #  a frame pushed settles the samples before the window of the next one
        n_samples = n_fine * self.fine_spec.hop_samples + self.spec.left_samples
        n_samples += (self.block - 1) * self.spec.hop_samples
        self.delay_s = n_samples / self.spec.rate_hz

    def push(self, log_mel: Tensor) -> Tensor:
        """(t, C) -> the samples (n,) that are complete, n >= 0."""
        self.waiting = torch.cat([self.waiting, log_mel])
        if len(self.waiting) < self.block:
            return torch.zeros(0)
        return self._push_waiting()

    def _push_waiting(self) -> Tensor:
        """Give the network the frames that wait."""
        self.n_frames += len(self.waiting)
        frames = torch.cat([self.last, self.waiting])
        self.waiting = self.waiting[:0]
        if not len(frames):
            return torch.zeros(0)
        # the last frame itself is complete, the lines after it are not
        n_given = min(1, len(self.last))
        self.last = frames[-1:]
        n_left = self.n_lines - 1
        fine = with_lines(frames, self.n_lines)
        return self.sound.push(fine[n_given : len(fine) - n_left])

    def finish(self, n_samples: int | None = None) -> Tensor:
        """The samples that are left: of a clip of N samples, or of as many as the frames give."""
        waited = self._push_waiting()
        n_samples = n_samples or self.n_samples or self.spec.n_samples(self.n_frames)
        if not self.n_frames:
            return torch.zeros(n_samples)
        n_given = self.n_lines * (self.n_frames - 1) + 1
        n_left = min(self.n_lines * self.n_frames, self.fine_spec.n_frames(n_samples)) - n_given
        first = self.sound.push(self.last.expand(max(0, n_left), -1))
        return torch.cat([waited, first, self.sound.finish(n_samples)])
