"""Files whose columns have a row per jet: the contract, and npz, hdf5 and ROOT.

Each is opened as `Columns`, which gives any stretch of any column. A column is a number or a text
per jet, a list per jet, or a padded row per jet. `jet_tables` opens any of them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmtok.errors import UserError, missing_extra, reading
from mmtok.io import memory_budget
from mmtok.io.arrays import ArrayRows, names_in
from mmtok.io.messages import counted, listed
from mmtok.sources.jet_reader import offsets_of

VALUE_BYTES = 40  # of memory per number, while columns are joined and checked


@dataclass(frozen=True)
class Lists:
    """A list per jet: values (all P,) and offsets (n + 1)."""

    values: np.ndarray
    offsets: np.ndarray


Column = np.ndarray | Lists  # (n,) a value per jet, (n, P) padded rows, or lists


class Columns(ABC):
    """An open file of columns.

    Attributes:
        path: the file.
        names: of its columns; ROOT's branches, hdf5's datasets as "group/name", fields of records
            as "records.field", those of an array (N, P, F) as "array.0", "array.1", ...
        n_rows: of each.
        part: which part of the file it is, where that is a choice, in words; else "".
        alike: the names of the file's parts that have these columns, where there are several.
    """

    path: Path
    names: tuple[str, ...]
    n_rows: int
    part: str = ""
    alike: tuple[str, ...] = ()

    @abstractmethod
    def read(self, names: Sequence[str], start: int, stop: int) -> dict[str, Column]:
        """Rows start to stop of some columns. Raises UserError where they cannot be read."""

    # not abstract: some have nothing open
    def close(self) -> None:  # noqa: B027
        """Close the file."""

    def verify(self) -> None:  # noqa: B027
        """Raise UserError where checksums say that the file was changed."""


def rows_of(path: Path, lengths: Mapping[str, int]) -> int:
    """How many rows columns have, by the most common of their lengths.

    Raises UserError where there is no column.
    """
    if not lengths:
        raise UserError(f"{path}: holds no columns")
    return Counter(lengths.values()).most_common(1)[0][0]


def columns_of(name: str, shape: Sequence[int]) -> dict[str, int | None]:
    """The columns of an array -> which one of its last axis, of (N, P, F); else None, all of it."""
    if len(shape) != 3:
        return {name: None}
    return {f"{name}.{k}": k for k in range(shape[2])}


# ---- numpy


class NpzColumns(Columns):
    """The arrays of a .npz file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._arrays = {name: ArrayRows(path, "jets", name) for name in names_in(path, "jets")}
        of_jets = {name: a for name, a in self._arrays.items() if a.shape}
        self.n_rows = rows_of(path, {name: len(a) for name, a in of_jets.items()})
        self._places = {
            column: (name, k)
            for name, a in of_jets.items()
            if len(a) == self.n_rows
            for column, k in columns_of(name, a.shape).items()
        }
        self.names = tuple(self._places)

    def read(self, names: Sequence[str], start: int, stop: int) -> dict[str, Column]:
        """As of the contract."""
        arrays = dict.fromkeys(self._places[name][0] for name in names)
        rows = {array: self._arrays[array].rows(start, stop) for array in arrays}
        found: dict[str, Column] = {}
        for name in names:
            array, k = self._places[name]
            found[name] = rows[array] if k is None else rows[array][..., k]
        return found

    def close(self) -> None:
        """As of the contract."""
        for array in self._arrays.values():
            array.close()

    def verify(self) -> None:
        """As of the contract."""
        for array in self._arrays.values():
            array.verify()


# ---- hdf5


def open_hdf5(path: Path) -> Any:
    """An open hdf5 file, with the filters of hdf5plugin where that is installed."""
    try:
        import h5py
    except ImportError:
        raise missing_extra(f"{path}: reading .h5", "hep") from None
    with suppress(ImportError):
        import hdf5plugin  # noqa: F401 (registers blosc and others)
    with reading(path, "jets"):
        return h5py.File(path)


def hdf5_members(path: Path) -> set[str]:
    """The names of what an hdf5 file has at its top."""
    with closing(open_hdf5(path)) as file, reading(path, "jets"):
        return set(file)


def hdf5_rows(path: Path, table: Any, start: int, stop: int) -> np.ndarray:
    """Rows of a dataset.

    What is packed by a filter that is not there is read through PyTables, which brings blosc.

    Raises UserError where they take more than the memory budget, or no filter is there.
    """
    n_rows = stop - start
    with reading(path, "jets"):
        name = str(table.name)
        width = max(1, table.dtype.itemsize // 4) * math.prod(table.shape[1:])
        lacks_filter = _lacks_filter(table)
    what = f"{counted(n_rows, 'jet')} of its {name[1:]}"
    memory_budget.check(VALUE_BYTES * width * n_rows, path, what)
    if lacks_filter:
        return _rows_by_pytables(path, name, start, stop)
    with reading(path, "jets"):
        return np.asarray(table[start:stop])


def _lacks_filter(table: Any) -> bool:
    """Whether a dataset is packed by a filter that h5py does not have."""
    import h5py

    made = table.id.get_create_plist()
    filters = [made.get_filter(i)[0] for i in range(made.get_nfilters())]
    return not all(map(h5py.h5z.filter_avail, filters))


def _rows_by_pytables(path: Path, name: str, start: int, stop: int) -> np.ndarray:
    try:
        import tables
    except ImportError:
        raise missing_extra(f"{path}: {name[1:]} is packed by blosc; reading it", "hep") from None
    with reading(path, "jets"), tables.open_file(str(path)) as file:
        return np.asarray(file.get_node(name)[start:stop])


class Hdf5Columns(Columns):
    """The datasets of an hdf5 file, also in groups; of a table of records its fields."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_hdf5(path)
        self._tables: dict[str, Any] = {}
        # column -> table, and the field of its records or the place in its last axis
        self._places: dict[str, tuple[str, str | int | None]] = {}
        lengths: dict[str, int] = {}

        def add(name: str | bytes, table: Any) -> None:
            if not getattr(table, "shape", None):
                return
            if isinstance(name, bytes):  # as h5py gives what is not UTF-8
                name = name.decode(errors="replace")
            self._tables[name] = table
            fields: dict[str, str] = {f"{name}.{field}": field for field in table.dtype.names or ()}
            parts = fields or columns_of(name, table.shape)
            self._places |= {column: (name, part) for column, part in parts.items()}
            lengths.update(dict.fromkeys(parts, int(table.shape[0])))

        with reading(path, "jets"):
            self._file.visititems(add)
        self.n_rows = rows_of(path, lengths)
        self.names = tuple(name for name, length in lengths.items() if length == self.n_rows)

    def read(self, names: Sequence[str], start: int, stop: int) -> dict[str, Column]:
        """As of the contract."""
        import h5py

        tables = dict.fromkeys(self._places[name][0] for name in names)
        rows = {key: hdf5_rows(self.path, self._tables[key], start, stop) for key in tables}
        found: dict[str, Column] = {}
        for name in names:
            table, part = self._places[name]
            column = rows[table]
            if isinstance(part, str):
                column = column[part]
            elif part is not None:
                column = column[..., part]
            kind = h5py.check_vlen_dtype(column.dtype)
            found[name] = _listed_objects(column) if kind not in (None, str, bytes) else column
        return found

    def close(self) -> None:
        """As of the contract."""
        self._file.close()


def _listed_objects(column: np.ndarray) -> Lists:
    """An array of arrays, as h5py gives lists, joined."""
    lists = [np.asarray(item) for item in column]
    return Lists(np.concatenate([np.zeros(0), *lists]), offsets_of(np.array(list(map(len, lists)))))


# ---- ROOT


class RootColumns(Columns):
    """The branches of a tree of a ROOT file: of the one that is named, or has the most entries.

    Of a tree that was written several times (its cycles), the last is taken, as ROOT does.

    Attributes:
        tree: as uproot gives it.
        trees: the names of all trees of the file, with the folders that they are in.
    """

    def __init__(self, path: Path, tree: str = "") -> None:
        self.path = path
        try:
            import uproot
        except ImportError:
            raise missing_extra(f"{path}: reading .root", "hep") from None
        with reading(path, "jets"):
            self._file = uproot.open(path)
            classes = self._file.classnames(cycle=False)
            trees = {
                name: self._file[name]
                for name, kind in classes.items()
                if kind.startswith(("TTree", "ROOT::RNTuple"))
            }
            n_rows = {name: int(found.num_entries) for name, found in trees.items()}
        self.trees = tuple(trees)
        if not trees:
            raise UserError(f"{path}: holds no tree; it has {listed(list(classes)) or 'nothing'}")
        at = self._named(tree) if tree else max(n_rows, key=n_rows.__getitem__)
        if len(trees) > 1:
            others = listed(self.trees)
            self.part = f"in the tree {at} (--columns tree=NAME takes another of {others})"
        self.tree = trees[at]
        self.n_rows = n_rows[at]
        with reading(path, "jets"):
            self.names = tuple(self.tree.keys())
            alike = [name for name, found in trees.items() if set(found.keys()) == set(self.names)]
        self.alike = tuple(name for name in alike if n_rows[name])

    def _named(self, tree: str) -> str:
        """The tree that a user names; its folder may be left out where one tree is so called."""
        called = [name for name in self.trees if tree in (name, name.rpartition("/")[2])]
        if tree in called:
            return tree
        if len(called) != 1:
            lack = f"several trees {tree!r}" if called else f"no tree {tree!r}"
            raise UserError(f"{self.path}: has {lack}; its trees are {listed(self.trees)}")
        return called[0]

    def read(self, names: Sequence[str], start: int, stop: int) -> dict[str, Column]:
        """As of the contract."""
        with reading(self.path, "jets"):
            arrays = self.tree.arrays(
                list(names), entry_start=start, entry_stop=stop, library="ak", how=dict
            )
            return {name: _of_awkward(_picked(arrays, name)) for name in names}

    def close(self) -> None:
        """As of the contract."""
        self._file.close()


def _picked(arrays: Mapping[str, Any], name: str) -> Any:
    """A column; that of a field of records is within the records, as uproot gives RNTuples."""
    if name in arrays:
        return arrays[name]
    records, _, field = name.rpartition(".")
    return arrays[records][field]


def _of_awkward(array: Any) -> Column:
    """An awkward array as numbers, texts, rows or lists."""
    import awkward as ak

    if array.ndim == 1:
        first = ak.type(array)
        if "string" in str(first):
            return np.array(ak.to_list(array), dtype=object)
        return np.asarray(ak.to_numpy(array))
    if array.ndim > 2:
        raise UserError("lists of lists are no column of jets")
    return Lists(np.asarray(ak.to_numpy(ak.flatten(array))), offsets_of(np.asarray(ak.num(array))))
