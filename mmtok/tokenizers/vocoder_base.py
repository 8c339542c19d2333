"""The contract of vocoders, which make samples from log-mel spectrograms, and of their configs.

A network's weights lie in a folder of their own: `NAME.json` says what they were made for, with the
`MelSpec` that every use is compared with, and weights.safetensors holds them. A tokenizer's folder
holds those of its networks, so that it needs nothing else.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor, nn

from mmtok.errors import UserError
from mmtok.io.files import write_tensors, write_text
from mmtok.io.serialize import read_json_as, to_plain
from mmtok.nn.audio import MelSpec
from mmtok.nn.convnext import ConvNeXtConfig
from mmtok.tokenizers.base import weights_of, with_weights

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
N = TypeVar("N", bound=nn.Module)
SHIPPED = Path(__file__).parent.parent / "weights"  # folders of weights that come with the package


class VocoderStream(Protocol):
    """Samples of one clip whose frames arrive in pieces: `push` them, then `finish` once.

    `delay_s` is the longest time by which the sound given out is behind the frames pushed.
    """

    @property
    def delay_s(self) -> float:
        """In seconds."""

    def push(self, log_mel: Tensor) -> Tensor:
        """log10 mel (t, C) -> the samples (n,) that are complete, n >= 0."""

    def finish(self, n_samples: int | None = None) -> Tensor:
        """The samples that are left of N in all, or of as many as the spec says of the frames."""


class Vocoder(ABC):
    """log10 mel spectrograms (T_i, C) -> samples (N_i,), where T_i = spec.n_frames(N_i) >= 1.

    Deterministic; a clip sounds the same alone and in a batch, to the rounding that a class states.

    Attributes:
        spec: of the spectrograms that it takes.
        look_ahead: how many later frames a frame's sound depends on, besides those that its window
            overlaps; None: all of the clip.
    """

    spec: MelSpec
    look_ahead: int | None

    @property
    def name(self) -> str:
        """What spoke, as figures say it: of a network with a digest of its weights."""
        return type(self).__name__

    @abstractmethod
    def __call__(self, log_mels: Sequence[Tensor], n_samples: Sequence[int]) -> list[Tensor]:
        """The samples of each clip."""

    def stream(self) -> VocoderStream:
        """A clip whose frames arrive in pieces. Raises UserError where the class has no streams."""
        raise UserError(f"{type(self).__name__} gives no sound before its last frame")

    # most have nothing to save
    def save(self, folder: Path) -> None:  # noqa: B027
        """Write the weights, if there are any, into `folder`."""


class VocoderConfig(ABC):
    """The settings of a vocoder: the base of a frozen dataclass that a tokenizer's config holds.

    `training` is not None where the network is trained with the tokenizer: `fit_tokenizer` has a
    trainer for it.
    """

    training: ClassVar[Any] = None

    # most name no files
    def check(self, spec: MelSpec) -> None:  # noqa: B027
        """Raise UserError for files that the config names and that cannot be used."""

    @abstractmethod
    def build(self, spec: MelSpec, saved: Path | None = None) -> Vocoder:
        """The vocoder of spectrograms of these settings.

        Raises UserError where it was made for others.

        Args:
            spec: of the spectrograms.
            saved: the folder in which a tokenizer saved it, if there is one.
        """


def differences(ours: DataclassInstance, theirs: DataclassInstance) -> str:
    """The fields in which two settings differ, in words: "hop_samples 400 against 200"."""
    words = []
    for field in fields(ours):
        pair = [getattr(settings, field.name) for settings in (ours, theirs)]
        if pair[0] != pair[1]:
            words.append(f"{field.name} {pair[0]} against {pair[1]}")
    return ", ".join(words)


def check_spec(
    spec: MelSpec, own: MelSpec, name: object, remedy: str = "set the tokenizer's mel alike"
) -> None:
    """Raise UserError where spectrograms of `spec` are given to a vocoder of `own` ones.

    remedy: what to do, besides naming another vocoder.
    """
    if spec != own:
        raise UserError(
            f"{name} is of other spectrograms than the tokenizer's: {differences(spec, own)}; name"
            f" a vocoder that was made for these, or {remedy}"
        )


# ---- networks with weights


@dataclass(frozen=True)
class NetworkDescription:
    """What the weights of a vocoder are; a subclass says of which network (`make`).

    Attributes:
        mel: the spectrogram that it was trained on.
        network: its sizes.
        default_hops: of weights that come with the package, the hops of the spectrograms that it
            speaks with them unless told otherwise; (): of all that it takes.
    """

    mel: MelSpec
    network: ConvNeXtConfig
    default_hops: tuple[int, ...] = ()


class NetworkVocoderConfig(VocoderConfig):
    """A vocoder of a network: weights that are opened, trained with it, or the package's own.

    A subclass is a frozen dataclass with these fields, which knows its kind of weights and the
    spectrograms that a network of its takes.

    Attributes:
        weights: their folder, a tokenizer's or a run's; "": the package's own.
        training: how it is trained with the tokenizer, instead of being opened.
        kind: of the weights.
        what: in messages: "iSTFT vocoder".
    """

    weights: str
    kind: ClassVar[WeightsKind]
    what: ClassVar[str]

    def __post_init__(self) -> None:
        if self.weights and self.training is not None:
            raise UserError(
                f"{type(self).__name__} has weights and a training, of which one alone says where"
                ' its weights come from: leave out one (weights "", training null)'
            )

    @classmethod
    def takes(cls, spec: MelSpec, own: MelSpec) -> bool:
        """Whether a network of spectrograms `own` takes those of `spec`."""
        return spec == own

    @classmethod
    def shipped(cls, spec: MelSpec) -> Path | None:
        """The package's own weights for a spectrogram, if there are any."""
        return cls.kind.shipped(lambda description: cls.takes(spec, description.mel))

    @classmethod
    def is_default(cls, spec: MelSpec) -> bool:
        """Whether the package speaks a spectrogram with its own weights unless told otherwise."""
        folder = cls.shipped(spec)
        if folder is None:
            return False
        hops: tuple[int, ...] = cls.kind.describe(folder).default_hops
        return not hops or spec.hop_samples in hops

    def check(self, spec: MelSpec) -> None:
        """Raise UserError where the weights are missing or of other spectrograms."""
        if self.training is None:
            self.folder(spec, None)

    def folder(self, spec: MelSpec, saved: Path | None) -> Path:
        """Where the weights are; they take the spectrogram asked for."""
        if saved is not None and self.kind.is_in(saved):
            folder = saved
        elif self.training is not None:
            raise UserError(
                "the vocoder of this tokenizer is trained with it: fit the tokenizer first, or name"
                " its folder (vocoder.weights)"
            )
        elif self.weights:
            folder = self.kind.find(self.weights)
        else:
            found = self.shipped(spec)
            if found is None:
                raise UserError(
                    f"the package has no {self.what} of this spectrogram: name a folder with"
                    " weights (vocoder.weights), train one (recipes/vocoder.py), or take"
                    ' {"kind": "GriffinLimConfig"}'
                )
            folder = found
        own: MelSpec = self.kind.describe(folder).mel
        if not self.takes(spec, own):
            check_spec(spec, own, f"the vocoder in {folder}")
        return folder


def name_of_weights(kind: str, network: nn.Module) -> str:
    """A kind of network and eight digits of its weights' digest: "source-filter 1b9f03ac"."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return f"{kind} {digest.hexdigest()[:8]}"


# ---- folders of weights


@dataclass(frozen=True)
class WeightsKind:
    """A kind of folders of weights.

    Attributes:
        name: of the file that says what the weights are.
        hint: the dataclass that the file holds.
        part: the folder of a tokenizer's that they are in; "": of the same name.
    """

    name: str
    hint: type
    part: str = ""

    def is_in(self, folder: Path) -> bool:
        """Whether a folder holds such weights."""
        return (folder / f"{self.name}.json").is_file()

    def find(self, path: str | Path) -> Path:
        """The folder of weights at a path: that folder, a tokenizer's or a run's.

        Raises UserError where there is none.
        """
        part = self.part or self.name
        for below in (".", part, f"tokenizers/speech/{part}"):
            folder = Path(path) / below
            if self.is_in(folder):
                return folder
        raise UserError(
            f"{path} holds no {part} of this kind ({self.name}.json and weights.safetensors); name"
            " the folder of a run, of a tokenizer or of the weights themselves"
        )

    def shipped(self, fits: Callable[[Any], bool]) -> Path | None:
        """The package's own folder of weights whose description fits, if there is one."""
        for path in sorted(SHIPPED.glob(f"*/{self.name}.json")):
            if fits(self.describe(path.parent)):
                return path.parent
        return None

    def describe(self, folder: Path) -> Any:
        """What the weights in a folder are. Raises UserError for a damaged file."""
        return read_json_as(folder / f"{self.name}.json", self.hint)

    def read(self, folder: Path, make: Callable[[], N]) -> N:
        """The network that `make` makes, with the weights in a folder, for use alone.

        Raises UserError for weights of other sizes.
        """
        network = with_weights(folder, make)
        return network.eval().requires_grad_(False)

    def write(self, folder: Path, description: Any, network: nn.Module, half: bool = False) -> None:
        """Write weights, and what they are; `half`: in float16."""
        weights = weights_of(network)
        if half:
            weights = {name: value.half() for name, value in weights.items()}
        write_tensors(folder / "weights.safetensors", weights)
        write_text(folder / f"{self.name}.json", to_plain_text(description))


def to_plain_text(description: Any) -> str:
    """A dataclass as the text of a JSON file."""
    import json

    return json.dumps(to_plain(description), indent=2) + "\n"


@torch.no_grad()
def in_blocks(stream: Any, frames: Tensor, block: int, out: Tensor) -> Tensor:
    """Fill `out` with what a stream gives of the frames (T, C), pushed block by block.

    What it gives beyond the length of `out` is left out. One place for all pieces, as many pieces
    would scatter over the memory and hold more of it.
    """
    at = 0
    for part in frames.split(block):
        piece = stream.push(part)[: len(out) - at]
        out[at : at + len(piece)] = piece
        at += len(piece)
    if at < len(out):
        out[at:] = stream.finish()[: len(out) - at]
    return out
