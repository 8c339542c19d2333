"""Jets of ATLAS: PHYSLITE and other DAOD files, in trees or RNTuples.

A container X has its variables in branches XAuxDyn.pt or XAux./XAux.pt, in an RNTuple XAuxDyn:pt;
momenta are in MeV. Jets have `constituentLinks`: for each constituent a key, which stands for a
container, and an index in that. The names behind keys are not in the tree. So a container is chosen
by what fits: it has that many entries, and the sums of its constituents, with `constituentWeights`
where there are some, are the jets before calibration (JetConstitScaleMomentum_*).

PHYSLITE itself keeps links for AnalysisLargeRJets and no particle flow objects; LLJ1 and JETM
derivations keep both (UFOCSSK), and truth jets link to TruthParticles.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np

from mmtok.errors import UserError, reading
from mmtok.io.columns import named_column
from mmtok.io.messages import listed
from mmtok.sources.jet_columns import Lists
from mmtok.sources.jet_coordinates import pt_eta_phi
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

TREES = ("CollectionTree", "EventData")
NAME = re.compile(r"(?:.*/)?(?P<container>\w+?)Aux(?:Dyn)?[.:](?P<variable>\w+)")
# coordinates that a container of constituents may have: pt, eta, phi, mass; or of a cluster, which
# has an energy, calibrated or not; or of truth
POLAR = (("pt", "eta", "phi", "m"), ("pt", "eta", "phi", "e"), ("pt", "eta", "phi"))
CLUSTERS = (("calE", "calEta", "calPhi", "calM"), ("rawE", "rawEta", "rawPhi", "rawM"))
CARTESIAN = ("px", "py", "pz", "e")
PARTS = {  # feature -> how the variable is called
    "charge": ("charge",),
    "pdg_id": ("pdgId", "pdg_id"),
}
MOST_TRIED = 64  # ways in which keys may be containers
NOWHERE = 0xFFFFFFFF  # the index of a link to what was thinned away
LACKS = (
    "has no jets with constituentLinks: PHYSLITE keeps them for AnalysisLargeRJets, other"
    " derivations (LLJ1, JETM) for more"
)


@dataclass(frozen=True)
class Target:
    """A container of constituents, and the variables that give their momenta."""

    container: str
    variables: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.container}.{self.variables[0]}"


class Variables:
    """The variables of the containers of a tree: (container, variable) -> branch."""

    def __init__(self, names: Sequence[str]) -> None:
        self.branches: dict[str, dict[str, str]] = {}
        for name in names:
            if match := NAME.fullmatch(name):
                variables = self.branches.setdefault(match["container"], {})
                variables.setdefault(match["variable"], name)

    def of(self, container: str) -> Mapping[str, str]:
        """Variable -> branch of a container."""
        return self.branches.get(container, {})

    def jets(self) -> list[str]:
        """The containers of jets that have links to constituents."""
        needed = {"constituentLinks", "pt", "eta", "phi"}
        return [name for name, has in self.branches.items() if needed <= set(has)]

    def targets(self) -> list[Target]:
        """What links may lead to, with every way of getting its momenta."""
        found: list[Target] = []
        jets = set(self.jets())
        for name, has in self.branches.items():
            if name in jets:
                continue
            polar = next((variables for variables in POLAR if set(variables) <= set(has)), None)
            ways = [polar] if polar else []
            ways += [
                variables for variables in (*CLUSTERS, CARTESIAN) if set(variables) <= set(has)
            ]
            found += [Target(name, way) for way in ways]
        return found


@dataclass
class DaodJets(EventJets):
    """Jets of one container. A user may name what links lead to, as in `constituents=UFOCSSK`.

    Several containers are joined by +. Other columns are variables of the constituents, or
    `caption`, one of the jets.
    """

    variables: Variables = field(init=False)
    targets: dict[int, Target] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.variables = Variables(self.columns.names)
        super().__post_init__()
        of = self.variables.of(self.collection)
        scales = {"pt": "pt", "eta": "eta", "phi": "phi", "mass": "m"}
        for name, variable in scales.items():
            if variable in of:
                self.of_jets[name] = of[variable]
            raw = f"JetConstitScaleMomentum_{variable}"
            if raw in of:
                self.of_jets[f"raw_{name}"] = of[raw]
        self._links = of["constituentLinks"]
        self._weights = of.get("constituentWeights", "")
        self.is_weighted = bool(self._weights)
        self.fit_blocks(self._links)
        self.find_jets()
        self._find_targets()

    def column_of_jets(self, name: str) -> str:
        """As of `EventJets`."""
        return self.variables.of(self.collection).get(name, name)

    # ---- the contract of events

    def reference(self, jets: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """The pt and mass before calibration."""
        pt = jets.get("raw_pt", jets["pt"])
        mass = jets.get("raw_mass", jets.get("mass", np.full_like(pt, np.nan)))
        return pt, mass

    def links(self, first: int, last: int, offsets: np.ndarray) -> Links:
        """As of `EventJets`. Links of keys whose container is not known yet count as well."""
        jet, key, index, weight = self._raw_links(first, last, offsets)
        event = np.searchsorted(offsets, jet, side="right") - 1
        constituent = np.zeros(len(jet), np.int64)
        base = 0
        for number, target in self.targets.items():
            of_target = self._offsets(target, first, last)
            is_its = key == number
            n_there = np.diff(of_target)[event]
            is_wrong = is_its & (index >= n_there)
            if is_wrong.any():
                i = int(np.argmax(is_wrong))
                raise UserError(
                    f"{self.path}: a link of event {first + int(event[i])} is to number {index[i]}"
                    f" of {target.container}, which has {n_there[i]} there"
                )
            constituent[is_its] = base + of_target[event[is_its]] + index[is_its]
            base += int(of_target[-1])
        return Links(jet, constituent, weight)

    def _raw_links(
        self, first: int, last: int, offsets: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
        """Of each link of events first to last: jet, key, index, and weight; without lost ones."""
        import awkward as ak

        names = [self._links, *([self._weights] if self.is_weighted else [])]
        with reading(self.path, "jets"):
            arrays = self.columns.tree.arrays(
                names, entry_start=first, entry_stop=last, library="ak", how=dict
            )
            links = ak.flatten(arrays[self._links], axis=1)
            n_links = np.asarray(ak.num(links, axis=1))
            flat = ak.flatten(links, axis=1)
            fields = {field.rpartition("m_pers")[2]: field for field in ak.fields(flat)}
            key, index = (np.asarray(flat[fields[n]]).astype(np.int64) for n in ("Key", "Index"))
            weight = None
            if self.is_weighted:
                weight = np.asarray(ak.flatten(arrays[self._weights], axis=None), np.float64)
        if len(n_links) != offsets[-1] or (weight is not None and len(weight) != len(key)):
            raise UserError(
                f"{self.path}: {self._links} is of other jets or links than {self.of_jets['pt']}"
                f" and {self._weights or 'no weights'}"
            )
        is_there = (key != 0) & (index != NOWHERE)
        jet = np.repeat(np.arange(len(n_links)), n_links)[is_there]
        weight = None if weight is None else weight[is_there]
        return jet, key[is_there], index[is_there], weight

    def _offsets(self, target: Target, first: int, last: int) -> np.ndarray:
        branch = self.variables.of(target.container)[target.variables[0]]
        column = self.columns.read([branch], first, last)[branch]
        if not isinstance(column, Lists):
            raise UserError(f"{self.path}: {branch} has one value for each event, expected a list")
        return column.offsets

    def constituents(
        self, first: int, last: int, quantities: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """As of `EventJets`: those of all containers that links lead to, one after another."""
        parts = [
            self._momenta(target, first, last, [n for n in quantities if n != "weight"])
            for target in self.targets.values()
        ]
        nothing = np.zeros(0)
        return {q: np.concatenate([nothing, *(part[q] for part in parts)]) for q in quantities}

    def _momenta(
        self, target: Target, first: int, last: int, quantities: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """pt, eta, phi and mass of all constituents of a container, and others as they are."""
        of = self.variables.of(target.container)
        others = {n: self._variable(n, of) for n in quantities if n in self.others}
        names = [of[variable] for variable in target.variables]
        columns = self.columns.read(sorted({*names, *others.values()} - {""}), first, last)
        values = {n: np.asarray(c.values) for n, c in columns.items() if isinstance(c, Lists)}
        found = _polar(target, [values[name].astype(np.float64) for name in names])
        n_all = len(values[names[0]])
        for name, branch in others.items():
            found[name] = values[branch] if branch else np.full(n_all, np.nan)
        return found

    def _variable(self, name: str, of: Mapping[str, str]) -> str:
        """The branch of a further quantity; "" where this container has none."""
        asked = self.settings.columns.get(name)
        spellings = (asked,) if asked else PARTS[name]
        return next((of[spelling] for spelling in spellings if spelling in of), "")

    # ---- what links lead to

    def _find_targets(self) -> None:
        """Which container each key stands for; then the note."""
        key = f"targets {self.collection} {self.settings}"
        self.targets, agreement = remembered(self.path, self._fitting, key)
        self._last = None
        named = [n for n in self.settings.columns if n not in ("caption", "constituents")]
        for name in named:
            for target in self.targets.values():
                of = self.variables.of(target.container)
                named_column(self.settings.columns[name], list(of), self.path)
        known = [
            name
            for name in PARTS
            if name not in named
            and self.targets
            and all(
                self._variable(name, self.variables.of(t.container)) for t in self.targets.values()
            )
        ]
        self.others = (*known, *named)
        self.features = (*self.features, *self.others)
        self.note = self._note(agreement) if self.n_jets else ""

    def _fitting(self) -> tuple[dict[int, Target], Agreement]:
        """The containers behind the keys, and how well their sums agree.

        Raises UserError where none fits.
        """
        needed = self._sizes_needed()
        options = [self._options(number, *sizes) for number, sizes in needed.items()]
        best: tuple[dict[int, Target], Agreement] = ({}, Agreement(np.nan, np.nan))
        ways = [way for way in product(*options) if len({t.container for t in way}) == len(way)]
        for way in ways[:MOST_TRIED]:
            self.targets = dict(zip(needed, way, strict=True))
            self._last = None
            agreement = self.agreement()
            if not best[0] or agreement.pt < best[1].pt:
                best = (self.targets, agreement)
        if needed and not best[0]:
            raise UserError(f"{self.path}: no containers fit the links of {self.collection}")
        is_named = "constituents" in self.settings.columns
        if best[1].pt > MOST_DISAGREEMENT and not is_named:
            names = " and ".join(target.container for target in best[0].values())
            raise UserError(
                f"{self.path}: the constituents of {self.collection} are of none of the containers"
                f" here: sums of those that fit best, {names}, are off by {best[1]}; name them"
                f" where they are right: --columns constituents={names.replace(' and ', '+')}"
            )
        return best

    def _sizes_needed(self) -> dict[int, tuple[int, np.ndarray]]:
        """Key -> the first block of events with it, and how many entries those need (events,)."""
        needed: dict[int, tuple[int, np.ndarray]] = {}
        for first in range(0, self.columns.n_rows, self.n_block):
            last = min(first + self.n_block, self.columns.n_rows)
            offsets = self._jets(first, last, ("pt",))["pt"].offsets
            jet, key, index, _ = self._raw_links(first, last, offsets)
            event = np.searchsorted(offsets, jet, side="right") - 1
            for number in sorted(set(np.unique(key).tolist()) - set(needed)):
                sizes = np.zeros(last - first, np.int64)
                np.maximum.at(sizes, event[key == number], index[key == number] + 1)
                needed[number] = (first, sizes)
        return needed

    def _options(self, number: int, first: int, sizes: np.ndarray) -> list[Target]:
        """The containers that have enough entries for the links of a key in these events.

        Raises UserError where there is none.
        """
        targets = self.variables.targets()
        asked = self.settings.columns.get("constituents", "")
        if asked:
            containers = [
                named_column(name, list(self.variables.branches), self.path)
                for name in asked.split("+")
            ]
            targets = [target for target in targets if target.container in containers]
        last = first + len(sizes)
        fitting = [
            target
            for target in targets
            if np.all(sizes <= np.diff(self._offsets(target, first, last)))
        ]
        if not fitting:
            raise UserError(
                f"{self.path}: the constituents of {self.collection} are not in the file: no"
                f" container has momenta and enough entries for the links of key {number}; those"
                f" with momenta are {listed([t.container for t in targets]) or 'none'}"
            )
        return fitting

    def _note(self, agreement: Agreement) -> str:
        stated = self.of_jets.get("raw_pt", self.of_jets["pt"])
        unit = next(name for name, size in GEV.items() if size == self.scale)
        reason = "as named" if self.settings.pt_unit else "as ATLAS has it"
        words = [
            f"{self.collection} by constituentLinks into"
            f" {' and '.join(map(str, self.targets.values())) or 'nothing'} in {unit} ({reason})"
        ]
        if self.is_weighted:
            words.append("constituentWeights applied")
        words.append(f"sums are those of {stated} within {agreement}")
        words.append(f"axis: {self.of_jets['eta']}, {self.of_jets['phi']}")
        return ", ".join(words)


def _polar(target: Target, values: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """pt, eta, phi and mass, of whichever variables a container has."""
    if target.variables == CARTESIAN:
        px, py, pz, energy = values
        pt, eta, phi = pt_eta_phi(px, py, pz)
        mass = _mass(energy, np.sqrt(px**2 + py**2 + pz**2))
        return {"pt": pt, "eta": eta, "phi": phi, "mass": mass}
    size, eta, phi, *rest = values
    if target.variables in CLUSTERS:
        mass = rest[0]
        momentum = np.sqrt(np.maximum(size**2 - mass**2, 0))
        return {"pt": momentum / np.cosh(eta), "eta": eta, "phi": phi, "mass": mass}
    mass = np.zeros_like(size)
    if target.variables[-1] == "m":
        mass = rest[0]
    elif target.variables[-1] == "e":
        mass = _mass(rest[0], size * np.cosh(eta))
    return {"pt": size, "eta": eta, "phi": phi, "mass": mass}


def _mass(energy: np.ndarray, momentum: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(energy**2 - momentum**2, 0))


def open_daod(path: Path, settings: ReadSettings) -> JetReader:
    """PHYSLITE or another DAOD file. Raises UserError for one without constituents."""
    columns = tree_of(path, TREES)
    if columns is None:
        raise UserError(f"{path}: not PHYSLITE: it has no tree {' or '.join(TREES)}")
    there = Variables(columns.names).jets()
    collection = chosen_collection(path, settings.collection, there, LACKS)
    return DaodJets(columns, collection, settings, GEV[settings.pt_unit or "MeV"])


def physlite_evidence(path: Path) -> str:
    """A tree of ATLAS, with variables of jets."""
    columns = tree_of(path, TREES)
    if columns is None:
        return ""
    with closing(columns):
        names = (name for name in Variables(columns.names).branches if name.endswith("Jets"))
        found = next(names, "")
    return f"{columns.tree.name} with {found}" if found else ""
