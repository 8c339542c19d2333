"""Jets as published data sets keep them: top tagging, JetClass, ATLAS top tagging.

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
from mmtok.io.columns import named_column
from mmtok.io.messages import listed
from mmtok.sources.jet_columns import (
    Columns,
    Hdf5Columns,
    hdf5_members,
    hdf5_rows,
    open_hdf5,
)
from mmtok.sources.jet_coordinates import about_axes, axes_of_sums, pt_eta_phi
from mmtok.sources.jet_quantities import ColumnJets, planned
from mmtok.sources.jet_reader import (
    FEATURES,
    GEV,
    JetReader,
    ReadSettings,
    offsets_of,
    table_of,
)
from mmtok.sources.jet_tables import open_columns

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
        if settings.pt_unit:
            self.note = self.note.replace("GeV (as published)", f"{settings.pt_unit} (as asked)")
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
