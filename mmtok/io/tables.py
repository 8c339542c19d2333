"""Tables read strictly: csv, tsv, columns between pipes, JSON, Parquet; texts also compressed.

Every row is checked against the header, text stays text (00501, 1.10, NA, true), and errors name
file and line. Nothing is guessed, padded or left out but empty lines.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmtok.errors import UserError, reason_of
from mmtok.io import memory_budget
from mmtok.io.columns import cell_of
from mmtok.io.compressed import COMPRESSED, bare_path, blocks, is_compressed
from mmtok.io.messages import listed
from mmtok.io.strict_json import unique_keys
from mmtok.io.tally import Tally

SEPARATORS = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".psv": "|"}
TEXT_TABLE = ".txt"  # a table only where a user names it as one
CERTAIN = ("|", "\t")  # separators of a .csv or .txt wherever the header has them
USUAL = (",", ";")  # else the one that cuts the header into more cells
DECLARED = re.compile(r'"?sep=(.)"?[,;\t]*\s*', re.IGNORECASE)  # the first line that Excel reads
QUOTED = re.compile(r'"(?:[^"]|"")*"')
LINES = (".jsonl", ".ndjson")  # of JSON, two names of one thing
TEXTS = (*SEPARATORS, *LINES, ".json")
SUFFIXES = (*TEXTS, *(suffix + more for suffix in TEXTS for more in COMPRESSED), ".parquet")
# Memory per byte of a text while it is decoded and cut: as bytes, and as characters of up to four.
CHARACTER_BYTES = 6
CELL_BYTES = 80  # more, of a cell with what its row takes
ROWS = 1024  # of Parquet that are read at once
TO_UTF8 = "convert it first, e.g. iconv -f {} -t utf-8"


@dataclass(frozen=True)
class Table:
    """A table: its columns, and a tuple of cells per row in their order.

    Attributes:
        numbers: of each row: the line where it begins, or from 0 where the file has no lines.
        unit: what they count: line or row.
        separator: between cells; "" where there is none.
        broken: indices of rows that run over several lines, as a cell with a line break in quotes
            does.
    """

    path: Path
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    numbers: list[int]
    unit: str = "line"
    separator: str = ""
    broken: list[int] = field(default_factory=list)

    def where(self, i: int) -> str:
        """Row i, as messages call it."""
        return f"{self.path}: {self.unit} {self.numbers[i]}"

    def open_quote(self, i: int, names_file: Callable[[str], bool]) -> str:
        """The error of row i where an open quote lets it hold another row; "" where none does."""
        if not self.separator:
            return ""
        return swallowed_row(self.where(i), self.rows[i], self.separator, names_file)

    def count_broken(self, tally: Tally) -> None:
        """Count the rows of several lines, which an open quote may have made."""
        if self.broken:
            first = self.where(self.broken[0])
            tally.add("of several lines: is a quote left open there?", first, len(self.broken))

    def column(self, name: str) -> list[Any]:
        """The cells of a column: strings; of JSON and Parquet also None, lists and the like.

        Raises UserError, naming those that there are, where there is no such column.
        """
        if name not in self.columns:
            raise UserError(
                f"{self.path}: has no column {name}; its columns are {listed(self.columns)}"
            )
        at = self.columns.index(name)
        return [row[at] for row in self.rows]

    def cell(self, i: int, name: str) -> Any:
        """The cell of row i in a column, or in a part of one; see `mmtok.io.columns`."""
        if name in self.columns:
            return self.rows[i][self.columns.index(name)]
        return cell_of(dict(zip(self.columns, self.rows[i], strict=True)), name)


def swallowed_row(
    where: str, cells: Sequence[Any], separator: str, names_file: Callable[[str], bool]
) -> str:
    """The error of a row where an open quote lets it hold another row; "" where none does.

    Another row is a line of several cells, one of which names a file.
    """
    for cell in cells:
        for line in str(cell).splitlines()[1:]:
            parts = [part.strip().strip('"') for part in line.split(separator)]
            if len(parts) > 1 and any(map(names_file, parts)):
                return (
                    f"{where}: a cell in quotes holds another row, {line!r}; close the quote"
                    " before it"
                )
    return ""


def read_table(path: Path, columns: Sequence[str] = ()) -> Table:
    """The table in a file, by the file's suffix. columns: their names, for a file without a header.

    Raises UserError, naming file and line, for a row with more or fewer cells than the header, a
    quote that is left open, a column or key that comes twice, what is not UTF-8, and a table
    without rows.
    """
    path = Path(path)
    suffix = suffix_of(path, named=True)
    if suffix is None:
        texts = ", ".join(TEXTS)
        raise UserError(
            f"{path}: not a table that can be read; known are {texts}, each also as"
            f" {' or '.join(COMPRESSED)}, and .parquet"
        )
    if suffix == ".parquet":
        table = _parquet(path)
    elif suffix in (*SEPARATORS, TEXT_TABLE):
        table = _separated(path, decoded(path), columns)
    else:
        table = _json(path, decoded(path))
    if not table.rows:
        raise UserError(f"{path}: the table has no rows")
    return table


def suffix_of(path: Path, named: bool = False) -> str | None:
    """The suffix of a table in a file's name, as .csv of t.CSV.gz; None for other files.

    Lines of JSON are .jsonl, whatever their name.

    named: whether the user named the file as a table; then it may be a .txt.
    """
    name = path.name.lower()
    known = SUFFIXES
    if named:
        known = (*SUFFIXES, TEXT_TABLE, *(TEXT_TABLE + more for more in COMPRESSED))
    found = next((suffix for suffix in known if name.endswith(suffix)), None)
    if found is None:
        return None
    suffix = str(bare_path(Path(found)))
    return LINES[0] if suffix in LINES else suffix


def decoded(path: Path) -> str:
    """The text of a UTF-8 file, without a byte order mark, decompressed if need be.

    Raises UserError, with line and remedy, for another encoding and for NUL bytes, and for a file
    larger than the memory budget.
    """
    content = content_of(path)
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{path}: is UTF-16; {TO_UTF8.format('utf-16')}")
    if b"\0" in content:
        line = content[: content.index(b"\0")].count(b"\n") + 1
        raise UserError(
            f"{path}: line {line} holds a NUL byte, so this is no text; write it anew as UTF-8"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}: not UTF-8 text (byte {error.start}) in line {line};"
            f" {TO_UTF8.format('latin1')}"
        ) from None


def content_of(path: Path) -> bytes:
    """The bytes of a file, decompressed if need be.

    Raises UserError where they would pass the memory budget.
    """
    if not is_compressed(path):
        try:
            memory_budget.check(CHARACTER_BYTES * path.stat().st_size, path)
            return path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    content = bytearray()
    for block in blocks(path):  # how many there are is not known before
        content += block
        memory_budget.check(CHARACTER_BYTES * len(content), path, "what is unpacked of it")
    return bytes(content)


def as_text(cell: Any, where: str) -> str | None:
    """A cell as text, None where there is none.

    Raises UserError for lists and the like, and for what no UTF-8 file can hold.
    """
    if cell is None:
        return None
    if isinstance(cell, str):
        try:
            cell.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"{where}: holds a lone surrogate, which is no character; remove it"
            ) from None
        return str(cell)
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if not isinstance(cell, (int, float)):
        raise UserError(f"{where}: holds {type(cell).__name__}, not text")
    return str(cell)


# ---- cells between separators


def _separated(path: Path, text: str, columns: Sequence[str]) -> Table:
    """Rows of cells between separators; quotes enclose cells, but are text between pipes."""
    lines = list(io.StringIO(text, newline=""))
    separator = separator_of(path, lines)
    n_cells = len(lines) + text.count(separator)
    memory_budget.check(
        CHARACTER_BYTES * len(text) + CELL_BYTES * n_cells, path, f"its {n_cells:,} cells"
    )
    records = separated_records(path, lines, separator, separator != "|")
    if not columns:
        first, _, columns = next(records, (1, 1, []))
        columns = header_names(path, first, columns)
    table = Table(path, tuple(columns), [], [], separator=separator)
    for first, last, cells in records:
        check_count(path, table.columns, first, cells, separator)
        if last > first:
            table.broken.append(len(table.rows))
        table.rows.append(tuple(cells))
        table.numbers.append(first)
    return table


def separator_of(path: Path, lines: Iterable[str]) -> str:
    """The suffix's own; of a .csv or .txt, what its header has outside quotes, or line 1 declares.

    Such a line is sep=; as spreadsheets read it.
    """
    separator = SEPARATORS.get(suffix_of(path) or "", ",")
    if separator != ",":
        return separator
    header = next((line for line in lines if line.strip()), "")
    if declared := DECLARED.fullmatch(header):
        return declared[1]
    bare = QUOTED.sub("", header)
    certain = next((other for other in CERTAIN if other in bare), None)
    return certain or max(USUAL, key=bare.count)


def separated_records(
    path: Path, lines: Iterable[str], separator: str, has_quotes: bool
) -> Iterator[tuple[int, int, list[str]]]:
    """(first line, last line, cells) of every record that is not empty.

    Lines keep their ends; only those of one record are held. Raises UserError for a wrong quote.
    """
    record: list[str] = []

    def kept() -> Iterator[str]:
        for i, line in enumerate(lines):
            if i == 0 and DECLARED.fullmatch(line):
                line = "\n"
            record.append(line)
            yield line

    reader = csv.reader(
        kept(),
        delimiter=separator,
        strict=True,
        quoting=csv.QUOTE_MINIMAL if has_quotes else csv.QUOTE_NONE,
    )
    blank_before_quote = re.compile(rf"(^|{re.escape(separator)})[ ]+\"", re.MULTILINE)
    with _cells_of_any_length():
        while True:
            first = reader.line_num + 1
            record.clear()
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise UserError(
                    f"{path}: line {first}: {_fault(error, first, reader.line_num)}"
                ) from None
            if cells is None:
                return
            text = "".join(record)
            if has_quotes and blank_before_quote.search(text):
                _check_blanks(path, first, text, separator, cells)
            if any(cell.strip() for cell in cells):
                yield first, reader.line_num, cells


def _fault(error: csv.Error, first: int, last: int) -> str:
    """What is wrong with a record that begins in line `first`, found in line `last`."""
    if "end of data" in str(error):
        return (
            "a quote opens in this row and is never closed; close it, or double a quote that is"
            " text"
        )
    if last > first:
        return (
            f"a quote opens in this row and runs on into line {last}; close it, or double a quote"
            " that is text"
        )
    if "expected after" in str(error):
        return "a quote closes before the end of its cell; double the quotes that are text"
    return str(error)


def _check_blanks(path: Path, line: int, record: str, separator: str, cells: list[str]) -> None:
    """Refuse a quote after a blank: readers differ in whether it encloses the cell."""
    reader = csv.reader(io.StringIO(record, newline=""), delimiter=separator, skipinitialspace=True)
    if [cell.lstrip() for cell in cells] != [cell.lstrip() for row in reader for cell in row]:
        raise UserError(
            f"{path}: line {line}: a blank stands before a quote that opens a cell; take the"
            " blank out"
        )


def header_names(path: Path, line: int, cells: list[str]) -> tuple[str, ...]:
    """The names of the columns; those without a name cannot be asked for.

    Raises UserError for an empty file and for a name that comes twice.
    """
    names = tuple(cell.strip() for cell in cells)
    if not names:
        raise UserError(f"{path}: the file is empty; its first line should name the columns")
    for name in names:
        if name and names.count(name) > 1:
            raise UserError(
                f"{path}: line {line}: the column {name} comes twice; rename one of them"
            )
    return names


def check_count(
    path: Path, columns: Sequence[str], line: int, cells: Sequence[str], separator: str
) -> None:
    """Raise UserError for a row with more or fewer cells than there are columns."""
    n = len(columns)
    if len(cells) < n:
        raise UserError(
            f"{path}: line {line} ends before its {columns[len(cells)] or 'last cell'};"
            " complete or remove it"
        )
    if len(cells) > n:
        remedy = f"put quotes around a cell that holds {separator!r}"
        if separator == "|":
            remedy = "no cell may hold a |"
        raise UserError(
            f"{path}: line {line} has {len(cells)} cells where the header has {n}"
            f" ({listed(columns)}); {remedy}"
        )


@contextmanager
def _cells_of_any_length() -> Iterator[None]:
    """Lift the csv module's limit on the length of a cell, which is global to the process."""
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)


# ---- JSON


def _json(path: Path, text: str) -> Table:
    """One object a line, or one list of objects. Numbers stay text, as in the file."""
    if text.lstrip().startswith("["):
        objects = list(enumerate(parsed_json(path, "", text)))
        unit = "row"
    else:
        lines = [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
        objects = [(i, parsed_json(path, f"line {i}: ", line)) for i, line in lines]
        unit = "line"
    for i, row in objects:
        if not isinstance(row, dict):
            raise UserError(
                f"{path}: {unit} {i}: holds {type(row).__name__}, not an object of column and cell"
            )
    columns = tuple(dict.fromkeys(name for _, row in objects for name in row))
    rows = [tuple(row.get(name) for name in columns) for _, row in objects]
    return Table(path, columns, rows, [i for i, _ in objects], unit)


def parsed_json(path: Path, where: str, text: str) -> Any:
    """A JSON value whose numbers are left as text. Raises UserError for a key that comes twice."""
    try:
        return json.loads(
            text, object_pairs_hook=unique_keys, parse_float=str, parse_int=str, parse_constant=str
        )
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise UserError(f"{path}: {where}not JSON: {reason}") from None


# ---- Parquet


def _parquet(path: Path) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            columns = _columns(file, path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"{path}: not a Parquet file that can be read: {reason_of(error)}"
        ) from None
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise UserError(f"{path}: the column {repeated} comes twice; rename one of them")
    rows = list(zip(*columns, strict=True))
    return Table(path, tuple(names), rows, list(range(len(rows))), "row")


def _columns(file: Any, path: Path) -> list[list[Any]]:
    """The cells of every column of a Parquet file.

    They are read a few rows at a time, as few bytes may stand for many rows.
    """
    about = file.metadata
    n_bytes = CELL_BYTES * about.num_rows * len(file.schema_arrow.names)
    memory_budget.check(n_bytes, path, f"its {about.num_rows:,} rows")
    columns: list[list[Any]] = [[] for _ in file.schema_arrow.names]
    for batch in file.iter_batches(ROWS):
        n_bytes += 2 * batch.nbytes  # once as Arrow has it
        memory_budget.check(n_bytes, path, f"its {about.num_rows:,} rows")
        for cells, column in zip(columns, batch.columns, strict=True):
            cells += column.to_pylist()
    return columns
