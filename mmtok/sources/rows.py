"""One contract for the rows of a table: of text files, read strictly, or of `datasets`.

None of them holds the table in memory, and all can be sent to other processes in parts (`some`).
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mmtok.errors import UserError
from mmtok.io.indexed_table import TextTable, index_table
from mmtok.io.messages import listed
from mmtok.io.tally import Tally


class Rows(Protocol):
    """A table: the names of its columns, and cells by row and column."""

    @property
    def columns(self) -> Sequence[str]:
        """The names of the columns."""

    @property
    def files(self) -> Sequence[Path]:
        """The files that the rows are in, where these are the user's own."""

    def __len__(self) -> int: ...

    def row(self, i: int) -> Mapping[str, Any]:
        """The cells of a row by column; None for an empty one."""

    def where(self, i: int) -> str:
        """The name of row i in messages."""

    def open_quote(self, i: int, names_file: Callable[[str], bool]) -> str:
        """The error of row i where an open quote lets it hold another one; else ""; see `Table`."""

    def classes(self, column: str) -> Sequence[str]:
        """The class names of a column whose cells are class indices; () for any other column."""

    def holds_text(self, column: str) -> bool:
        """Whether cells of a column may be text, such as the name of a file."""

    def some(self, indices: Sequence[int]) -> Rows:
        """Some of the rows in that order, to be read in this process or in another one."""


class TextRows:
    """The rows of several tables of text with the same columns; every cell is text.

    Raises UserError for a table that cannot be read, and for one with other columns than the first.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        tables = [index_table(path) for path in paths]
        first = tables[0]
        for table in tables[1:]:
            if set(table.columns) != set(first.columns):
                raise UserError(
                    f"{table.file.path}: has the columns {listed(table.columns)}, but"
                    f" {first.file.path} has {listed(first.columns)}; parts of one table have the"
                    " same"
                )
        self._set(tables)
        with Tally("rows") as tally:
            tally.count(len(self))
            for table in tables:
                table.count_broken(tally)

    def _set(self, tables: list[TextTable]) -> None:
        self._names: dict[str, str] = {}  # column of the files -> what it is called here
        self._tables = tables
        self._ends = list(accumulate(map(len, tables)))
        self.columns: Sequence[str] = tables[0].columns

    def rename(self, names: Mapping[str, str]) -> None:
        """Give columns other names. names: old -> new."""
        self._names = dict(names)
        self.columns = [self._names.get(column, column) for column in self.columns]

    @property
    def files(self) -> Sequence[Path]:
        """The tables."""
        return [table.file.path for table in self._tables]

    def _at(self, i: int) -> tuple[TextTable, int]:
        """The table of a row, and the row in it."""
        t = bisect_right(self._ends, i)
        before = self._ends[t - 1] if t else 0
        return self._tables[t], i - before

    def __len__(self) -> int:
        return self._ends[-1]

    def row(self, i: int) -> Mapping[str, Any]:
        """The cells of a row."""
        table, k = self._at(i)
        cells = table.cells(k)
        if not self._names:
            return cells
        return {self._names.get(column, column): cell for column, cell in cells.items()}

    def where(self, i: int) -> str:
        """File and line."""
        table, k = self._at(i)
        return table.where(k)

    def open_quote(self, i: int, names_file: Callable[[str], bool]) -> str:
        """As the row's table says."""
        table, k = self._at(i)
        return table.open_quote(k, names_file)

    def classes(self, column: str) -> Sequence[str]:
        """No column has classes."""
        return ()

    def holds_text(self, column: str) -> bool:
        """Every column does."""
        return True

    def some(self, indices: Sequence[int]) -> TextRows:
        """The indices are taken from their tables, one after another."""
        groups: list[tuple[TextTable, list[int]]] = []
        for i in indices:
            table, k = self._at(i)
            if not groups or groups[-1][0] is not table:
                groups.append((table, []))
            groups[-1][1].append(k)
        found = TextRows.__new__(TextRows)
        found._set([table.some(rows) for table, rows in groups])
        found.rename(self._names)
        return found


class DatasetRows:
    """The rows of a `datasets` table, its sounds and pictures left undecoded.

    Args:
        table: a `datasets.Dataset`, or a list of some of its rows.
        name: what messages call it.
        features: column -> its type, as `datasets` has it.
        numbers: of the rows in messages; by default they are counted from 0.
        indices: of the rows in the table; by default all.
    """

    def __init__(
        self,
        table: Any,
        name: str,
        features: Mapping[str, Any],
        numbers: Sequence[int] | None = None,
        indices: Sequence[int] | None = None,
    ) -> None:
        self._table = table
        self._name = name
        self._features = features
        self._indices = range(len(table)) if indices is None else indices
        self._numbers = self._indices if numbers is None else numbers
        self.columns: Sequence[str] = list(features)

    @property
    def files(self) -> Sequence[Path]:
        """None: they are in a copy that `datasets` has made."""
        return ()

    def __len__(self) -> int:
        return len(self._indices)

    def row(self, i: int) -> Mapping[str, Any]:
        """The cells of a row."""
        return self._table[self._indices[i]]

    def where(self, i: int) -> str:
        """The row's number, from 0."""
        return f"{self._name}, row {self._numbers[i]}"

    def open_quote(self, i: int, names_file: Callable[[str], bool]) -> str:
        """Never one: cells come without quotes."""
        return ""

    def classes(self, column: str) -> Sequence[str]:
        """The names of a ClassLabel, or of a list of them."""
        feature = self._features[column]
        feature = getattr(feature, "feature", feature)
        return getattr(feature, "names", None) or ()

    def holds_text(self, column: str) -> bool:
        """Columns of strings do."""
        return getattr(self._features.get(column), "dtype", "") in ("string", "large_string")

    def some(self, indices: Sequence[int]) -> DatasetRows:
        """Other processes open the table's own files."""
        return DatasetRows(
            self._table,
            self._name,
            self._features,
            [self._numbers[i] for i in indices],
            [self._indices[i] for i in indices],
        )

    def of(self, rows: Sequence[Mapping[str, Any]], numbers: Sequence[int]) -> DatasetRows:
        """Rows of the same columns that are at hand."""
        return DatasetRows(rows, self._name, self._features, numbers)


def group_numbers(rows: Rows, columns: Sequence[str]) -> np.ndarray:
    """(N,) groups of rows, numbered as they first appear: rows that name the same files are one.

    Rows of one group belong to one split.

    columns: those that may name files.
    """
    group = np.arange(len(rows))
    columns = [column for column in columns if rows.holds_text(column)]
    if not columns:
        return group
    keys = np.zeros(len(rows), np.uint64)  # of the names; 0 for none
    for i in range(len(rows)):
        cells = rows.row(i)
        names = [cells[column] for column in columns]
        named = [name for name in names if isinstance(name, str) and name]
        if named:
            keys[i] = hash_of(*(name.encode("utf-8", "surrogatepass") for name in named))
    has = np.flatnonzero(keys)
    if len(has):
        _, first, inverse = np.unique(keys[has], return_index=True, return_inverse=True)
        group[has] = has[first][inverse]
    return np.unique(group, return_inverse=True)[1]


def hash_of(*parts: bytes) -> int:
    """64 bits of a hash of some bytes, never 0."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return int.from_bytes(digest.digest(), "little") or 1
