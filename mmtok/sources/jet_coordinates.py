"""Four-momenta of constituents, and their coordinates about the axis of their jet.

Arrays are flat over the constituents of N jets, float64, with offsets (N + 1). Momenta and energies
have one unit, whichever; c is 1. eta is the pseudorapidity -log tan(theta / 2), y the rapidity
atanh(p_z / E); they agree for a massless particle. Where an axis is made here, it is the rapidity
of the sum, as of `PythiaJets`: a boost along the beam changes no difference from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmtok.errors import UserError
from mmtok.io.messages import shown
from mmtok.nn.angles import wrap
from mmtok.sources.jet_reader import jet_of_particle

# GeV, by the absolute PDG code; PDG, Review of Particle Physics (2024)
MASSES_GEV = {
    11: 0.000510999,
    13: 0.105658,
    22: 0.0,
    130: 0.497611,
    211: 0.139570,
    310: 0.497611,
    321: 0.493677,
    2112: 0.939565,
    2212: 0.938272,
}


# the feature particle_id: 0 a photon, 1 a neutral hadron, ...
PARTICLE_IDS = ("photon", "neutral hadron", "charged hadron", "electron", "muon")


@dataclass(frozen=True)
class Axes:
    """The four-momenta of N jets, each (N,): pt, eta (pseudorapidity), y (rapidity), phi, mass.

    A jet without constituents has zeros.
    """

    pt: np.ndarray
    eta: np.ndarray
    y: np.ndarray
    phi: np.ndarray
    mass: np.ndarray


def pt_eta_phi(
    px: np.ndarray, py: np.ndarray, pz: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Momenta as pt, eta and phi; zeros for a zero momentum, eta +-inf along the beam."""
    pt = np.hypot(px, py)
    with np.errstate(divide="ignore", invalid="ignore"):
        eta = np.where(pz == 0, 0.0, np.arcsinh(pz / pt))
    return pt, eta, np.arctan2(py, px)


def rapidity_of(pz: np.ndarray, energy: np.ndarray) -> np.ndarray:
    """y = atanh(p_z / E); 0 where the energy is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(energy == 0, 0.0, np.arctanh(pz / energy))


@np.errstate(over="ignore", invalid="ignore")  # jets of such values are refused by their number
def four_momenta(
    pt: np.ndarray,
    eta: np.ndarray,
    phi: np.ndarray,
    mass: np.ndarray | float = 0.0,
    is_rapidity: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """px, py, pz and E; eta is the rapidity y where `is_rapidity`."""
    px = pt * np.cos(phi)
    py = pt * np.sin(phi)
    if is_rapidity:
        transverse_mass = np.hypot(pt, mass)
        return px, py, transverse_mass * np.sinh(eta), transverse_mass * np.cosh(eta)
    pz = pt * np.sinh(eta)
    return px, py, pz, np.sqrt(px**2 + py**2 + pz**2 + np.square(mass))


NUMBERS = ("pt_gev", "mass_gev")  # of a jet, by the sum of its constituents


def jet_numbers(
    values: np.ndarray, offsets: np.ndarray, features: Sequence[str], names: Sequence[str]
) -> dict[str, list[float]]:
    """Name -> that number of each jet, of the sum of its constituents, which are taken as massless.

    As the axis changes neither, eta_rel and phi_rel do. Where they are massless, rapidity and
    pseudorapidity are equal.

    Args:
        values: (all P, F).
        offsets: (N + 1,).
        features: their F names.
        names: some of NUMBERS.
    """
    if not names:
        return {}
    pt, eta, phi = (
        values[:, list(features).index(name)].astype(np.float64)
        for name in ("pt_gev", "eta_rel", "phi_rel")
    )
    sums = axes_of_sums(*four_momenta(pt, eta, phi), offsets)
    of_name = {"pt_gev": sums.pt, "mass_gev": sums.mass}
    return {name: of_name[name].tolist() for name in names}


def check_numbers(source: str, names: Sequence[str], features: Sequence[str]) -> None:
    """Raise UserError for numbers of jets that cannot be had of these features.

    source: what messages call it.
    """
    for name in names:
        if name not in NUMBERS:
            raise UserError(
                f"{source}: numbers names {shown(name)}; a jet's numbers are {', '.join(NUMBERS)}"
            )
    if names and not {"pt_gev", "eta_rel", "phi_rel"} <= set(features):
        raise UserError(
            f"{source}: {', '.join(names)} need the features pt_gev, eta_rel and phi_rel; it reads"
            f" {', '.join(features)}"
        )


@np.errstate(over="ignore", invalid="ignore")
def axes_of_sums(
    px: np.ndarray, py: np.ndarray, pz: np.ndarray, energy: np.ndarray, offsets: np.ndarray
) -> Axes:
    """Each jet as the sum of its constituents' four-momenta."""
    jet = jet_of_particle(offsets)
    n_jets = len(offsets) - 1
    sum_px, sum_py, sum_pz, sum_energy = (
        np.bincount(jet, part, n_jets) for part in (px, py, pz, energy)
    )
    pt, eta, phi = pt_eta_phi(sum_px, sum_py, sum_pz)
    squared_mass = sum_energy**2 - pt**2 - sum_pz**2
    mass = np.sqrt(np.maximum(squared_mass, 0))
    return Axes(pt, eta, rapidity_of(sum_pz, sum_energy), phi, mass)


@np.errstate(invalid="ignore")
def about_axes(
    eta: np.ndarray,
    phi: np.ndarray,
    axis_eta: np.ndarray,
    axis_phi: np.ndarray,
    offsets: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """eta_rel and phi_rel of constituents: differences from their jet's axis, phi_rel wrapped."""
    jet = jet_of_particle(offsets)
    return eta - axis_eta[jet], wrap(phi - axis_phi[jet])


def masses_by_id(pdg_id: np.ndarray) -> np.ndarray:
    """The mass in GeV of each particle by its PDG code; that of a pion for other codes."""
    codes = np.abs(np.nan_to_num(pdg_id)).astype(np.int64)
    masses = np.full(codes.shape, MASSES_GEV[211])
    for code, mass in MASSES_GEV.items():
        masses[codes == code] = mass
    return masses


def particle_ids(pdg_id: np.ndarray, charge: np.ndarray) -> np.ndarray:
    """The index in PARTICLE_IDS of particles, by their PDG codes and charges; float64."""
    codes = np.abs(pdg_id)
    ids = np.where(charge != 0, 2.0, 1.0)
    for code, index in ((22, 0.0), (11, 3.0), (13, 4.0)):
        ids[codes == code] = index
    return ids
