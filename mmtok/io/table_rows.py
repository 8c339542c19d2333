"""Tables of any size, read row by row: the files of `mmtok.io.tables`, by the same strict rules.

Only the row at hand is in memory, of Parquet a group of rows of the columns that are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from mmtok.errors import UserError, reason_of
from mmtok.io.columns import cell_of, whole_columns
from mmtok.io.compressed import FAULTS, fault_of, open_text
from mmtok.io.json_stream import Element, stream_list
from mmtok.io.tables import (
    ROWS,
    SEPARATORS,
    TEXT_TABLE,
    TEXTS,
    check_count,
    decoded,
    header_names,
    parsed_json,
    separated_records,
    separator_of,
    suffix_of,
    swallowed_row,
)

N_SNIFFED = 1_000  # objects of JSON lines that are looked at for the names of columns
HEAD_CHARS = 2**16  # of a file, to tell a list of JSON objects from JSON lines


@dataclass(frozen=True)
class TableFile:
    """A table in a file that is read row by row.

    Attributes:
        path: of the file.
        columns: their names; of JSON lines those of the first 1,000 objects.
        unit: what numbers of rows count: line or row.
        separator: between cells; "" where there is none.
        has_quotes: whether quotes enclose cells, else they are text.
        has_header: whether the first row names the columns.
    """

    path: Path
    columns: tuple[str, ...]
    unit: str = "line"
    separator: str = ""
    has_quotes: bool = True
    has_header: bool = True

    @property
    def has_records(self) -> bool:
        """Whether cells may hold records."""
        return not self.separator

    def where(self, number: int) -> str:
        """A row, as messages call it."""
        return f"{self.path}: {self.unit} {number}"

    def rows(
        self, wanted: Sequence[str], names_file: Callable[[str], bool] | None = None
    ) -> Iterator[tuple[int, list[Any]]]:
        """(number, cells of the wanted columns) of every row; None for a column that it lacks.

        Args:
            wanted: names of columns.
            names_file: whether a text names a file, to find rows that an open quote has swallowed.

        Raises UserError as `read_table` does.
        """
        suffix = suffix_of(self.path)
        if suffix == ".parquet":
            return _parquet_rows(self, wanted)
        if self.separator:
            return _separated_rows(self, wanted, names_file)
        return _json_rows(self, wanted)


def open_table(
    path: Path, columns: Sequence[str] = (), separator: str = "", has_quotes: bool = True
) -> TableFile:
    """The table in a file, by the file's suffix.

    Args:
        path: the file.
        columns: their names, for a file without a header.
        separator: between cells; "" as the suffix or the header says.
        has_quotes: whether quotes enclose cells; never between pipes.

    Raises UserError where it has no header, or none that can be used.
    """
    suffix = suffix_of(path, named=True)
    if suffix == ".parquet":
        return TableFile(path, _parquet_names(path), "row")
    if suffix not in (*SEPARATORS, TEXT_TABLE) and not separator:
        if suffix is None:
            raise UserError(f"{path}: not a table; known are {', '.join(TEXTS)} and .parquet")
        return _json_table(path)
    separator = separator or separator_of(path, (line for _, line in text_lines(path)))
    has_quotes = has_quotes and separator != "|"
    if columns:
        return TableFile(path, tuple(columns), "line", separator, has_quotes, has_header=False)
    lines = (line for _, line in text_lines(path))
    first, _, cells = next(separated_records(path, lines, separator, has_quotes), (1, 1, []))
    names = header_names(path, first, cells)
    return TableFile(path, names, "line", separator, has_quotes)


def text_lines(path: Path, ends: str = "") -> Iterator[tuple[int, str]]:
    """(number from 1, line with its end) of a UTF-8 file, decompressed if need be.

    ends: of lines, as `open` has newline: "" any, left as they are.

    Raises UserError, with line and remedy, for another encoding, and for NUL bytes.
    """
    try:
        with open_text(path, ends) as file:
            for number, line in enumerate(file, 1):
                if "\0" in line:
                    decoded(path)  # raises, and says where
                yield number, line
    except UnicodeDecodeError as error:
        decoded(path)
        raise UserError(f"{path}: not UTF-8 text ({reason_of(error)})") from None
    except FAULTS as error:
        raise fault_of(path, error) from None


def first_chars(path: Path) -> str:
    """The beginning of a text. Raises UserError where it cannot be read as UTF-8."""
    try:
        with open_text(path, "\n") as file:
            return file.read(HEAD_CHARS)
    except (UnicodeDecodeError, *FAULTS) as error:
        raise UserError(f"{path}: cannot be read: {reason_of(error)}") from None


def _separated_rows(
    table: TableFile, wanted: Sequence[str], names_file: Callable[[str], bool] | None
) -> Iterator[tuple[int, list[Any]]]:
    at = [_index(table, name) for name in wanted]
    lines = (line for _, line in text_lines(table.path))
    records = separated_records(table.path, lines, table.separator, table.has_quotes)
    for first, last, cells in islice(records, int(table.has_header), None):
        check_count(table.path, table.columns, first, cells, table.separator)
        if last > first and names_file is not None:
            fault = swallowed_row(table.where(first), cells, table.separator, names_file)
            if fault:
                raise UserError(fault)
        yield first, [cells[i] if i >= 0 else None for i in at]


def _index(table: TableFile, name: str) -> int:
    """The place of a column; -1 where there is none."""
    if name not in table.columns:
        return -1
    return table.columns.index(name)


# ---- JSON


def _json_table(path: Path) -> TableFile:
    """One object a line, or one list of objects."""
    if is_list(path):
        names = chain.from_iterable(element.value for element in listed_objects(path))
        table = TableFile(path, tuple(dict.fromkeys(names)), "row")
        if not table.columns:
            raise UserError(f"{path}: the table has no rows")
        return table
    objects = (cells for _, cells in json_objects(path, text_lines(path, "\n")))
    names = chain.from_iterable(islice(objects, N_SNIFFED))
    return TableFile(path, tuple(dict.fromkeys(names)))


def _json_rows(table: TableFile, wanted: Sequence[str]) -> Iterator[tuple[int, list[Any]]]:
    path = table.path
    rows: Iterable[tuple[int, dict[str, Any]]]
    if is_list(path):
        rows = enumerate(element.value for element in listed_objects(path))
    else:
        rows = json_objects(path, text_lines(path, "\n"))
    for number, cells in rows:
        yield number, [cell_of(cells, name) for name in wanted]


def listed_objects(
    path: Path,
    first: int = 0,
    number: int = 0,
    last: int | None = None,
    numbers_as_text: bool = True,
) -> Iterator[Element]:
    """The objects of one list, as `stream_list` gives them; the first has this number.

    Raises UserError for what is no object.
    """
    elements = stream_list(path, first, last, numbers_as_text)
    for row, element in enumerate(elements, number):
        _check_object(path, f"row {row}", element.value)
        yield element


def json_objects(
    path: Path, lines: Iterable[tuple[int, str]]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of JSON lines with their numbers. Raises UserError for what is no object."""
    for number, line in lines:
        if not line.strip():
            continue
        found = parsed_json(path, f"line {number}: ", line)
        _check_object(path, f"line {number}", found)
        yield number, found


def _check_object(path: Path, where: str, found: Any) -> None:
    if not isinstance(found, dict):
        raise UserError(
            f"{path}: {where}: holds {type(found).__name__}, not an object of column and cell"
        )


def is_list(path: Path) -> bool:
    """Whether a JSON file is one list, not one object a line."""
    try:
        return first_chars(path).lstrip().startswith("[")
    except UserError:
        return False  # reading its lines says what is wrong


# ---- Parquet


def _parquet_names(path: Path) -> tuple[str, ...]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"{path}: not a Parquet file that can be read: {reason_of(error)}"
        ) from None
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise UserError(f"{path}: the column {repeated} comes twice; rename one of them")
    return tuple(names)


def _parquet_rows(table: TableFile, wanted: Sequence[str]) -> Iterator[tuple[int, list[Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    there = whole_columns(wanted, table.columns)
    number = 0
    try:
        with pq.ParquetFile(table.path) as file:
            for batch in file.iter_batches(ROWS, columns=there):
                for row in batch.to_pylist() if there else [{}] * len(batch):
                    yield number, [cell_of(row, name) for name in wanted]
                    number += 1
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{table.path}: not a Parquet file that can be read: {reason_of(error)}"
        ) from None
