"""Jets as published data sets keep them: JetNet, top tagging, JetClass, ATLAS top tagging.

The last two have columns with a row per jet: they are plans of `jet_quantities`.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from mmtok.errors import UserError, reading
from mmtok.io.columns import known_column, named_column
from mmtok.io.messages import listed
from mmtok.sources.jet_columns import (
    Columns,
    Hdf5Columns,
    hdf5_members,
    hdf5_rows,
    open_hdf5,
)
from mmtok.sources.jet_coordinates import about_axes, axes_of_sums, pt_eta_phi
from mmtok.sources.jet_quantities import OTHER_NAMES, PARTS, ColumnJets, planned
from mmtok.sources.jet_reader import (
    FEATURES,
    GEV,
    JetReader,
    ReadSettings,
    as_caption,
    offsets_of,
    table_of,
)
from mmtok.sources.jet_tables import open_columns

# ---- JetNet: Zenodo 6975118 and 6975117, arXiv 2106.11535

JETNET = ("particle_features", "jet_features")
JETNET_PARTS = ("etarel", "phirel", "ptrel", "mask")
JETNET_JETS = ("pt", "eta", "mass", "num_particles")
JETNET_NAMES = ("ptrel", "deta", "eta_rel", "dphi", "phi_rel", "mask", "jet_pt", "caption")
JETNET_TYPES = {"g": "gluon", "q": "quark", "t": "top", "w": "W", "z": "Z"}


class JetNetJets(JetReader):
    """JetNet of 30 or 150 particles: pt_gev is ptrel times the jet's pt.

    Columns are in the published order (etarel, phirel, ptrel, mask; pt, eta, mass, num_particles)
    unless an attribute of the file names them, or the user does by number: `--columns
    ptrel=0,deta=1,dphi=2,jet_pt=1 --layout jetnet`. Without a mask, constituents of zero pt are
    padding. A user who asks for `caption=type` gets the type in the file's name, g, q, t, w or z.
    """

    features = FEATURES

    def __init__(self, path: Path, settings: ReadSettings) -> None:
        self.path = path
        self._file = open_hdf5(path)
        with reading(path, "jets"):
            there = list(self._file)
            tables = [self._file.get(name) for name in JETNET]
            shapes: list[Any] = [getattr(table, "shape", None) for table in tables]
            kinds: list[Any] = [getattr(table, "dtype", None) for table in tables]
        if None in shapes:
            raise UserError(
                f"{path}: not a JetNet file: it needs {' and '.join(JETNET)}, and has"
                f" {listed(there)}"
            )
        for name, kind in zip(JETNET, kinds, strict=True):
            if kind.kind not in "fiu":
                raise UserError(f"{path}: {name} holds {kind}, no numbers")
        self._particles, self._jets = tables
        shape, of_jets = shapes
        if (
            len(shape) != 3
            or shape[2] < 3
            or len(of_jets) != 2
            or of_jets[1] < 1
            or of_jets[0] != shape[0]
        ):
            raise UserError(
                f"{path}: expected particle_features (N, P, 4) and jet_features (N, 4), got"
                f" {shape} and {of_jets}"
            )
        self.n_jets = shape[0]
        self._widths = (int(shape[2]), int(of_jets[1]))
        self._find_columns(settings)
        self._find_caption(settings)

    def _find_columns(self, settings: ReadSettings) -> None:
        """Which column is what, by attributes, by the user's numbers, or as published."""
        width, jet_width = self._widths
        names = _names_of(self.path, self._particles, width) or JETNET_PARTS[:width]
        at = {}
        for part in ("deta", "dphi", "ptrel", "mask"):
            name = known_column(PARTS[part], names)
            if name is not None:
                at[part] = names.index(name)
        for name, column in settings.columns.items():
            part = OTHER_NAMES.get(name, name)
            if part in ("deta", "dphi", "ptrel", "mask"):
                at[part] = _number(self.path, column, names, JETNET[0])
        missing = [part for part in ("deta", "dphi", "ptrel") if part not in at]
        if missing:
            raise UserError(
                f"{self.path}: the columns of particle_features are {listed(names)}, without"
                f" {', '.join(missing)}; number them: --columns ptrel=2,deta=0,dphi=1"
            )
        self._at = at
        of_jets = _names_of(self.path, self._jets, jet_width) or JETNET_JETS
        if len(of_jets) < jet_width:
            of_jets = ("type", *of_jets)  # as the JetNet package gives them
        asked = settings.columns.get("jet_pt", "pt")
        if "pt" not in of_jets and asked == "pt":
            raise UserError(
                f"{self.path}: the columns of jet_features are {listed(of_jets)}, without pt;"
                " number it: --columns jet_pt=0"
            )
        self._pt_at = _number(self.path, asked, of_jets[:jet_width], JETNET[1])
        if names != JETNET_PARTS or of_jets != JETNET_JETS:
            self.note = f"columns {', '.join(names)} and {', '.join(of_jets)}"

    def _find_caption(self, settings: ReadSettings) -> None:
        """The type of the jets, where captions are asked for."""
        column = settings.columns.get("caption")
        if column is None:
            return
        kind = re.match(r"([gqtwz])(30|150)?$", self.path.stem.lower())
        if column != "type" or not kind:
            raise UserError(
                f"{self.path}: caption={column}: JetNet has caption=type, from files called"
                " g, q, t, w or z (or g150, ...)"
            )
        self._caption = JETNET_TYPES[kind[1]]
        self.has_captions = True

    def read(self, start: int, stop: int, features: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """As of the contract."""
        self.check_features(features)
        particles = hdf5_rows(self.path, self._particles, start, stop).astype(np.float64)
        jets = hdf5_rows(self.path, self._jets, start, stop).astype(np.float64)
        pt_rel = particles[..., self._at["ptrel"]]
        is_real = pt_rel != 0
        if "mask" in self._at:
            is_real = particles[..., self._at["mask"]] > 0.5
        parts = {
            "pt_gev": (pt_rel * jets[:, self._pt_at, None])[is_real],
            "eta_rel": particles[..., self._at["deta"]][is_real],
            "phi_rel": particles[..., self._at["dphi"]][is_real],
        }
        return table_of(parts, features), offsets_of(is_real.sum(1))

    def captions(self, start: int, stop: int) -> list[str]:
        """As of the contract."""
        return [self._caption] * (stop - start)

    def close(self) -> None:
        """As of the contract."""
        self._file.close()


def _names_of(path: Path, table: Any, n: int) -> tuple[str, ...]:
    """The names of n columns in an attribute of a dataset or of its file; () where there are none.

    An attribute is a list of names, or one text with commas.
    """
    with reading(path, "jets"):
        own = list(dict(table.attrs).values())
        of_file = [v for k, v in table.file.attrs.items() if k.startswith(table.name[1:])]
        values = [np.asarray(value).reshape(-1).tolist() for value in (*own, *of_file)]
    for texts in values:
        names = [as_caption(text) for text in texts]
        if len(names) == 1:
            names = [name.strip(" '\"[]()") for name in names[0].split(",")]
        if len(names) == n and all(re.match(r"[A-Za-z]", name) for name in names):
            return tuple(names)
    return ()


def _number(path: Path, column: str, names: Sequence[str], table: str) -> int:
    """The index of a column of a table that a user names or numbers."""
    if column in names:
        return list(names).index(column)
    if column.isdigit() and int(column) < len(names):
        return int(column)
    raise UserError(
        f"{path}: has no column {column!r} of {table}; name or number one, from 0, of"
        f" {listed(names)}"
    )


def jetnet_evidence(path: Path) -> str:
    """Both arrays of a JetNet file."""
    return "particle_features" if JETNET[0] in hdf5_members(path) else ""


# ---- top tagging: Zenodo 2603256, arXiv 1902.09914


class TopTaggingJets(JetReader):
    """A pandas table of E_0, PX_0, PY_0, PZ_0, E_1, ... and is_signal_new, of either format.

    The axis of a jet is the sum of its constituents.
    """

    features = FEATURES
    has_captions = True
    note = (
        "four-momenta E, PX, PY, PZ in GeV (as published), axis: the sum of the constituents (its"
        " rapidity), padding: E 0"
    )

    def __init__(self, path: Path, settings: ReadSettings) -> None:
        self.path = path
        self._scale = GEV[settings.pt_unit or "GeV"]
        self._file = open_hdf5(path)
        with reading(path, "jets"):
            there = list(self._file)
            blocks = pandas_blocks(self._file)
            lengths = {len(table) for table, _, _ in blocks}
        if not blocks or len(lengths) > 1:
            raise UserError(f"{path}: holds no pandas table; it has {listed(there)}")
        self._blocks = [table for table, _, _ in blocks]
        self._fields = [field for _, field, _ in blocks]
        places = {
            name: (b, i) for b, (_, _, names) in enumerate(blocks) for i, name in enumerate(names)
        }
        numbers = sorted(int(name[2:]) for name in places if re.fullmatch(r"E_\d+", name))
        wanted = [f"{q}_{i}" for q in ("E", "PX", "PY", "PZ") for i in numbers]
        missing = [name for name in (*(wanted or ["E_0"]), "is_signal_new") if name not in places]
        if missing:
            raise UserError(
                f"{path}: its table lacks {listed(missing)}; it has {listed(list(places))}"
            )
        self._momenta = [[places[f"{q}_{i}"] for i in numbers] for q in ("E", "PX", "PY", "PZ")]
        self._label = places["is_signal_new"]
        self._last: tuple[int, int, list[np.ndarray]] = (0, -1, [])
        self.n_jets = lengths.pop()

    def _rows(self, start: int, stop: int) -> list[np.ndarray]:
        """The values of each block in rows start to stop."""
        if self._last[:2] == (start, stop):
            return self._last[2]
        read: dict[str, np.ndarray] = {}
        for table in self._blocks:
            if table.name not in read:
                read[table.name] = hdf5_rows(self.path, table, start, stop)
        rows = [
            read[table.name][field] if field else read[table.name]
            for table, field in zip(self._blocks, self._fields, strict=True)
        ]
        self._last = (start, stop, rows)
        return rows

    def read(self, start: int, stop: int, features: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """As of the contract."""
        self.check_features(features)
        rows = self._rows(start, stop)
        energy, px, py, pz = (_picked(rows, places) for places in self._momenta)
        is_real = energy != 0
        offsets = offsets_of(is_real.sum(1))
        px, py, pz, energy = (part[is_real] for part in (px, py, pz, energy))
        pt, eta, phi = pt_eta_phi(px, py, pz)
        axes = axes_of_sums(px, py, pz, energy, offsets)
        eta_rel, phi_rel = about_axes(eta, phi, axes.y, axes.phi, offsets)
        parts = {"pt_gev": pt * self._scale, "eta_rel": eta_rel, "phi_rel": phi_rel}
        return table_of(parts, features), offsets

    def captions(self, start: int, stop: int) -> list[str]:
        """top or qcd."""
        is_top = _picked(self._rows(start, stop), [self._label])[:, 0] == 1
        return np.where(is_top, "top", "qcd").tolist()

    def close(self) -> None:
        """As of the contract."""
        self._file.close()


def _picked(rows: Sequence[np.ndarray], places: Sequence[tuple[int, int]]) -> np.ndarray:
    """The columns at (block, index), as (n, number of columns) float64; all are of one block."""
    block = rows[places[0][0]]
    return block[:, [i for _, i in places]].astype(np.float64)


def pandas_blocks(file: Any) -> list[tuple[Any, str, tuple[str, ...]]]:
    """(dataset, field of its records or "", names of columns) of the blocks of a pandas table.

    Of the formats "table" and "fixed". Names are taken from the texts in the attributes' pickles,
    which are not run.
    """
    found: list[tuple[Any, str, tuple[str, ...]]] = []
    for group in (item for item in file.values() if hasattr(item, "values")):
        table = group.get("table")
        for field in getattr(getattr(table, "dtype", None), "names", None) or ():
            kind = table.attrs.get(f"{field}_kind")
            if field.startswith("values_block") and kind is not None:
                arguments = (arg for _, arg, _ in pickletools.genops(bytes(kind)))
                names = tuple(arg for arg in arguments if isinstance(arg, str))
                found.append((table, field, names))
        for key in group:
            items = group.get(key.replace("_values", "_items"))
            if re.fullmatch(r"block\d+_values", key) and items is not None:
                names = tuple(name.decode() for name in np.asarray(items).tolist())
                found.append((group[key], "", names))
        if found:
            return found
    return found


def toptagging_evidence(path: Path) -> str:
    """A pandas table of E_0 and is_signal_new."""
    with closing(open_hdf5(path)) as file, reading(path, "jets"):
        names = {name for _, _, names in pandas_blocks(file) for name in names}
    return "E_0, PX_0, ... in a pandas table" if {"E_0", "PX_0"} <= names else ""


# ---- JetClass (Zenodo 6619768, arXiv 2202.03772) and ATLAS top tagging (CERN Open Data 15013)


def open_jetclass(path: Path, settings: ReadSettings) -> JetReader:
    """JetClass: part_px, ..., part_deta, part_dphi, and label_QCD, label_Hbb, ... of 0 and 1."""
    columns = open_columns(path, settings.columns.get("tree", ""))
    classes = {n: n.removeprefix("label_") for n in columns.names if n.startswith("label_")}
    if not classes:
        raise UserError(
            f"{path}: not JetClass: it has no label_ columns; it has {listed(columns.names)}"
        )
    plan = planned(columns, settings, "GeV")
    if "caption" in settings.columns:
        column = named_column(settings.columns["caption"], columns.names, path)
        return ColumnJets(columns, plan, column)
    return ColumnJets(columns, plan, classes=classes)


def jetclass_evidence(path: Path) -> str:
    """Columns part_px and label_..."""
    with closing(open_columns(path)) as columns:
        labels = [name for name in columns.names if name.startswith("label_")]
        return f"part_px and {labels[0]}" if labels and "part_px" in columns.names else ""


ATLAS = {
    "pt": "fjet_clus_pt",
    "eta": "fjet_clus_eta",
    "phi": "fjet_clus_phi",
    "jet_eta": "fjet_eta",
    "jet_phi": "fjet_phi",
}


def open_atlastop(path: Path, settings: ReadSettings) -> JetReader:
    """ATLAS top tagging: fjet_clus_pt (N, 200) in MeV, ..., and labels, 1 for top."""
    columns: Columns = Hdf5Columns(path)
    named = ReadSettings({**ATLAS, **settings.columns}, settings.pt_unit)
    plan = planned(columns, named, "MeV")
    if "caption" in settings.columns:
        column = named_column(settings.columns["caption"], columns.names, path)
        return ColumnJets(columns, plan, column)
    caption = "labels" if "labels" in columns.names else ""
    return ColumnJets(columns, plan, caption, values={"1": "top", "0": "qcd"})


def atlastop_evidence(path: Path) -> str:
    """The array fjet_clus_pt."""
    return "fjet_clus_pt" if "fjet_clus_pt" in hdf5_members(path) else ""
