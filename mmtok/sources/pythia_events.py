"""The collisions that Pythia 8 makes for each class of jets, and which of their jets are of it.

Assumptions: every constituent is massless; its three-momentum is kept, its energy is set to |p|
before clustering, so its rapidity and pseudorapidity coincide. Neutrinos are left out, muons stay.
`eta_rel` is the constituent's (pseudo)rapidity minus the RAPIDITY of the jet, `phi_rel` its azimuth
minus the jet's, wrapped into [-pi, pi): a boost along the beam changes neither.

Pythia 8.3 (arXiv 2203.11601), FastJet 3 (arXiv 1111.6097), anti-kT (arXiv 0802.1189).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmtok.errors import UserError, missing_extra
from mmtok.nn.angles import wrap
from mmtok.sources.jet_clustering import anti_kt
from mmtok.sources.jet_coordinates import particle_ids
from mmtok.sources.jet_formats import FEATURES
from mmtok.sources.pythia_pileup import POOL, SOFT, PileUp

QUARKS_OF = "onIfAny = 1 2 3 4 5"
PROCESSES = {
    "gluon": ("HardQCD:gg2gg = on", "HardQCD:qqbar2gg = on"),
    "quark": (
        "HardQCD:qq2qq = on",
        "HardQCD:gg2qqbar = on",
        "HardQCD:qqbar2qqbarNew = on",
        "HardQCD:nQuarkNew = 3",
    ),
    "top": (
        "Top:gg2ttbar = on",
        "Top:qqbar2ttbar = on",
        "24:onMode = off",
        f"24:{QUARKS_OF}",
    ),
    "W": (
        "WeakBosonAndParton:qqbar2Wg = on",
        "WeakBosonAndParton:qg2Wq = on",
        "24:onMode = off",
        f"24:{QUARKS_OF}",
    ),
    "Z": (
        "WeakBosonAndParton:qqbar2gmZg = on",
        "WeakBosonAndParton:qg2gmZq = on",
        "WeakZ0:gmZmode = 2",
        "23:onMode = off",
        f"23:{QUARKS_OF}",
    ),
    # beside a Z that is not seen, so that no other jet is taken for it
    "Higgs": (
        "HiggsSM:ffbar2HZ = on",
        "25:onMode = off",
        "25:onIfMatch = 5 -5",
        "23:onMode = off",
        "23:onIfAny = 12 14 16",
    ),
}
CLASSES = tuple(PROCESSES)  # their order is part of the seeds
# mother of the two quarks that a jet of the class has
BOSONS = {"W": 24, "Z": 23, "Higgs": 25}
EVENTS_PER_BATCH = 25
HARDEST_JETS = 2  # of an event; a third one is rarely that of a hard parton
TINY_GEV = 1e-12  # pt of a particle along the beam
NEUTRINOS = (12, 14, 16)
OUTGOING = 23  # status of a parton that leaves the hard process
GLUON = 21
LIGHT_QUARKS = (1, 2, 3)  # d, u, s
TOP = 6
W_BOSON = 24
# what can be asked of a constituent of a simulated jet, beside FEATURES
TRACKS = ("charge", "particle_id", "d0", "dz")


def need_generators() -> None:
    """Raise UserError where the extra `jets` is not installed."""
    try:
        import awkward  # noqa: F401
        import fastjet  # noqa: F401
        import pythia8mc  # noqa: F401
        import vector  # noqa: F401
    except ImportError:
        raise missing_extra("making jets", "jets") from None


@dataclass(frozen=True)
class JetCuts:
    """Which jets are made, and of what.

    Attributes:
        radius: of the anti-kT algorithm.
        pt_min_gev: of a jet, without its pile-up.
        features: columns of a jet: those of FEATURES, of TRACKS and "is_pileup".
    """

    radius: float
    pt_min_gev: float
    features: tuple[str, ...] = FEATURES


def hard_pythia(name: str, seed: int, pt_hat_min_gev: float) -> Any:
    """A silent Pythia that makes one class. Raises UserError where it refuses the settings."""
    pythia = silent_pythia(seed, (f"PhaseSpace:pTHatMin = {pt_hat_min_gev}", *PROCESSES[name]))
    if pythia is None:
        raise UserError(
            f"PythiaJets: Pythia refuses to make {name} jets with pt_hat_min_gev {pt_hat_min_gev:g}"
        )
    return pythia


def soft_events(mu: float, seed: int) -> PileUp:
    """Pile-up of `mu` collisions on average, with a pool of its own."""
    pythia = silent_pythia(seed, SOFT)
    if pythia is None:
        raise UserError("PythiaJets: Pythia refuses to make soft QCD")
    parts = []
    n: list[int] = []
    for batch in event_batches(pythia):
        event = np.repeat(np.arange(len(batch["n"])), batch["n"])
        is_visible = visible(batch)
        parts.append(particles_of(batch, is_visible, pythia))
        n += np.bincount(event[is_visible], minlength=len(batch["n"])).tolist()
        if len(n) >= POOL:
            break
    pool = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return PileUp(mu, pool, np.array(n), seed)


def silent_pythia(seed: int, settings: Sequence[str]) -> Any:
    """A silent Pythia of proton collisions at 13 TeV; None where it refuses the settings."""
    import pythia8mc

    pythia = pythia8mc.Pythia("", False)
    common = (
        "Print:quiet = on",
        "Random:setSeed = on",
        f"Random:seed = {seed}",
        "Beams:eCM = 13000.",
    )
    if all(pythia.readString(line) for line in (*common, *settings)) and pythia.init():
        return pythia
    return None


# ---- particles


def event_batches(pythia: Any) -> Iterator[dict[str, Any]]:
    """Endless batches of events as flat columns: id, status, mother's id, px, py, pz, vertex.

    `n` is the number of particles of each event; `vertex` an awkward array of where they come from.
    """
    import awkward as ak

    while True:
        events = pythia.nextBatch(EVENTS_PER_BATCH).prt
        flat = ak.flatten(events)
        n = ak.num(events).to_numpy()
        batch = {key: np.asarray(flat[key]) for key in ("id", "status")}
        batch |= {key: np.asarray(flat.p[key]) for key in ("px", "py", "pz")}
        first = np.repeat(np.cumsum(n) - n, n)
        mother = batch["id"][first + np.asarray(flat.mother1)]
        yield batch | {"mother": mother, "n": n, "vertex": flat.vProd}


def visible(batch: Mapping[str, Any]) -> np.ndarray:
    """Which particles (all P,) are seen."""
    return (batch["status"] > 0) & ~np.isin(np.abs(batch["id"]), NEUTRINOS)


def particles_of(batch: Mapping[str, Any], mask: np.ndarray, pythia: Any) -> dict[str, np.ndarray]:
    """Momenta and tracks of the particles in the mask: px, py, pz and those of TRACKS.

    d0 and dz in mm: of a straight line through where the particle was made, at its closest to the
    beam; 0 of neutral particles, which leave no track.
    """
    import awkward as ak

    columns = {key: batch[key][mask] for key in ("px", "py", "pz")}
    vertex = batch["vertex"][mask]
    x, y, z = (ak.to_numpy(ak.fill_none(vertex[key], 0.0)) for key in ("px", "py", "pz"))
    codes, inverse = np.unique(batch["id"][mask], return_inverse=True)
    charges = np.array([pythia.particleData.charge(int(code)) for code in codes])
    charge = charges[inverse].round()
    columns["charge"] = charge
    columns["particle_id"] = particle_ids(codes, charges)[inverse]
    pt = np.maximum(np.hypot(columns["px"], columns["py"]), TINY_GEV)
    along = (x * columns["px"] + y * columns["py"]) / pt
    columns["d0"] = (x * columns["py"] - y * columns["px"]) / pt * (charge != 0)
    columns["dz"] = (z - along * columns["pz"] / pt) * (charge != 0)
    return columns


# ---- jets


def jets_in(
    batch: Mapping[str, Any], name: str, cuts: JetCuts, pythia: Any, pileup: PileUp | None
) -> Iterator[np.ndarray]:
    """The jets of one class in a batch of events, hardest first within an event."""
    event = np.repeat(np.arange(len(batch["n"])), batch["n"])
    is_visible = visible(batch)
    partons = _hard_partons(batch, event)
    columns: dict[str, np.ndarray] = {key: batch[key][is_visible] for key in ("px", "py", "pz")}
    if pileup is not None or set(cuts.features) - set(FEATURES):
        columns = particles_of(batch, is_visible, pythia)
    columns |= dict(zip(("pt_gev", "eta", "phi"), _pt_eta_phi(columns), strict=True))
    n = np.bincount(event[is_visible], minlength=len(batch["n"]))
    found = anti_kt(massless(columns), n, cuts.radius, cuts.pt_min_gev)
    first = np.cumsum(n) - n
    for e, jets in enumerate(found):
        chosen = []
        for members in jets[:HARDEST_JETS]:
            near = _near(partons, e, columns, members)
            if _matches(near, name, cuts.radius):
                chosen.append(members)
        if pileup is None:
            yield from (as_table(columns, members, cuts.features) for members in chosen)
        elif chosen:
            own = {key: column[first[e] : first[e] + n[e]] for key, column in columns.items()}
            local = [members - first[e] for members in chosen]
            yield from _overlaid(own, local, pileup.draw(), cuts)


def _overlaid(
    hard: Mapping[str, np.ndarray],
    jets: Sequence[np.ndarray],
    soft: dict[str, np.ndarray],
    cuts: JetCuts,
) -> Iterator[np.ndarray]:
    """The jets of one event once pile-up lies over it, clustered anew.

    Of each of `jets`, indices in `hard`, the jet that has most of its pt. Pile-up further than two
    radii from all of them changes nothing, and is left out.
    """
    soft = soft | dict(zip(("pt_gev", "eta", "phi"), _pt_eta_phi(soft), strict=True))
    is_near = np.zeros(len(soft["px"]), bool)
    for members in jets:
        eta, phi = axis_of(hard, members)
        is_near |= np.hypot(soft["eta"] - eta, wrap(soft["phi"] - phi)) < 2 * cuts.radius
    n_hard = len(hard["px"])
    columns = {key: np.concatenate([hard[key], soft[key][is_near]]) for key in hard}
    n = len(columns["px"])
    columns["is_pileup"] = (np.arange(n) >= n_hard).astype(np.float64)
    (found,) = anti_kt(massless(columns), np.array([n]), cuts.radius, cuts.pt_min_gev / 2)
    for members in jets:
        shared = [columns["pt_gev"][np.intersect1d(members, jet)].sum() for jet in found]
        if shared:
            yield as_table(columns, found[int(np.argmax(shared))], cuts.features)


def massless(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """px, py, pz and E = |p|."""
    p = {key: columns[key] for key in ("px", "py", "pz")}
    return p | {"E": np.sqrt(p["px"] ** 2 + p["py"] ** 2 + p["pz"] ** 2)}


def axis_of(columns: Mapping[str, np.ndarray], members: np.ndarray) -> tuple[float, float]:
    """Rapidity and azimuth of the sum of massless constituents (E scheme)."""
    pt_gev = columns["pt_gev"][members]
    eta = columns["eta"][members]
    phi = columns["phi"][members]
    y_jet = 0.5 * np.log((pt_gev @ np.exp(eta)) / (pt_gev @ np.exp(-eta)))
    return y_jet, np.arctan2(pt_gev @ np.sin(phi), pt_gev @ np.cos(phi))


def as_table(
    columns: Mapping[str, np.ndarray], members: np.ndarray, features: Sequence[str]
) -> np.ndarray:
    """A jet (P, F) float32 by falling pt."""
    y_jet, phi_jet = axis_of(columns, members)
    own = {key: column[members] for key, column in columns.items()}
    own["eta_rel"] = own["eta"] - y_jet
    own["phi_rel"] = wrap(own["phi"] - phi_jet)
    order = np.argsort(-own["pt_gev"], kind="stable")
    if "is_pileup" in features and "is_pileup" not in own:
        own["is_pileup"] = np.zeros(len(members))
    return np.stack([own[name] for name in features], 1)[order].astype(np.float32)


# ---- which class a jet is of


def _hard_partons(
    batch: Mapping[str, Any], event: np.ndarray
) -> list[tuple[int, int, int, np.float64, np.float64]]:
    """(event, id, mother's id, rapidity, azimuth) of the partons of the hard processes.

    Decay products of their resonances are among them.
    """
    is_hard = np.abs(batch["status"]) == OUTGOING
    _, eta, phi = _pt_eta_phi({key: batch[key][is_hard] for key in ("px", "py", "pz")})
    ids = batch["id"][is_hard]
    mothers = batch["mother"][is_hard]
    return list(zip(event[is_hard], ids, mothers, eta, phi, strict=True))


def _near(
    partons: Sequence[tuple], event: int, columns: Mapping[str, np.ndarray], members: np.ndarray
) -> list[tuple[int, int, np.float64]]:
    """(id, mother's id, distance from the jet's axis) of the hard partons of an event."""
    y_jet, phi_jet = axis_of(columns, members)
    return [
        (parton_id, mother_id, np.hypot(eta - y_jet, wrap(phi - phi_jet)))
        for of_event, parton_id, mother_id, eta, phi in partons
        if of_event == event
    ]


def _matches(near: list[tuple[int, int, np.float64]], name: str, radius: float) -> bool:
    """Whether a jet is of the class `name`; near: see `_near`."""
    if name == "top":
        # t -> b W+ and W+ -> q q': the mothers of the three quarks are t, W+, W+; for an
        # antiquark all ids are negative
        signs = [
            int(np.sign(mother))
            for parton, mother, distance in near
            if distance < radius and abs(mother) in (TOP, W_BOSON) and abs(parton) < TOP
        ]
        return signs.count(1) == 3 or signs.count(-1) == 3
    if name in BOSONS:
        quarks = [
            parton
            for parton, mother, distance in near
            if distance < radius and abs(mother) == BOSONS[name] and abs(parton) < TOP
        ]
        return len(quarks) == 2
    parton, _, distance = min(near, key=lambda item: item[2])
    wanted = (GLUON,) if name == "gluon" else LIGHT_QUARKS
    return bool(distance < radius / 2 and abs(parton) in wanted)


def _pt_eta_phi(
    columns: Mapping[str, np.ndarray],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Transverse momentum, pseudorapidity and azimuth.

    A particle along the beam gets a large but finite pseudorapidity.
    """
    pt = np.hypot(columns["px"], columns["py"])
    eta = np.arcsinh(columns["pz"] / np.maximum(pt, TINY_GEV))
    return pt, eta, np.arctan2(columns["py"], columns["px"])
