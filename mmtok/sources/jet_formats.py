"""File formats of jets, read and written; a jet is float32 (P, F), one column per feature.

What the suffix of a file means:

- .npz: `values` (all P, F) with `offsets` (N + 1), or one padded array. The former is written.
- .npy: (N, P, F) padded with particles of zero pt, or one jet (P, F). The former is written.
- .parquet: one list column per feature, a row per jet. Written in the same form.
- .h5: JetNet's particle_features (etarel, phirel, ptrel, mask) and jet_features (pt). Never
  written.

Nothing is assumed about the axis or the mass: columns are what their names say. Other formats are
read by the contract of `jet_reader`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mmtok.errors import UserError, missing_extra, reading, reason_of
from mmtok.io import memory_budget
from mmtok.io.arrays import names_in, read_npy, read_npz
from mmtok.io.files import atomic_write
from mmtok.io.messages import listed, shown

FEATURES = ("pt_gev", "eta_rel", "phi_rel")
MOST_FEATURES = 1000
VALUE_BYTES = 40  # of memory per number, while tables are joined and checked


# ---- flat arrays


def split_jets(values: np.ndarray, offsets: np.ndarray) -> list[np.ndarray]:
    """Flat values (all P, F) with offsets (N + 1) -> N jets (P, F)."""
    starts = offsets[:-1].tolist()
    stops = offsets[1:].tolist()
    return [values[start:stop] for start, stop in zip(starts, stops, strict=True)]


def join_jets(jets: Sequence[np.ndarray], n_features: int) -> tuple[np.ndarray, np.ndarray]:
    """N jets (P, F) -> flat values (all P, F) as float32, and offsets (N + 1)."""
    values = np.concatenate([np.zeros((0, n_features), np.float32), *jets]).astype(np.float32)
    return values, _offsets(np.array([len(jet) for jet in jets], np.int64))


def _offsets(n_particles: np.ndarray) -> np.ndarray:
    """(N,) particles of each jet -> (N + 1,) where it starts and the last one ends."""
    return np.concatenate(([0], np.cumsum(n_particles)))


# ---- reading


def read_flat_jets(path: Path, features: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The jets in a file: values (all P, F) and offsets (N + 1), N at least 1.

    Single jets are not checked; `mmtok.sources.jets.read_jets` does so.

    Raises UserError, naming the file, for one that cannot be read.
    """
    if "pt_gev" not in features:
        raise UserError(
            f"{path}: reading jets needs the feature pt_gev, asked were {', '.join(features)}"
        )
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise UserError(
            f"{path}: not a file of jets that can be read; known are {', '.join(READERS)}"
        )
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty")
    try:
        values, offsets = read(path, features)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, EOFError, TypeError) as error:
        raise UserError(f"{path}: cannot be read as jets ({reason_of(error)})") from None
    if len(offsets) < 2:
        raise UserError(f"{path}: holds no jets")
    return values, offsets


def _read_npz(path: Path, features: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    there = names_in(path, "jets")
    if not {"values", "offsets"} <= set(there):
        if len(there) != 1:
            raise UserError(
                f"{path}: needs arrays named values and offsets, or one padded array; it has"
                f" {listed(there)}"
            )
        return _from_padded(path, read_npz(path, there, "jets")[0], features)
    values, offsets = read_npz(path, ("values", "offsets"), "jets")
    names = features
    if "features" in there:
        names = _feature_names(path)
    are_numbers = values.dtype.kind in "fiu" and offsets.dtype.kind in "iu"
    if not are_numbers or values.ndim != 2 or offsets.ndim != 1:
        raise UserError(
            f"{path}: values must be numbers (particles, features) and offsets whole numbers (jets"
            f" + 1), got {values.dtype} {values.shape} and {offsets.dtype} {offsets.shape}"
        )
    if (
        len(offsets) == 0
        or offsets[0] != 0
        or offsets[-1] != len(values)
        or np.any(offsets[1:] < offsets[:-1])
    ):
        raise UserError(
            f"{path}: offsets must rise from 0 to the number of particles, {len(values)}"
        )
    return _columns(path, values, names, features), offsets.astype(np.int64)


def _feature_names(path: Path) -> tuple[str, ...]:
    """The names of the columns that a .npz file itself gives."""
    names = read_npz(path, ("features",), "jets")[0]
    if names.ndim != 1 or names.dtype.kind != "U" or len(names) > MOST_FEATURES:
        raise UserError(
            f"{path}: features must be up to {MOST_FEATURES} names, got {names.dtype} {names.shape}"
        )
    return tuple(map(str, names))


def _read_npy(path: Path, features: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    return _from_padded(path, read_npy(path, "jets"), features)


def _from_padded(
    path: Path, array: np.ndarray, features: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """(N, P, F) with zero-pt padding, or one jet (P, F) -> flat values and offsets."""
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or array.dtype.kind not in "fiu":
        raise UserError(
            f"{path}: a padded array of jets has shape (N, P, {len(features)}) and numbers, got"
            f" {array.shape} of {array.dtype}"
        )
    is_real = np.ones(array.shape[:2], bool)
    if array.shape[2] == len(features):  # else `_columns` refuses it
        is_real = array[..., features.index("pt_gev")] != 0
    values = _columns(path, array[is_real], features, features)
    return values, _offsets(is_real.sum(1))


def _columns(
    path: Path, values: np.ndarray, names: tuple[str, ...], features: tuple[str, ...]
) -> np.ndarray:
    """The columns of `values`, named `names`, that `features` asks for, as float32."""
    missing = [name for name in features if name not in names]
    if missing:
        raise UserError(f"{path}: has no feature {', '.join(missing)}; it has {listed(names)}")
    if values.ndim != 2 or values.shape[1] != len(names):
        raise UserError(
            f"{path}: expected {len(names)} features per particle ({listed(names)}), got shape"
            f" {values.shape}"
        )
    indices = [names.index(name) for name in features]
    return np.ascontiguousarray(values[:, indices], dtype=np.float32)


def _read_parquet(path: Path, features: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with reading(path, "jets"):
        with pq.ParquetFile(path) as file:
            types = {column.name: column.type for column in file.schema_arrow}
            about = file.metadata
        groups = [about.row_group(g) for g in range(about.num_row_groups)]
        n_values = sum(
            group.column(c).num_values for group in groups for c in range(group.num_columns)
        )
    missing = [name for name in features if name not in types]
    if missing:
        raise UserError(f"{path}: has no column {', '.join(missing)}; it has {listed(list(types))}")
    for name in features:
        if not _is_list_of_numbers(types[name]):
            raise UserError(
                f"{path}: the column {name} holds {shown(str(types[name]))}, expected a list of"
                " numbers for each jet"
            )
    memory_budget.check(VALUE_BYTES * n_values, path, "its columns")
    with reading(path, "jets"):
        table = pq.read_table(path, columns=list(features))
        columns = [
            table[name].cast(pa.list_(types[name].value_type)).combine_chunks() for name in features
        ]
    n_particles = [np.asarray(column.value_lengths().fill_null(0)) for column in columns]
    for name, lengths in zip(features, n_particles, strict=True):
        if np.any(lengths != n_particles[0]):
            raise UserError(
                f"{path}: jet {np.argmax(lengths != n_particles[0])} has other numbers of {name}"
                f" than of {features[0]}"
            )
    values = np.stack([np.asarray(column.flatten(), dtype=np.float32) for column in columns], 1)
    return values, _offsets(n_particles[0])


def _is_list_of_numbers(kind: Any) -> bool:
    """Whether an Arrow type is a list of numbers."""
    import pyarrow as pa

    is_list = (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )
    return is_list and (
        pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)
    )


def _read_jetnet(path: Path, features: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """JetNet (Zenodo 6975118, 6975117): pt_gev is ptrel times the jet's pt."""
    try:
        import h5py
    except ImportError:
        raise missing_extra(f"{path}: reading .h5", "jets") from None
    with reading(path, "jets"), h5py.File(path) as file:
        tables = [file.get(name) for name in ("particle_features", "jet_features")]
        if not all(isinstance(table, h5py.Dataset) for table in tables):
            raise UserError(
                f"{path}: not a JetNet file: it needs particle_features and jet_features, and has"
                f" {listed(list(file))}"
            )
        for table in tables:
            if table.dtype.kind not in "fiu":
                raise UserError(f"{path}: {table.name} holds {table.dtype}, no numbers")
            n_bytes = VALUE_BYTES * math.prod(table.shape or ())
            memory_budget.check(n_bytes, path, f"its {table.name[1:]}")
        particles, jets = (np.asarray(table, np.float64) for table in tables)
    if (
        particles.ndim != 3
        or particles.shape[2] < 4
        or jets.ndim != 2
        or jets.shape[1] < 1
        or len(jets) != len(particles)
    ):
        raise UserError(
            f"{path}: expected particle_features (N, P, 4) and jet_features (N, 4), got"
            f" {particles.shape} and {jets.shape}"
        )
    eta_rel, phi_rel, pt_rel, mask = np.moveaxis(particles[..., :4], 2, 0)
    is_real = mask > 0.5
    values = np.stack((pt_rel * jets[:, :1], eta_rel, phi_rel), 2)[is_real]
    return _columns(path, values, FEATURES, features), _offsets(is_real.sum(1))


READERS: dict[str, Callable[[Path, tuple[str, ...]], tuple[np.ndarray, np.ndarray]]] = {
    ".npz": _read_npz,
    ".npy": _read_npy,
    ".parquet": _read_parquet,
    ".h5": _read_jetnet,
    ".hdf5": _read_jetnet,
}


# ---- writing


def write_jets(
    path: str | Path, jets: Sequence[np.ndarray], features: Sequence[str] = FEATURES
) -> None:
    """Write jets (P, F) atomically as .npz (flat), .npy (zero-padded) or .parquet (list columns).

    Raises UserError for another suffix, and for what cannot be written.
    """
    path = Path(path)
    if path.suffix == ".npz":
        save_flat(path, jets, features=features)
    elif path.suffix == ".npy":
        padded = np.zeros((len(jets), max(map(len, jets), default=0), len(features)), np.float32)
        for row, jet in zip(padded, jets, strict=True):
            row[: len(jet)] = jet
        _write(path, lambda file: np.save(file, padded))
    elif path.suffix == ".parquet":
        _write(path, lambda file: _write_parquet(file, jets, features))
    else:
        raise UserError(f"{path}: jets are written as .npz, .npy or .parquet")


def _write_parquet(file: BinaryIO, jets: Sequence[np.ndarray], features: Sequence[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    values, offsets = join_jets(jets, len(features))
    columns = [
        pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(column))
        for column in values.T.copy()
    ]
    pq.write_table(pa.table(columns, names=list(features)), file)


def save_flat(
    path: Path,
    jets: Sequence[np.ndarray],
    labels: np.ndarray | None = None,
    features: Sequence[str] = FEATURES,
) -> None:
    """Write FILE.npz with values, offsets, features and, if given, labels (N strings)."""
    values, offsets = join_jets(jets, len(features))
    arrays: dict[str, Any] = {
        "values": values,
        "offsets": offsets,
        "features": np.array(features),
    }
    if labels is not None:
        arrays["labels"] = labels
    _write(path, lambda file: np.savez(file, **arrays))


def load_flat(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `save_flat` wrote with labels: values (all P, F), offsets (N + 1), labels (N)."""
    try:
        values, offsets, labels = read_npz(path, ("values", "offsets", "labels"), "jets")
    except UserError as error:
        raise UserError(
            f"{error}: the cached jets cannot be read; delete the file to make them again"
        ) from None
    return values, offsets, labels


def _write(path: Path, fill: Callable[[BinaryIO], None]) -> None:
    """Let `fill` write an open file, which appears at `path` when it is complete.

    Raises UserError for what cannot be written.
    """
    try:
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            fill(file)
    except OSError as error:
        raise UserError(
            f"{error.filename or path}: cannot be written ({error.strerror or error})"
        ) from None
