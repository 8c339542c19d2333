"""Screening of a user's files before the long work: what is broken, too short or too long.

A source looks at the header of each of its files. A few broken ones are skipped and counted; more
stop the run, by name. A file that looked well and cannot be read later is treated likewise.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Generic, TypeVar

from mmtok.errors import UserError
from mmtok.io.progress import track
from mmtok.io.remembered import Remembered
from mmtok.io.tally import Tally
from mmtok.sources.base import CHUNK, Chunk, Items, Listing, Source, Unusable, batched_lists

T = TypeVar("T")
R = TypeVar("R")
Sizes = Mapping[str, float]  # unit, or field -> size
WORDS = {"duration_s": "seconds", "chars": "characters"}  # of units, in messages
N_NAMED = 10  # broken items that an error names
SHOW_PROGRESS_FROM = 1_000  # items


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """What to do with unusable items.

    Attributes:
        on_error: skip: pass over what cannot be read, count it, and stop where it is more than
            `max_error_share`; raise: stop at the first.
        max_error_share: that share of all files (or rows, or jets).
        max_leak_share: the share of the held-out examples whose content may be in training too.
    """

    on_error: str = "skip"
    max_error_share: float = 0.01
    max_leak_share: float = 0.01

    def __post_init__(self) -> None:
        if self.on_error not in ("skip", "raise"):
            raise UserError(
                f"{type(self).__name__}: on_error is {self.on_error!r}; it is skip or raise"
            )
        for name in ("max_error_share", "max_leak_share"):
            share = getattr(self, name)
            if not 0 <= share <= 1:
                raise UserError(
                    f"{type(self).__name__}: {name} is {share}; it is a share, from 0 to 1"
                )


@dataclass(frozen=True, kw_only=True)
class ScreenedSource(Tolerance, Source):
    """A source of a user's files, some of which may be unusable. It gives `listing`."""

    def examples(self, split: str, cache: Path | None = None) -> Iterator[dict[str, Any]]:
        """The examples of a split, read one after another.

        Raises UserError where more than `max_error_share` cannot be read.
        """
        self.check_split(split)
        yield from self.listing(split, cache).examples()


@dataclass(frozen=True)
class Limit:
    """The range of sizes that a source uses.

    Attributes:
        unit: as the settings call it, min_UNIT and max_UNIT: duration_s, chars, pixels, particles.
        least: the smallest size.
        most: the largest size; 0: any.
        of: the field whose size it is, where examples have several.
    """

    unit: str
    least: float = 0
    most: float = 0
    of: str = ""

    def __post_init__(self) -> None:
        are_finite = 0 <= self.least < math.inf and 0 <= self.most < math.inf
        if not are_finite or 0 < self.most < self.least:
            raise UserError(
                f"min_{self.unit} is {self.least:g} and max_{self.unit} {self.most:g}; the greatest"
                " must be at least the least, or 0 for none, and neither negative"
            )

    @property
    def key(self) -> str:
        """Where an item's sizes hold this one."""
        return self.of or self.unit

    def violation(self, size: float) -> str:
        """What is reported of a size outside the range; "" of one within."""
        what = WORDS.get(self.unit, self.unit)
        if self.of:
            what += f" of {self.of}"
        if size < self.least:
            return f"left out: fewer {what} than {self.least:g}"
        if 0 < self.most < size:
            return f"left out: more {what} than {self.most:g}"
        return ""


class Broken:
    """The unusable ones of n items: skipped while they are few, else an error names the first ten.

    remedy: what the error says to do; "": to mend them, or to set another share.

    Raises UserError for the first one under `on_error="raise"`.
    """

    def __init__(self, n: int, unit: str, tolerance: Tolerance, remedy: str = "") -> None:
        self.n = n
        self.remedy = remedy
        self.unit = unit
        self.tolerance = tolerance
        self.errors: dict[tuple[str, str], UserError] = {}  # by name, and by what is wrong
        self.tally = Tally(unit)  # of those that are met while reading

    def add(self, name: str, error: UserError, tally: Tally) -> None:
        """Count one more."""
        if self.tolerance.on_error == "raise":
            raise error
        self.errors[name, str(error)] = error
        tally.add("passed over as unusable", error)

    def meet(self, unusable: Unusable) -> None:
        """Count one more, met while reading. Raises UserError where they are too many now."""
        self.add(unusable.name, UserError(unusable.error), self.tally)
        self.stop_if_many()

    def report(self) -> None:
        """Say how many were met while reading, once."""
        self.tally.total = self.n
        self.tally.report()

    def stop_if_many(self) -> None:
        """Raise UserError when they are more than the share that may be skipped."""
        share = self.tolerance.max_error_share
        names = [name for name, _ in self.errors]
        if len(names) <= share * self.n:
            return
        first = next(iter(self.errors.values()))
        if self.n == 1:
            raise first
        others = ""
        if len(names) > 1:
            others += f"; likewise {', '.join(names[1:N_NAMED])}"
        if len(names) > N_NAMED:
            others += f" and {len(names) - N_NAMED:,} more"
        passed_over = ""
        remedy = self.remedy or "mend or remove them"
        if share:
            passed_over = f", and at most {share:.3g} of all are passed over"
            if not self.remedy:
                remedy += ", or set max_error_share"
        raise UserError(
            f"{first}{others}: {len(names):,} of {self.n:,} {self.unit} cannot be"
            f" used{passed_over}; {remedy}"
        )


class Screen(Generic[T]):
    """The usable ones of `items`, in their order.

    Attributes:
        items: those.
        lost: the others, each with the reason.
        look: gives the sizes of an item, found quickly (from a file's header); raises UserError for
            a broken one.
        tolerance: what to do with broken ones.
        unit: what items are called, in the plural.
        limits: of the sizes; items outside are left out and counted.
        name: gives the name of an item, in messages.
        remedy: of `Broken`.

    Raises UserError as `Broken` does, and where no item is left.
    """

    def __init__(
        self,
        items: Sequence[T],
        look: Callable[[T], Sizes],
        tolerance: Tolerance,
        unit: str,
        limits: Sequence[Limit] = (),
        name: Callable[[T], str] = str,
        remedy: str = "",
    ) -> None:
        self._name = name
        self._broken = Broken(len(items), unit, tolerance, remedy)
        self.items: list[T] = []
        self.lost: list[tuple[T, str]] = []
        tally = Tally(unit)
        looked_at: Iterable[T] = items
        if len(items) >= SHOW_PROGRESS_FROM:
            looked_at = track(items, f"checking {unit}", unit)
        for item in looked_at:
            tally.count()
            try:
                sizes = look(item)
            except UserError as error:
                self._broken.add(name(item), error, tally)
                self.lost.append((item, str(error)))
                continue
            violation = violation_of(sizes, limits)
            if violation:
                tally.add(violation, name(item))
                self.lost.append((item, f"{name(item)} was {violation}"))
            else:
                self.items.append(item)
        self._broken.stop_if_many()
        tally.report()
        if len(items) and not self.items:
            raise UserError(
                f"none of {len(items):,} {unit} is left, such as {name(items[0])}; widen the limits"
            )

    def listing(
        self,
        items: Sequence[Any],
        reader: Callable[[Any], dict[str, Any]],
        name: Callable[[Any], str] = str,
        file: Callable[[Any], str | Path] | None = None,
    ) -> Listing:
        """Some of the items, or what stands for them, as chunks; see `Items`.

        Those that looked well and cannot be read are skipped too, and count with the broken ones.
        """
        chunks = (Items(part, reader, name, file) for part in batched_lists(items, CHUNK))
        return self.listing_of(chunks, len(items))

    def listing_of(self, chunks: Iterable[Chunk], n: int | None = None) -> Listing:
        """Chunks of about n of the items; what they cannot read counts with the broken ones."""
        return Listing(chunks, copy.deepcopy(self._broken), n)


def looks_once(look: Callable[[Path], R]) -> Callable[[Path], R]:
    """Cache a function of a file, and its UserErrors, while the file does not change.

    A missing or empty file is refused without a look.
    """
    remembered: Remembered[R | str] = Remembered(1_000_000)

    @wraps(look)
    def of_file(path: Path) -> R:
        def found_in() -> R | str:
            if not path.stat().st_size:
                return f"{path}: the file is empty"
            try:
                return look(path)
            except UserError as error:
                return str(error)

        if not path.is_file():
            raise UserError(f"{path}: no such file")
        found = remembered(path, found_in)
        if isinstance(found, str):
            raise UserError(found)
        return found

    return of_file


def violation_of(sizes: Sizes, limits: Sequence[Limit]) -> str:
    """The first violation of the limits; "" for none."""
    for limit in limits:
        violation = limit.violation(sizes[limit.key]) if limit.key in sizes else ""
        if violation:
            return violation
    return ""
