"""Jets as EnergyFlow's data sets keep them: quark and gluon jets, Z + jets with Delphes, MOD."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmtok.errors import UserError, reading
from mmtok.io.arrays import ArrayRows, names_in, read_npz
from mmtok.io.messages import listed
from mmtok.sources.jet_columns import hdf5_members, hdf5_rows, open_hdf5
from mmtok.sources.jet_coordinates import about_axes, axes_of_sums, four_momenta, masses_by_id
from mmtok.sources.jet_reader import FEATURES, JetReader, ReadSettings, offsets_of, table_of

# ---- quark and gluon jets: Zenodo 3164691 and 3066475, arXiv 1810.05165

# PDG codes of what is charged, by 3 times the charge over 3
POSITIVE = (-11, -13, 211, 321, 2212)
PIDS = (22, 211, -211, 130, 11, -11, 13, -13, 321, -321, 2212, -2212, 2112, -2112)  # / 10


def charges_by_id(pdg_id: np.ndarray) -> np.ndarray:
    """The charge of long-lived particles by their PDG codes; 0 for others."""
    codes = np.nan_to_num(pdg_id).astype(np.int64)
    return np.isin(codes, POSITIVE) * 1.0 - np.isin(-codes, POSITIVE) * 1.0


class QuarkGluonJets(JetReader):
    """X (N, M, 4) of pt, rapidity, phi and PDG code, and y (N,): 1 is quark, 0 gluon.

    Masses are those of the codes, and the axis is the sum of the constituents.
    """

    features = (*FEATURES, "pdg_id", "charge")
    note = (
        "pt, rapidity, phi and PDG code in GeV (as published), axis: the sum of the constituents"
        " (its rapidity), padding: pt 0"
    )

    def __init__(self, path: Path, settings: ReadSettings) -> None:
        self.path = path
        there = names_in(path, "jets")
        if "X" not in there:
            raise UserError(f"{path}: not quark and gluon jets: it has no X, but {listed(there)}")
        self._array = ArrayRows(path, "jets", "X")
        shape = self._array.shape
        if len(shape) != 3 or shape[2] < 4 or self._array.dtype.kind not in "fiu":
            raise UserError(
                f"{path}: expected X (N, M, 4) of pt, rapidity, phi and PDG code, got {shape} of"
                f" {self._array.dtype}"
            )
        self.n_jets = shape[0]
        self.has_captions = "y" in there
        if self.has_captions:
            (self._labels,) = read_npz(path, ("y",), "jets")
            if len(self._labels) != self.n_jets:
                raise UserError(
                    f"{path}: y has {len(self._labels):,} labels for {self.n_jets:,} jets"
                )

    def read(self, start: int, stop: int, features: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """As of the contract."""
        self.check_features(features)
        padded = self._array.rows(start, stop).astype(np.float64)
        is_real = padded[..., 0] != 0
        offsets = offsets_of(is_real.sum(1))
        pt, y, phi, pdg_id = padded[is_real][:, :4].T
        momenta = four_momenta(pt, y, phi, masses_by_id(pdg_id), is_rapidity=True)
        axes = axes_of_sums(*momenta, offsets)
        y_rel, phi_rel = about_axes(y, phi, axes.y, axes.phi, offsets)
        parts = {
            "pt_gev": pt,
            "eta_rel": y_rel,
            "phi_rel": phi_rel,
            "pdg_id": pdg_id,
            "charge": charges_by_id(pdg_id),
        }
        return table_of(parts, features), offsets

    def captions(self, start: int, stop: int) -> list[str]:
        """Quark or gluon."""
        return np.where(self._labels[start:stop] == 1, "quark", "gluon").tolist()

    def verify(self) -> None:
        """As of the contract."""
        self._array.verify()

    def close(self) -> None:
        """As of the contract."""
        self._array.close()


def quarkgluon_evidence(path: Path) -> str:
    """Arrays X and y."""
    return "arrays X and y" if {"X", "y"} <= set(names_in(path, "jets")) else ""


# ---- Z + jets with Delphes: Zenodo 3548091, arXiv 1911.09107


class ZJetsDelphesJets(JetReader):
    """EnergyFlow's gen_particles or sim_particles (N, M, 4): pt / 100, y and phi about the axis.

    Which of the two is named by `--columns particles=gen_particles`.
    """

    features = (*FEATURES, "pdg_id", "charge")

    def __init__(self, path: Path, settings: ReadSettings) -> None:
        self.path = path
        there = [n for n in names_in(path, "jets") if re.fullmatch(r"(gen|sim)_particles", n)]
        asked = settings.columns.get("particles", "")
        if asked not in there and (asked or len(there) != 1):
            raise UserError(
                f"{path}: holds {' and '.join(there) or 'no particles'}; name one, as in --columns"
                " particles=sim_particles"
            )
        name = asked or there[0]
        self._array = ArrayRows(path, "jets", name)
        if len(self._array.shape) != 3 or self._array.shape[2] != 4:
            raise UserError(
                f"{path}: expected {name} (N, M, 4) of pt / 100, y, phi and code, got"
                f" {self._array.shape}"
            )
        self.n_jets = self._array.shape[0]
        self.note = (
            f"{name}: pt / 100 GeV, rapidity and phi about the axis of the jets (as published),"
            " padding: pt 0"
        )

    def read(self, start: int, stop: int, features: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """As of the contract."""
        self.check_features(features)
        padded = self._array.rows(start, stop).astype(np.float64)
        is_real = padded[..., 0] != 0
        pt, y_rel, phi_rel, code = padded[is_real].T
        number = np.clip(np.nan_to_num(np.round(10 * code)), 0, len(PIDS) - 1).astype(np.int64)
        pdg_id = np.array(PIDS)[number]
        parts = {
            "pt_gev": 100 * pt,
            "eta_rel": y_rel,
            "phi_rel": phi_rel,
            "pdg_id": pdg_id,
            "charge": charges_by_id(pdg_id),
        }
        return table_of(parts, features), offsets_of(is_real.sum(1))

    def verify(self) -> None:
        """As of the contract."""
        self._array.verify()

    def close(self) -> None:
        """As of the contract."""
        self._array.close()


def energyflow_evidence(path: Path) -> str:
    """Arrays of gen_ or sim_particles."""
    there = set(names_in(path, "jets"))
    return "gen_particles or sim_particles" if there & {"gen_particles", "sim_particles"} else ""


# ---- MOD: jets of the CMS Open Data, arXiv 1908.08542


class ModJets(JetReader):
    """MOD's hdf5: jets_f, and the particles pfcs (or gens) with where each jet's begin.

    Columns are named by the attributes `cols`. The axis is jet_y, jet_phi.
    """

    features: tuple[str, ...] = (*FEATURES, "pdg_id", "charge")

    def __init__(self, path: Path, settings: ReadSettings) -> None:
        self.path = path
        self._file = open_hdf5(path)
        there = hdf5_members(path)
        names = [name for name in ("pfcs", "gens") if name in there]
        name = settings.columns.get("particles", (names or ["pfcs"])[0])
        missing = [key for key in ("jets_f", name, f"{name}_index") if key not in there]
        if missing:
            raise UserError(f"{path}: not a MOD file: it lacks {listed(missing)}")
        with reading(path, "jets"):
            self._particles = self._file[name]
            self._jets = self._file["jets_f"]
            self._index = np.asarray(self._file[f"{name}_index"]).astype(np.int64)
            shapes = (self._particles.shape, self._jets.shape, self._index.shape)
            columns = (_cols(self._particles), _cols(self._jets))
        self._check(*shapes, [len(of) for of in columns])
        self._parts, self._of_jets = ({n: i for i, n in enumerate(of)} for of in columns)
        lacks = [n for n in ("pt", "y", "phi") if n not in self._parts]
        lacks += [n for n in ("jet_y", "jet_phi") if n not in self._of_jets]
        if lacks:
            raise UserError(f"{path}: its columns lack {', '.join(lacks)}")
        self.n_jets = len(self._index) - 1
        self.note = f"{name}: pt in GeV, rapidity (as published), axis: jet_y, jet_phi"
        if "pid" not in self._parts:
            self.features = self.features[: len(FEATURES)]

    def _check(
        self, particles: Sequence[int], jets: Sequence[int], index: Sequence[int], widths: list[int]
    ) -> None:
        """Raise UserError unless the arrays fit each other, by their shapes."""
        are_two = len(particles) == len(jets) == 2 and len(index) == 1
        if not are_two or [particles[1], jets[1]] != widths or index[0] != jets[0] + 1:
            raise UserError(
                f"{self.path}: expected particles (all P, {widths[0]}), jets_f (N, {widths[1]}) and"
                f" an index (N + 1), got {particles}, {jets} and {index}"
            )
        rises = bool(np.all(np.diff(self._index) >= 0))
        if not rises or self._index[0] < 0 or self._index[-1] > particles[0]:
            raise UserError(f"{self.path}: its index must rise from 0 to {particles[0]:,}")

    def read(self, start: int, stop: int, features: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """As of the contract."""
        self.check_features(features)
        offsets = self._index[start : stop + 1] - self._index[start]
        first = int(self._index[start])
        rows = hdf5_rows(self.path, self._particles, first, first + int(offsets[-1]))
        rows = rows.astype(np.float64)
        jets = hdf5_rows(self.path, self._jets, start, stop).astype(np.float64)
        pt, y, phi = (rows[:, self._parts[name]] for name in ("pt", "y", "phi"))
        axis_y, axis_phi = (jets[:, self._of_jets[name]] for name in ("jet_y", "jet_phi"))
        y_rel, phi_rel = about_axes(y, phi, axis_y, axis_phi, offsets)
        parts = {"pt_gev": pt, "eta_rel": y_rel, "phi_rel": phi_rel}
        if "pid" in self._parts:
            parts["pdg_id"] = rows[:, self._parts["pid"]]
            parts["charge"] = charges_by_id(parts["pdg_id"])
        return table_of(parts, features), offsets

    def close(self) -> None:
        """As of the contract."""
        self._file.close()


def _cols(table: Any) -> tuple[str, ...]:
    """The names in the attribute `cols` of a MOD array."""
    names = np.asarray(table.attrs.get("cols", ())).tolist()
    return tuple(n.decode() if isinstance(n, bytes) else str(n) for n in names)


def mod_evidence(path: Path) -> str:
    """Arrays jets_f and pfcs or gens."""
    there = hdf5_members(path)
    has_both = "jets_f" in there and bool(there & {"pfcs", "gens"})
    return "arrays jets_f and pfcs or gens" if has_both else ""
