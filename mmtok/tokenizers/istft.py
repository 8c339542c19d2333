"""The iSTFT vocoder of a tokenizer: a network of `mmtok.nn.vocoder`, opened from its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from mmtok.errors import UserError
from mmtok.io.serialize import Within
from mmtok.nn.audio import MelSpec
from mmtok.nn.convnext import ConvNeXtConfig
from mmtok.nn.vocoder import ISTFTVocoder, ISTFTVocoderStream
from mmtok.tokenizers.vocoder_base import (
    Vocoder,
    VocoderConfig,
    WeightsKind,
    check_spec,
    in_blocks,
)

BLOCK_FRAMES = 256  # that are decoded at a time, which bounds the memory


@dataclass(frozen=True)
class ISTFTDescription:
    """What the weights of an iSTFT vocoder are.

    Attributes:
        mel: the spectrogram that it was trained on.
        network: its sizes.
    """

    mel: MelSpec
    network: ConvNeXtConfig

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
class ISTFTTraining(AdversarialTraining):
    """How an iSTFT vocoder is trained with its tokenizer.

    Attributes:
        network: sizes; at 192 x 7 it has 1.9 million parameters.
        dequantised_share: of the crops whose spectrogram has been through codes and de-quantiser,
            where the tokenizer has one.
    """

    network: ConvNeXtConfig = ConvNeXtConfig()
    dequantised_share: Annotated[float, Within(0, 1)] = 0.5


@dataclass(frozen=True)
class ISTFTConfig(VocoderConfig):
    """An iSTFT vocoder (Vocos-like).

    Attributes:
        weights: their folder, a tokenizer's or a run's; "": the package's own.
        training: how it is trained with the tokenizer, instead of being opened.
    """

    weights: str = ""
    training: ISTFTTraining | None = None  # type: ignore[misc]

    def __post_init__(self) -> None:
        if self.weights and self.training is not None:
            raise UserError(
                "ISTFTConfig has weights and a training, of which one alone says where its weights"
                ' come from: leave out one (weights "", training null)'
            )

    def check(self, spec: MelSpec) -> None:
        """Raise UserError where the weights are missing or of other spectrograms."""
        if self.training is None:
            self._folder(spec, None)

    def _folder(self, spec: MelSpec, saved: Path | None) -> Path:
        """Where the weights are; their spectrogram is the one asked for."""
        if saved is not None and (saved / f"{WEIGHTS.name}.json").is_file():
            folder = saved
        elif self.training is not None:
            raise UserError(
                "the vocoder of this tokenizer is trained with it: fit the tokenizer first, or name"
                " its folder (vocoder.weights)"
            )
        elif self.weights:
            folder = WEIGHTS.find(self.weights)
        else:
            found = WEIGHTS.shipped(lambda description: description.mel == spec)
            if found is None:
                raise UserError(
                    "the package has no iSTFT vocoder of this spectrogram: name a folder with"
                    " weights (vocoder.weights), train one (recipes/vocoder.py), or take"
                    ' {"kind": "GriffinLimConfig"}'
                )
            folder = found
        check_spec(spec, WEIGHTS.describe(folder).mel, f"the vocoder in {folder}")
        return folder

    def build(self, spec: MelSpec, saved: Path | None = None) -> ISTFT:
        """The vocoder with its weights."""
        folder = self._folder(spec, saved)
        description: ISTFTDescription = WEIGHTS.describe(folder)
        return ISTFT(description, WEIGHTS.read(folder, description.make))


def has_own(spec: MelSpec, saved: Path | None) -> bool:
    """Whether there is a vocoder of these spectrograms, in `saved` or in the package."""
    if saved is not None and (saved / f"{WEIGHTS.name}.json").is_file():
        return True
    return WEIGHTS.shipped(lambda description: description.mel == spec) is not None


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
