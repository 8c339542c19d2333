"""Jets of CMS: NanoAOD with PF candidates, and PFNano.

A table such as FatJetPFCands has a row for each constituent of each jet: jetIdx and pFCandsIdx, the
numbers of the jet among FatJet_* and of the candidate among PFCands_*. Of PFNano it is written by
cms-jet/PFNano (JetPFCands, FatJetPFCands, PFCands), of NanoAOD since v15 by cmssw,
PhysicsTools/NanoAOD/python/jetConstituents_cff.py (FatJetPFCand_pfCandIdx, PFCand).

PUPPI jets are sums of candidates that are weighted by PUPPI, CHS jets are not, and both are called
Jet, depending on the year. In NanoAOD, PFCand_pt is weighted already. So where there are weights,
they are applied if the sums agree better then with what the file states: Jet_pt (1 - rawFactor),
the pt without jet energy corrections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mmtok.errors import UserError
from mmtok.io.columns import known_column, named_column
from mmtok.io.messages import listed
from mmtok.sources.jet_columns import Lists, RootColumns
from mmtok.sources.jet_energyflow import charges_by_id
from mmtok.sources.jet_events import (
    MOST_DISAGREEMENT,
    Agreement,
    EventJets,
    Links,
    chosen_collection,
    remembered,
    tree_of,
)
from mmtok.sources.jet_reader import GEV, JetReader, ReadSettings

TREE = "Events"
# collection -> tables of its constituents, likeliest first; those of PFNano of 2020 end in AK4, AK8
TABLES = {
    "Jet": ("JetPFCands", "JetPFCand", "JetPFCandsAK4"),
    "FatJet": ("FatJetPFCands", "FatJetPFCand", "JetPFCandsAK8"),
    "GenJet": ("GenJetCands", "GenJetGenPartCand"),
    "GenJetAK8": ("GenFatJetCands", "GenJetAK8GenPartCand"),
}
INDICES = ("pFCandsIdx", "pfCandIdx", "candIdx", "genPartCandIdx")
CANDIDATES = ("PFCands", "PFCand", "JetPFCands")
GEN_CANDIDATES = ("GenCands", "GenPartCand")
PARTS = {  # feature -> how the column of candidates is called
    "charge": ("charge",),
    "pdg_id": ("pdgId",),
    "d0": ("d0",),
    "d0_err": ("d0Err",),
    "dz": ("dz",),
    "dz_err": ("dzErr",),
    "puppi_weight": ("puppiWeight",),
}
LACKS = (
    "has no constituents of jets: NanoAOD keeps them from v15 on (FatJetPFCand and PFCand), and"
    " PFNano in any version (JetPFCands, FatJetPFCands and PFCands)"
)


@dataclass(frozen=True)
class Table:
    """The constituents of one collection of jets.

    Attributes:
        jet: the column of the jets' numbers.
        index: that of the candidates' numbers; "": the table holds the candidates themselves.
        candidates: the collection that these are of.
    """

    jet: str
    index: str
    candidates: str


def _tables(names: Sequence[str]) -> dict[str, Table]:
    """Collection of jets -> its constituents, of those that are in a file."""
    there = set(names)
    found: dict[str, Table] = {}
    for collection, tables in TABLES.items():
        candidates = GEN_CANDIDATES if collection.startswith("Gen") else CANDIDATES
        for table in tables:
            if f"{table}_jetIdx" not in there or f"{collection}_pt" not in there:
                continue
            of_table = [name for name in names if name.startswith(f"{table}_")]
            index = known_column([f"{table}_{name}" for name in INDICES], of_table)
            target = next((name for name in candidates if f"{name}_eta" in there), "")
            if index is None and f"{table}_eta" in there:
                found.setdefault(collection, Table(f"{table}_jetIdx", "", table))
            elif index is not None and target:
                found.setdefault(collection, Table(f"{table}_jetIdx", index, target))
    return found


@dataclass
class NanoJets(EventJets):
    """Jets of NanoAOD or PFNano, of one collection. Impact parameters are in cm, as in the file.

    A user's columns are those of candidates (`weight=PFCands_puppiWeightNoLep`), and `caption` is
    one of the jets, such as hadronFlavour.
    """

    table: Table = field(init=False)
    parts: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.table = _tables(self.columns.names)[self.collection]
        there = self.columns.names
        for name in ("pt", "eta", "phi", "mass"):
            self.of_jets[name] = named_column(self.column_of_jets(name), there, self.path)
        self._raw = self.column_of_jets("rawFactor")
        if self._raw in there:
            self.of_jets["raw"] = self._raw
        self._find_parts()
        self.fit_blocks(f"{self.table.candidates}_pt")
        self.find_jets()
        self._decide_weights()

    def _find_parts(self) -> None:
        """Quantity -> column of the candidates."""
        there = self.columns.names
        prefix = self.table.candidates
        for name in ("pt", "eta", "phi", "mass"):
            self.parts[name] = named_column(f"{prefix}_{name}", there, self.path)
        for name, spellings in PARTS.items():
            known = known_column([f"{prefix}_{spelling}" for spelling in spellings], there)
            if known is not None:
                self.parts[name] = known
        if "puppi_weight" in self.parts:
            self.parts["weight"] = self.parts["puppi_weight"]
        for name, column in self.settings.columns.items():
            if name != "caption":
                prefixed = f"{prefix}_{column}"
                self.parts[name] = named_column(
                    prefixed if prefixed in there else column, there, self.path
                )
        own = [name for name in self.parts if name not in ("pt", "eta", "phi", "mass", "weight")]
        if "pdg_id" in own and "charge" not in own:
            own.append("charge")
        self.others = tuple(own)

    # ---- the contract of events

    def links(self, first: int, last: int, offsets: np.ndarray) -> Links:
        """As of `EventJets`."""
        table = self.table
        size = f"{table.candidates}_eta"
        names = [name for name in (table.jet, table.index, size) if name]
        columns = {n: _lists(self.path, n, c) for n, c in self._read(names, first, last).items()}
        of_links = columns[table.jet]
        event = np.repeat(np.arange(last - first), np.diff(of_links.offsets))
        jet = self._numbered(table.jet, of_links, event, offsets, first)
        if not table.index:
            return Links(jet, np.arange(len(jet)))
        indices = columns[table.index]
        if not np.array_equal(indices.offsets, of_links.offsets):
            raise UserError(
                f"{self.path}: {table.jet} and {table.index} have other numbers of rows in an event"
            )
        constituent = self._numbered(table.index, indices, event, columns[size].offsets, first)
        is_there = (jet >= 0) & (constituent >= 0)
        return Links(jet[is_there], constituent[is_there])

    def _numbered(
        self, column: str, index: Lists, event: np.ndarray, offsets: np.ndarray, first: int
    ) -> np.ndarray:
        """Numbers within each event -> numbers in the stretch; -1 stays, which means none.

        Raises UserError for a number that is not there.
        """
        number = np.asarray(index.values).astype(np.int64)
        n_there = np.diff(offsets)[event]
        is_wrong = (number < -1) | (number >= n_there)
        if is_wrong.any():
            i = int(np.argmax(is_wrong))
            raise UserError(
                f"{self.path}: {column} of event {first + int(event[i])} is {number[i]}, and there"
                f" are {n_there[i]}; the columns are not of one file"
            )
        return np.where(number < 0, -1, number + offsets[event])

    def constituents(
        self, first: int, last: int, quantities: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """As of `EventJets`."""
        by_id = "charge" in quantities and "charge" not in self.parts
        wanted = {name: self.parts[name] for name in quantities if name in self.parts}
        if by_id:
            wanted["pdg_id"] = self.parts["pdg_id"]
        wanted = wanted or {"eta": self.parts["eta"]}
        columns = self._read(sorted(set(wanted.values())), first, last)
        found = {n: _lists(self.path, c, columns[c]).values for n, c in wanted.items()}
        if by_id:
            found["charge"] = charges_by_id(found["pdg_id"])
        return {name: found[name] for name in quantities}

    def _read(self, names: Sequence[str], first: int, last: int) -> Mapping[str, object]:
        return self.columns.read(names, first, last)

    def reference(self, jets: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """The stated pt and mass without jet energy corrections."""
        factor = 1 - jets["raw"] if "raw" in jets else np.ones_like(jets["pt"])
        return jets["pt"] * factor, jets["mass"] * factor

    # ---- weights

    def _decide_weights(self) -> None:
        """Whether PUPPI's weights are applied: as the user says, else by what agrees better."""
        puppi = self.settings.puppi
        has_weights = "weight" in self.parts
        if puppi == "on" and not has_weights:
            raise UserError(
                f"{self.path}: puppi is on, and there is no {self.table.candidates}_puppiWeight;"
                " leave puppi out"
            )
        key = f"weights {self.collection} {self.settings}"
        with_weights, without = remembered(self.path, self._compare, key)
        self.is_weighted = has_weights and puppi != "off"
        if has_weights and not puppi and self.n_jets:
            self.is_weighted = with_weights.pt < without.pt
        applied = with_weights if self.is_weighted else without
        other = without if self.is_weighted else with_weights
        if not puppi and applied.pt > MOST_DISAGREEMENT:
            raise UserError(
                f"{self.path}: the constituents of {self.collection} are not those of its jets:"
                f" their sums are off by {applied}; are some missing, or weighted otherwise?"
                f" Where they are right, say so: {'--puppi on or ' * has_weights}--puppi off"
            )
        self.note = self._note(applied, other, has_weights) if self.n_jets else ""

    def _compare(self) -> tuple[Agreement, Agreement]:
        """How well sums agree with weights and without."""
        self.is_weighted = False
        without = self.agreement()
        if "weight" not in self.parts:
            return without, without
        self.is_weighted = True
        return self.agreement(), without

    def _note(self, applied: Agreement, other: Agreement, has_weights: bool) -> str:
        stated = self.of_jets["pt"]
        if "raw" in self.of_jets:
            stated += f" (1 - {self._raw})"
        by = f"{self.table.index} into {self.table.candidates}"
        if not self.table.index:
            by = self.table.jet
        words = [f"{self.collection} by {by} in GeV"]
        said = f"sums are those of {stated} within {applied}"
        if has_weights:
            verb = "applied" if self.is_weighted else "not applied"
            words.append(f"PUPPI weights {verb}: {said}, otherwise {other}")
        elif self.collection.startswith("Gen"):
            words.append(said)
        else:
            words.append(f"PUPPI weights are in {self.parts['pt']}: {said}")
        if applied.pt > MOST_DISAGREEMENT:
            words.append("which they are not: are constituents missing, or weighted otherwise?")
        words.append(f"axis: {self.of_jets['eta']}, {self.of_jets['phi']}")
        return ", ".join(words)


def _lists(path: Path, name: str, column: object) -> Lists:
    if not isinstance(column, Lists):
        raise UserError(f"{path}: {name} has one value for each event, expected a list")
    return column


def open_nano(path: Path, settings: ReadSettings) -> JetReader:
    """NanoAOD or PFNano. Raises UserError for one without constituents."""
    columns = _events_of(path)
    if columns is None:
        raise UserError(f"{path}: not NanoAOD: it has no tree {TREE}")
    there = list(_tables(columns.names))
    jets = listed([name for name in TABLES if f"{name}_pt" in columns.names]) or "no jets"
    collection = chosen_collection(path, settings.collection, there, f"{LACKS}; it has {jets}")
    return NanoJets(columns, collection, settings, GEV[settings.pt_unit or "GeV"])


def _events_of(path: Path) -> RootColumns | None:
    return tree_of(path, (TREE,))


def pfnano_evidence(path: Path) -> str:
    """Candidates called PFCands."""
    return _evidence(path, ("PFCands_pt", "JetPFCandsAK8_jetIdx", "JetPFCandsAK4_jetIdx"))


def nanoaod_evidence(path: Path) -> str:
    """NanoAOD's names of jets, and no PFNano."""
    if pfnano_evidence(path):
        return ""
    return _evidence(path, ("FatJetPFCand_jetIdx", "JetPFCand_jetIdx", "FatJet_pt", "Jet_pt"))


def _evidence(path: Path, names: Sequence[str]) -> str:
    columns = _events_of(path)
    if columns is None:
        return ""
    with closing(columns):
        found = next((name for name in names if name in columns.names), "")
    return f"{TREE} with {found}" if found else ""
