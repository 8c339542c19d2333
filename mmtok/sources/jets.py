"""Files of jets, read and written; a jet is float32 (P, F): its constituents by falling pt, one
column per feature.

| suffix   | what is read                                                              | what is
           written            |
|----------|---------------------------------------------------------------------------|----------------------------|
| .npz     | `values` (all P, F) with `offsets` (N + 1), or one padded array            | values,
           offsets, features  |
| .npy     | (N, P, F) padded with particles of zero pt, or one jet (P, F)              | (N, P, F),
           zero-padded     |
| .parquet | one list column per feature, a row per jet                                 | the same                   |
| .h5      | JetNet: particle_features (etarel, phirel, ptrel, mask), jet_features (pt) | -
           |

Nothing is assumed about the axis or the mass: a reader takes columns as their names say.
"""

from __future__ import annotations

import math
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmtok.errors import UserError, missing_extra, reading
from mmtok.io import memory_budget
from mmtok.io.arrays import names_in, read_npy, read_npz
from mmtok.io.files import atomic_write
from mmtok.io.messages import counted, listed, shown
from mmtok.io.tables import decoded
from mmtok.io.walk import file_at
from mmtok.sources.base import Example
from mmtok.sources.screen import Limit, Screen, Screened

MOST_FEATURES = 1000
VALUE_BYTES = 40  # of memory per number, while tables are joined and checked
FEATURES = ("pt_gev", "eta_rel", "phi_rel")


@dataclass(frozen=True)
class JetFile(Screened):
    """A user's file of jets; `labels` may name a text file with one caption per line, in the order
    of the jets; an empty line is no caption, and its jet cannot be used.

    Fields: jets, and caption where there are labels. A share of the jets, chosen by `seed`, is held
    out.

    min_particles, max_particles  of a jet; others are left out and counted. 0: any
    """

    path: str = ""
    labels: str = ""
    features: tuple[str, ...] = FEATURES
    heldout_share: float = 0.1
    seed: int = 0
    min_particles: int = 0
    max_particles: int = 0

    def __post_init__(self):
        super().__post_init__()
        self._limit()
        if not 0 < self.heldout_share < 1:
            raise UserError(
                f"JetFile: heldout_share is {self.heldout_share}; it must be between 0 and 1"
            )

    @property
    def fields(self) -> dict[str, str]:
        return {"caption": "text", "jets": "jets"} if self.labels else {"jets": "jets"}

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "heldout")

    def check(self) -> None:
        """Raise UserError when the file or its labels are not there, or too many of its jets cannot
        be used.
        """
        self._jets()

    def examples(self, split: str, cache: Path) -> Iterator[dict]:
        """The jets of a split, in the file's order; nothing is cached."""
        if split not in self.splits:
            raise UserError(f"JetFile has no split {split!r}, only {', '.join(self.splits)}")
        jets, captions, numbers = self._jets()
        n_heldout = min(max(1, round(self.heldout_share * len(jets))), len(jets) - 1)
        order = np.random.default_rng(self.seed).permutation(len(jets))
        for i in np.sort(order[:n_heldout] if split == "heldout" else order[n_heldout:]):
            caption = {} if captions is None else {"caption": captions[i]}
            yield Example({**caption, "jets": jets[i]}, f"{self.path}: jet {numbers[i]}")

    def _limit(self) -> Limit:
        return Limit("particles", self.min_particles, self.max_particles)

    def _jets(self) -> tuple[list[np.ndarray], list[str] | None, list[int]]:
        """The jets that can be used, their captions, and their numbers in the file."""
        path = file_at(self.path, "JetFile", "jets as .npz, .npy, .parquet or .h5")
        values, offsets = _flat_jets(path, self.features)
        pt_column, n = self.features.index("pt_gev"), len(offsets) - 1
        labels = (
            file_at(self.labels, "JetFile.labels", "one caption per line") if self.labels else None
        )
        captions = None if labels is None else _captions(labels, n)
        faults, sizes = (
            _faults(values, offsets, pt_column),
            _n_particles(values, offsets, pt_column),
        )

        def look(i: int) -> dict[str, int]:
            if i in faults:
                raise UserError(f"{path}: jet {i} {faults[i]}")
            if captions is not None and not captions[i].strip():
                raise UserError(
                    f"{labels}: line {i + 1} is empty; write the caption of jet {i}, or remove both"
                )
            return {"particles": int(sizes[i])}

        kept = Screen(range(n), look, self, "jets", (self._limit(),), lambda i: f"jet {i}").items
        if len(kept) < 2:
            raise UserError(
                f"{path}: {counted(len(kept), 'jet')} cannot be split into train and heldout; give"
                " at least two"
            )
        values, offsets = _flat(
            [values[offsets[i] : offsets[i + 1]] for i in kept], len(self.features)
        )
        jets = split_jets(*_checked(path, values, offsets, pt_column, kept))
        return jets, None if captions is None else [captions[i] for i in kept], kept


def _captions(path: Path, n: int) -> list[str]:
    """The lines of a file, plain or .gz, one for each of n jets; some may be empty."""
    lines = decoded(path).replace("\r\n", "\n").removesuffix("\n").split("\n")
    if len(lines) != n:
        raise UserError(
            f"{path}: {counted(len(lines), 'caption')} for {counted(n, 'jet')}; give one line"
            " per jet"
        )
    return lines


def read_jets(path: str | Path, features: Sequence[str] = FEATURES) -> list[np.ndarray]:
    """The jets of a file, each float32 (P, F) with the columns `features`, "pt_gev" among them, by
    falling pt.

    Said by a warning: jets that were sorted, particles of zero pt that were dropped, jets without
    constituents: such a one is (0, F), as a model may draw it, so that jet i of a file is always
    row i. Raises UserError, naming file and jet, for a file that cannot be read, and for NaN,
    infinite or negative pt.
    """
    path = Path(path)
    return split_jets(
        *_checked(path, *_flat_jets(path, tuple(features)), list(features).index("pt_gev"))
    )


def _flat_jets(path: Path, features: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """What a file holds: values (all P, F) and offsets (N + 1), N at least 1.

    Raises UserError as `read_jets` does, but for single jets.
    """
    readers = {
        ".npz": _read_npz,
        ".npy": _read_npy,
        ".parquet": _read_parquet,
        ".h5": _read_jetnet,
        ".hdf5": _read_jetnet,
    }
    if "pt_gev" not in features:
        raise UserError(
            f"{path}: reading jets needs the feature pt_gev, asked were {', '.join(features)}"
        )
    read = readers.get(path.suffix.lower())
    if read is None:
        raise UserError(
            f"{path}: not a file of jets that can be read; known are {', '.join(readers)}"
        )
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty")
    try:
        values, offsets = read(path, features)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if (
            "pickle" in reason
        ):  # numpy's word for whatever it does not know, with advice that nobody should follow
            reason = "not a numpy file of numbers"
        raise UserError(f"{path}: cannot be read as jets ({reason})") from None
    if len(offsets) < 2:
        raise UserError(f"{path}: holds no jets")
    return values, offsets


def checked_jet(values: object, name: str, features: Sequence[str] = FEATURES) -> np.ndarray:
    """One jet in memory, a list or array (P, F), as `read_jets` would give it; messages call it
    `name`.

    Raises UserError as `read_jets` does, and for a jet without constituents.
    """
    try:
        array = np.asarray(values, np.float32)
    except (TypeError, ValueError):
        array = np.zeros(0)
    if array.ndim != 2 or array.shape[1] != len(features):
        raise UserError(
            f"{name}: a jet is a list of constituents of {len(features)} numbers"
            f" ({', '.join(features)})"
        )
    pt_column = list(features).index("pt_gev")
    if not array[:, pt_column].any():
        raise UserError(f"{name}: the jet has no constituents; remove it")
    return split_jets(*_checked(name, array, np.array([0, len(array)]), pt_column))[0]


def split_jets(values: np.ndarray, offsets: np.ndarray) -> list[np.ndarray]:
    """Flat values (all P, F) with offsets (N + 1) -> N jets (P, F)."""
    return [values[a:b] for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist())]


def _checked(
    path: Path | str,
    values: np.ndarray,
    offsets: np.ndarray,
    pt_column: int,
    numbers: Sequence[int] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Refuse what is no jet; drop particles of zero pt; sort by pt.

    numbers: of these jets in the file, where some were left out.
    """
    for i, what in _faults(values, offsets, pt_column).items():
        raise UserError(f"{path}: jet {i} {what}")
    jet = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    pt = values[:, pt_column]
    if not pt.all():
        warnings.warn(
            f"{path}: dropped {counted(np.sum(pt == 0), 'particle')} of zero pt", stacklevel=3
        )
        values, jet = values[pt > 0], jet[pt > 0]
    n = np.bincount(jet, minlength=len(offsets) - 1)
    if not n.all():
        first = numbers[np.argmin(n)] if numbers else np.argmin(n)
        warnings.warn(
            f"{path}: {np.sum(n == 0):,} of {len(n):,} jets have no constituents, the first is jet"
            f" {first}",
            stacklevel=3,
        )
    pt = values[:, pt_column]
    rises = (np.diff(pt) > 0) & (np.diff(jet) == 0)
    if rises.any():
        warnings.warn(
            f"{path}: sorted {counted(len(np.unique(jet[1:][rises])), 'jet')} by falling pt",
            stacklevel=3,
        )
        values = values[np.lexsort((-pt, jet))]
    return values, np.concatenate(([0], np.cumsum(n)))


def _faults(values: np.ndarray, offsets: np.ndarray, pt_column: int) -> dict[int, str]:
    """Jet -> what is wrong with it, in their order."""
    jet = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    wrong = {
        int(i): "has a negative pt; give pt in GeV, not its logarithm"
        for i in jet[values[:, pt_column] < 0]
    }
    unbounded = jet[~np.isfinite(values).all(1)]
    wrong |= {
        int(i): "has a NaN or infinite value; remove the jet or pad with zeros" for i in unbounded
    }
    return dict(sorted(wrong.items()))


def _n_particles(values: np.ndarray, offsets: np.ndarray, pt_column: int) -> np.ndarray:
    """(N,) particles of each jet that have a pt."""
    jet = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    return np.bincount(jet[values[:, pt_column] != 0], minlength=len(offsets) - 1)


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
        told = read_npz(path, ("features",), "jets")[0]
        if told.ndim != 1 or told.dtype.kind != "U" or len(told) > MOST_FEATURES:
            raise UserError(
                f"{path}: features must be up to {MOST_FEATURES} names, got {told.dtype}"
                f" {told.shape}"
            )
        names = tuple(map(str, told))
    if (
        offsets.ndim != 1
        or offsets.dtype.kind not in "iu"
        or values.ndim != 2
        or values.dtype.kind not in "fiu"
    ):
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


def _read_npy(path: Path, features: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    return _from_padded(path, read_npy(path, "jets"), features)


def _from_padded(
    path: Path, array: np.ndarray, features: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """(N, P, F) with zero-pt padding, or one jet (P, F) -> flat values and offsets."""
    array = array[None] if array.ndim == 2 else array
    if array.ndim != 3 or array.dtype.kind not in "fiu":
        raise UserError(
            f"{path}: a padded array of jets has shape (N, P, {len(features)}) and numbers, got"
            f" {array.shape} of {array.dtype}"
        )
    real = (
        array[..., features.index("pt_gev")] != 0
        if array.shape[2] == len(features)
        else np.ones(array.shape[:2], bool)
    )
    offsets = np.concatenate(([0], np.cumsum(real.sum(1))))
    return _columns(path, array[real], features, features), offsets


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
    return np.ascontiguousarray(
        values[:, [names.index(name) for name in features]], dtype=np.float32
    )


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
        if not (_is_list(types[name]) and _is_number(types[name].value_type)):
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
    n = [np.asarray(column.value_lengths().fill_null(0)) for column in columns]
    for name, lengths in zip(features, n):
        if np.any(lengths != n[0]):
            raise UserError(
                f"{path}: jet {np.argmax(lengths != n[0])} has other numbers of {name} than of"
                f" {features[0]}"
            )
    values = np.stack([np.asarray(column.flatten(), dtype=np.float32) for column in columns], 1)
    return values, np.concatenate(([0], np.cumsum(n[0])))


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
            memory_budget.check(
                VALUE_BYTES * math.prod(table.shape or ()), path, f"its {table.name[1:]}"
            )
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
    real = mask > 0.5
    flat = np.stack((pt_rel * jets[:, :1], eta_rel, phi_rel), 2)[real]
    return _columns(path, flat, FEATURES, features), np.concatenate(([0], np.cumsum(real.sum(1))))


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _is_number(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_floating(kind) or pa.types.is_integer(kind)


def write_jets(
    path: str | Path, jets: Sequence[np.ndarray], features: Sequence[str] = FEATURES
) -> None:
    """Write jets (P, F) as .npz (flat), .npy (zero-padded) or .parquet (list columns), whole or not
    at all.
    """
    path = Path(path)
    if path.suffix == ".npz":
        save_flat(path, jets, features=features)
    elif path.suffix == ".npy":
        padded = np.zeros((len(jets), max(map(len, jets), default=0), len(features)), np.float32)
        for row, jet in zip(padded, jets):
            row[: len(jet)] = jet
        _replace(path, lambda file: np.save(file, padded))
    elif path.suffix == ".parquet":
        _replace(path, lambda file: _write_parquet(file, jets, features))
    else:
        raise UserError(f"{path}: jets are written as .npz, .npy or .parquet")


def _flat(jets: Sequence[np.ndarray], n_features: int) -> tuple[np.ndarray, np.ndarray]:
    values = np.concatenate([np.zeros((0, n_features), np.float32), *jets]).astype(np.float32)
    return values, np.concatenate(([0], np.cumsum([len(jet) for jet in jets], dtype=np.int64)))


def _write_parquet(file, jets: Sequence[np.ndarray], features: Sequence[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    values, offsets = _flat(jets, len(features))
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
    values, offsets = _flat(jets, len(features))
    arrays = {"values": values, "offsets": offsets, "features": np.array(features)}
    _replace(
        path,
        lambda file: np.savez(file, **arrays if labels is None else {**arrays, "labels": labels}),
    )


def load_flat(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `save_flat` wrote with labels: values (all P, F), offsets (N + 1), labels (N)."""
    try:
        values, offsets, labels = read_npz(path, ("values", "offsets", "labels"), "jets")
        return values, offsets, labels
    except UserError as error:
        raise UserError(
            f"{error}: the cached jets cannot be read; delete the file to make them again"
        ) from None


def _replace(path: Path, write) -> None:
    """Let `write` fill an open file, which is `path` once it is whole.

    Raises UserError for what cannot be written.
    """
    try:
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            write(file)
    except OSError as error:
        raise UserError(
            f"{error.filename or path}: cannot be written ({error.strerror or error})"
        ) from None
