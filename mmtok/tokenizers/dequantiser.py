"""The de-quantiser of a tokenizer of levels: its network, opened from its weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from mmtok.errors import UserError
from mmtok.io.serialize import Within
from mmtok.nn.audio import MelSpec
from mmtok.nn.convnext import ConvNeXtConfig
from mmtok.nn.vocoder import Cells, Dequantiser, DequantiserStream
from mmtok.tokenizers.istft import AdversarialTraining
from mmtok.tokenizers.vocoder_base import WeightsKind, check_spec, differences, in_blocks

BLOCK_FRAMES = 256  # that are decoded at a time, which bounds the memory


@dataclass(frozen=True)
class DequantiserDescription:
    """What the weights of a de-quantiser are.

    Attributes:
        mel: the spectrogram of the codes.
        cells: the levels of the codes, and the room at both ends.
        upsampling: r, how many frames come out for a frame of codes.
        network: its sizes.
    """

    mel: MelSpec
    cells: Cells
    upsampling: int
    network: ConvNeXtConfig

    def make(self) -> Dequantiser:
        """The network, untrained: it gives the levels, and straight lines between frames."""
        return Dequantiser(self.mel, self.cells, self.upsampling, self.network)

    @property
    def fine_spec(self) -> MelSpec:
        """Of the spectrogram that comes out."""
        return replace(self.mel, hop_samples=self.mel.hop_samples // self.upsampling)

    def check(self) -> None:
        """Raise UserError for an upsampling that does not divide the hop."""
        if self.mel.hop_samples % self.upsampling:
            raise UserError(
                f"a de-quantiser cannot divide a hop of {self.mel.hop_samples} samples by an"
                f" upsampling of {self.upsampling}"
            )


WEIGHTS = WeightsKind("dequantiser", DequantiserDescription)


@dataclass(frozen=True)
class DequantiserTraining(AdversarialTraining):
    """How a de-quantiser is trained with its tokenizer.

    Attributes:
        network: sizes.
        upsampling: r, how many frames come out for a frame of codes: 2 makes the 80 Hz spectrogram
            of 40 Hz codes.
        margin: how far values may be beyond the end levels, in log10.
        adversarial_weight: of the discriminator's part of the loss.
        matching_weight: of the feature matching.
    """

    learning_rate: Annotated[float, Within(0, 1)] = 1e-3
    adversarial_from: Annotated[float, Within(0, 1)] = 0.5
    gain_db: tuple[float, float] = (-12.0, 1.5)
    ema_decay: Annotated[float, Within(0, 0.99999)] = 0.998
    network: ConvNeXtConfig = ConvNeXtConfig(depth=6)
    upsampling: Annotated[int, Within(1, 64)] = 1
    margin: Annotated[float, Within(0, 10)] = 0.6
    adversarial_weight: Annotated[float, Within(0)] = 0.3
    matching_weight: Annotated[float, Within(0)] = 1.0


@dataclass(frozen=True)
class DequantiserConfig:
    """A de-quantiser: codes -> continuous log-mel values, each within the cell of its code.

    Attributes:
        weights: their folder, a tokenizer's or a run's; "": the package's own.
        training: how it is trained with the tokenizer, instead of being opened.
        optional: whether codes stay levels where the package has none of its own for them, which
            is refused otherwise.
    """

    weights: str = ""
    training: DequantiserTraining | None = None
    optional: bool = False

    def __post_init__(self) -> None:
        if self.weights and self.training is not None:
            raise UserError(
                "DequantiserConfig has weights and a training, of which one alone says where its"
                ' weights come from: leave out one (weights "", training null)'
            )

    def describe(
        self, mel: MelSpec, low: float, high: float, n_levels: int, saved: Path | None = None
    ) -> DequantiserDescription | None:
        """What the network is, of codes with these levels; `saved` as in `build`.

        None: it is optional, and there is none. Raises UserError where the weights are missing, or
        of other codes.
        """
        folder = self._folder(mel, low, high, n_levels, saved)
        if folder is None and self.training is None:
            return None
        if folder is None:
            assert self.training is not None
            try:
                cells = Cells(low, high, n_levels, self.training.margin)
            except ValueError as error:
                raise UserError(str(error)) from None
            training = self.training
            own = DequantiserDescription(mel, cells, training.upsampling, training.network)
            own.check()
            return own
        description: DequantiserDescription = WEIGHTS.describe(folder)
        description.check()
        name = f"the de-quantiser in {folder}"
        check_spec(mel, description.mel, name)
        wanted = Cells(low, high, n_levels, description.cells.margin)
        if wanted != description.cells:
            raise UserError(
                f"{name} is of other levels than the tokenizer's:"
                f" {differences(wanted, description.cells)}; name one that was made for these"
            )
        return description

    def build(
        self, description: DequantiserDescription, saved: Path | None = None
    ) -> CodeDequantiser:
        """The de-quantiser with its weights.

        Args:
            description: of it, by `describe`.
            saved: the folder in which a tokenizer saved it, if there is one.

        Raises UserError where it is to be trained first.
        """
        cells = description.cells
        folder = self._folder(description.mel, cells.low, cells.high, cells.n_levels, saved)
        if folder is None:
            raise UserError(
                "the de-quantiser of this tokenizer is trained with it: fit the tokenizer first, or"
                " name its folder (dequantiser.weights)"
            )
        return CodeDequantiser(description, WEIGHTS.read(folder, description.make))

    def _folder(
        self, mel: MelSpec, low: float, high: float, n_levels: int, saved: Path | None
    ) -> Path | None:
        """Where the weights are; None: they are to be trained, or optional and not there."""
        if saved is not None and (saved / f"{WEIGHTS.name}.json").is_file():
            return saved
        if self.training is not None:
            return None
        return self._named(mel, low, high, n_levels)

    def _named(self, mel: MelSpec, low: float, high: float, n_levels: int) -> Path | None:
        """The folder that `weights` names, or the package's own."""
        if self.weights:
            return WEIGHTS.find(self.weights)

        def fits(own: DequantiserDescription) -> bool:
            return own.mel == mel and own.cells == Cells(low, high, n_levels, own.cells.margin)

        found = WEIGHTS.shipped(fits)
        if found is None and not self.optional:
            raise UserError(
                "the package has no de-quantiser of these codes: name a folder with weights"
                " (dequantiser.weights), train one (recipes/vocoder.py), or leave it out (null)"
            )
        return found


class CodeDequantiser:
    """Codes (T, C) -> log10 mel (r T, C), for use alone.

    Every clip is computed in blocks, whose length changes a value by rounding only.
    """

    def __init__(self, description: DequantiserDescription, network: Dequantiser):
        self.description = description
        self.network = network
        self.spec = description.fine_spec

    def __call__(self, codes: Tensor) -> Tensor:
        """(T, C) -> (r T, C)."""
        n_frames, n_channels = codes.shape
        out = torch.empty(self.network.r * n_frames, n_channels)
        return in_blocks(self.stream(), codes, BLOCK_FRAMES, out)

    def stream(self) -> DequantiserStream:
        """Codes of one clip that arrive in pieces."""
        return DequantiserStream(self.network)

    @property
    def delay_s(self) -> float:
        """By how much a stream's frames are behind its codes, in seconds."""
        n_frames = self.description.network.ahead
        if self.network.needs_next:
            n_frames = max(1, n_frames)
        return n_frames * self.description.mel.hop_samples / self.spec.rate_hz

    def save(self, folder: Path) -> None:
        """Write the weights."""
        WEIGHTS.write(folder, self.description, self.network)
