"""Events of Pythia, and files of them as CMS, ATLAS and generators write them.

Each event has some hundred particles with PUPPI-like weights, and jets that fastjet makes of the
weighted ones. What is written has the names and types of the published formats.
"""

from dataclasses import dataclass

import numpy as np

RADIUS = 0.8
MIN_PT_GEV = 30.0
PILE_UP = 30  # particles per event that PUPPI gives little weight
CORRECTION = 0.12  # by which stated jets differ from the sums, of the stated


@dataclass
class Event:
    """Particles (P,) of one event, and its jets as indices of those."""

    px: np.ndarray
    py: np.ndarray
    pz: np.ndarray
    energy: np.ndarray
    pdg_id: np.ndarray
    weight: np.ndarray
    jets: list
    hepevt: dict  # all that Pythia made, for HepMC

    @property
    def polar(self):
        """pt, eta, phi and mass of the particles."""
        pt = np.hypot(self.px, self.py)
        squared = self.energy**2 - pt**2 - self.pz**2
        return {
            "pt": pt,
            "eta": np.arcsinh(self.pz / pt),
            "phi": np.arctan2(self.py, self.px),
            "mass": np.sqrt(np.maximum(squared, 0)),
        }

    def sums(self, weights=None):
        """pt, eta, phi and mass of the jets, each (J,); weights: of the particles."""
        w = self.weight if weights is None else weights
        rows = [
            [np.sum((w * part)[jet]) for part in (self.px, self.py, self.pz, self.energy)]
            for jet in self.jets
        ]
        px, py, pz, energy = np.array(rows).reshape(-1, 4).T
        pt = np.hypot(px, py)
        return {
            "pt": pt,
            "eta": np.arcsinh(pz / pt),
            "phi": np.arctan2(py, px),
            "mass": np.sqrt(np.maximum(energy**2 - pt**2 - pz**2, 0)),
        }


def make_events(n, seed=1):
    """n events of hard scattering, with weights, and jets of the weighted particles."""
    import pythia8mc

    from mmtok.sources.jet_clustering import anti_kt

    pythia = pythia8mc.Pythia("", False)
    lines = ("HardQCD:all = on", "PhaseSpace:pTHatMin = 80.", "Beams:eCM = 13000.")
    seeds = ("Random:setSeed = on", f"Random:seed = {seed}", "Print:quiet = on")
    for line in (*lines, *seeds, "PartonLevel:MPI = off"):
        pythia.readString(line)
    pythia.init()
    rng = np.random.default_rng(seed)
    events = []
    while len(events) < n:
        if not pythia.next():
            continue
        record = [p for p in pythia.event if p.isFinal()]
        columns = {
            "pid": np.array([p.id() for p in record]),
            "px": np.array([p.px() for p in record]),
            "py": np.array([p.py() for p in record]),
            "pz": np.array([p.pz() for p in record]),
            "en": np.array([p.e() for p in record]),
            "m": np.array([p.m() for p in record]),
        }
        is_seen = ~np.isin(np.abs(columns["pid"]), (12, 14, 16))
        is_seen &= np.abs(np.arcsinh(columns["pz"] / np.hypot(columns["px"], columns["py"]))) < 4.5
        extra = _pile_up(rng)
        parts = {
            key: np.concatenate([columns[key][is_seen], extra[key]])
            for key in ("px", "py", "pz", "en", "pid")
        }
        weight = rng.choice([1.0, 1.0, 1.0, 0.75], len(parts["px"]))
        weight[-PILE_UP:] = rng.choice([0.0, 0.1], PILE_UP)
        names = {"px": "px", "py": "py", "pz": "pz", "E": "en"}
        weighted = {name: weight * parts[key] for name, key in names.items()}
        n_particles = np.array([len(weight)])
        jets = anti_kt(weighted, n_particles, RADIUS, MIN_PT_GEV)[0]
        momenta = (parts[key] for key in ("px", "py", "pz", "en", "pid"))
        events.append(Event(*momenta, weight, jets, columns))
    return events


def _pile_up(rng):
    pt = rng.exponential(1.0, PILE_UP) + 0.3
    eta = rng.uniform(-4, 4, PILE_UP)
    phi = rng.uniform(-np.pi, np.pi, PILE_UP)
    pz = pt * np.sinh(eta)
    mass = 0.13957
    return {
        "px": pt * np.cos(phi),
        "py": pt * np.sin(phi),
        "pz": pz,
        "en": np.sqrt(pt**2 + pz**2 + mass**2),
        "pid": rng.choice([211, -211], PILE_UP),
    }


def lists(rows, kind=np.float32):
    """Rows of numbers as one awkward array of lists."""
    import awkward as ak

    flat = np.concatenate([np.zeros(0), *(np.asarray(row, float) for row in rows)]).astype(kind)
    return ak.unflatten(flat, [len(row) for row in rows])


def write_trees(path, trees):
    """Trees of {branch: array} in one ROOT file; jagged ones get counters, as NanoAOD has them."""
    import uproot

    with uproot.recreate(path) as file:
        for name, tables in trees.items():
            types = {key: getattr(a, "type", None) or a.dtype for key, a in tables.items()}
            tree = file.mktree(name, types)
            tree.extend(tables)


def _zipped(columns):
    import awkward as ak

    return ak.zip(columns)


def nano_tables(events, collections, table, candidates, index, weights):
    """The tables of Jet, FatJet and their constituents.

    Args:
        events: as made.
        collections: which of Jet (of unweighted particles) and FatJet (of weighted ones).
        table: how a table of constituents is called, "{}PFCands".
        candidates: that of the particles.
        index: the column of their numbers.
        weights: a column of PUPPI's weights beside bare particles; else pt and mass have them.
    """
    n = len(events)
    found = {
        "run": np.ones(n, np.uint32),
        "luminosityBlock": np.ones(n, np.uint32),
        "event": np.arange(n, dtype=np.uint64),
    }
    for collection in collections:
        is_puppi = collection == "FatJet" or not weights
        sums = [e.sums(None if is_puppi else np.ones_like(e.weight)) for e in events]
        raw = lists([np.full(len(e.jets), CORRECTION) for e in events])
        stated = {
            "pt": lists([s["pt"] / (1 - CORRECTION) for s in sums]),
            "eta": lists([s["eta"] for s in sums]),
            "phi": lists([s["phi"] for s in sums]),
            "mass": lists([s["mass"] / (1 - CORRECTION) for s in sums]),
            "rawFactor": raw,
            "hadronFlavour": lists([np.arange(len(e.jets)) % 2 * 5 for e in events], np.int32),
        }
        found[collection] = _zipped(stated)
        jet_idx = [np.repeat(np.arange(len(e.jets)), [len(j) for j in e.jets]) for e in events]
        particles = [np.concatenate([np.zeros(0, int), *e.jets]) for e in events]
        links = {"jetIdx": lists(jet_idx, np.int32), index: lists(particles, np.int32)}
        found[table.format(collection)] = _zipped(links)
    polar = [e.polar for e in events]
    scale = [np.ones_like(e.weight) if weights else e.weight for e in events]
    parts = {
        "pt": lists([w * p["pt"] for w, p in zip(scale, polar)]),
        "eta": lists([p["eta"] for p in polar]),
        "phi": lists([p["phi"] for p in polar]),
        "mass": lists([w * p["mass"] for w, p in zip(scale, polar)]),
        "pdgId": lists([e.pdg_id for e in events], np.int32),
    }
    if weights:
        parts["puppiWeight"] = lists([e.weight for e in events])
        parts["puppiWeightNoLep"] = lists([e.weight for e in events])
        parts["charge"] = lists([np.sign(e.pdg_id) * (e.pdg_id != 22) for e in events], np.int32)
        parts["d0"] = lists([np.full(len(e.px), 0.01) for e in events])
        parts["dz"] = lists([np.full(len(e.px), -0.02) for e in events])
    found[candidates] = _zipped(parts)
    return found


def write_pfnano(path, events, collections=("Jet", "FatJet")):
    """PFNano: bare candidates with puppiWeight; Jet is CHS, FatJet is PUPPI."""
    tables = nano_tables(events, collections, "{}PFCands", "PFCands", "pFCandsIdx", weights=True)
    write_trees(path, {"Events": tables, "Runs": {"run": np.ones(1, np.uint32)}})


def write_nanoaod(path, events):
    """NanoAOD v15: FatJet alone has constituents, whose pt and mass are weighted."""
    tables = nano_tables(events, ("FatJet",), "{}PFCand", "PFCand", "pfCandIdx", weights=False)
    tables["Jet"] = tables["FatJet"]
    write_trees(path, {"Events": tables, "Runs": {"run": np.ones(1, np.uint32)}})


def write_daod(path, events, jets="AnalysisLargeRJets", separator=".", decoys=True):
    """DAOD: an RNTuple, whose jets link to charged and neutral flow elements, in MeV.

    Links have a key of each container; the order of the containers is not that of the keys.
    """
    import awkward as ak
    import uproot

    keys = {True: 771122, False: 110099}
    numbers = []
    flows = {True: [], False: []}
    for event in events:
        is_charged = ~np.isin(event.pdg_id, (22, 130, 2112, -2112))
        number = np.where(is_charged, np.cumsum(is_charged), np.cumsum(~is_charged)) - 1
        numbers.append((is_charged, number))
        for kind in flows:
            flows[kind].append(is_charged == kind)
    links = [
        [
            [{"m_persKey": keys[bool(charged[i])], "m_persIndex": int(number[i])} for i in jet]
            for jet in event.jets
        ]
        for event, (charged, number) in zip(events, numbers)
    ]
    weights = [[event.weight[jet].tolist() for jet in event.jets] for event in events]
    sums = [event.sums() for event in events]
    columns = {}
    for name, key in (("pt", "pt"), ("eta", "eta"), ("phi", "phi"), ("m", "mass")):
        unit = 1000.0 if name in ("pt", "m") else 1.0
        scale = 1000.0 * 1.1 if name in ("pt", "m") else 1.0
        columns[f"{jets}AuxDyn{separator}{name}"] = lists([scale * s[key] for s in sums])
        columns[f"{jets}AuxDyn{separator}JetConstitScaleMomentum_{name}"] = lists(
            [unit * s[key] for s in sums]
        )
    columns[f"{jets}AuxDyn{separator}constituentLinks"] = ak.Array(links)
    columns[f"{jets}AuxDyn{separator}constituentWeights"] = ak.Array(weights)
    containers = {"Neutral": False, "Charged": True}
    for kind, charged in containers.items():
        prefix = f"Global{kind}ParticleFlowObjectsAuxDyn{separator}"
        chosen = flows[charged]
        for name, key in (("pt", "pt"), ("eta", "eta"), ("phi", "phi"), ("m", "mass")):
            unit = 1000.0 if name in ("pt", "m") else 1.0
            rows = [unit * e.polar[key][c] for e, c in zip(events, chosen)]
            columns[prefix + name] = lists(rows)
        columns[f"{prefix}charge"] = lists([np.full(c.sum(), float(charged)) for c in chosen])
    if decoys:
        for name, unit in (("pt", 5e3), ("eta", 1.0), ("phi", 1.0), ("m", 0.0)):
            rows = [unit * np.linspace(0.1, 1, len(e.px)) for e in events]
            columns[f"CaloCalTopoClustersAuxDyn{separator}{name}"] = lists(rows)
    columns[f"EventInfoAuxDyn{separator}eventNumber"] = np.arange(len(events))
    with uproot.recreate(path) as file:
        file.mkrntuple("CollectionTree" if separator == "." else "EventData", columns)


def write_hepmc(path, events, unit="GEV", kind="HepMC3"):
    """Beams, one vertex, and the particles of the final state, neutrinos too."""
    import pyhepmc

    scale = 1000.0 if unit == "MEV" else 1.0
    beams = {
        "pid": [2212, 2212],
        "px": [0.0, 0.0],
        "py": [0.0, 0.0],
        "pz": [6500.0, -6500.0],
        "en": [6500.0, 6500.0],
        "m": [0.938, 0.938],
    }
    with pyhepmc.open(str(path), "w", format=kind) as file:
        for number, event in enumerate(events):
            record = pyhepmc.GenEvent(getattr(pyhepmc.Units, unit), pyhepmc.Units.MM)
            columns = {key: np.concatenate([beams[key], event.hepevt[key]]) for key in beams}
            n = len(columns["pid"])
            momenta = {key: scale * columns[key] for key in ("px", "py", "pz", "en", "m")}
            record.from_hepevt(
                event_number=number,
                pid=columns["pid"].astype(np.int32),
                status=np.array([4, 4] + [1] * (n - 2), np.int32),
                parents=np.array([[0, 0]] * 2 + [[1, 2]] * (n - 2), np.int32),
                **momenta,
            )
            file.write(record)
