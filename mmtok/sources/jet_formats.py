"""File formats of jets, read and written; a jet is float32 (P, F), one column per feature.

LAYOUTS says which formats are read, by the contract of `jet_reader`. Jets are written as

- .npz: `values` (all P, F) with `offsets` (N + 1);
- .npy: (N, P, F) padded with particles of zero pt;
- .parquet: one list column per feature, a row per jet.

Of files of ours nothing is assumed about the axis or the mass: columns are what their names say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mmtok.errors import UserError, reason_of
from mmtok.io.arrays import names_in, read_npz
from mmtok.io.columns import check_named, named_column
from mmtok.io.files import atomic_write
from mmtok.io.messages import listed
from mmtok.sources import (
    jet_energyflow,
    jet_hepmc,
    jet_jetnet,
    jet_nanoaod,
    jet_physlite,
    jet_published,
)
from mmtok.sources.jet_arrays import open_arrays
from mmtok.sources.jet_parquet import ParquetColumns, ParquetJets
from mmtok.sources.jet_quantities import (
    NAMES,
    ColumnJets,
    Plan,
    found_quantities,
    is_named,
    planned,
)
from mmtok.sources.jet_reader import (
    FEATURES,
    JetLayout,
    JetReader,
    ReadSettings,
    offsets_of,
)
from mmtok.sources.jet_tables import COLUMNS, open_columns
from mmtok.sources.layouts import check_layout, chosen_layout

HDF5 = (".h5", ".hdf5")
AS_FOUND = ReadSettings()
OF_COLLECTIONS = ("collection", "min_pt_gev", "max_abs_eta", "puppi")
EVENT_NAMES = ("mass", "weight", "constituents")  # that columns of files of events may have besides


# ---- flat arrays


def split_jets(values: np.ndarray, offsets: np.ndarray) -> list[np.ndarray]:
    """Flat values (all P, F) with offsets (N + 1) -> N jets (P, F)."""
    starts = offsets[:-1].tolist()
    stops = offsets[1:].tolist()
    return [values[start:stop] for start, stop in zip(starts, stops, strict=True)]


def join_jets(jets: Sequence[np.ndarray], n_features: int) -> tuple[np.ndarray, np.ndarray]:
    """N jets (P, F) -> flat values (all P, F) as float32, and offsets (N + 1)."""
    values = np.concatenate([np.zeros((0, n_features), np.float32), *jets]).astype(np.float32)
    return values, offsets_of(np.array([len(jet) for jet in jets], np.int64))


# ---- reading


def _plain_evidence(path: Path) -> str:
    """The arrays or columns that `write_jets` writes."""
    if path.suffix.lower() == ".npy":
        return "one array"
    if path.suffix.lower() == ".npz":
        there = set(names_in(path, "jets"))
        if {"values", "offsets"} <= there:
            return "arrays values and offsets"
        return "one array" if len(there) == 1 else ""
    with closing(ParquetColumns(path)) as columns:
        return "a column pt_gev" if "pt_gev" in columns.schema.names else ""


def _open_plain(path: Path, settings: ReadSettings) -> JetReader:
    if path.suffix.lower() == ".parquet":
        return ParquetJets(path, settings)
    return open_arrays(path, settings)


def _columns_evidence(path: Path) -> str:
    """Columns whose names are known."""
    with closing(open_columns(path)) as columns:
        plan = Plan(found_quantities(columns, {}))
        return "" if plan.missing() else f"column {plan.quantities[plan.pt]}"


def _open_columns(path: Path, settings: ReadSettings) -> JetReader:
    columns = open_columns(path, settings.columns.get("tree", ""))
    caption = settings.columns.get("caption", "")
    if caption:
        caption = named_column(caption, columns.names, path)
    return ColumnJets(columns, planned(columns, settings), caption)


# In the order in which messages name them. `columns` is for what is of no other.
LAYOUTS = (
    JetLayout(
        "plain",
        "values and offsets, a padded array, or list columns pt_gev, eta_rel, phi_rel",
        _plain_evidence,
        _open_plain,
        plain=True,
        is_gev=True,
        suffixes=(".npz", ".npy", ".parquet"),
    ),
    JetLayout(
        "jetnet",
        "JetNet's particle_features and jet_features",
        jet_jetnet.jetnet_evidence,
        jet_jetnet.JetNetJets,
        plain=True,
        is_gev=True,
        suffixes=HDF5,
    ),
    JetLayout(
        "jetclass",
        "JetClass: part_px, ..., part_deta, label_QCD, ...",
        jet_published.jetclass_evidence,
        jet_published.open_jetclass,
        suffixes=(".root", ".parquet", *HDF5),
        has_captions=True,
    ),
    JetLayout(
        "toptagging",
        "the top tagging reference data: a pandas table of E_0, PX_0, ...",
        jet_published.toptagging_evidence,
        jet_published.TopTaggingJets,
        suffixes=HDF5,
        has_captions=True,
    ),
    JetLayout(
        "atlastop",
        "ATLAS top tagging: fjet_clus_pt, ... in MeV",
        jet_published.atlastop_evidence,
        jet_published.open_atlastop,
        suffixes=HDF5,
        has_captions=True,
    ),
    JetLayout(
        "quarkgluon",
        "quark and gluon jets: X of pt, rapidity, phi and PDG code, and y",
        jet_energyflow.quarkgluon_evidence,
        jet_energyflow.QuarkGluonJets,
        is_gev=True,
        suffixes=(".npz",),
        has_captions=True,
    ),
    JetLayout(
        "energyflow",
        "EnergyFlow's Z + jets with Delphes: gen_particles, sim_particles",
        jet_energyflow.energyflow_evidence,
        jet_energyflow.ZJetsDelphesJets,
        is_gev=True,
        suffixes=(".npz",),
    ),
    JetLayout(
        "mod",
        "MOD's jets of the CMS Open Data: jets_f, pfcs",
        jet_energyflow.mod_evidence,
        jet_energyflow.ModJets,
        is_gev=True,
        suffixes=HDF5,
    ),
    JetLayout(
        "nanoaod",
        "NanoAOD of CMS, from v15 on: FatJet, FatJetPFCand, PFCand",
        jet_nanoaod.nanoaod_evidence,
        jet_nanoaod.open_nano,
        suffixes=(".root",),
        settings=OF_COLLECTIONS,
    ),
    JetLayout(
        "pfnano",
        "PFNano of CMS: Jet or FatJet, JetPFCands, PFCands",
        jet_nanoaod.pfnano_evidence,
        jet_nanoaod.open_nano,
        suffixes=(".root",),
        settings=OF_COLLECTIONS,
    ),
    JetLayout(
        "physlite",
        "PHYSLITE and other DAOD of ATLAS: jets with constituentLinks",
        jet_physlite.physlite_evidence,
        jet_physlite.open_daod,
        suffixes=(".root", ".root.1"),
        settings=OF_COLLECTIONS[:-1],
    ),
    JetLayout(
        "hepmc3",
        "events of generators in HepMC, which are clustered",
        jet_hepmc.hepmc_evidence,
        jet_hepmc.HepmcJets,
        plain=True,
        suffixes=jet_hepmc.SUFFIXES,
        settings=("min_pt_gev", "max_abs_eta", "radius"),
    ),
    JetLayout(
        "columns",
        "columns with a row per jet, named by --columns or by their usual names; lists of records",
        _columns_evidence,
        _open_columns,
        suffixes=tuple(COLUMNS),
    ),
)
SPECIAL = LAYOUTS[:-1]
# what columns may name in layouts whose columns are as published
OWN_COLUMNS: dict[str, tuple[str, ...]] = {
    "jetnet": jet_jetnet.JETNET_NAMES,
    "toptagging": (),
    "quarkgluon": (),
    "energyflow": ("particles",),
    "mod": ("particles",),
}
NAMED_ONLY = (".json",)  # of files that are read where they are named: in folders others have it
KNOWN = tuple(dict.fromkeys(suffix for of in LAYOUTS for suffix in of.suffixes))
SUFFIXES = tuple(suffix for suffix in KNOWN if suffix not in NAMED_ONLY)
# what a file of this suffix should have been, where nothing in it is known
EXPECTED = {suffix: of.name for of in reversed(LAYOUTS) if of.plain for suffix in of.suffixes}
EXPECTED |= dict.fromkeys(HDF5, "columns")
EXPECTED[".root.1"] = "physlite"


def suffix_of(path: Path) -> str:
    """The suffix of a file, in lower case: the longest of those that are known, as .hepmc.gz."""
    known = [suffix for suffix in KNOWN if path.name.lower().endswith(suffix)]
    return max(known, key=len, default=path.suffix.lower())


def layout_named(name: str) -> JetLayout:
    """The layout of that name. Raises UserError with those that there are."""
    check_layout(LAYOUTS, name, "jets")
    return next(layout for layout in LAYOUTS if layout.name == name)


def layout_of(path: Path, settings: ReadSettings = AS_FOUND, name: str = "") -> JetLayout:
    """The layout of a file: as named, by the user's columns, or by what is in it.

    Raises UserError for a file that is not there or empty, of an unknown suffix, or of two layouts.
    """
    _check_file(path)
    suffix = suffix_of(path)
    if name:
        layout = layout_named(name)
        if suffix not in layout.suffixes:
            raise UserError(
                f"{path}: files of the layout {name} end in {', '.join(layout.suffixes)}"
            )
        return layout
    columns = LAYOUTS[-1]
    if is_named(settings.columns) and suffix in columns.suffixes:
        return columns
    candidates = [layout for layout in SPECIAL if suffix in layout.suffixes]
    found = chosen_layout(candidates, path, "", path, is_said=False)
    if found is None and suffix in columns.suffixes:
        found = chosen_layout([columns], path, "", path, is_said=False)
    if found is None:
        return layout_named(EXPECTED.get(suffix, columns.name))
    return layout_named(found.name)


def _check_file(path: Path) -> None:
    if suffix_of(path) not in KNOWN:
        raise UserError(
            f"{path}: not a file of jets that can be read; known are {', '.join(KNOWN)}"
        )
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty")


def open_jets(
    path: Path,
    features: Sequence[str] = FEATURES,
    settings: ReadSettings = AS_FOUND,
    layout: str = "",
) -> JetReader:
    """The reader of a file of jets that has these features.

    Single jets are not checked; `mmtok.sources.jets` does so.

    Raises UserError, naming the file, for one that cannot be read.
    """
    if "pt_gev" not in features:
        raise UserError(
            f"{path}: reading jets needs the feature pt_gev, asked were {', '.join(features)}"
        )
    found = layout_of(path, settings, layout)
    names = [*NAMES, *features, *(EVENT_NAMES if found.settings else ())]
    check_named(settings.columns, tuple(dict.fromkeys(names)), "jets")
    own = OWN_COLUMNS.get(found.name, names)
    ignored = [name for name in settings.columns if name not in own]
    if ignored:
        raise UserError(
            f"{path}: is read as {found.name}, whose columns are as published; leave"
            f" {listed(ignored)} out of columns, or take --layout columns"
        )
    foreign = [name for name in settings.of_events() if name not in found.settings]
    if foreign:
        others = [of.name for of in LAYOUTS if set(foreign) <= set(of.settings)]
        raise UserError(
            f"{path}: is read as {found.name}, and {listed(foreign)} is for"
            f" {listed(others) or 'no layout'}"
        )
    if settings.pt_unit and found.is_gev:
        raise UserError(
            f"{path}: is read as {found.name}, whose pt is in GeV; leave out pt_unit, or name the"
            " columns (--columns pt=...)"
        )
    try:
        reader = found.reader(path, settings)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, EOFError, TypeError) as error:
        raise UserError(f"{path}: cannot be read as jets ({reason_of(error)})") from None
    reader.check_features(features)
    return reader


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
