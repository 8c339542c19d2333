"""Parquet files of row groups that are encoded apart, in whichever process.

A Parquet file is PAR1, its row groups, and a footer that says where they are: a Thrift struct in
the compact protocol, its length, PAR1. So files are joined by copying their row groups and moving
the offsets in the footer. Names and numbers of fields are those of the Parquet format's
parquet.thrift.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

MAGIC = b"PAR1"
TAIL = 8  # bytes: the length of the footer, and MAGIC
# fields of FileMetaData
NUM_ROWS = 3
ROW_GROUPS = 4
KEY_VALUE_METADATA = 5
# fields of RowGroup
COLUMNS = 1
GROUP_ROWS = 3
GROUP_OFFSETS = (5,)
# fields of ColumnChunk and of its ColumnMetaData
META_DATA = 3
CHUNK_OFFSETS = (2, 4, 6)
META_OFFSETS = (9, 10, 11, 14)


def encoded_group(table: pa.Table) -> pa.Buffer:
    """A table as a Parquet file of one row group; of none where the table is empty."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink, table.schema, compression="zstd", write_page_checksum=True
    ) as writer:
        if len(table):
            writer.write_table(table, row_group_size=len(table))
    return sink.getvalue()


class GroupWriter:
    """Writes a Parquet file of a schema, row group by row group, to an open file."""

    def __init__(self, file: BinaryIO, schema: pa.Schema) -> None:
        _, self._footer = _split(encoded_group(schema.empty_table()))
        self._file = file
        self._position = file.write(MAGIC)

    def append(self, content: pa.Buffer) -> None:
        """Add the row group of an `encoded_group` of the same schema."""
        body, footer = _split(content)
        for group in footer[ROW_GROUPS].value.items:
            _move(group, self._position - len(MAGIC))
            self._footer[ROW_GROUPS].value.items.append(group)
            self._footer[NUM_ROWS].value += group[GROUP_ROWS].value
        self._position += self._file.write(body)

    def close(self, metadata: Mapping[str, str]) -> None:
        """Write the footer, with these metadata besides the schema's."""
        pairs = self._footer[KEY_VALUE_METADATA].value.items
        for pair in metadata.items():
            texts = (_Field(BINARY, text.encode()) for text in pair)
            pairs.append(dict(enumerate(texts, 1)))
        out = io.BytesIO()
        _write_struct(out, self._footer)
        self._file.write(out.getvalue())
        self._file.write(struct.pack("<i", out.tell()) + MAGIC)


def _split(content: pa.Buffer) -> tuple[memoryview, dict[int, _Field]]:
    """The row groups of a file, and its footer."""
    view = memoryview(content)
    (size,) = struct.unpack("<i", view[-TAIL : -len(MAGIC)])
    end = len(view) - TAIL - size
    return view[len(MAGIC) : end], _read_struct(io.BytesIO(view[end:-TAIL]))


def _move(group: dict[int, _Field], by: int) -> None:
    """Move the offsets of a row group; 0 says that there is none."""
    _add(group, GROUP_OFFSETS, by)
    for chunk in group[COLUMNS].value.items:
        _add(chunk, CHUNK_OFFSETS, by)
        _add(chunk[META_DATA].value, META_OFFSETS, by)


def _add(fields: dict[int, _Field], numbers: tuple[int, ...], by: int) -> None:
    for number in numbers:
        if number in fields and fields[number].value:
            fields[number].value += by


# ---- Thrift's compact protocol

TRUE, FALSE, I8, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
INTEGERS = (I16, I32, I64)
LONG_LIST = 15  # a list of so many or more has its size apart
LONG_STEP = 15  # a field that is further from the one before has its number apart


@dataclass
class _Field:
    """A value and its type: a number, bytes, an `_Items`, or a struct (number -> field)."""

    kind: int
    value: Any


@dataclass
class _Items:
    """The items of a list, all of one type."""

    kind: int
    items: list[Any]


def _read_struct(file: BinaryIO) -> dict[int, _Field]:
    fields = {}
    number = 0
    while head := file.read(1)[0]:
        kind = head & 15
        step = head >> 4
        number = number + step if step else _zigzag(_read_varint(file))
        fields[number] = _Field(kind, _read_value(file, kind))
    return fields


def _read_value(file: BinaryIO, kind: int) -> Any:
    if kind in (TRUE, FALSE):
        return None  # the type says it
    if kind in INTEGERS:
        return _zigzag(_read_varint(file))
    if kind == I8:
        return file.read(1)
    if kind == DOUBLE:
        return file.read(8)
    if kind == BINARY:
        return file.read(_read_varint(file))
    if kind == STRUCT:
        return _read_struct(file)
    if kind in (LIST, SET):
        return _read_items(file)
    raise ValueError(f"a Parquet footer has a value of type {kind}, which none is known to have")


def _read_items(file: BinaryIO) -> _Items:
    head = file.read(1)[0]
    kind = head & 15
    n = head >> 4
    if n == LONG_LIST:
        n = _read_varint(file)
    if kind in (TRUE, FALSE):
        kind = I8  # in lists each is a byte
    return _Items(kind, [_read_value(file, kind) for _ in range(n)])


def _read_varint(file: BinaryIO) -> int:
    """Seven bits a byte, the lowest first; the eighth says that more follow."""
    value = 0
    shift = 0
    while True:
        byte = file.read(1)[0]
        value |= (byte & 127) << shift
        if byte < 128:
            return value
        shift += 7


def _zigzag(value: int) -> int:
    """0, -1, 1, -2, ... of 0, 1, 2, 3, ..."""
    return (value >> 1) ^ -(value & 1)


def _write_struct(file: BinaryIO, fields: Mapping[int, _Field]) -> None:
    before = 0
    for number, field in sorted(fields.items()):
        step = number - before
        if step > LONG_STEP:
            file.write(bytes([field.kind]))
            _write_varint(file, number << 1)
        else:
            file.write(bytes([step << 4 | field.kind]))
        _write_value(file, field.kind, field.value)
        before = number
    file.write(b"\0")


def _write_value(file: BinaryIO, kind: int, value: Any) -> None:
    if kind in INTEGERS:
        _write_varint(file, value << 1 if value >= 0 else ~value << 1 | 1)
    elif kind in (I8, DOUBLE):
        file.write(value)
    elif kind == BINARY:
        _write_varint(file, len(value))
        file.write(value)
    elif kind == STRUCT:
        _write_struct(file, value)
    elif kind in (LIST, SET):
        _write_items(file, value)


def _write_items(file: BinaryIO, value: _Items) -> None:
    n = len(value.items)
    file.write(bytes([min(n, LONG_LIST) << 4 | value.kind]))
    if n >= LONG_LIST:
        _write_varint(file, n)
    for item in value.items:
        _write_value(file, value.kind, item)


def _write_varint(file: BinaryIO, value: int) -> None:
    while value > 127:
        file.write(bytes([value & 127 | 128]))
        value >>= 7
    file.write(bytes([value]))
