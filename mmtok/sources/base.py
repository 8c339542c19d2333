"""The contract of a source: where examples come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from mmtok.errors import UserError


class Example(dict[str, Any]):
    """An example that knows the file or row it came from: `name`, as messages call it."""

    def __init__(self, fields: Mapping[str, Any], name: object) -> None:
        super().__init__(fields)
        self.name = str(name)


@dataclass(frozen=True, eq=False)
class Picture:
    """A raw picture, before it is prepared for a tokenizer.

    pixels  uint8: (Y, X) grey, (Y, X, 2) grey with opacity, (Y, X, 3) RGB, (Y, X, 4) RGB with
            opacity
    name    as messages call it
    done    what its reader had to do to it, as a `Tally` reports it
    """

    pixels: np.ndarray
    name: str = ""
    done: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Sound:
    """A raw clip, before it is prepared for a tokenizer.

    samples  floats (N,) or (N, channels) within [-1, 1]
    rate_hz  samples per second
    name     as messages call it
    """

    samples: np.ndarray
    rate_hz: int
    name: str = ""


class Source(ABC):
    """Where examples come from.

    A source is a frozen dataclass whose fields are its settings. It gives `fields` and `examples`;
    the rest has defaults.
    """

    @property
    @abstractmethod
    def fields(self) -> Mapping[str, str]:
        """The fields of its examples: name -> modality."""

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

    def description(self, cache: Path | None = None) -> str:
        """What `mmtok show` adds to the names of its fields, such as versions; "" for nothing."""
        return ""

    def check_split(self, split: str) -> None:
        """Raise UserError for a split that this source does not have."""
        if split not in self.splits:
            raise UserError(
                f"{type(self).__name__} has no split {split!r}; it has {', '.join(self.splits)}"
            )


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
