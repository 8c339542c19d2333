"""What cannot be used of many things, found before the long work: broken files, and what is too
short or too long.

A source looks at each of its files (their headers, no more), and again copes when one that looked
well cannot be read after all. A few broken ones are passed over and counted; more stop the run, by
name.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, wraps
from pathlib import Path
from typing import Generic, TypeVar

from mmtok.errors import UserError
from mmtok.io.progress import track
from mmtok.io.tally import Tally

T = TypeVar("T")
R = TypeVar("R")
Sizes = Mapping[str, float]  # unit, or field -> how large a thing is in it
WORDS = {"duration_s": "seconds", "chars": "characters"}
N_NAMED = 10
MANY = 1_000  # from here on looking at them takes long enough to show its progress


@dataclass(frozen=True, kw_only=True)
class Screened:
    """Settings that every source of a user's files has.

    on_error         skip: pass over what cannot be read, count it, and stop where it is more than a
                     share; raise: stop at the first
    max_error_share  that share of all files (or rows, or jets)
    """

    on_error: str = "skip"
    max_error_share: float = 0.01

    def __post_init__(self):
        if self.on_error not in ("skip", "raise"):
            raise UserError(
                f"{type(self).__name__}: on_error is {self.on_error!r}; it is skip or raise"
            )
        if not 0 <= self.max_error_share <= 1:
            raise UserError(
                f"{type(self).__name__}: max_error_share is {self.max_error_share}; it is a share,"
                " from 0 to 1"
            )


@dataclass(frozen=True)
class Limit:
    """How much of a unit a thing may have; most 0: any number.

    unit  as the settings call it, min_UNIT and max_UNIT: duration_s, chars, pixels, particles
    of    the field whose size it is, where a thing has several
    """

    unit: str
    least: float = 0
    most: float = 0
    of: str = ""

    def __post_init__(self):
        if (
            not 0 <= self.least < float("inf")
            or not 0 <= self.most < float("inf")
            or 0 < self.most < self.least
        ):
            raise UserError(
                f"min_{self.unit} is {self.least:g} and max_{self.unit} {self.most:g}; the greatest"
                " must be at least the least, or 0 for none, and neither negative"
            )

    @property
    def _what(self) -> str:
        unit = WORDS.get(self.unit, self.unit)
        return f"{unit} of {self.of}" if self.of else unit

    def broken_by(self, size: float) -> str:
        """What is said of a size out of bounds; "" of one within."""
        if size < self.least:
            return f"left out: fewer {self._what} than {self.least:g}"
        return f"left out: more {self._what} than {self.most:g}" if 0 < self.most < size else ""


class Broken:
    """Things that cannot be used, of n in all: passed over while they are few, else refused with
    the first ten.

    Raises UserError for the first one under `on_error="raise"`.
    """

    def __init__(self, n: int, unit: str, settings: Screened):
        self.n, self.unit, self.settings = n, unit, settings
        self.errors: dict[str, UserError] = {}

    def add(self, name: str, error: UserError, tally: Tally) -> None:
        """One more."""
        if self.settings.on_error == "raise":
            raise error
        self.errors[name] = error
        tally.add("passed over as unusable", error)

    def stop_if_many(self) -> None:
        """Raise UserError when they are more than the share that is passed over."""
        share, names = self.settings.max_error_share, list(self.errors)
        if len(names) <= share * self.n:
            return
        first = self.errors[names[0]]
        if self.n == 1:
            raise first
        others = f"; likewise {', '.join(names[1:N_NAMED])}" if names[1:] else ""
        others += f" and {len(names) - N_NAMED:,} more" if len(names) > N_NAMED else ""
        passed_over = f", and at most {share:.3g} of all are passed over" if share else ""
        remedy = "mend or remove them" + ", or set max_error_share" * bool(share)
        raise UserError(
            f"{first}{others}: {len(names):,} of {self.n:,} {self.unit} cannot be"
            f" used{passed_over}; {remedy}"
        )


class Screen(Generic[T]):
    """The usable ones of `items`, in their order.

    look    the sizes of an item, by unit, found quickly (a file's header); raises UserError for a
            broken one
    unit    what items are called, in the plural
    limits  of the sizes: what is out of bounds is left out and counted
    name    of an item, in messages

    Raises UserError as `Broken` does, and where none is left.
    """

    def __init__(
        self,
        items: Sequence[T],
        look: Callable[[T], Sizes],
        settings: Screened,
        unit: str,
        limits: Sequence[Limit] = (),
        name: Callable[[T], str] = str,
    ):
        self._name, self._broken = name, Broken(len(items), unit, settings)
        self.items: list[T] = []
        tally = Tally(unit)
        for item in track(items, f"checking {unit}", unit) if len(items) >= MANY else items:
            tally.count()
            try:
                sizes = look(item)
            except UserError as error:
                self._broken.add(name(item), error, tally)
                continue
            out = _out_of_bounds(sizes, limits)
            if out:
                tally.add(out, name(item))
            else:
                self.items.append(item)
        self._broken.stop_if_many()
        tally.report()
        if len(items) and not self.items:
            raise UserError(
                f"none of {len(items):,} {unit} is left, such as {name(items[0])}; widen the limits"
            )

    def read(self, items: Sequence[T], read: Callable[[T], R]) -> Iterator[R]:
        """What `read` makes of some of the items, in this pass over them.

        Those that looked well and cannot be read are passed over too, and count with the broken
        ones.
        """
        broken = copy.deepcopy(self._broken)
        tally = Tally(broken.unit)
        for item in items:
            tally.count()
            try:
                made = read(item)
            except UserError as error:
                broken.add(self._name(item), error, tally)
                broken.stop_if_many()
                continue
            yield made
        tally.report()


def remembered(look: Callable[[Path], R]) -> Callable[[Path], R]:
    """A function of a file that looks at each state of a file once; a missing or empty file is
    refused without a look.
    """

    @lru_cache(maxsize=1_000_000)
    def looked(path: Path, size: int, changed_ns: int) -> R | str:
        if not size:
            return f"{path}: the file is empty"
        try:
            return look(path)
        except UserError as error:
            return str(error)

    @wraps(look)
    def of_file(path: Path) -> R:
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        status = path.stat()
        found = looked(path, status.st_size, status.st_mtime_ns)
        if isinstance(found, str):
            raise UserError(found)
        return found

    return of_file


def _out_of_bounds(sizes: Sizes, limits: Sequence[Limit]) -> str:
    said = (
        limit.broken_by(sizes[limit.of or limit.unit])
        for limit in limits
        if (limit.of or limit.unit) in sizes
    )
    return next(filter(None, said), "")
