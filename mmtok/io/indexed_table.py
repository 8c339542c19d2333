"""Rows of tables of text, found by where they begin in the file, so that any process reads any row.

A table is gone through once, row by row and by the strict rules of `mmtok.io.tables`. What is kept
of a row is a few numbers; its cells are read again when they are asked for.
"""

from __future__ import annotations

import csv
import io
import mmap
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmtok.errors import UserError
from mmtok.io.compressed import blocks, is_compressed
from mmtok.io.table_rows import (
    TableFile,
    is_list,
    json_objects,
    listed_objects,
    open_table,
    text_lines,
)
from mmtok.io.tables import (
    check_count,
    content_of,
    parsed_json,
    separated_records,
    swallowed_row,
)
from mmtok.io.tally import Tally

BOM = b"\xef\xbb\xbf"
LONG_CELLS = 100_000  # characters of a row; the csv module's own limit of a cell is 131,072


def _numbers() -> array:
    return array("q")


@dataclass
class TextTable:
    """Some rows of a table of text.

    Attributes:
        file: the table.
        columns: their names; of JSON lines those of all objects.
        starts: of each row, in bytes of the file, or of `content`.
        stops: likewise.
        numbers: of each row, as `Table.numbers`.
        broken: indices of rows that run over several lines.
        content: the text, where the file cannot be read from the middle, as it is compressed.
    """

    file: TableFile
    columns: tuple[str, ...]
    starts: array = field(default_factory=_numbers)
    stops: array = field(default_factory=_numbers)
    numbers: array = field(default_factory=_numbers)
    broken: array = field(default_factory=_numbers)
    content: bytes = b""
    _mapped: mmap.mmap | None = field(default=None, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.starts)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": None}

    def where(self, i: int) -> str:
        """Row i, as messages call it."""
        return self.file.where(self.numbers[i])

    def cells(self, i: int) -> dict[str, Any]:
        """The cells of row i by column; of JSON None where it has none."""
        text = bytes(self._bytes()[self.starts[i] : self.stops[i]]).decode()
        if not self.file.separator:
            found = parsed_json(self.file.path, f"{self.file.unit} {self.numbers[i]}: ", text)
            return {name: found.get(name) for name in self.columns}
        return dict(zip(self.columns, self._cut(text), strict=True))

    def _cut(self, text: str) -> list[str]:
        before = csv.field_size_limit()
        if len(text) > LONG_CELLS:
            csv.field_size_limit(len(text))
        try:
            lines = io.StringIO(text, newline="")
            reader = csv.reader(
                lines,
                delimiter=self.file.separator,
                quoting=csv.QUOTE_MINIMAL if self.file.has_quotes else csv.QUOTE_NONE,
            )
            return next(reader)
        finally:
            csv.field_size_limit(before)

    def _bytes(self) -> bytes | mmap.mmap:
        if self.content:
            return self.content
        if self._mapped is None:
            try:
                with self.file.path.open("rb") as file:
                    self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise UserError(f"{self.file.path}: cannot be read any more: {error}") from None
        return self._mapped

    def count_broken(self, tally: Tally) -> None:
        """Count the rows of several lines, which an open quote may have made."""
        if self.broken:
            first = self.where(self.broken[0])
            tally.add("of several lines: is a quote left open there?", first, len(self.broken))

    def open_quote(self, i: int, names_file: Callable[[str], bool]) -> str:
        """The error of row i where an open quote lets it hold another row; "" where none does."""
        k = bisect_left(self.broken, i)
        if k == len(self.broken) or self.broken[k] != i:
            return ""
        cells = list(self.cells(i).values())
        return swallowed_row(self.where(i), cells, self.file.separator, names_file)

    def some(self, rows: Sequence[int]) -> TextTable:
        """Some of its rows, with no more than is needed to read them."""
        found = replace(
            self,
            starts=array("q", (self.starts[i] for i in rows)),
            stops=array("q", (self.stops[i] for i in rows)),
            numbers=array("q", (self.numbers[i] for i in rows)),
            broken=array("q"),
        )
        if self.content:
            texts = [self.content[self.starts[i] : self.stops[i]] for i in rows]
            found.content = b"".join(texts)
            ends = array("q", [0])
            for text in texts:
                ends.append(ends[-1] + len(text))
            found.starts = ends[:-1]
            found.stops = ends[1:]
        return found

    def _add(self, start: int, stop: int, number: int) -> None:
        self.starts.append(start)
        self.stops.append(stop)
        self.numbers.append(number)


def index_table(path: Path) -> TextTable:
    """Where the rows of a table of text are.

    Raises UserError as `read_table` does.
    """
    file = open_table(path)
    table = TextTable(file, file.columns)
    if not file.separator and is_list(path):
        _add_list(table)
    elif file.separator:
        _add_records(table)
    else:
        _add_objects(table)
    if not len(table):
        raise UserError(f"{path}: the table has no rows")
    if is_compressed(path):
        table.content = content_of(path)
    return table


def _add_list(table: TextTable) -> None:
    for number, element in enumerate(listed_objects(table.file.path)):
        table._add(element.first, element.first + element.n_bytes, number)


class _Lines:
    """Lines of a text, and where each ends, in bytes of the file."""

    def __init__(self, path: Path, ends: str = "") -> None:
        self._lines = text_lines(path, ends)
        self.ends = array("q", [_mark_length(path)])

    def __iter__(self) -> Iterator[str]:
        for _, line in self._lines:
            self.ends.append(self.ends[-1] + len(line.encode()))
            yield line

    def forget(self) -> None:
        """Keep only the end of the last line."""
        del self.ends[:-1]


def _add_records(table: TextTable) -> None:
    path = table.file.path
    lines = _Lines(path)
    records = separated_records(path, lines, table.file.separator, table.file.has_quotes)
    next(records, None)  # the header
    for first, last, cells in records:
        check_count(path, table.columns, first, cells, table.file.separator)
        if last > first:
            table.broken.append(len(table))
        start = lines.ends[-2 - (last - first)]
        table._add(start, lines.ends[-1], first)
        lines.forget()


def _add_objects(table: TextTable) -> None:
    lines = _Lines(table.file.path, "\n")
    names: dict[str, None] = {}
    for number, cells in json_objects(table.file.path, enumerate(lines, 1)):
        names.update(dict.fromkeys(cells))
        table._add(lines.ends[-2], lines.ends[-1], number)
        lines.forget()
    table.columns = tuple(names)


def _mark_length(path: Path) -> int:
    """The bytes of the byte order mark of a text; 0 where it has none."""
    try:
        start = next(blocks(path), b"")
    except UserError:
        return 0  # reading its lines says what is wrong
    return len(BOM) * start.startswith(BOM)
