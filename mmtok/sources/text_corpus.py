"""Corpora of text in files: how they are read, and where they are split.

A split is by characters: the end of all of them, in the order of the files, is held out. Where
documents are known (rows, or texts between marks), none is in two splits.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from mmtok.errors import UserError
from mmtok.io.remembered import Remembered
from mmtok.io.tally import Tally
from mmtok.sources.base import Chunk
from mmtok.sources.layouts import is_part
from mmtok.sources.screen import Tolerance
from mmtok.sources.text_index import (
    N_NAMED,
    RowIndex,
    RowRange,
    is_empty,
    look_at,
    sample_documents,
    size_of,
)
from mmtok.sources.text_pieces import Chunking, begins_with_mark, n_chars_of, pieces, ranges
from mmtok.sources.text_rows import (
    open_rows,
)

N_REMEMBERED = 100_000  # files

R = TypeVar("R")


# ---- how a file is read


class Reader(ABC):
    """How the files of a corpus are read.

    Attributes:
        unit: what their documents are called, in the plural.
        is_chat: whether documents are conversations.
    """

    unit: ClassVar[str] = "documents"
    is_chat: bool = False

    @abstractmethod
    def n_chars(self, path: Path) -> int:
        """The characters of a file's documents. Raises UserError for an unusable file."""

    @abstractmethod
    def document_at(self, path: Path, at: int) -> tuple[int, int]:
        """The first character of the document with character `at`, and the one after its last.

        Where documents are not kept apart, both are `at`.
        """

    @abstractmethod
    def chunks(
        self, path: Path, first: int, last: int | None, see: Callable[[str, Path], None]
    ) -> Iterator[Chunk]:
        """The characters from `first` to `last` of a file, as chunks of about 256 examples.

        see: takes, of every chunk of text, why it is left out ("" where it is not) and its file.
        """

    def faults(self, path: Path) -> RowIndex | None:
        """What is wrong in rows of a file; None where it has no rows."""
        return None

    def sample(self, path: Path) -> tuple[np.ndarray, int] | None:
        """Hashes of a file's documents as `Sampler` has them, and their bound.

        None where documents are not known.
        """
        return None

    def name_at(self, path: Path, at: int) -> str:
        """The document with character `at`, as messages call it."""
        return str(path)

    def remark(self, path: Path) -> str:
        """What is said of a file; "" for nothing."""
        return ""


_found: Remembered[Any] = Remembered(N_REMEMBERED)


def _once(path: Path, find: Callable[..., R], *about: Hashable) -> R:
    """What `find(path, *about)` gives; it is called once while the file does not change."""
    try:
        return _found(path, partial(find, path, *about), find, *about)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


@dataclass(frozen=True)
class CharacterReader(Reader):
    """Files of characters; see `text_pieces`."""

    chunking: Chunking

    def n_chars(self, path: Path) -> int:
        """As of the contract."""
        return _once(path, n_chars_of, self.chunking.mark)

    def remark(self, path: Path) -> str:
        """Whether it begins with a byte order mark."""
        if _once(path, begins_with_mark):
            return "read with a byte order mark, kept as a character"
        return ""

    def document_at(self, path: Path, at: int) -> tuple[int, int]:
        """Of a file without marks `at`, as it is cut anywhere."""
        if not self.chunking.mark:
            return at, at
        start = n_before = 0
        for piece in pieces(path, self.chunking.mark):
            n_before += len(piece.text)
            if piece.ends:
                if n_before > at:
                    return start, n_before
                start = n_before
        return start, n_before

    def sample(self, path: Path) -> tuple[np.ndarray, int] | None:
        """Of what stands between marks; a file without is compared as a whole."""
        if not self.chunking.mark:
            return None
        return _once(path, _documents, self.chunking.mark)

    def name_at(self, path: Path, at: int) -> str:
        """The document by its number."""
        n_before = 0
        number = 1
        for piece in pieces(path, self.chunking.mark):
            n_before += len(piece.text)
            if n_before > at:
                break
            number += piece.ends
        return f"{path}: document {number:,}"

    def chunks(
        self, path: Path, first: int, last: int | None, see: Callable[[str, Path], None]
    ) -> Iterator[Chunk]:
        """Ranges of bytes."""
        return ranges(path, first, last, self.chunking, see)


def _documents(path: Path, mark: str) -> tuple[np.ndarray, int]:
    return sample_documents(pieces(path, mark))


@dataclass(frozen=True)
class RowReader(Reader):
    """Tables; see `text_rows`.

    Attributes:
        chunking: how texts are cut.
        named: (field, column) that the user names.
        is_chat: rows hold conversations.
    """

    unit: ClassVar[str] = "rows"
    chunking: Chunking
    named: tuple[tuple[str, str], ...] = ()
    is_chat: bool = False

    def n_chars(self, path: Path) -> int:
        """As of the contract."""
        return self.faults(path).n_chars

    def faults(self, path: Path) -> RowIndex:
        """All that a look at the table found."""
        return _once(path, _index, self)

    def sample(self, path: Path) -> tuple[np.ndarray, int]:
        """Of its rows."""
        index = self.faults(path)
        return index.sample, index.bound

    def document_at(self, path: Path, at: int) -> tuple[int, int]:
        """The characters of a row."""
        row = self._row_at(path, at)
        return row[2], row[3]

    def name_at(self, path: Path, at: int) -> str:
        """The row with character `at`, as messages call it."""
        return f"{path}: row {self._row_at(path, at)[1]}"

    def _row_at(self, path: Path, at: int) -> tuple[int, int, int, int]:
        """(where it begins, its number, first character, the one after) of the row with `at`."""
        index = self.faults(path)
        i = int((index.groups[:, 2] <= at).sum()) - 1
        first, number, n_before = index.groups[i].tolist()
        last = None
        if i + 1 < len(index.groups):
            last = int(index.groups[i + 1, 0])
        for row in index.table.texts(first, number, last):
            if is_empty(row.cell):
                continue
            n_chars = size_of(row.cell)
            if n_before + n_chars > at:
                return row.first, row.number, n_before, n_before + n_chars
            n_before += n_chars
        raise UserError(f"{path}: has changed while it was read; start again")

    def chunks(
        self, path: Path, first: int, last: int | None, see: Callable[[str, Path], None]
    ) -> Iterator[Chunk]:
        """Ranges of rows."""
        index = self.faults(path)
        begin = stop = None
        if first:
            begin = self._row_at(path, first)
        if last is not None:
            stop = self._row_at(path, last)
        for group, end in index.parts():
            start = group.first
            number = group.number
            if begin is not None and begin[0] > start:
                if end is not None and end <= begin[0]:
                    continue
                start = begin[0]
                number = begin[1]
            if stop is not None and (end is None or end > stop[0]):
                if start < stop[0]:
                    yield RowRange(
                        index.table, start, number, stop[0], self.chunking, index.n_bytes
                    )
                return
            yield RowRange(index.table, start, number, end, self.chunking, index.n_bytes)


def _index(path: Path, reader: RowReader) -> RowIndex:
    if not path.stat().st_size:
        raise UserError(f"{path}: the file is empty; a table with a header is needed")
    return look_at(open_rows(path, dict(reader.named), reader.is_chat), reader.chunking)


# ---- where a corpus is split


@dataclass(frozen=True)
class Window:
    """The characters of a file that are in a split."""

    path: Path
    first: int = 0
    last: int | None = None

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the file."""
        return not self.first and self.last is None


def named_split(
    files: Sequence[Path], name: str, where: str, others: Sequence[Path] = ()
) -> list[Path]:
    """The files of a split that the corpus publishes: those with this name, or in such a folder.

    others: files of the corpus that are in another split.

    Raises UserError where there are none.
    """
    above = os.path.commonpath([file.parent for file in (*files, *others)])
    found = [
        file
        for file in files
        if any(is_part(name, part) for part in Path(os.path.relpath(file, above)).parts)
    ]
    if not found:
        raise UserError(
            f"{where}: no file is called, or lies in a folder called, {name!r}, the split that is"
            f" asked for; the files are such as {files[0].name}"
        )
    return found


def split_at_share(
    files: Sequence[Path], n_chars: Mapping[Path, int], share: float, reader: Reader, where: str
) -> dict[str, list[Window]]:
    """The windows of "train" and "heldout": the end of all characters is held out.

    A document that the end begins in is held out as a whole, unless it is the first of all.

    Raises UserError where there is a single character or document.
    """
    total = sum(n_chars[file] for file in files)
    if not total and reader.is_chat:
        raise UserError(
            f"{where}: no conversation has words of the assistant, which are what is learned"
        )
    if total < 2:
        raise UserError(
            f"{where}: a single character cannot be split into train and heldout; give a longer"
            " text"
        )
    at = min(total - 1, max(1, round(total * (1 - share))))
    splits: dict[str, list[Window]] = {"train": [], "heldout": []}
    n_before = 0
    for file in files:
        n = n_chars[file]
        if n_before + n <= at:
            splits["train"].append(Window(file))
        elif n_before > at or (n_before and n_before == at):
            splits["heldout"].append(Window(file))
        else:
            start, end = reader.document_at(file, at - n_before)
            if not n_before + start:
                start = end  # the first document is trained on, however long it is
            if n_before + start == total:
                raise UserError(
                    f"{where}: a single document (a row of a table, or what stands between marks)"
                    " cannot be split into train and heldout; give more of them, and a mark that"
                    " stands between them"
                )
            if start == n:
                splits["train"].append(Window(file))
            else:
                splits["train"] += [Window(file, 0, start)] * (start > 0)
                splits["heldout"].append(Window(file, start))
        n_before += n
    return splits


def report_rows(indices: Sequence[RowIndex | None], tolerance: Tolerance) -> None:
    """Say how many rows of tables are left out, and why.

    Raises UserError where more of them cannot be used than may be passed over.
    """
    found = [index for index in indices if index is not None]
    if not found:
        return
    n_rows = sum(index.n_rows for index in found)
    n_faults = sum(index.n_faults for index in found)
    faults = [fault for index in found for fault in index.faults][:N_NAMED]
    if faults and tolerance.on_error == "raise":
        raise UserError(faults[0])
    if n_faults > tolerance.max_error_share * n_rows:
        likewise = ""
        if len(faults) > 1:
            likewise = f"; likewise {'; '.join(faults[1:3])}"
        raise UserError(
            f"{faults[0]}{likewise}: {n_faults:,} of {n_rows:,} rows cannot be used, and at most"
            f" {tolerance.max_error_share:.3g} of all are passed over; mend or remove them, or set"
            " max_error_share"
        )
    n_empty = sum(index.n_empty for index in found if not index.table.is_chat)
    if n_rows and n_empty == n_rows:
        table = found[0].table
        raise UserError(
            f"{table.path}: none of {n_rows:,} rows has a text in the column {table.column!r}; name"
            " another one: --columns text=COLUMN"
        )
    with Tally("rows") as rows, Tally("chunks") as chunks:
        rows.count(n_rows)
        chunks.count(sum(index.n_chunks for index in found))
        if faults:
            rows.add("passed over as unusable", faults[0], n_faults)
        for index in found:
            if index.n_empty:
                what = "no text"
                if index.table.is_chat:
                    what = "the assistant says nothing"
                rows.add(f"left out: {what}", index.first_empty, index.n_empty)
            if index.n_short:
                chunks.add(index.short, index.first_short, index.n_short)
