"""One contract for the rows of a table: of text files, read strictly, or of `datasets`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mmtok.errors import UserError
from mmtok.io.messages import listed
from mmtok.io.tables import read_table
from mmtok.io.tally import Tally


class Rows(Protocol):
    """A table: the names of its columns, and cells by row and column."""

    @property
    def columns(self) -> Sequence[str]:
        """The names of the columns."""

    def __len__(self) -> int: ...

    def row(self, i: int) -> Mapping[str, Any]:
        """The cells of a row by column; None for an empty one."""

    def where(self, i: int) -> str:
        """The name of row i in messages."""

    def open_quote(self, i: int, names_file: Callable[[str], bool]) -> str:
        """The error of row i where an open quote lets it hold another one; else ""; see `Table`."""

    def classes(self, column: str) -> Sequence[str]:
        """The class names of a column whose cells are class indices; () for any other column."""


class TextRows:
    """The rows of several tables of text with the same columns; every cell is text.

    Raises UserError for a table that cannot be read, and for one with other columns than the first.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._tables = [read_table(path) for path in paths]
        self.columns: Sequence[str] = self._tables[0].columns
        for table in self._tables[1:]:
            if set(table.columns) != set(self.columns):
                raise UserError(
                    f"{table.path}: has the columns {listed(table.columns)}, but"
                    f" {self._tables[0].path} has {listed(self.columns)}; parts of one table have"
                    " the same"
                )
        self._places = [(table, i) for table in self._tables for i in range(len(table.rows))]
        with Tally("rows") as tally:
            tally.count(len(self))
            for table in self._tables:
                table.count_broken(tally)

    def __len__(self) -> int:
        return len(self._places)

    def row(self, i: int) -> Mapping[str, Any]:
        """The cells of a row."""
        table, k = self._places[i]
        return dict(zip(table.columns, table.rows[k], strict=True))

    def where(self, i: int) -> str:
        """File and line."""
        table, k = self._places[i]
        return table.where(k)

    def open_quote(self, i: int, names_file: Callable[[str], bool]) -> str:
        """As the row's table says."""
        table, k = self._places[i]
        return table.open_quote(k, names_file)

    def classes(self, column: str) -> Sequence[str]:
        """No column has classes."""
        return ()


class DatasetRows:
    """The rows of a `datasets` table, its sounds and pictures left undecoded."""

    def __init__(self, table: Any, name: str) -> None:
        self._table = table
        self._name = name
        self.columns: Sequence[str] = table.column_names

    def __len__(self) -> int:
        return len(self._table)

    def row(self, i: int) -> Mapping[str, Any]:
        """The cells of a row."""
        return self._table[i]

    def where(self, i: int) -> str:
        """The row's number, from 0."""
        return f"{self._name}, row {i}"

    def open_quote(self, i: int, names_file: Callable[[str], bool]) -> str:
        """Never one: cells come without quotes."""
        return ""

    def classes(self, column: str) -> Sequence[str]:
        """The names of a ClassLabel."""
        return getattr(self._table.features[column], "names", None) or ()


def grouped(rows: Rows, columns: Sequence[str]) -> list[list[int]]:
    """Indices of rows, grouped by the files that they name in these columns.

    Rows of one group belong to one split.
    """
    groups: dict[Any, list[int]] = {}
    for i in range(len(rows)):
        cells = rows.row(i) if columns else {}
        names = tuple(
            cells[column] for column in columns if isinstance(cells[column], str) and cells[column]
        )
        groups.setdefault(names or i, []).append(i)
    return list(groups.values())
