"""Substructure of jets: N-subjettiness, D2, Lund plane, by sequential clustering.

A jet is (P, F) with the columns pt_gev, eta, phi first. Constituents are massless, so rapidity and
pseudorapidity coincide; jets that are made of several are four-vector sums, which have mass, and
their rapidity is meant. Letters: P particles, N axes.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmtok.nn.angles import wrap

MOST_AXES = 3
RADIUS = 0.8  # of the jets, which N-subjettiness is relative to
WIDEST = 1000.0  # radius of a clustering without beam, FastJet's largest
KT = 1  # powers of pt in the distance: the kt algorithm, and Cambridge/Aachen
CAMBRIDGE = 0


@dataclass(frozen=True)
class Merging:
    """One step of a clustering: two subjets become one.

    Attributes:
        harder: pt [GeV], rapidity, phi of the harder one (3,).
        softer: Of the other (3,).
        left: Indices, among particles and then merged subjets in their order, of both.
        delta_r: Their distance in rapidity and phi.
    """

    harder: np.ndarray
    softer: np.ndarray
    left: tuple[int, int]
    delta_r: float


def cluster(jet: np.ndarray, power: int) -> list[Merging]:
    """All steps by which the particles of a jet become one: nearest pairs first.

    The distance is min(pt_i, pt_j)^(2 power) ((y_i - y_j)^2 + (phi_i - phi_j)^2), without a beam;
    four-vectors are added (E scheme). Cost P^3. Source: Catani et al. 1993; Ellis and Soper 1993.

    power: KT or CAMBRIDGE.
    """
    n = len(jet)
    vectors = np.zeros((max(2 * n - 1, 0), 4))
    vectors[:n] = four_vectors(jet)
    coordinates = np.zeros((len(vectors), 3))  # pt, y, phi
    coordinates[:n] = np.asarray(jet, np.float64)[:, :3]
    alive = np.zeros(len(vectors), bool)
    alive[:n] = True
    distances = np.full((len(vectors), len(vectors)), np.inf)
    for i in range(1, n):
        distances[i, :i] = _distances(coordinates[i], coordinates[:i], power)
    found = []
    for new in range(n, 2 * n - 1):
        i, j = divmod(int(distances[:new, :new].argmin()), new)
        if coordinates[i, 0] < coordinates[j, 0]:
            i, j = j, i
        a = coordinates[i].copy()
        b = coordinates[j].copy()
        apart = float(np.hypot(a[1] - b[1], wrap(a[2] - b[2])))
        found.append(Merging(a, b, (i, j), apart))
        for old in (i, j):
            alive[old] = False
            distances[old] = np.inf
            distances[:, old] = np.inf
        vectors[new] = vectors[i] + vectors[j]
        coordinates[new] = pt_y_phi(vectors[new])
        others = np.flatnonzero(alive)
        distances[new, others] = _distances(coordinates[new], coordinates[others], power)
        alive[new] = True
    return found


def _distances(one: np.ndarray, others: np.ndarray, power: int) -> np.ndarray:
    """Distances (K,) of one subjet (3,) to others (K, 3)."""
    square = np.square(others[:, 1] - one[1]) + np.square(wrap(others[:, 2] - one[2]))
    return np.minimum(others[:, 0], one[0]) ** (2 * power) * square


def four_vectors(jet: np.ndarray, masses_gev: np.ndarray | float = 0.0) -> np.ndarray:
    """px, py, pz, E [GeV] (P, 4) of constituents, massless unless their masses (P,) are given."""
    pt, eta, phi = np.asarray(jet, np.float64)[:, :3].T
    energy = np.hypot(pt * np.cosh(eta), masses_gev)
    return np.stack((pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta), energy), 1)


def massive_masses(jets: Sequence[np.ndarray], masses_gev: Sequence[np.ndarray]) -> np.ndarray:
    """Invariant masses in GeV (n,) of jets whose constituents have masses (P,) each.

    `mmtok.metrics.jets.masses` takes massless ones, which leaves out some 2 to 8 % of a jet's mass.
    """
    found = []
    for jet, of_particles in zip(jets, masses_gev, strict=True):
        px, py, pz, energy = four_vectors(jet, of_particles).sum(0)
        found.append(max(energy**2 - px**2 - py**2 - pz**2, 0.0) ** 0.5)
    return np.array(found)


def pt_y_phi(vector: np.ndarray) -> np.ndarray:
    """pt [GeV], rapidity and phi (3,) of a four-vector (4,).

    The rapidity is of m_T^2 = E^2 - pz^2, which is taken as pt^2 at least, so that no rounding of
    light, forward vectors gives an infinite one.
    """
    px, py, pz, energy = vector
    pt = np.hypot(px, py)
    transverse = max((energy - abs(pz)) * (energy + abs(pz)), pt**2)
    y = 0.0
    if transverse > 0:
        y = np.copysign(np.log((energy + abs(pz)) / np.sqrt(transverse)), pz)
    return np.array([pt, y, np.arctan2(py, px)])


# ---- N-subjettiness


def kt_axes(jet: np.ndarray, n_axes: int = MOST_AXES) -> list[np.ndarray]:
    """Rapidity and phi (N, 2) of the N exclusive kt jets, for N = 1 to `n_axes`.

    Of fewer particles than N, the particles.
    """
    coordinates = [np.asarray(particle, np.float64)[:3] for particle in jet]
    alive = set(range(len(jet)))
    vectors = list(four_vectors(jet))
    found: dict[int, np.ndarray] = {}

    def note() -> None:
        if len(alive) <= n_axes:
            found[len(alive)] = np.array([coordinates[k][1:] for k in sorted(alive)])

    note()
    for step in cluster(jet, KT):
        i, j = step.left
        alive -= {i, j}
        alive.add(len(vectors))
        vectors.append(vectors[i] + vectors[j])
        coordinates.append(pt_y_phi(vectors[-1]))
        note()
    most = max(found, default=0)
    return [found.get(k, found.get(most, np.zeros((0, 2)))) for k in range(1, n_axes + 1)]


def subjettiness(
    jets: Sequence[np.ndarray], n_axes: int = MOST_AXES, beta: float = 1.0, radius: float = RADIUS
) -> np.ndarray:
    """tau_N (n, n_axes) of jets, N = 1 to n_axes, with exclusive kt axes, without minimisation.

    tau_N = sum pt min_k dR_k^beta / (sum pt R^beta); 0 where a jet has no more than N particles.
    Clustered by FastJet where it is installed, else here, with equal axes. Source: Thaler and Van
    Tilburg 2011 (arXiv 1011.2268), equation 3.
    """
    found = np.zeros((len(jets), n_axes))
    for row, jet, axes in zip(found, jets, _axes_of(jets, n_axes), strict=True):
        for k, places in enumerate(axes):
            if len(jet) > k + 1:
                row[k] = _tau(np.asarray(jet, np.float64), places, beta, radius)
    return found


def _tau(jet: np.ndarray, axes: np.ndarray, beta: float, radius: float) -> float:
    pt = jet[:, 0]
    apart = np.hypot(jet[:, 1, None] - axes[:, 0], wrap(jet[:, 2, None] - axes[:, 1]))
    return float(pt @ apart.min(1) ** beta / max(pt.sum() * radius**beta, 1e-300))


def _axes_of(jets: Sequence[np.ndarray], n_axes: int) -> list[list[np.ndarray]]:
    try:
        import awkward as ak
        import fastjet
    except ImportError:
        return [kt_axes(jet, n_axes) for jet in jets]
    _hush(fastjet)
    found = [[np.zeros((0, 2))] * n_axes for _ in jets]
    filled = [i for i, jet in enumerate(jets) if len(jet) > 1]
    if not filled:
        return found
    momenta = np.concatenate([four_vectors(jets[i]) for i in filled])
    columns = dict(zip(("px", "py", "pz", "E"), momenta.T, strict=True))
    counts = [len(jets[i]) for i in filled]
    events = ak.unflatten(ak.zip(columns, with_name="Momentum4D"), counts)
    definition = fastjet.JetDefinition(fastjet.kt_algorithm, WIDEST)
    for k in range(1, n_axes + 1):
        wide = [i for i, n in zip(filled, counts, strict=True) if n > k]
        if not wide:
            break
        chosen = ak.to_packed(events[np.array(counts) > k])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a doubt that is of other algorithms than kt
            axes = fastjet.ClusterSequence(chosen, definition).exclusive_jets(k)
        rows = np.stack([ak.to_numpy(ak.flatten(axes[c])) for c in ("px", "py", "pz", "E")], 1)
        places = np.array([pt_y_phi(row)[1:] for row in rows]).reshape(len(wide), k, 2)
        for i, place in zip(wide, places, strict=True):
            found[i] = [*found[i][: k - 1], place, *found[i][k:]]
    return found


def _hush(fastjet: Any) -> None:
    """Turn off the banner, which goes to stdout, where this build allows it.

    Its licence asks for the citation: Cacciari, Salam and Soyez 2012 (arXiv 1111.6097).
    """
    sequence = getattr(getattr(fastjet, "_swig", None), "ClusterSequence", None)
    if sequence is not None:
        sequence.set_fastjet_banner_stream(None)


def subjettiness_ratios(jets: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """tau21 and tau32 (n,): small for jets of two, of three prongs; 1 where neither is defined."""
    tau = subjettiness(jets)
    return {"tau21": _ratio(tau[:, 1], tau[:, 0]), "tau32": _ratio(tau[:, 2], tau[:, 1])}


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    ratio = np.ones(len(above))
    np.divide(above, below, out=ratio, where=below > 0)
    return ratio


# ---- energy correlations


def d2(jets: Sequence[np.ndarray], beta: float = 1.0) -> np.ndarray:
    """D2 = e3 / e2^3 (n,): small for jets of two prongs; 0 of fewer than 3 particles.

    e2 sums z_i z_j dR_ij^beta over pairs, e3 the products of three distances over triples, with z
    the share of the summed pt. Source: Larkoski, Moult and Neill 2014 (arXiv 1409.6298).
    """
    found = np.zeros(len(jets))
    for i, jet in enumerate(jets):
        if len(jet) < 3:
            continue
        z, theta = shares_and_distances(jet)
        weighted = theta**beta * z  # theta_ij z_j
        e2 = z @ weighted.sum(1) / 2
        e3 = np.vdot(weighted.T, weighted @ weighted) / 6  # the trace of the cube
        if e2 > 0:
            found[i] = e3 / e2**3
    return found


def shares_and_distances(jet: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares of the summed pt (P,), and distances in eta and phi (P, P)."""
    pt, eta, phi = np.asarray(jet, np.float64)[:, :3].T
    theta = np.hypot(eta[:, None] - eta, wrap(phi[:, None] - phi))
    return pt / max(pt.sum(), 1e-300), theta


# ---- Lund plane


def lund_plane(jet: np.ndarray) -> np.ndarray:
    """The primary Lund plane of a jet, (splittings, 3): delta_r, kt [GeV] and z, widest first.

    The Cambridge/Aachen clustering is undone along the harder branch; kt is the softer one's pt
    times delta_r, z its share of the pt of both. Source: Dreyer, Salam and Soyez 2018
    (arXiv 1807.04758), equation 2.2.
    """
    steps = cluster(jet, CAMBRIDGE)
    n = len(jet)
    rows = []
    at = len(steps) - 1
    while at >= 0:
        step = steps[at]
        soft = step.softer[0]
        both = max(step.harder[0] + soft, 1e-300)
        rows.append((step.delta_r, soft * step.delta_r, soft / both))
        at = step.left[0] - n  # below 0: a particle
    return np.array(rows, np.float64).reshape(-1, 3)


def substructure(jets: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """tau21, tau32 and D2 of jets, each (n,)."""
    return {**subjettiness_ratios(jets), "d2": d2(jets)}
