"""The contract of a tokenizer and of its config, and what tokenizer folders hold."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeVar

import numpy as np

from mmtok.core.segment import Segment, Signature
from mmtok.errors import UserError
from mmtok.io.files import read_tensors, write_tensors, write_text
from mmtok.io.messages import shown
from mmtok.io.serialize import check_known, json_as
from mmtok.io.strict_json import read_json

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mmtok.io.signal_files import SignalFiles

    N = TypeVar("N", bound=nn.Module)

T = TypeVar("T")

CODECS = ("mimi", "dac", "encodec")  # types of models in `transformers`
JANUS = ("janus_vqgan", "janus")
EMU3 = ("emu3_vqgan", "emu3")
CHAMELEON = ("chameleon_vqgan", "chameleon")
KL = "AutoencoderKL"


class TokenizerConfig(ABC):
    """The settings of a tokenizer: the base of a frozen dataclass that a recipe holds.

    How the tokenizer comes about:

    - nothing is learned: the class has `build`;
    - learned (text pieces, means of bands): `learns` is True, it has `fit`;
    - the package's own that are trained by gradients: `learns` is True, and
      mmtok.train.tokenizer_fit has a trainer. One from outside the package trains in its `fit`.
    """

    modality: ClassVar[str]
    learns: ClassVar[bool] = False
    # fitting may find fewer codes than `signature` says (few texts have few pieces)
    signature_is_bound: ClassVar[bool] = False
    # constructors without arguments that a command line may name instead: dmel_40hz as dmel-40hz
    presets: ClassVar[tuple[str, ...]] = ()
    # a run without text takes the words of a prompt, where they name no file, as such signals
    reads_words: ClassVar[bool] = False

    def named(self, modality: str) -> Self:
        """This config under the name that a recipe gives its modality; most have their own."""
        return self

    @property
    def has_training(self) -> bool:
        """Whether networks that no code depends on, such as a vocoder, are trained with it."""
        return False

    @property
    def is_input_only(self) -> bool:
        """Whether its frames are read, but never made."""
        return False

    @property
    def takes(self) -> Mapping[str, Any]:
        """What a signal must be like: {"rate_hz": 16000}, or {"height": 8, "width": 8, ...}.

        Raw signals are prepared accordingly (mmtok.data.preparation).
        """
        return {}

    def signature(self) -> Signature | None:
        """The tokenizer's signature, as far as it is known before anything is fitted or fetched.

        It has no fingerprint where that depends on what is learned. None: nothing is known.
        """
        if self.learns:
            return None
        return self.build().signature

    # not abstract: most configs name no files
    def check(self) -> None:  # noqa: B027
        """Raise UserError for files that the config names and that cannot be used."""

    def kept_in(self, folder: Path) -> Self:
        """This config as the tokenizer that was saved in `folder` has it, or as it is without one.

        Files that the config names may be gone, and be kept there.
        """
        return self

    def build(self) -> Tokenizer:
        """The tokenizer without anything learned."""
        raise TypeError(f"{type(self).__name__} is learned: give it signals")

    def fit(self, signals: Sequence[Any]) -> Tokenizer:
        """The tokenizer, learned from signals.

        Raises UserError when they cannot be learned from.
        """
        name = type(self).__name__
        raise TypeError(f"{name} learns, but has no fit: give it the method fit(signals)")

    @abstractmethod
    def load(self, folder: Path) -> Tokenizer:
        """Open the tokenizer that was saved in `folder`.

        Raises UserError for a folder of another class, or a damaged one.
        """

    def rate_texts(self, signature: Signature, fidelity: Mapping[str, float]) -> list[str]:
        """Bits in the modality's own measure, as short texts: "40 frames/s", "1.2 bits a pixel".

        fidelity: of the fitted tokenizer, or empty.
        """
        return []

    def task_figures(self) -> Mapping[tuple[str, ...], Callable[..., Any]]:
        """Figures of tasks that a modality from outside the package brings along.

        As mmtok.evaluation.evaluate.TASK_FIGURES: a task's modalities -> what computes its figures.
        """
        return {}

    def report_section(self) -> Callable[..., Sequence[object]] | None:
        """What the report shows of samples, of a modality from outside the package.

        As mmtok.report.report.SECTIONS: a function of the run and of prompt -> samples. None: texts
        are shown as texts, and of other samples the files are named.
        """
        return None

    def signal_files(self) -> SignalFiles | None:
        """The files of signals, of a modality from outside the package.

        As mmtok.sources.signal_files.SIGNAL_FILES: what `mmtok tokenize` reads, and `detokenize`
        and `sample` write. None: `tokenize` and `detokenize` refuse the modality, and samples are
        written as .txt (strings) or .npy (arrays).
        """
        return None


class EncodingCount(Protocol):
    """What a tokenizer clipped or cut, counted; mergeable."""

    def as_plain(self) -> Mapping[str, Any]:
        """The counts as JSON values."""

    def merge_plain(self, plain: Mapping[str, Any]) -> None:
        """Add counts that `as_plain` gave, of signals that come after these."""

    def refuse(self) -> None:
        """Raise UserError where too much was clipped."""

    def report(self) -> None:
        """Warn of what was clipped and cut. Raises UserError where it is too much."""


class Tokenizer(ABC):
    """Turns one raw signal into one `Segment` and back.

    `encode` and `decode` are inverses, or the class states its error in units.
    """

    config: Any  # a TokenizerConfig
    config_type: ClassVar[type]
    signature: Signature
    # several lists of codes decode to one signal, so p of one of them is a bound of p(signal)
    is_ambiguous: ClassVar[bool] = False
    # why a signal may have very many frames, and what makes fewer; "" where none has
    fewer_frames: ClassVar[str] = ""
    # `pictures` shows segments, so that states between noise and a sample can be seen
    has_pictures: ClassVar[bool] = False

    def __init__(self, config: Any):
        self.config = config

    @abstractmethod
    def encode(self, signal: Any) -> Segment:
        """One signal -> one segment.

        Raises UserError when the signal is not one of this modality.
        """

    @abstractmethod
    def decode(self, segment: Segment) -> Any:
        """One segment -> one signal.

        A sampled segment has an empty `info`; decode then takes defaults.
        """

    def encode_batch(self, signals: Sequence[Any]) -> list[Segment]:
        """Equal to the single calls; a class may be faster."""
        return [self.encode(signal) for signal in signals]

    def decode_batch(self, segments: Sequence[Segment]) -> list[Any]:
        """Equal to the single calls; a class may be faster."""
        return [self.decode(segment) for segment in segments]

    def pictures(self, segments: Sequence[Segment]) -> list[np.ndarray]:
        """Segments as uint8 pictures (Y, X) or (Y, X, 3), where the class `has_pictures`."""
        raise TypeError(f"{type(self).__name__} has no pictures of segments")

    def save(self, folder: Path) -> None:
        """Write all that `load` needs into `folder` (made if missing).

        As it stands, that is the config.
        """
        write_config(Path(folder), type(self).__name__, asdict(self.config))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Open what `save` wrote; the same signature, the same codes.

        Raises UserError for a folder of another class, or a damaged one.
        """
        return cls(load_config(folder, cls.__name__, cls.config_type))

    def fidelity(self, signals: Sequence[Any]) -> dict[str, float]:
        """Figures of the round trip of these signals, by name."""
        return {}

    def n_units(self, segment: Segment) -> int:
        """How many of the customary unit a segment has: bytes of a text, particles of a jet.

        By default the values of discrete latents, else frames.
        """
        if segment.latents is not None and self.signature.cells:
            return segment.latents.size
        return len(segment)

    def remarks(self) -> list[str]:
        """What a user should know of this very tokenizer, in lines."""
        return []

    def counting(self, quiet: bool = False) -> AbstractContextManager[EncodingCount | None]:
        """Within it, what encoding clips or cuts is reported once at the end; `quiet`: never.

        It gives the count, so that those of several processes can be merged; None: nothing is
        counted.
        """
        return nullcontext()


class BatchTokenizer(Tokenizer):
    """A tokenizer that is written for batches; its single calls are batches of one."""

    def encode(self, signal: Any) -> Segment:
        """One signal -> one segment; see `encode_batch`."""
        return self.encode_batch([signal])[0]

    def decode(self, segment: Segment) -> Any:
        """One segment -> one signal; see `decode_batch`."""
        return self.decode_batch([segment])[0]

    @abstractmethod
    def encode_batch(self, signals: Sequence[Any]) -> list[Segment]:
        """Signals -> segments."""

    @abstractmethod
    def decode_batch(self, segments: Sequence[Segment]) -> list[Any]:
        """Segments -> signals."""


@contextmanager
def counting(tokenizers: Iterable[Tokenizer], quiet: bool = False) -> Iterator[None]:
    """`Tokenizer.counting` of several tokenizers at once."""
    with ExitStack() as stack:
        for tokenizer in dict.fromkeys(tokenizers):
            stack.enter_context(tokenizer.counting(quiet))
        yield


# ---- a tokenizer's folder


@contextmanager
def naming(folder: Path) -> Iterator[None]:
    """A UserError from within begins with the folder, unless it names it already."""
    try:
        yield
    except UserError as error:
        if str(folder) in str(error):
            raise
        raise UserError(f"{folder}: {error}") from None


def fingerprint(kind: str, config: dict, *arrays: bytes) -> str:
    """Twelve hex digits that change whenever codes of this tokenizer could mean something else.

    Args:
        kind: the tokenizer's class name.
        config: its settings, as JSON values.
        arrays: what it has learned, as bytes.
    """
    digest = hashlib.sha256(json.dumps([kind, config], sort_keys=True).encode())
    for array in arrays:
        digest.update(hashlib.sha256(array).digest())
    return digest.hexdigest()[:12]


def write_config(folder: Path, kind: str, config: dict) -> None:
    """Write FOLDER/tokenizer.json, the readable file that every tokenizer folder has.

    It marks the folder as a tokenizer's, so it is written last.
    """
    write_text(folder / "tokenizer.json", json.dumps({"kind": kind, **config}, indent=2) + "\n")


def is_published(folder: Path) -> bool:
    """Whether FOLDER/tokenizer.json is a language model's, of the package `tokenizers`."""
    try:
        found = read_json(folder / "tokenizer.json")
    except (OSError, UserError):
        return False
    return isinstance(found, dict) and "kind" not in found and isinstance(found.get("model"), dict)


def codec_family(folder: Path) -> str | None:
    """Which of `CODECS` the config.json of a model's folder names; None: none, or no file."""
    try:
        found = read_json(folder / "config.json", nan=True)
    except (OSError, UserError):
        return None
    kind = found.get("model_type") if isinstance(found, dict) else None
    return kind if isinstance(kind, str) and kind in CODECS else None


def is_codec(folder: Path) -> bool:
    """Whether a folder is a published codec's, and not one that a tokenizer was saved in."""
    return not (folder / "tokenizer.json").exists() and codec_family(folder) is not None


def image_model_folder(folder: Path) -> Path:
    """The folder itself, or the autoencoder's inside a whole pipeline of `diffusers`."""
    if not (folder / "config.json").is_file() and (folder / "vae" / "config.json").is_file():
        return folder / "vae"
    return folder


def image_model_kind(folder: Path) -> str:
    """The kind that a folder's config.json names; "": none, or there is no such file."""
    try:
        found = read_json(image_model_folder(folder) / "config.json", nan=True)
    except (OSError, UserError):
        return ""
    if not isinstance(found, dict):
        return ""
    for name in ("model_type", "_class_name"):
        if isinstance(found.get(name), str):
            return str(found[name])
    return ""


def is_image_model(folder: Path) -> bool:
    """Whether a folder is that of a published image tokenizer, as its config.json says."""
    own = (*JANUS, *EMU3, *CHAMELEON, KL)
    return not (folder / "tokenizer.json").exists() and image_model_kind(folder) in own


def read_config(folder: Path, kind: str | None = None) -> dict:
    """Read FOLDER/tokenizer.json.

    kind: the class that it must be of; the field is then left out.
    """
    path = Path(folder) / "tokenizer.json"
    try:
        config = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{folder} is not a tokenizer folder: it has no tokenizer.json; name one that was"
            " fitted (RUN/tokenizers/text), or of text also a sentencepiece .model file or a"
            " checkpoint's folder with its tokenizer.json, or of speech a preset (dmel-40hz) or a"
            " codec's folder"
        ) from None
    check_known(config, {"kind": str}, str(path), ("kind",))
    if kind is not None and config.get("kind") != kind:
        raise UserError(
            f"{path} describes a {shown(config['kind'])} tokenizer, expected {kind!r}: put back"
            " what was fitted there, or remove the folder and fit again"
        )
    if kind is not None:
        del config["kind"]
    return config


def load_config(folder: Path, kind: str, config_type: type[T]) -> T:
    """The settings in FOLDER/tokenizer.json of a tokenizer of class `kind`.

    Raises UserError, naming the field, for what they cannot be.
    """
    return json_as(read_config(folder, kind), config_type, Path(folder) / "tokenizer.json")


# ---- checks of segments


def checked_codes(segment: Segment, signature: Signature) -> np.ndarray:
    """The codes (T, C) of a segment.

    Raises UserError when they are not codes of this signature's number of channels and range.
    """
    m = segment.modality
    codes = segment.codes
    levels = signature.levels
    if codes is None or codes.shape[1] != len(levels):
        raise UserError(
            f"{m}: expected codes of shape (T, {len(levels)}), got {_kind(segment)} of shape"
            f" {segment.values.shape}"
        )
    if not len(codes):
        return codes
    least = codes.min(0)
    most = codes.max(0)
    wrong = np.flatnonzero((least < 0) | (most >= signature.sizes))
    if len(wrong):
        c = wrong[0]
        which = f" of channel {c}" if len(levels) > 1 else ""
        raise UserError(
            f"{m}: codes{which} run from {least[c]} to {most[c]}, this tokenizer has 0 to"
            f" {levels[c] - 1}"
        )
    return codes


def checked_latents(segment: Segment, signature: Signature) -> np.ndarray:
    """The latents (T, D) of a segment.

    Raises UserError when they do not have this signature's shape, or are NaN or infinite.
    """
    m = segment.modality
    latents = segment.latents
    n_frames = signature.frames
    if latents is None or latents.shape != (n_frames or len(segment), signature.latent_size):
        raise UserError(
            f"{m}: expected latents of shape ({n_frames or 'T'}, {signature.latent_size}), got"
            f" {_kind(segment)} of shape {segment.values.shape}"
        )
    finite = np.isfinite(latents).all(1)
    if not finite.all():
        raise UserError(f"{m}: frame {np.argmin(finite)} has latents that are NaN or infinite")
    return latents


def _kind(segment: Segment) -> str:
    if segment.codes is None:
        return "latents"
    return "codes"


# ---- what networks have learned


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """All that a network has learned, as float32: what a tokenizer saves."""
    return {name: value.float().contiguous() for name, value in network.state_dict().items()}


def learned(network: nn.Module) -> list[bytes]:
    """`weights_of` as bytes, ordered by name: what `fingerprint` takes."""
    return [value.numpy().tobytes() for _, value in sorted(weights_of(network).items())]


def write_learned(folder: Path, kind: str, config: dict, network: nn.Module) -> None:
    """Write FOLDER/weights.safetensors and tokenizer.json."""
    write_tensors(folder / "weights.safetensors", weights_of(network))
    write_config(folder, kind, config)


def with_weights(folder: Path, make: Callable[[], N]) -> N:
    """The network that `make` makes, with the weights in FOLDER/weights.safetensors.

    Sizes are compared before memory is taken for the network. Raises UserError when the file is
    missing, broken or of other sizes.
    """
    import torch

    path = Path(folder) / "weights.safetensors"
    tensors = read_tensors(path)
    with torch.device("meta"):
        asked = {name: tuple(value.shape) for name, value in make().state_dict().items()}
    for name in sorted(asked.keys() | tensors.keys()):
        found = tuple(tensors[name].shape) if name in tensors else "nothing"
        if found != asked.get(name):
            raise UserError(
                f"{path} cannot be opened as this tokenizer's weights: {name} is {found}, and"
                f" tokenizer.json asks for {asked.get(name, 'no such weights')}"
            )
    with torch.random.fork_rng(devices=()):  # what is drawn elsewhere must not change by it
        network = make()
    network.load_state_dict(tensors)
    return network


def spreads(segments: Sequence[Segment]) -> dict[str, float]:
    """The smallest and the largest standard deviation among the D latents, over all frames."""
    spread = np.concatenate([segment.values for segment in segments]).std(0, dtype=np.float64)
    return {"spread_least": float(spread.min()), "spread_most": float(spread.max())}


def encode_named(tokenizer: Tokenizer, batch: Sequence[tuple[object, Any]]) -> list[Segment]:
    """The segments of signals that come as (name of the file or row, signal).

    Raises UserError, beginning with the name of the first signal that the tokenizer refuses.
    """
    try:
        return tokenizer.encode_batch([signal for _, signal in batch])
    except UserError:
        for name, signal in batch:  # one by one, to name the first that is refused
            try:
                tokenizer.encode(signal)
            except UserError as error:
                raise UserError(f"{name}: {error}") from None
        raise
