"""Substructure of jets, as jet benchmarks compare it: mass, pt, multiplicity, tau21, tau32, D2.

Constituents (P, 3), pt_gev, eta and phi, are massless. tau_N is that of Thaler and Van Tilburg
(arXiv 1011.2268) with beta = 1 about the axes of the exclusive kt algorithm with R = 0.8; D2 that
of Larkoski, Moult and Neill (arXiv 1409.6298) with beta = 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mmtok.metrics.jets import masses, multiplicities, summed_pts
from mmtok.nn.angles import wrap

NAMES = ("mass", "pt", "multiplicity", "tau21", "tau32", "D2")
RADIUS = 0.8
JETS_AT_ONCE = 200  # whose tables of distances are in memory
TINY = 1e-9  # in the place of a division by 0


def substructure(jets: Sequence[np.ndarray]) -> np.ndarray:
    """The observables of NAMES of jets (P, 3) with at least three particles, (N, 6)."""
    tau1, tau2, tau3 = subjettiness(jets)
    tau21 = tau2 / np.maximum(tau1, TINY)
    tau32 = tau3 / np.maximum(tau2, TINY)
    columns = (masses(jets), summed_pts(jets), multiplicities(jets), tau21, tau32, d2(jets))
    return np.stack(columns, 1)


def subjettiness(jets: Sequence[np.ndarray]) -> list[np.ndarray]:
    """tau_1, tau_2 and tau_3 of jets (P, 3), each (N,)."""
    import awkward as ak
    import fastjet

    n = np.array([len(jet) for jet in jets])
    pt, eta, phi = np.concatenate([jet[:, :3] for jet in jets]).astype(np.float64).T
    momenta = {
        "px": pt * np.cos(phi),
        "py": pt * np.sin(phi),
        "pz": pt * np.sinh(eta),
        "E": pt * np.cosh(eta),
    }
    particles = ak.unflatten(ak.zip(momenta, with_name="Momentum4D"), n)
    definition = fastjet.JetDefinition(fastjet.kt_algorithm, RADIUS)
    clustered = fastjet.ClusterSequence(particles, definition)
    jet = np.repeat(np.arange(len(n)), n)
    norm = np.bincount(jet, pt, len(n)) * RADIUS
    taus = []
    for n_axes in (1, 2, 3):
        axis_y, axis_phi = _axes(clustered.exclusive_jets(n_jets=n_axes), n_axes)
        distance = np.hypot(eta[:, None] - axis_y[jet], wrap(phi[:, None] - axis_phi[jet])).min(1)
        taus.append(np.bincount(jet, pt * distance, len(n)) / norm)
    return taus


def _axes(subjets: Any, n_axes: int) -> tuple[np.ndarray, np.ndarray]:
    """Rapidity and azimuth of the subjets, each (N, n_axes)."""
    import awkward as ak

    px, py, pz, energy = (
        ak.to_numpy(ak.flatten(subjets[name])).reshape(-1, n_axes)
        for name in ("px", "py", "pz", "E")
    )
    return np.arctanh(pz / energy), np.arctan2(py, px)


def d2(jets: Sequence[np.ndarray]) -> np.ndarray:
    """D2 = e3 / e2^3 of jets (P, 3), (N,).

    With M_ij = z_i R_ij, z the share of pt, the sum over triples e3 is tr(M^3) / 6.
    """
    found = np.zeros(len(jets))
    by_length = np.argsort([len(jet) for jet in jets])
    for start in range(0, len(jets), JETS_AT_ONCE):
        chosen = by_length[start : start + JETS_AT_ONCE]
        padded = np.zeros((len(chosen), max(len(jets[i]) for i in chosen), 3))
        for row, i in enumerate(chosen):
            padded[row, : len(jets[i])] = jets[i][:, :3]
        pt, eta, phi = torch.from_numpy(padded).unbind(2)
        z = pt / pt.sum(1, keepdim=True)
        phi_apart = wrap((phi[:, :, None] - phi[:, None]).numpy())
        distance = torch.hypot(eta[:, :, None] - eta[:, None], torch.from_numpy(phi_apart))
        weighted = z[:, :, None] * distance
        e2 = (weighted * z[:, None]).sum((1, 2)) / 2
        e3 = (weighted @ weighted * weighted.mT).sum((1, 2)) / 6
        found[chosen] = e3 / e2.clamp(min=TINY) ** 3
    return found
