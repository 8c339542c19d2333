"""Tables that are streamed: rows come one after another, and none of the table stays on disk.

Which rows are held out is decided by a hash of what they hold, so that equal ones are in one split,
wherever and in whichever order they come. Without splits of its own, all of a table passes by for
each of both.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from mmtok.errors import UserError
from mmtok.io.columns import cell_of
from mmtok.io.tally import Tally
from mmtok.sources.base import CHUNK, Chunk, Listing, Unusable
from mmtok.sources.hub_tables import TablePlace
from mmtok.sources.rows import DatasetRows, Rows, hash_of
from mmtok.sources.screen import Broken, Limit, Tolerance, violation_of

T = TypeVar("T")
CHUNK_BYTES = 2**25  # of the rows of a chunk, unless it is one row
FEW = 1_000  # rows after which too many broken ones stop a stream that goes on


class _Table(Protocol):
    """What a `HubTable` says of itself."""

    @property
    def id(self) -> str: ...
    @property
    def columns(self) -> Mapping[str, str]: ...
    @property
    def heldout(self) -> str: ...
    @property
    def heldout_share(self) -> float: ...
    @property
    def seed(self) -> int: ...
    @property
    def limit(self) -> int: ...
    @property
    def shuffle(self) -> int: ...
    @property
    def place(self) -> TablePlace: ...
    @property
    def file_columns(self) -> Sequence[str]: ...
    def own_split(self, split: str) -> str: ...
    def all_limits(self) -> Sequence[Limit]: ...
    def sizes(self, rows: Rows, i: int) -> dict[str, float]: ...
    def example(self, rows: Rows, i: int) -> dict[str, Any]: ...


class Passed:
    """How many rows of a split have passed; copies of it are the same."""

    def __init__(self) -> None:
        self.n = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Passed:
        return self


class StreamFaults(Broken):
    """The unusable rows of those that have passed."""

    def __init__(self, passed: Passed, tolerance: Tolerance) -> None:
        super().__init__(0, "rows", tolerance)
        self.passed = passed

    def meet(self, unusable: Unusable) -> None:
        """Count one more.

        Raises UserError where they are too many now, and too many of a thousand.
        """
        self.n = max(self.passed.n, FEW)
        super().meet(unusable)

    def report(self) -> None:
        """Say how many there were, once. Raises UserError where they are too many of all."""
        self.n = self.passed.n
        self.stop_if_many()
        super().report()


@dataclass(frozen=True)
class StreamChunk:
    """Rows that have come.

    Attributes:
        source: how they are read.
        rows: they alone.
        unusable: those among them that cannot be used.
    """

    source: _Table
    rows: DatasetRows
    unusable: tuple[Unusable, ...] = ()

    def read(self) -> Iterator[dict[str, Any] | Unusable]:
        """Their examples."""
        yield from self.unusable
        for i in range(len(self.rows)):
            try:
                yield self.source.example(self.rows, i)
            except UserError as error:
                yield Unusable(self.rows.where(i), str(error))


def stream_listing(source: _Table, tolerance: Tolerance, split: str, cache: Path) -> Listing | None:
    """The rows of a split; None for a table of text, of which files are there to be read.

    Raises UserError for what cannot be read.
    """
    columns = list(source.columns.values())
    streamed = source.place.stream(source.own_split(split), columns, cache)
    if streamed is None:
        return None
    rows, head, n = streamed
    if not source.heldout:
        n = None  # how many of them a split has, the hash says
    elif n is not None:
        n = min(n, source.limit or n)
    passed = Passed()
    chunks = _chunks(source, split, rows, head, passed)
    return Listing(chunks, StreamFaults(passed, tolerance), n)


def _chunks(
    source: _Table,
    split: str,
    rows: Iterable[Mapping[str, Any]],
    head: DatasetRows,
    passed: Passed,
) -> Iterator[Chunk]:
    with Tally("rows") as tally:
        gathered = _Gathered(source, head)
        wanted = (
            (i, row)
            for i, row in enumerate(rows)
            if source.heldout or is_held_out(source, row) == (split == "heldout")
        )
        for i, row in shuffled(wanted, source.shuffle, source.seed):
            tally.count()
            passed.n += 1
            gathered.add(i, row, tally)
            if gathered.is_full:
                yield gathered.taken()
            if passed.n == source.limit:
                break
        if gathered.n:
            yield gathered.taken()
    if not passed.n:
        raise UserError(
            f"{source.id}, split {source.own_split(split)!r}: of its rows none is for {split}; name"
            " splits of the table (train, heldout), or set heldout_share"
        )


def shuffled(items: Iterable[T], n: int, seed: int) -> Iterator[T]:
    """Items in an order that the seed decides, of which n are in memory; in their own for n = 0.

    Each that comes takes the place of a random one of those at hand, which goes on.
    """
    if not n:
        yield from items
        return
    rng = np.random.default_rng(seed)
    kept: list[T] = []
    for item in items:
        if len(kept) < n:
            kept.append(item)
            continue
        k = int(rng.integers(n))
        yield kept[k]
        kept[k] = item
    for k in rng.permutation(len(kept)):
        yield kept[k]


class _Gathered:
    """The rows of a chunk that is not full yet."""

    def __init__(self, source: _Table, head: DatasetRows) -> None:
        self.source = source
        self.head = head
        self._start()

    def _start(self) -> None:
        self.n = 0
        self.n_bytes = 0
        self.rows: list[Mapping[str, Any]] = []
        self.numbers: list[int] = []
        self.unusable: list[Unusable] = []

    @property
    def is_full(self) -> bool:
        return self.n >= CHUNK or self.n_bytes >= CHUNK_BYTES

    def add(self, number: int, row: Mapping[str, Any], tally: Tally) -> None:
        """Add a row unless it is outside the limits, which is counted."""
        self.n += 1
        one = self.head.of([row], [number])
        try:
            violation = violation_of(self.source.sizes(one, 0), self.source.all_limits())
        except UserError as error:
            self.unusable.append(Unusable(one.where(0), str(error)))
            return
        if violation:
            tally.add(violation, one.where(0))
            return
        self.rows.append(row)
        self.numbers.append(number)
        self.n_bytes += sum(_n_bytes(cell) for cell in row.values())

    def taken(self) -> StreamChunk:
        """The chunk; the next one begins."""
        rows = self.head.of(self.rows, self.numbers)
        chunk = StreamChunk(self.source, rows, tuple(self.unusable))
        self._start()
        return chunk


def is_held_out(source: _Table, row: Mapping[str, Any]) -> bool:
    """Whether a row is in the split "heldout", by what its files hold, or else its texts."""
    columns = source.file_columns or list(source.columns.values())
    digest = hash_of(str(source.seed).encode(), *(_key(cell_of(row, name)) for name in columns))
    return digest < source.heldout_share * 2**64


def _key(cell: Any) -> bytes:
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or cell.get("path") or sorted(cell.items())
    if isinstance(cell, io.BytesIO):
        cell = cell.getvalue()
    if isinstance(cell, bytes):
        return cell
    return repr(cell).encode("utf-8", "surrogatepass")


def _n_bytes(cell: Any) -> int:
    """About how much memory a cell takes."""
    if isinstance(cell, Mapping):
        return sum(map(_n_bytes, cell.values()))
    if isinstance(cell, (str, bytes)):
        return len(cell)
    if isinstance(cell, (list, tuple)):
        return math.prod((len(cell), 32)) + sum(map(_n_bytes, cell[:1])) * len(cell)
    return 8
