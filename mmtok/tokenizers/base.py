"""The contract of a tokenizer: five verbs and a folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import numpy as np

from mmtok.core.segment import Segment, Signature
from mmtok.errors import UserError
from mmtok.io.files import read_tensors, write_tensors, write_text
from mmtok.io.messages import shown
from mmtok.io.serialize import check_known, json_as
from mmtok.io.strict_json import read_json

if TYPE_CHECKING:
    from torch import Tensor, nn

    N = TypeVar("N", bound=nn.Module)

T = TypeVar("T")


class Tokenizer(Protocol):
    """Turns one raw signal into one `Segment` and back.

    `encode` and `decode` are inverses, or the class states its error in units. What is learned in
    closed form (text pieces, bin ranges) has `fit(signals)`; what needs gradients is trained by
    train/fit_tokenizer.py.

    Its config may have `takes`, the signals that it takes ({"rate_hz": 16000}; {"height": 8, ...}):
    raw signals are prepared to be such (mmtok.data.preparation), and nothing else says their rate or
    size.
    """

    signature: Signature

    def encode(self, signal: Any) -> Segment:
        """One signal -> one segment.

        Raises UserError when the signal is not one of this modality.
        """

    def decode(self, segment: Segment) -> Any:
        """One segment -> one signal.

        A sampled segment has an empty `info`: decode then takes defaults.
        """

    def encode_batch(self, signals: Sequence[Any]) -> list[Segment]:
        """Equal to the single calls, and faster."""

    def decode_batch(self, segments: Sequence[Segment]) -> list[Any]:
        """Equal to the single calls, and faster."""

    def save(self, folder: Path) -> None:
        """Write everything that `load` needs into `folder` (made if missing)."""

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Open what `save` wrote; same signature, same codes."""


class Batched:
    """A tokenizer whose single calls are batches of one."""

    def encode(self, signal: Any) -> Segment:
        """One signal -> one segment; see `encode_batch`."""
        return self.encode_batch([signal])[0]

    def decode(self, segment: Segment) -> Any:
        """One segment -> one signal; see `decode_batch`."""
        return self.decode_batch([segment])[0]


@contextmanager
def counting(tokenizers: Iterable[Any], quiet: bool = False) -> Iterator[None]:
    """What encoding has to say of signals (how many were clipped, or cut) is said once for all
    calls inside, or `quiet` not at all: of signals of which it was said before. Tokenizers with
    something to say have a method `counting`.
    """
    with ExitStack() as stack:
        for tokenizer in dict.fromkeys(tokenizers):
            if hasattr(tokenizer, "counting"):
                stack.enter_context(tokenizer.counting(quiet))
        yield


def fingerprint(kind: str, config: dict, *arrays: bytes) -> str:
    """Twelve hex digits that change whenever codes of this tokenizer could mean something else.

    kind: the tokenizer's class name; config: its JSON-able settings; arrays: what it has learned,
    as bytes.
    """
    digest = hashlib.sha256(json.dumps([kind, config], sort_keys=True).encode())
    for array in arrays:
        digest.update(hashlib.sha256(array).digest())
    return digest.hexdigest()[:12]


def write_config(folder: Path, kind: str, config: dict) -> None:
    """Write FOLDER/tokenizer.json, the human-readable part that every tokenizer folder has: last,
    as it says that the folder is one.
    """
    write_text(folder / "tokenizer.json", json.dumps({"kind": kind, **config}, indent=2) + "\n")


def is_published(folder: Path) -> bool:
    """Whether FOLDER/tokenizer.json is one of the package `tokenizers`, as published language
    models have it.
    """
    try:
        found = read_json(folder / "tokenizer.json")
    except (OSError, UserError):
        return False
    return isinstance(found, dict) and "kind" not in found and isinstance(found.get("model"), dict)


def read_config(folder: Path, kind: str | None = None) -> dict:
    """Read FOLDER/tokenizer.json; with `kind`, refuse another class's folder, and drop the field."""
    path = Path(folder) / "tokenizer.json"
    try:
        config = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{folder} is not a tokenizer folder: it has no tokenizer.json; name one that was"
            " fitted (RUN/tokenizers/text), or of text also a sentencepiece .model file or a"
            " checkpoint's folder with its tokenizer.json"
        ) from None
    check_known(config, {"kind": str}, str(path), ("kind",))
    if kind is not None and config.get("kind") != kind:
        raise UserError(f"{path} describes a {shown(config['kind'])} tokenizer, expected {kind!r}")
    return config if kind is None else {k: v for k, v in config.items() if k != "kind"}


def load_config(folder: Path, kind: str, config_type: type[T]) -> T:
    """The settings in FOLDER/tokenizer.json of a tokenizer of class `kind`.

    Raises UserError, naming the field, for what they cannot be.
    """
    return json_as(read_config(folder, kind), config_type, Path(folder) / "tokenizer.json")


def checked_latents(segment: Segment, latent_size: int, n_frames: int | None = None) -> np.ndarray:
    """The latents (T, D) of a segment.

    Raises UserError when they have another shape (n_frames None: any T), or are no numbers.
    """
    latents, shape = segment.latents, (n_frames or len(segment), latent_size)
    if latents is None or latents.shape != shape:
        raise UserError(
            f"{segment.modality}: expected latents of shape ({n_frames or 'T'}, {latent_size}), got"
            f" {'codes' if latents is None else 'latents'} of shape {segment.values.shape}"
        )
    if not np.isfinite(latents).all():
        raise UserError(
            f"{segment.modality}: frame {int(np.argmin(np.isfinite(latents).all(1)))} has latents"
            " that are NaN or infinite"
        )
    return latents


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """Everything that a network has learned, as float32: what a tokenizer saves, and its
    fingerprint is of.
    """
    return {name: value.float().contiguous() for name, value in network.state_dict().items()}


def learned(network: nn.Module) -> list[bytes]:
    """The same as bytes, ordered by name: what `fingerprint` takes."""
    return [value.numpy().tobytes() for _, value in sorted(weights_of(network).items())]


def write_learned(folder: Path, kind: str, config: dict, network: nn.Module) -> None:
    """Write FOLDER/weights.safetensors, then what `write_config` does."""
    write_tensors(folder / "weights.safetensors", weights_of(network))
    write_config(folder, kind, config)


def with_weights(folder: Path, make: Callable[[], N]) -> N:
    """The network that `make` makes, filled from FOLDER/weights.safetensors.

    Sizes are compared before there is memory for the network. Raises UserError when the file is
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
    network = make()
    network.load_state_dict(tensors)
    return network


def spreads(segments: Sequence[Segment]) -> dict[str, float]:
    """`spread_least` and `spread_most`: of the D latents of all frames, the standard deviations of
    the least and the most spread one.
    """
    spread = np.concatenate([segment.latents for segment in segments]).std(0, dtype=np.float64)
    return {"spread_least": float(spread.min()), "spread_most": float(spread.max())}


def encode_named(tokenizer: Tokenizer, batch: Sequence[tuple[object, Any]]) -> list[Segment]:
    """The segments of signals that come with the names of their files or rows.

    Raises UserError, beginning with the name of the first signal that the tokenizer refuses.
    """
    try:
        return tokenizer.encode_batch([signal for _, signal in batch])
    except UserError:
        for name, signal in batch:  # one by one, to name the one that is to blame
            try:
                tokenizer.encode(signal)
            except UserError as error:
                raise UserError(f"{name}: {error}") from None
        raise
