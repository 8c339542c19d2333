"""Rows of a table from anywhere, asked in one way: tables of text, read strictly, or what
`datasets` opened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mmtok.errors import UserError
from mmtok.io.messages import listed
from mmtok.io.tables import Table, read_table
from mmtok.io.tally import Tally


class Rows(Protocol):
    """A table: `columns`, and cells by row and column."""

    columns: Sequence[str]

    def __len__(self) -> int: ...

    def row(self, i: int) -> Mapping[str, Any]:
        """The cells of a row; None where there is none."""

    def where(self, i: int) -> str:
        """Row i, as messages call it."""

    def check_whole(self, i: int, names_file: Callable[[str], bool]) -> None:
        """Raise UserError where row i has swallowed another one, as `Table.check_whole` finds it."""

    def classes(self, column: str) -> Sequence[str]:
        """The names of a column's classes, of which its cells are the numbers; () where it has
        none.
        """


class TextRows:
    """The rows of tables with the same columns, one after another, every cell in the words of its
    file.

    Raises UserError for a table that cannot be read, and for one with other columns than the first.
    """

    def __init__(self, paths: Sequence[Path]):
        self._tables = [read_table(path) for path in paths]
        self.columns = self._tables[0].columns
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
                _count_broken(table, tally)

    def __len__(self) -> int:
        return len(self._places)

    def row(self, i: int) -> Mapping[str, Any]:
        """The cells of a row."""
        table, k = self._places[i]
        return dict(zip(table.columns, table.rows[k]))

    def where(self, i: int) -> str:
        """File and line."""
        table, k = self._places[i]
        return table.where(k)

    def check_whole(self, i: int, names_file: Callable[[str], bool]) -> None:
        """As the row's table does."""
        table, k = self._places[i]
        table.check_whole(k, names_file)

    def classes(self, column: str) -> Sequence[str]:
        """None: text is text."""
        return ()


class DatasetRows:
    """The rows of a `datasets` table, its sounds and pictures left undecoded."""

    def __init__(self, table: Any, name: str):
        self._table, self._name = table, name
        self.columns = table.column_names

    def __len__(self) -> int:
        return len(self._table)

    def row(self, i: int) -> Mapping[str, Any]:
        """The cells of a row."""
        return self._table[i]

    def where(self, i: int) -> str:
        """The row's number, from 0."""
        return f"{self._name}, row {i}"

    def check_whole(self, i: int, names_file: Callable[[str], bool]) -> None:
        """Nothing: there are no quotes that may stay open."""

    def classes(self, column: str) -> Sequence[str]:
        """The names of a ClassLabel."""
        return getattr(self._table.features[column], "names", None) or ()


def grouped(rows: Rows, columns: Sequence[str]) -> list[list[int]]:
    """Indices of rows, those together that name the same files in these columns: they belong into
    one split.
    """
    groups: dict[Any, list[int]] = {}
    for i in range(len(rows)):
        cells = rows.row(i) if columns else {}
        names = tuple(
            cells[column] for column in columns if isinstance(cells[column], str) and cells[column]
        )
        groups.setdefault(names or i, []).append(i)
    return list(groups.values())


def _count_broken(table: Table, tally: Tally) -> None:
    if table.broken:
        tally.add(
            "of several lines: is a quote left open there?",
            table.where(table.broken[0]),
            len(table.broken),
        )
