"""Jets in Parquet files: as columns of any names, and as `write_jets` writes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmtok.errors import UserError, reading
from mmtok.io.columns import named_column
from mmtok.io.messages import listed, shown
from mmtok.sources.jet_columns import Column, Columns, Lists
from mmtok.sources.jet_reader import JetReader, ReadSettings, as_caption, offsets_of

BATCH = 4096  # jets that are decoded at once


class ParquetColumns(Columns):
    """The columns of a Parquet file; lists of records and records have a column per field.

    Rows are decoded going forward; what comes before them is decoded anew from its row group on.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq

        self.path = path
        with reading(path, "jets"):
            self._file = pq.ParquetFile(path)
            self.schema = self._file.schema_arrow
            about = self._file.metadata
            groups = [about.row_group(g).num_rows for g in range(about.num_row_groups)]
            self._firsts = offsets_of(np.array(groups, np.int64))
        self.n_rows = int(self._firsts[-1])
        self._columns = dict(_parquet_names(self.schema))
        self.names = tuple(self._columns)
        self._wanted: set[str] = set()  # columns that were asked for so far
        self._last: tuple[int, int, Any] = (0, -1, None)
        self._batches: Iterator[Any] = iter(())
        self._batch: Any = None
        self._first = 0  # row of the batch
        self._next = 0  # row of the next batch

    def read(self, names: Sequence[str], start: int, stop: int) -> dict[str, Column]:
        """As of the contract."""
        tops = {self._columns[name][0] for name in names}
        is_again = self._last[:2] == (start, stop)
        if not (is_again and tops <= self._wanted):
            with reading(self.path, "jets"):
                self._last = (start, stop, self._rows(tops, start, stop))
        return {name: self._column(self._last[2], name) for name in names}

    def _rows(self, tops: set[str], start: int, stop: int) -> Any:
        """An Arrow table of these rows, with at least these columns."""
        import pyarrow as pa

        if not tops <= self._wanted or start < self._first or self._batch is None:
            self._go_to(tops, start)
        parts = []
        at = start
        while at < stop:
            while at >= self._next:
                self._first = self._next
                self._batch = next(self._batches)
                self._next += len(self._batch)
            n_rows = min(stop, self._next) - at
            parts.append(self._batch.slice(at - self._first, n_rows))
            at += n_rows
        if not parts:
            return self.schema.empty_table()
        return pa.Table.from_batches(parts)

    def _go_to(self, tops: set[str], start: int) -> None:
        """Decode these columns too, from the row group on that has the row `start`."""
        group = int(np.searchsorted(self._firsts, start, side="right")) - 1
        group = min(group, len(self._firsts) - 2)
        self._wanted |= tops
        self._batches = self._file.iter_batches(
            BATCH,
            row_groups=range(max(group, 0), len(self._firsts) - 1),
            columns=sorted(self._wanted),
            use_threads=False,  # there is a process for each core
        )
        self._batch = None
        self._first = self._next = int(self._firsts[max(group, 0)])

    def _column(self, table: Any, name: str) -> Column:
        import pyarrow as pa

        top, fields = self._columns[name]
        with reading(self.path, "jets"):
            column = table[top].combine_chunks()
            if isinstance(column, pa.ChunkedArray):  # of no rows
                column = pa.concat_arrays(column.chunks)
            while fields and pa.types.is_struct(column.type):
                column = column.field(column.type.get_field_index(fields[0]))
                fields = fields[1:]
            if not is_list(column.type):
                return _arrow_values(column)
            offsets, values = _of_lists(column)
            for field in fields:
                values = values.field(values.type.get_field_index(field))
        if not (is_number(values.type) or pa.types.is_boolean(values.type)):
            raise UserError(
                f"{self.path}: the column {name} holds {shown(str(self.schema.field(top).type))},"
                " expected a list of numbers for each jet"
            )
        return Lists(_arrow_values(values), offsets)

    def close(self) -> None:
        """As of the contract."""
        self._batches = iter(())
        self._file.close()


def _parquet_names(schema: Any) -> Iterator[tuple[str, tuple[str, tuple[str, ...]]]]:
    """Name of a column -> (top column, fields below it)."""
    import pyarrow as pa

    for field in schema:
        kind = field.type
        records = kind.value_type if is_list(kind) else kind
        if not pa.types.is_struct(records):
            yield field.name, (field.name, ())
            continue
        for inner in records:
            yield f"{field.name}.{inner.name}", (field.name, (inner.name,))


def is_list(kind: Any) -> bool:
    """Whether an Arrow type is a list."""
    import pyarrow as pa

    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def is_number(kind: Any) -> bool:
    """Whether an Arrow type is a number."""
    import pyarrow as pa

    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _of_lists(column: Any) -> tuple[np.ndarray, Any]:
    """The offsets of a column of lists, from 0, and the Arrow array of what is in them."""
    import pyarrow as pa

    if column.null_count or pa.types.is_fixed_size_list(column.type):
        column = column.cast(pa.large_list(column.type.value_type))
        lengths = np.asarray(column.value_lengths().fill_null(0))
        return offsets_of(lengths), column.flatten()
    offsets = np.asarray(column.offsets).astype(np.int64)
    first = int(offsets[0]) if len(offsets) else 0
    n_values = int(offsets[-1]) - first if len(offsets) else 0
    return offsets - first, column.values.slice(first, n_values)


def _arrow_values(column: Any) -> np.ndarray:
    """Arrow's numbers as numpy's, an empty one as NaN; texts as objects."""
    import pyarrow as pa

    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    if is_number(column.type):
        if column.null_count:
            column = column.cast(pa.float64())
        return np.asarray(column.to_numpy(zero_copy_only=False))
    return np.array(column.to_pylist(), dtype=object)


# ---- of ours


class ParquetJets(JetReader):
    """List columns named as the features are; `caption` may be a column too, where it is named."""

    def __init__(self, path: Path, settings: ReadSettings) -> None:
        self.path = path
        self._columns = ParquetColumns(path)
        self._types = {field.name: field.type for field in self._columns.schema}
        self.features = tuple(self._types)
        self.n_jets = self._columns.n_rows
        self._caption = ""
        if "caption" in settings.columns:
            self._caption = named_column(settings.columns["caption"], self._columns.names, path)
            self.has_captions = True

    def check_features(self, features: Sequence[str]) -> None:
        """As of the contract; their columns must hold lists of numbers."""
        missing = [name for name in features if name not in self._types]
        if missing:
            raise UserError(
                f"{self.path}: has no column {', '.join(missing)}; it has"
                f" {listed(list(self._types))}; name them: --columns"
                " pt=COLUMN,eta=COLUMN,phi=COLUMN"
            )
        for name in features:
            kind = self._types[name]
            if not (is_list(kind) and is_number(kind.value_type)):
                raise UserError(
                    f"{self.path}: the column {name} holds {shown(str(kind))}, expected a list of"
                    " numbers for each jet"
                )

    def read(self, start: int, stop: int, features: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """As of the contract."""
        columns = self._columns.read(features, start, stop)
        lists = [column for column in columns.values() if isinstance(column, Lists)]
        offsets = lists[0].offsets
        for name, column in zip(features, lists, strict=True):
            differs = np.diff(column.offsets) != np.diff(offsets)
            if differs.any():
                raise UserError(
                    f"{self.path}: jet {start + int(np.argmax(differs))} has other numbers of"
                    f" {name} than of {features[0]}"
                )
        values = [np.asarray(column.values, np.float32) for column in lists]
        return np.stack(values, 1), offsets

    def captions(self, start: int, stop: int) -> list[str]:
        """As of the contract."""
        column = self._columns.read([self._caption], start, stop)[self._caption]
        if isinstance(column, Lists):
            raise UserError(f"{self.path}: the column {self._caption} has a list for each jet")
        return [as_caption(value) for value in column.tolist()]

    def close(self) -> None:
        """As of the contract."""
        self._columns.close()
