"""The writing of a token file, in groups of rows that depend on the rows alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from mmtok.io.files import atomic_write
from mmtok.io.parquet_groups import GroupWriter, encoded_group

ROW_GROUP = 4096  # rows of a group, at most
MOST_VALUES = 2**24  # numbers in memory at once: of a group of rows, of a batch of signals
OWN_GROUP = 2**18  # numbers that are worth a group of their own, which whoever made them encodes


def encoded_rows(n_values: int, table: pa.Table) -> pa.Table | pa.Buffer:
    """Rows as they are sent to the process that writes: many as an encoded group."""
    if n_values >= OWN_GROUP:
        return encoded_group(table)
    return table


class TokenWriter:
    """Writes rows to an open token file.

    Attributes:
        metadata: of the file, to which the caller adds.
    """

    def __init__(self, writer: GroupWriter) -> None:
        self.metadata: dict[str, str] = {}
        self._writer = writer
        self._group: list[pa.Table] = []
        self._n_rows = 0
        self._n_values = 0

    def add(self, n_values: int, rows: pa.Table | pa.Buffer) -> None:
        """Add rows that hold so many numbers, as `encoded_rows` gives them."""
        if isinstance(rows, pa.Buffer):
            self.flush()
            self._writer.append(rows)
            return
        if self._n_values + n_values > MOST_VALUES or self._n_rows + len(rows) > ROW_GROUP:
            self.flush()
        self._group.append(rows)
        self._n_rows += len(rows)
        self._n_values += n_values

    def flush(self) -> None:
        """Write what is left."""
        if self._n_rows:
            self._writer.append(encoded_group(pa.concat_tables(self._group)))
        self._group = []
        self._n_rows = 0
        self._n_values = 0


@contextmanager
def token_writer(path: Path, schema: pa.Schema) -> Iterator[TokenWriter]:
    """A token file to write rows to; it appears when the block is left without an error."""
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        groups = GroupWriter(file, schema)
        writer = TokenWriter(groups)
        yield writer
        writer.flush()
        groups.close(writer.metadata)
