"""Jets in numpy files: flat values with offsets, or one array padded with particles of zero pt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmtok.errors import UserError
from mmtok.io.arrays import ArrayRows, names_in, read_npz
from mmtok.io.columns import named_column
from mmtok.io.messages import listed
from mmtok.sources.jet_reader import JetReader, ReadSettings, offsets_of

MOST_FEATURES = 1000
FLAT = {"values", "offsets"}


class FlatJets(JetReader):
    """A .npz of `values` (all P, F) and `offsets` (N + 1), and where they are given `features`.

    Without names its columns are those that are asked for, in that order. The array that a user
    names as `caption`, such as `labels`, has a text or a number for each jet.
    """

    def __init__(self, path: Path, settings: ReadSettings) -> None:
        self.path = path
        there = names_in(path, "jets")
        if not set(there) >= FLAT:
            raise UserError(
                f"{path}: needs arrays named values and offsets, or one padded array, or columns"
                f" that --columns names; it has {listed(there)}"
            )
        self.features = ()
        if "features" in there:
            self.features = _feature_names(path)
        self._values = ArrayRows(path, "jets", "values")
        (self._offsets,) = read_npz(path, ("offsets",), "jets")
        self._check()
        self.n_jets = len(self._offsets) - 1
        self._labels: np.ndarray | None = None
        if "caption" in settings.columns:
            name = named_column(settings.columns["caption"], there, path)
            (self._labels,) = read_npz(path, (name,), "jets")
            self.has_captions = True
            if self._labels.shape != (self.n_jets,):
                raise UserError(
                    f"{path}: {name} has shape {self._labels.shape}, expected one label for each of"
                    f" {self.n_jets:,} jets"
                )

    def captions(self, start: int, stop: int) -> list[str]:
        """As of the contract."""
        if self._labels is None:
            return super().captions(start, stop)
        return [str(label) for label in self._labels[start:stop].tolist()]

    def _check(self) -> None:
        """Raise UserError unless values and offsets are what their names say."""
        values = self._values
        offsets = self._offsets
        are_numbers = values.dtype.kind in "fiu" and offsets.dtype.kind in "iu"
        if not are_numbers or len(values.shape) != 2 or offsets.ndim != 1:
            raise UserError(
                f"{self.path}: values must be numbers (particles, features) and offsets whole"
                f" numbers (jets + 1), got {values.dtype} {values.shape} and {offsets.dtype}"
                f" {offsets.shape}"
            )
        if (
            len(offsets) == 0
            or offsets[0] != 0
            or offsets[-1] != len(values)
            or np.any(offsets[1:] < offsets[:-1])
        ):
            raise UserError(
                f"{self.path}: offsets must rise from 0 to the number of particles, {len(values)}"
            )
        if self.features:
            check_width(self.path, values.shape, self.features)

    def read(self, start: int, stop: int, features: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """As of the contract."""
        offsets = self._offsets[start : stop + 1].astype(np.int64)
        names = self.features or tuple(features)
        check_width(self.path, self._values.shape, names)
        self._check_names(features, names)
        values = self._values.rows(int(offsets[0]), int(offsets[-1]))
        return columns_of(values, names, features), offsets - offsets[0]

    def check_features(self, features: Sequence[str]) -> None:
        """As of the contract; without names, their number must fit."""
        names = self.features or tuple(features)
        check_width(self.path, self._values.shape, names)
        self._check_names(features, names)

    def _check_names(self, features: Sequence[str], names: Sequence[str]) -> None:
        missing = [name for name in features if name not in names]
        if missing:
            raise UserError(
                f"{self.path}: has no feature {', '.join(missing)}; it has {listed(names)}"
            )

    def verify(self) -> None:
        """As of the contract."""
        self._values.verify()

    def close(self) -> None:
        """As of the contract."""
        self._values.close()


class PaddedJets(JetReader):
    """A .npy, or a .npz of one array: (N, P, F) padded with zero pt, or one jet (P, F).

    Its columns are those that are asked for, in that order.
    """

    features = ()

    def __init__(self, path: Path, settings: ReadSettings) -> None:
        self.path = path
        name = ""
        if path.suffix.lower() == ".npz":
            there = names_in(path, "jets")
            if len(there) != 1:
                raise UserError(
                    f"{path}: needs arrays named values and offsets, or one padded array, or"
                    f" columns that --columns names; it has {listed(there)}"
                )
            name = there[0]
        self._array = ArrayRows(path, "jets", name)
        if len(self._array.shape) not in (2, 3) or self._array.dtype.kind not in "fiu":
            raise UserError(
                f"{path}: a padded array of jets has shape (N, P, features) and numbers, got"
                f" {self._array.shape} of {self._array.dtype}"
            )
        self._is_one = len(self._array.shape) == 2
        self.n_jets = len(self._array)
        if self._is_one:
            self.n_jets = 1

    def read(self, start: int, stop: int, features: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """As of the contract."""
        self.check_features(features)
        if self._is_one:
            padded = self._array.rows(0, len(self._array))[None]
        else:
            padded = self._array.rows(start, stop)
        is_real = padded[..., list(features).index("pt_gev")] != 0
        values = columns_of(padded[is_real], features, features)
        return values, offsets_of(is_real.sum(1))

    def check_features(self, features: Sequence[str]) -> None:
        """As of the contract: their number must fit."""
        check_width(self.path, self._array.shape, features)

    def verify(self) -> None:
        """As of the contract."""
        self._array.verify()

    def close(self) -> None:
        """As of the contract."""
        self._array.close()


def open_arrays(path: Path, settings: ReadSettings) -> JetReader:
    """The reader of a .npz or .npy file of ours."""
    if path.suffix.lower() == ".npz" and set(names_in(path, "jets")) >= FLAT:
        return FlatJets(path, settings)
    return PaddedJets(path, settings)


def check_width(path: Path, shape: tuple[int, ...], names: Sequence[str]) -> None:
    """Raise UserError where the last axis of an array has another size than there are names."""
    if shape[-1] != len(names):
        raise UserError(
            f"{path}: expected {len(names)} features per particle ({listed(names)}), got shape"
            f" {shape}"
        )


def columns_of(values: np.ndarray, names: Sequence[str], features: Sequence[str]) -> np.ndarray:
    """The columns of `values`, named `names`, that `features` asks for, as float32."""
    if tuple(names) == tuple(features):
        return np.ascontiguousarray(values, dtype=np.float32)
    indices = [list(names).index(name) for name in features]
    return np.ascontiguousarray(values[:, indices], dtype=np.float32)


def _feature_names(path: Path) -> tuple[str, ...]:
    """The names of the columns that a .npz file itself gives."""
    names = read_npz(path, ("features",), "jets")[0]
    if names.ndim != 1 or names.dtype.kind != "U" or len(names) > MOST_FEATURES:
        raise UserError(
            f"{path}: features must be up to {MOST_FEATURES} names, got {names.dtype} {names.shape}"
        )
    return tuple(map(str, names))
