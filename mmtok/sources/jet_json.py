"""Jets in JSON lines, plain or compressed, or in one list in JSON."""

from __future__ import annotations

import json
import tempfile
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from mmtok.errors import UserError, reading
from mmtok.io.compressed import is_compressed
from mmtok.io.compressed import lines as decompressed_lines
from mmtok.io.json_stream import stream_list
from mmtok.io.messages import shown
from mmtok.io.strict_json import unique_keys
from mmtok.sources.jet_columns import Column, Columns, Lists
from mmtok.sources.jet_reader import offsets_of

LIST = ".json"  # the suffix of one list
LOOKED_AT = 1000  # lines, for the names of columns


class JsonColumns(Columns):
    """JSON lines, a jet each: a list of records, or an object of numbers, texts, lists, records.

    The names of columns are those of the first line that has some. A list in JSON (`ak.to_json`)
    has such a jet in each place; messages count these as lines.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with reading(path, "jets"):
            self._file = _lines_of(path)
            starts = array("q")
            numbers = array("q")
            begin = 0
            for number, line in enumerate(self._file, 1):
                if line.strip():
                    starts.append(begin)
                    numbers.append(number)
                begin += len(line)
        self._starts = np.array(starts)
        self._lines = np.array(numbers)
        self.n_rows = len(self._starts)
        if not self.n_rows:
            raise UserError(f"{path}: holds no jets")
        self.names = self._first_names()

    def _first_names(self) -> tuple[str, ...]:
        """The columns of the first line that has some; a jet without constituents has none."""
        for k in range(min(self.n_rows, LOOKED_AT)):
            names = tuple(self._flat(self._rows(k, k + 1)[0], k))
            if names:
                return names
        raise UserError(f"{self.path}: its first lines hold no constituents")

    def _rows(self, start: int, stop: int) -> list[Any]:
        rows = []
        with reading(self.path, "jets"):
            for k in range(start, stop):
                self._file.seek(int(self._starts[k]))
                line = self._file.readline()
                try:
                    rows.append(json.loads(line.decode("utf-8-sig"), object_pairs_hook=unique_keys))
                except (ValueError, RecursionError) as error:
                    raise UserError(
                        f"{self.path}: line {self._lines[k]}: not JSON: {error}"
                    ) from None
        return rows

    def _flat(self, row: Any, k: int) -> dict[str, Any]:
        """A line as columns: a list where there is one per constituent."""
        if isinstance(row, list):
            return self._records(row, "", k)
        if not isinstance(row, dict):
            raise UserError(
                f"{self.path}: line {self._lines[k]}: holds {type(row).__name__}; a jet is a list"
                " of records, or an object of columns"
            )
        found: dict[str, Any] = {}
        for name, value in row.items():
            if isinstance(value, list) and value and isinstance(value[0], dict):
                found |= self._records(value, f"{name}.", k)
            else:
                found[name] = value
        return found

    def _records(self, records: list[Any], prefix: str, k: int) -> dict[str, Any]:
        """A list of records as a list per field."""
        names = list(records[0]) if records and isinstance(records[0], dict) else []
        try:
            return {f"{prefix}{name}": [record[name] for record in records] for name in names}
        except (KeyError, TypeError):
            raise UserError(
                f"{self.path}: line {self._lines[k]}: its records do not all have"
                f" {', '.join(names)}"
            ) from None

    def read(self, names: Sequence[str], start: int, stop: int) -> dict[str, Column]:
        """As of the contract."""
        rows = [self._flat(row, start + i) for i, row in enumerate(self._rows(start, stop))]
        return {name: self._column(name, rows, start) for name in names}

    def _column(self, name: str, rows: list[dict[str, Any]], start: int) -> Column:
        cells = [row.get(name, []) for row in rows]
        if not any(isinstance(cell, list) for cell in cells):
            return np.array(cells, dtype=object if _has_text(cells) else np.float64)
        numbers = []
        for i, cell in enumerate(cells):
            try:
                # null is no list: a jet without constituents, as in Parquet
                numbers.append(np.array([] if cell is None else cell, np.float64).reshape(-1))
            except (TypeError, ValueError):
                raise UserError(
                    f"{self.path}: line {self._lines[start + i]}: {name} holds {shown(cell)},"
                    " expected a list of numbers"
                ) from None
        return Lists(
            np.concatenate([np.zeros(0), *numbers]), offsets_of(np.array(list(map(len, numbers))))
        )

    def close(self) -> None:
        """As of the contract."""
        self._file.close()

    def __del__(self) -> None:
        # what was given up half-way, or what nobody closed
        if hasattr(self, "_file"):
            self._file.close()


def _lines_of(path: Path) -> IO[bytes]:
    """The lines of a file, to be read from any place on.

    What is compressed, or one list, is copied to a temporary file, so that memory does not grow
    with it; the copy vanishes once it is closed.
    """
    is_list = path.suffix.lower() == LIST
    if not is_list and not is_compressed(path):
        return path.open("rb")
    copy = tempfile.TemporaryFile()  # noqa: SIM115 (it is open as long as the columns)
    try:
        if is_list:
            copy.writelines(
                json.dumps(element.value).encode() + b"\n" for element in stream_list(path)
            )
        else:
            copy.writelines(line for _, line in decompressed_lines(path))
    except BaseException:
        copy.close()
        raise
    copy.seek(0)
    return copy


def _has_text(cells: Sequence[Any]) -> bool:
    return any(cell is None or isinstance(cell, str) for cell in cells)
