"""What is where in a table of texts or conversations: groups of rows that any process can read.

A look at a file reads it once and notes where every 256th chunk or so begins, so that any process
can read any part: from a byte on (a decompressed one, where the file is compressed), or from a row.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmtok.errors import UserError
from mmtok.io.conversations import Conversation
from mmtok.io.progress import Progress
from mmtok.io.tables import ROWS
from mmtok.sources.base import CHUNK, Example, Unusable, batched_lists
from mmtok.sources.leaks import FEW_CHARS
from mmtok.sources.rows import hash_of
from mmtok.sources.text_pieces import LONG_BYTES, Chunking, Piece, check_unchanged, cut
from mmtok.sources.text_rows import Row, RowFile

MOST_SAMPLED = 2**18  # rows whose hashes are kept
N_NAMED = 10  # rows that cannot be used and are named


class Group(NamedTuple):
    """Rows of about 256 chunks: where they begin, and what comes before them."""

    first: int
    number: int
    n_chars: int


@dataclass(frozen=True, eq=False)
class RowIndex:
    """What a look at a table found.

    Attributes:
        table: the file.
        groups: (G, 3) int64, a row as `Group` has it.
        n_chars: of all texts.
        n_rows: of the table.
        n_bytes: of the file as it lies on the disk.
        n_faults: rows that cannot be used.
        faults: of the first of these.
        n_empty: rows without text.
        first_empty: the first of these, as messages call it.
        n_chunks: of all texts, with those that are left out.
        n_short: chunks that are left out.
        short: why the first of these is.
        first_short: the row of the first of these.
        sample: (K, 2) uint64: hash and first character of texts that are not short: all whose hash
            is less than `bound`, so that equal texts of all files are sampled, or none is.
        bound: of the hashes.
    """

    table: RowFile
    groups: np.ndarray
    n_chars: int
    n_rows: int
    n_bytes: int
    n_faults: int
    faults: tuple[str, ...]
    n_empty: int
    first_empty: str
    n_chunks: int
    n_short: int
    short: str
    first_short: str
    sample: np.ndarray
    bound: int

    def parts(self) -> Iterator[tuple[Group, int | None]]:
        """The groups, each with the end of its rows."""
        for i, group in enumerate(self.groups):  # as a list they would take four times as much
            end = None
            if i + 1 < len(self.groups):
                end = int(self.groups[i + 1, 0])
            yield Group(*map(int, group)), end


@dataclass(frozen=True)
class RowRange:
    """Some rows of a table.

    Attributes:
        table: the file.
        first: where they begin.
        number: of the first of them.
        last: where they end; None: with the file.
        chunking: how texts are cut.
        n_bytes: of the file when it was looked at.
    """

    table: RowFile
    first: int
    number: int
    last: int | None
    chunking: Chunking
    n_bytes: int

    @property
    def files(self) -> tuple[Path, ...]:
        """The table alone."""
        return (self.table.path,)

    def read(self) -> Iterator[dict[str, Any] | Unusable]:
        """The chunks of the rows."""
        table = self.table
        try:
            check_unchanged(table.path, self.n_bytes)
            for row in table.texts(self.first, self.number, self.last):
                if is_empty(row.cell):
                    continue
                name = table.where(row)
                for signal, fault in signals_in(row.cell, self.chunking):
                    if not fault:
                        yield Example({"text": signal}, name)
        except UserError as error:
            yield Unusable(str(table.path), str(error))


def look_at(table: RowFile, chunking: Chunking) -> RowIndex:
    """Read a table once, and note what is where; a long one shows how far it is.

    Raises UserError where it cannot be read.
    """
    look = _Look(table, chunking)
    n_bytes = table.path.stat().st_size
    if n_bytes < LONG_BYTES:
        for row in table.texts():
            look.add(row)
    else:
        with Progress(f"reading {table.path.name}", None, "rows") as progress:
            for rows in batched_lists(table.texts(), ROWS):
                for row in rows:
                    look.add(row)
                progress.advance(len(rows))
    return look.index(n_bytes)


class Sampler:
    """Keeps hashes of texts: all of them, or of very many those that are the least.

    Attributes:
        bound: all hashes below are kept.
    """

    def __init__(self) -> None:
        self.bound = 2**64
        self._hashes = array("Q")
        self._places = array("Q")

    def add(self, digest: int, place: int) -> None:
        """One more text. place: its first character."""
        if digest >= self.bound:
            return
        self._hashes.append(digest)
        self._places.append(place)
        if len(self._hashes) > MOST_SAMPLED:
            self.bound //= 2
            hashes = np.array(self._hashes, np.uint64)
            is_kept = hashes < np.uint64(self.bound)
            self._hashes = array("Q", hashes[is_kept].tolist())
            self._places = array("Q", np.array(self._places, np.uint64)[is_kept].tolist())

    @property
    def rows(self) -> np.ndarray:
        """(K, 2) uint64: hash and place of the texts that are kept."""
        return np.array([self._hashes, self._places], np.uint64).T


def sample_documents(stream: Iterable[Piece]) -> tuple[np.ndarray, int]:
    """Hashes of documents that are not short, without white space around them, and their bound."""
    sampler = Sampler()
    n_before = place = n_chars = 0
    digest = hashlib.blake2b(digest_size=8)
    space = ""  # after what is hashed, which counts where more follows
    for piece in stream:
        text = piece.text
        if not n_chars:
            text = text.lstrip()
        body = text.rstrip()
        if body:
            digest.update((space + body).encode("utf-8", "surrogatepass"))
            n_chars += len(space) + len(body)
            space = text[len(body) :]
        elif n_chars:
            space += text
        n_before += len(piece.text)
        if piece.ends:
            if n_chars >= FEW_CHARS:
                sampler.add(int.from_bytes(digest.digest(), "little"), place)
            digest = hashlib.blake2b(digest_size=8)
            space = ""
            n_chars = 0
            place = n_before
    return sampler.rows, sampler.bound


class _Look:
    """What is noted of the rows of a table, one after another."""

    def __init__(self, table: RowFile, chunking: Chunking) -> None:
        self.table = table
        self.chunking = chunking
        self.groups = array("q")
        self.n_kept = CHUNK  # chunks of the group at hand; a full one: the next row begins another
        self.n_chars = self.n_rows = self.n_chunks = 0
        self.faults: list[str] = []
        self.n_faults = self.n_empty = self.n_short = 0
        self.first_empty = self.short = self.first_short = ""
        self.sample = Sampler()

    def add(self, row: Row) -> None:
        """One more row."""
        self.n_rows += 1
        if row.fault:
            self.n_faults += 1
            if len(self.faults) < N_NAMED:
                self.faults.append(row.fault)
        elif is_empty(row.cell):
            self.n_empty += 1
            self.first_empty = self.first_empty or self.table.where(row)
        else:
            self._add_text(row)

    def _add_text(self, row: Row) -> None:
        if self.n_kept >= CHUNK:
            self.groups.extend((row.first, row.number, self.n_chars))
            self.n_kept = 0
        text = str(row.cell)
        if len(text) >= FEW_CHARS:
            self.sample.add(hash_of(text.encode("utf-8", "surrogatepass")), self.n_chars)
        self.n_chars += size_of(row.cell)
        for _, fault in signals_in(row.cell, self.chunking):
            self.n_chunks += 1
            if fault:
                self.n_short += 1
                self.short = self.short or fault
                self.first_short = self.first_short or self.table.where(row)
            else:
                self.n_kept += 1

    def index(self, n_bytes: int) -> RowIndex:
        """What was found."""
        return RowIndex(
            table=self.table,
            groups=np.array(self.groups, np.int64).reshape(-1, 3),
            n_chars=self.n_chars,
            n_rows=self.n_rows,
            n_bytes=n_bytes,
            n_faults=self.n_faults,
            faults=tuple(self.faults),
            n_empty=self.n_empty,
            first_empty=self.first_empty,
            n_chunks=self.n_chunks,
            n_short=self.n_short,
            short=self.short,
            first_short=self.first_short,
            sample=self.sample.rows,
            bound=self.sample.bound,
        )


def is_empty(cell: str | Conversation | None) -> bool:
    """Whether a cell holds no text but white space; of conversations, no answer."""
    if isinstance(cell, Conversation):
        return not cell.has_answer
    return not cell or cell.isspace()


def size_of(cell: str | Conversation) -> int:
    """The characters of a cell, at least one."""
    if isinstance(cell, Conversation):
        return max(1, cell.n_chars)
    return len(cell)


def signals_in(
    cell: str | Conversation, chunking: Chunking
) -> Iterator[tuple[str | Conversation, str]]:
    """(signal, why it is left out) of a cell: the chunks of a text, or a whole conversation."""
    if isinstance(cell, Conversation):
        fault = ""
        if 0 < chunking.max_chars < cell.n_chars:
            fault = f"left out: more characters than {chunking.max_chars}"
        yield cell, fault
        return
    for piece in cut([Piece(cell, 0, ends=True)], chunking.chunk_chars):
        yield piece.text, chunking.fault(piece.text)
