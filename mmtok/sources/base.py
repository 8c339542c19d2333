"""The contract of a source: where examples come from."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from mmtok.errors import UserError

CHUNK = 256  # examples that are read and encoded at once


class Example(dict[str, Any]):
    """An example that knows where it came from.

    Attributes:
        name: the file or row, as messages call it.
        voice: who speaks in it; "" where that is unknown.
    """

    def __init__(self, fields: Mapping[str, Any], name: object, voice: str = "") -> None:
        super().__init__(fields)
        self.name = str(name)
        self.voice = voice


@dataclass(frozen=True, eq=False)
class Picture:
    """A raw picture, before it is prepared for a tokenizer.

    Attributes:
        pixels: uint8: (Y, X) grey, (Y, X, 2) grey with opacity, (Y, X, 3) RGB, (Y, X, 4) RGB with
            opacity.
        name: as messages call it.
        done: what its reader had to do to it, as a `Tally` reports it.
    """

    pixels: np.ndarray
    name: str = ""
    done: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Altered:
    """A raw picture that is changed once it has the size and the colours of its tokenizer.

    So pixels are those that the model sees, however large the picture is in its file.

    Attributes:
        picture: as its source gives it.
        change: a function of uint8 pixels (Y, X) or (Y, X, 3), which keeps their shape.
    """

    picture: Picture | np.ndarray
    change: Callable[[np.ndarray], np.ndarray]

    @property
    def name(self) -> str:
        """The picture's."""
        return getattr(self.picture, "name", "")


@dataclass(frozen=True, eq=False)
class Sound:
    """A raw clip, before it is prepared for a tokenizer.

    Attributes:
        samples: floats (N,) or (N, channels) within [-1, 1].
        rate_hz: samples per second.
        name: as messages call it.
    """

    samples: np.ndarray
    rate_hz: int
    name: str = ""


@dataclass(frozen=True, eq=False)
class Part:
    """One signal of an interleaved document.

    Attributes:
        modality: of the signal.
        signal: raw, as the field of an example would have it.
        predict: whether it carries loss; else it is only read.
    """

    modality: str
    signal: Any
    predict: bool = True


@dataclass(frozen=True, eq=False)
class Interleaved:
    """A document of signals of any modalities in any order: a field of modality "interleaved"."""

    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Unusable:
    """What a chunk gives in place of an example that cannot be read."""

    name: str
    error: str


class Chunk(Protocol):
    """Some examples of a split, not read yet: small, and picklable, so any process can read it.

    It may have `files`, the paths that it reads: what was made of it is made anew where they have
    changed meanwhile.
    """

    def read(self) -> Iterator[dict[str, Any] | Unusable]:
        """The examples, always the same ones in the same order."""


@dataclass(frozen=True)
class Made:
    """A chunk of examples that are in memory; what could not be read may be among them."""

    made: Sequence[dict[str, Any] | Unusable]

    def read(self) -> Iterator[dict[str, Any] | Unusable]:
        """The examples themselves."""
        return iter(self.made)


@dataclass(frozen=True)
class Items:
    """A chunk of items, such as paths, each of which is read by itself.

    All are picklable, so no lambda and no inner function. `reader` makes the example of an item,
    and raises UserError for one that cannot be read; `name` gives its name, in messages; `file`
    gives the file that it is read from.
    """

    items: Sequence[Any]
    reader: Callable[[Any], dict[str, Any]]
    name: Callable[[Any], str] = str
    file: Callable[[Any], str | Path] | None = None

    @property
    def files(self) -> tuple[str | Path, ...]:
        """The files of its items."""
        if self.file is None:
            return ()
        return tuple(dict.fromkeys(map(self.file, self.items)))

    def read(self) -> Iterator[dict[str, Any] | Unusable]:
        """The items' examples."""
        for item in self.items:
            try:
                yield self.reader(item)
            except UserError as error:
                yield Unusable(self.name(item), str(error))


class Faults(Protocol):
    """Counts unusable items, and stops where they are too many; see `screen.Broken`."""

    def meet(self, unusable: Unusable) -> None:
        """Count one more. Raises UserError where they are too many now."""

    def report(self) -> None:
        """Say how many were met, once."""


@dataclass
class Listing:
    """The examples of a split, listed but not read: what is needed to read them anywhere.

    Attributes:
        chunks: in order; their sizes do not depend on the machine.
        faults: counts what the chunks cannot read; None where that cannot be.
        n: the number of examples, or a little more where some turn out unusable; None: unknown.
    """

    chunks: Iterable[Chunk]
    faults: Faults | None = None
    n: int | None = None
    _unusable: Unusable | None = field(default=None, init=False, repr=False)  # the first

    def examples(self) -> Iterator[dict[str, Any]]:
        """The usable examples, read here, one after another."""
        n_usable = 0
        read = chain.from_iterable(chunk.read() for chunk in self.chunks)
        for example in self.usable(read):
            n_usable += 1
            yield example
        self.report(n_usable)

    def usable(self, read: Iterable[dict[str, Any] | Unusable]) -> Iterator[dict[str, Any]]:
        """What chunks gave, without what is unusable, which is counted.

        Raises UserError where that is too much.
        """
        for found in read:
            if not isinstance(found, Unusable):
                yield found
            elif self.faults is None:
                raise UserError(found.error)
            else:
                self._unusable = self._unusable or found
                self.faults.meet(found)

    def report(self, n_usable: int) -> None:
        """Say, once, how much was unusable, and where nothing is left beside it."""
        if self.faults is not None:
            self.faults.report()
        if self._unusable is not None and not n_usable:
            warnings.warn(
                f"{self._unusable.error}: all of its split is unusable, so the split is empty; mend"
                " it, or give more",
                stacklevel=2,
            )


class Source(ABC):
    """Where examples come from.

    A source is a frozen dataclass whose fields are its settings. It gives `fields` and `examples`;
    the rest has defaults. A source of many files gives `listing` too, so that several processes can
    read it, and has `examples` from that.
    """

    @property
    @abstractmethod
    def fields(self) -> Mapping[str, str]:
        """The fields of its examples: name -> modality."""

    @property
    def gives(self) -> Mapping[str, Mapping[str, Sequence[str]]]:
        """What its signals are like, as far as its settings say: modality -> setting -> values.

        As the config of a tokenizer says what they must be like (`takes`): {"jets": {"features":
        ("pt_gev", "eta_rel", "phi_rel")}}.
        """
        return {}

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of its splits, "train" and "heldout" among them; no example is in two."""
        return ("train", "heldout")

    @abstractmethod
    def examples(self, split: str, cache: Path) -> Iterator[dict[str, Any]]:
        """The examples of a split, field -> signal; always the same ones in the same order.

        An example may lack fields, and may be an `Example`, which says where it came from.

        cache: a folder (made if missing) for what is slow to make.

        Raises UserError for a split that it does not have (see `check_split`).
        """

    def listing(self, split: str, cache: Path | None = None) -> Listing:
        """The same examples as chunks, which several processes can read.

        By default they are read here, and only what follows can be shared.
        """
        cache = cache or Path()
        chunks = (Made(made) for made in batched_lists(self.examples(split, cache), CHUNK))
        return Listing(chunks, n=self.count(split, cache))

    # not abstract: a source that makes its examples has no files
    def check(self) -> None:  # noqa: B027
        """Raise UserError where its files are not there; called before a run folder is made."""

    def count(self, split: str, cache: Path) -> int | None:
        """The number of examples of a split where it is known without making them, else None."""
        return None

    def clean(self) -> Self:
        """The same source without augmentation; itself where it does not augment."""
        return self

    def voices(self, split: str, cache: Path) -> Sequence[str] | None:
        """The voice of each example of a split, in their order; None where they are unknown."""
        return None

    def reading(self, modality: str, path: Path) -> Mapping[str, Any]:
        """How another file is read as this source's files are: see `SignalFiles.options`."""
        return {}

    def description(self, cache: Path | None = None) -> str:
        """What `mmtok show` adds to the names of its fields, such as versions; "" for nothing."""
        return ""

    def found(self) -> str:
        """What lies at its path, as `mmtok show` says: the layout, and how much there is.

        By names, tables and first lines alone, without a look into each file; "" for nothing to
        say. Raises UserError for what cannot be read.
        """
        return ""

    def check_split(self, split: str) -> None:
        """Raise UserError for a split that this source does not have."""
        if split not in self.splits:
            raise UserError(
                f"{type(self).__name__} has no split {split!r}; it has {', '.join(self.splits)}"
            )


def batched_lists(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Items in order, in lists of `size`, the last one shorter."""
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch


def check_heldout_share(source: Source, share: float) -> None:
    """Raise UserError unless a source's share of held-out examples is between 0 and 1."""
    if not 0 < share < 1:
        raise UserError(
            f"{type(source).__name__}: heldout_share is {share}; it must be between 0 and 1"
        )


def split_order(n: int, heldout_share: float, seed: int) -> dict[str, np.ndarray]:
    """The indices of n items that are in "train" and in "heldout", at least one of these.

    A permutation by the seed; the held-out ones are its end.
    """
    order = np.random.default_rng(seed).permutation(n)
    n_train = n - max(1, round(n * heldout_share))
    return {"train": order[:n_train], "heldout": order[n_train:]}
