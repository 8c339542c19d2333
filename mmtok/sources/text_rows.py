"""Texts and conversations in tables of any size: JSON lines, cells between separators, Parquet.

They are read row by row, from any byte or row on; see `text_index`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmtok.errors import UserError, reason_of
from mmtok.io.columns import (
    cell_of,
    chosen_column,
    known_column,
    named_column,
    whole_columns,
)
from mmtok.io.compressed import bare_path, lines
from mmtok.io.conversations import Conversation, conversation_of
from mmtok.io.messages import listed
from mmtok.io.strict_json import unique_keys
from mmtok.io.table_rows import is_list, listed_objects
from mmtok.io.tables import (
    ROWS,
    as_text,
    check_count,
    header_names,
    parsed_json,
    separated_records,
    separator_of,
    suffix_of,
)
from mmtok.sources.text_pieces import (
    FROM_UTF_16,
    TO_UTF8,
    UTF_16,
)

SPELLINGS = (  # of the column that holds the text
    "text",
    "content",
    "raw_content",
    "body",
    "document",
    "article",
    "passage",
    "sentence",
)
MESSAGES = ("messages", "conversations", "conversation", "chat", "dialogue", "dialog", "turns")
TOOLS = ("tools", "functions")
N_SNIFFED = 1_000  # JSON lines that are looked at for the names of columns
BUFFER_BYTES = 2**20  # of a column of Parquet
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Row(NamedTuple):
    """A row of a table.

    It begins at the byte `first` of the decompressed file, or of Parquet is that row, and messages
    call it by its `number`. `cell` is that of the wanted column; of conversations a pair, with that
    of the tools; None where there is none. `fault` says why it cannot be used, "" where it can.
    """

    first: int
    number: int
    cell: Any
    fault: str = ""


@dataclass(frozen=True)
class RowFile:
    """A table in a file, of which one column is read.

    Attributes:
        path: of the file.
        suffix: .jsonl, .json, .parquet, or that of cells between separators.
        column: that is read.
        columns: those of cells between separators.
        separator: between cells.
        is_chat: the column holds conversations.
        tools: the column of their tools; "": there is none.
    """

    path: Path
    suffix: str
    column: str
    columns: tuple[str, ...] = ()
    separator: str = ""
    is_chat: bool = False
    tools: str = ""

    @property
    def wanted(self) -> list[str]:
        """The columns that are read."""
        return whole_columns([self.column] + [self.tools] * bool(self.tools), self.columns)

    def cell_in(self, row: Mapping[str, Any]) -> Any:
        """The cell of a row, or the pair of cells."""
        if self.is_chat:
            return cell_of(row, self.column), cell_of(row, self.tools)
        return cell_of(row, self.column)

    @property
    def unit(self) -> str:
        """What the numbers of rows count."""
        if self.suffix in (".parquet", ".json"):
            return "row"
        return "line"

    def where(self, row: Row) -> str:
        """A row, as messages call it."""
        return f"{self.path}: {self.unit} {row.number}"

    def rows(self, first: int = 0, number: int = 0, last: int | None = None) -> Iterator[Row]:
        """The rows from `first` to `last`, of which the first has this number."""
        if self.suffix == ".parquet":
            return _parquet_rows(self, first, last)
        if self.suffix == ".json":
            return _listed_rows(self, first, number, last)
        if self.separator:
            return _separated_rows(self, first, number, last)
        return _json_rows(self, first, number, last)

    def texts(self, first: int = 0, number: int = 0, last: int | None = None) -> Iterator[Row]:
        """As `rows`, with cells that are texts or None, and faults that name the file."""
        for row in self.rows(first, number, last):
            where = self.where(row)
            if row.fault:
                yield row._replace(cell=None, fault=f"{where}: {row.fault}")
                continue
            try:
                yield row._replace(cell=self._signal(row.cell, f"{where}, column {self.column!r}"))
            except UserError as error:
                yield row._replace(cell=None, fault=str(error))

    def _signal(self, cell: Any, where: str) -> str | Conversation | None:
        """A text, or a conversation."""
        if not self.is_chat:
            return as_text(cell, where)
        messages, tools = cell
        if not messages:
            return None
        try:
            return conversation_of(messages, tools)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None


def is_table(path: Path) -> bool:
    """Whether a file is a table by its suffix, compressed or not."""
    return suffix_of(bare_path(path)) is not None


def columns_of(path: Path) -> tuple[str, tuple[str, ...], str]:
    """What kind of table a file holds, as its suffix, its columns, and what is between cells.

    Raises UserError for a file that cannot be read.
    """
    bare = bare_path(path)
    suffix = suffix_of(bare, named=True)
    if suffix is None or (suffix == ".parquet" and bare != path):
        raise UserError(
            f"{path}: not a table whose rows can be read; known are .jsonl, .json, .csv, .tsv, "
            ".psv, each also as .gz or .zst, and .parquet"
        )
    if suffix == ".parquet":
        return suffix, _parquet_columns(path), ""
    if suffix == ".json" and is_list(path):
        names = (name for element in listed_objects(path) for name in element.value)
        return suffix, tuple(dict.fromkeys(names)), ""
    if suffix in (".json", ".jsonl"):
        return ".jsonl", _json_columns(path), ""
    texts = (_decoded(path, line) for _, line in lines(path))
    separator = separator_of(bare, texts)
    texts = (_decoded(path, line) for _, line in lines(path))
    records = separated_records(path, texts, separator, separator != "|")
    first, _, columns = next(records, (1, 1, []))
    header = header_names(path, first, [cell.removeprefix("\ufeff") for cell in columns])
    return suffix, header, separator


def open_rows(path: Path, named: Mapping[str, str], is_chat: bool = False) -> RowFile:
    """The table in a file, with the column of texts or of conversations.

    Args:
        path: of the file.
        named: text, messages or tools -> column, as the user says.
        is_chat: the column holds conversations.

    Raises:
        UserError: there is no such column, or the file cannot be read.
    """
    suffix, columns, separator = columns_of(path)
    of_records = not separator
    if not is_chat:
        column = _column(path, "text", columns, named, SPELLINGS, of_records)
        return RowFile(path, suffix, column, columns, separator)
    column = _column(path, "messages", columns, named, MESSAGES, of_records)
    tools = chosen_column("tools", columns, named, TOOLS, path, of_records) or ""
    return RowFile(path, suffix, column, columns, separator, True, tools)


def _column(
    path: Path,
    field: str,
    columns: tuple[str, ...],
    named: Mapping[str, str],
    spellings: tuple,
    has_records: bool,
) -> str:
    """The name of the column, as the user or custom says it; the only one of a table."""
    if field in named:
        return named_column(named[field], columns, path, has_records)
    known = known_column(spellings, columns)
    if known is None and len(columns) == 1:
        known = columns[0]
    if known is None:
        raise UserError(
            f"{path}: which column is the {field}? Say --columns {field}=COLUMN, one of"
            f" {listed(columns)}; --layout plain reads the characters of the file"
        )
    return known


# ---- rows of text


def _decoded(path: Path, line: bytes) -> str:
    """A line of UTF-8. Raises UserError for another encoding."""
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        if line[:2] in UTF_16:
            raise UserError(f"{path}: is UTF-16 text; {FROM_UTF_16}") from None
        raise UserError(
            f"{path}: not UTF-8 text: byte 0x{line[error.start]:02X}; {TO_UTF8}"
        ) from None


def _json_rows(table: RowFile, first: int, number: int, last: int | None) -> Iterator[Row]:
    for n, (position, line) in enumerate(lines(table.path, first, last), number or 1):
        if not position:
            line = line.removeprefix(BYTE_ORDER_MARK)
        if not line.strip():
            continue
        try:
            found = _json_value(table.path, _decoded(table.path, line), table.is_chat)
        except UserError as error:
            yield Row(position, n, None, str(error).removeprefix(f"{table.path}: "))
            continue
        if isinstance(found, dict):
            yield Row(position, n, table.cell_in(found))
        else:
            yield Row(position, n, None, f"holds {type(found).__name__}, not an object")


def _json_value(path: Path, text: str, is_chat: bool) -> Any:
    """A JSON value; numbers are left as text but in conversations. Raises UserError."""
    if not is_chat:
        return parsed_json(path, "", text)
    try:
        return json.loads(text, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {reason_of(error)}") from None


def _json_columns(path: Path) -> tuple[str, ...]:
    names: dict[str, None] = {}
    for position, line in islice(lines(path), N_SNIFFED):
        if not position:
            line = line.removeprefix(BYTE_ORDER_MARK)
        try:
            found = parsed_json(path, "", _decoded(path, line))
        except UserError:
            continue
        if isinstance(found, dict):
            names |= dict.fromkeys(found)
    if not names:
        raise UserError(f"{path}: none of its first lines is a JSON object; not JSON lines")
    return tuple(names)


def _separated_rows(table: RowFile, first: int, number: int, last: int | None) -> Iterator[Row]:
    begins: dict[int, int] = {}  # line, from 1 at `first` -> where it begins

    def texts() -> Iterator[str]:
        for n, (position, line) in enumerate(lines(table.path, first, last), 1):
            begins[n] = position
            yield _decoded(table.path, line)

    before = max(number - 1, 0)  # lines
    is_header = not first
    records = separated_records(table.path, texts(), table.separator, table.separator != "|")
    for start, _, cells in records:
        position = begins[start]
        begins.clear()
        if is_header:
            is_header = False
            continue
        try:
            check_count(table.path, table.columns, start + before, cells, table.separator)
        except UserError as error:
            fault = str(error).removeprefix(f"{table.path}: ")
            yield Row(position, start + before, None, fault)
        else:
            row = dict(zip(table.columns, cells, strict=True))
            yield Row(position, start + before, table.cell_in(row))


# ---- lists of JSON, Parquet


def _listed_rows(table: RowFile, first: int, number: int, last: int | None) -> Iterator[Row]:
    objects = listed_objects(table.path, first, number, last, numbers_as_text=not table.is_chat)
    for n, element in enumerate(objects, number):
        yield Row(element.first, n, table.cell_in(element.value))


def _parquet_columns(path: Path) -> tuple[str, ...]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return tuple(pq.read_schema(path).names)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"{path}: not a Parquet file that can be read: {reason_of(error)}"
        ) from None


class _Batches:
    """The column of a Parquet file, a batch after another, from the row group of a row on."""

    def __init__(self, table: RowFile, first: int) -> None:
        import pyarrow.parquet as pq

        self.table = table
        self.file = pq.ParquetFile(table.path, pre_buffer=False, buffer_size=BUFFER_BYTES)
        about = self.file.metadata
        sizes = [about.row_group(i).num_rows for i in range(about.num_row_groups)]
        self.starts = np.cumsum([0, *sizes])  # of row groups
        group = self._group_of(first)
        self.start = int(self.starts[group])  # the first row of the batch at hand
        groups = range(group, len(sizes))
        self._batches = self.file.iter_batches(ROWS, groups, table.wanted, use_threads=False)
        self.batch = next(self._batches, None)

    def is_near(self, first: int) -> bool:
        """Whether a row is at hand, or follows in the same row group."""
        return self.start <= first and self._group_of(self.start) == self._group_of(first)

    def rows(self, first: int, last: int | None) -> Iterator[Row]:
        """The rows from `first` to `last`, neither of which lies before the batch at hand."""
        while self.batch is not None and (last is None or first < last):
            n = len(self.batch)
            if first < self.start + n:
                rows = self.batch.slice(first - self.start)
                if last is not None:
                    rows = rows.slice(0, last - first)
                for row in rows.to_pylist():
                    yield Row(first, first, self.table.cell_in(row))
                    first += 1
            if first >= self.start + n:
                self.start += n
                self.batch = next(self._batches, None)

    def _group_of(self, row: int) -> int:
        return max(0, int(np.searchsorted(self.starts, row, side="right")) - 1)


_kept: dict[RowFile, _Batches] = {}  # the file that this process has read a part of last


def _parquet_rows(table: RowFile, first: int, last: int | None) -> Iterator[Row]:
    import pyarrow as pa

    try:
        if last is None and not first:
            yield from _Batches(table, 0).rows(0, None)
            return
        if table not in _kept or not _kept[table].is_near(first):
            _kept.clear()
            _kept[table] = _Batches(table, first)
        yield from _kept[table].rows(first, last)
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{table.path}: not a Parquet file that can be read: {reason_of(error)}"
        ) from None
