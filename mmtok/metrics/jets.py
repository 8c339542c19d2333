"""Metrics of jets: observables of one jet, and distances between two sets of jets.

A jet is (P, F) with the columns pt_gev, eta, phi first. Constituents are massless, so rapidity and
pseudorapidity coincide.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmtok.nn.angles import wrap

TINY_GEV = 1e-12  # in the place of a sum of no pt at all


def jet_mass(jet: np.ndarray) -> float:
    """Invariant mass in GeV of massless constituents (P, F).

    m^2 is the sum over pairs of 2 pt_i pt_j (cosh(eta_i - eta_j) - cos(phi_i - phi_j)).
    """
    return float(masses([jet])[0])


def masses(jets: Sequence[np.ndarray]) -> np.ndarray:
    """Invariant masses in GeV (N,) of massless constituents; 0 for a jet without constituents.

    m^2 = E^2 - |p|^2 cancels badly for narrow jets, so each jet is first rotated and boosted to its
    own axis. There, with c = sum pt (cosh eta - 1) and d = sum pt (1 - cos phi),
    m^2 = (c + d)(2 sum pt + c - d) - (sum pt sinh eta)^2 - (sum pt sin phi)^2.
    """
    particles = _Particles(jets)
    total = particles.total
    pt = particles.pt
    pt_sum = total(pt)
    eta, phi = particles.about_axis(np.where(pt_sum > 0, pt_sum, 1.0))
    c = total(2 * pt * np.sinh(eta / 2) ** 2)
    d = total(2 * pt * np.sin(phi / 2) ** 2)
    square = (
        (c + d) * (2 * pt_sum + c - d)
        - total(pt * np.sinh(eta)) ** 2
        - total(pt * np.sin(phi)) ** 2
    )
    return np.sqrt(np.maximum(square, 0.0))


def multiplicities(jets: Sequence[np.ndarray]) -> np.ndarray:
    """Numbers of constituents (N,)."""
    return np.array([len(jet) for jet in jets], np.float64)


def summed_pts(jets: Sequence[np.ndarray]) -> np.ndarray:
    """Scalar sums of the constituents' pt in GeV (N,)."""
    particles = _Particles(jets)
    return particles.total(particles.pt)


def girths(jets: Sequence[np.ndarray]) -> np.ndarray:
    """Girths in radians (N,): pt-weighted mean distances from the jet's axis in eta and phi.

    The axis is the pt-weighted centre.
    """
    particles = _Particles(jets)
    pt_sum = np.maximum(particles.total(particles.pt), TINY_GEV)
    eta, phi = particles.about_axis(pt_sum)
    return particles.total(particles.pt * np.hypot(eta, phi)) / pt_sum


def pt_dispersions(jets: Sequence[np.ndarray]) -> np.ndarray:
    """sqrt(sum pt^2) / sum pt (N,): 1 where one constituent carries all, small where many share."""
    particles = _Particles(jets)
    pt = particles.pt
    return np.sqrt(particles.total(pt**2)) / np.maximum(particles.total(pt), TINY_GEV)


def w1(a: np.ndarray, b: np.ndarray) -> float:
    """Wasserstein-1 distance of two samples of numbers (N,) and (M,), in their unit.

    Exact: the integral of |F_a - F_b| over the two empirical distribution functions.

    Raises ValueError for an empty sample.
    """
    a = np.sort(np.asarray(a, np.float64))
    b = np.sort(np.asarray(b, np.float64))
    if len(a) == 0 or len(b) == 0:
        raise ValueError("w1 needs two samples that are not empty")
    x = np.sort(np.concatenate((a, b)))
    distribution_a = np.searchsorted(a, x[:-1], side="right") / len(a)
    distribution_b = np.searchsorted(b, x[:-1], side="right") / len(b)
    return float(np.abs(distribution_a - distribution_b) @ np.diff(x))


def w1_ratio(
    generated: np.ndarray, reference: np.ndarray, real_a: np.ndarray, real_b: np.ndarray
) -> float:
    """w1(generated, reference) over w1(real_a, real_b), the distance of two real samples.

    The denominator is at least 1 % of the real mean. About 1 is as good as real. For an imperfect
    generator the ratio grows with the size of the samples. Where the real values are all 0, as the
    masses of jets of one particle, they have no scale: it is the distance itself.
    """
    floor = ratio_floor(real_a, real_b)
    return w1(generated, reference) / (max(w1(real_a, real_b), floor) or 1.0)


def ratio_floor(real_a: np.ndarray, real_b: np.ndarray) -> float:
    """The least denominator of `w1_ratio`: 1 % of the real mean."""
    return 0.01 * abs(float(np.mean(np.concatenate((real_a, real_b)))))


OBSERVABLES = {
    "mass": masses,
    "multiplicity": multiplicities,
    "pt": summed_pts,
    "girth": girths,
    "pt_dispersion": pt_dispersions,
}


def jet_distances(
    generated: Sequence[np.ndarray],
    detokenised: Sequence[np.ndarray],
    real_a: Sequence[np.ndarray],
    real_b: Sequence[np.ndarray],
) -> dict[str, float]:
    """`w1_ratio` per observable of OBSERVABLES: mass_w1, mass_w1_raw, multiplicity_w1, ...

    Args:
        generated: Sampled jets.
        detokenised: `real_a` after the tokenizer's round trip; figures without ending compare
            with these.
        real_a: Real jets; figures that end in _raw compare with these.
        real_b: Other real jets, of other events.
    """
    figures = {}
    for name, observable in OBSERVABLES.items():
        ours = observable(generated)
        a = observable(real_a)
        b = observable(real_b)
        figures[f"{name}_w1"] = w1_ratio(ours, observable(detokenised), a, b)
        figures[f"{name}_w1_raw"] = w1_ratio(ours, a, a, b)
    return figures


def jet_image(jets: Sequence[np.ndarray], bins: int = 32, half_width: float = 0.8) -> np.ndarray:
    """Mean pt in GeV per jet and pixel, (bins, bins): rows eta_rel, columns phi_rel.

    half_width: Each axis runs from -half_width to half_width, phi in radians.
    """
    particles = _Particles(jets)
    edges = np.linspace(-half_width, half_width, bins + 1)
    image, _, _ = np.histogram2d(
        particles.eta, wrap(particles.phi), bins=(edges, edges), weights=particles.pt
    )
    return image / max(len(jets), 1)


class _Particles:
    """The particles of N jets in one row: pt [GeV], eta, phi and the jet's index, (sum P,) each."""

    def __init__(self, jets: Sequence[np.ndarray]):
        columns = [np.asarray(jet, np.float64)[:, :3] for jet in jets]
        self.pt, self.eta, self.phi = np.concatenate([np.zeros((0, 3)), *columns]).T
        self.n_jets = len(jets)
        self.jet = np.repeat(np.arange(self.n_jets), [len(jet) for jet in jets])

    def total(self, values: np.ndarray) -> np.ndarray:
        """The sum (N,) of one value per particle, over the particles of each jet."""
        return np.bincount(self.jet, values, minlength=self.n_jets)

    def about_axis(self, pt_sum: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Eta and phi relative to the pt-weighted centre of each jet.

        pt_sum: Of each jet (N,), above 0.
        """
        pt = self.pt
        phi = self.phi
        eta_axis = self.total(pt * self.eta) / pt_sum
        phi_axis = np.arctan2(self.total(pt * np.sin(phi)), self.total(pt * np.cos(phi)))
        return self.eta - eta_axis[self.jet], wrap(phi - phi_axis[self.jet])
