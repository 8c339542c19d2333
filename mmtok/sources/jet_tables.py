"""Opening a file of columns, whatever its format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mmtok.sources.jet_columns import Columns, Hdf5Columns, NpzColumns, RootColumns
from mmtok.sources.jet_json import JsonColumns
from mmtok.sources.jet_parquet import ParquetColumns

COLUMNS: dict[str, Callable[[Path], Columns]] = {
    ".npz": NpzColumns,
    ".h5": Hdf5Columns,
    ".hdf5": Hdf5Columns,
    ".root": RootColumns,
    ".parquet": ParquetColumns,
    ".jsonl": JsonColumns,
    ".ndjson": JsonColumns,
    ".jsonl.gz": JsonColumns,
    ".jsonl.zst": JsonColumns,
    ".json": JsonColumns,
}


def open_columns(path: Path, tree: str = "") -> Columns:
    """The columns of a file, by its suffix; of a ROOT file, those of the tree that is named.

    Raises UserError where it cannot be read.
    """
    if path.suffix.lower() == ".root":
        return RootColumns(path, tree)
    suffix = max((s for s in COLUMNS if path.name.lower().endswith(s)), key=len)
    return COLUMNS[suffix](path)
