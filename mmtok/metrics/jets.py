"""What is measured of jets: mass, multiplicity, summed pt, and how far one set of jets lies from
another.

A jet is (P, F) with columns pt_gev, eta, phi first. Constituents are massless, so rapidity and
pseudorapidity coincide.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def jet_mass(jet: np.ndarray) -> float:
    """Invariant mass in GeV of massless constituents (P, F): m^2 = sum over pairs of 2 pt_i pt_j
    (cosh d eta - cos d phi).
    """
    return float(masses([jet])[0])


def masses(jets: Sequence[np.ndarray]) -> np.ndarray:
    """Invariant masses in GeV (N,) of jets of massless constituents; 0 for a jet without
    constituents.

    m^2 = E^2 - |p|^2 cancels badly for narrow jets, so each jet is first turned and boosted to its
    own axis, where with c = sum pt (cosh eta - 1) and d = sum pt (1 - cos phi):  m^2 = (c + d)(2
    sum pt + c - d) - (sum pt sinh eta)^2 - (sum pt sin phi)^2.
    """
    pt, eta, phi, jet = _flat(jets)
    n = len(jets)

    def total(term):
        return np.bincount(jet, term, minlength=n)

    scalar = total(pt)
    safe = np.where(scalar > 0, scalar, 1.0)
    eta = eta - (total(pt * eta) / safe)[jet]
    phi = wrap(phi - np.arctan2(total(pt * np.sin(phi)), total(pt * np.cos(phi)))[jet])
    c, d = total(2 * pt * np.sinh(eta / 2) ** 2), total(2 * pt * np.sin(phi / 2) ** 2)
    square = (
        (c + d) * (2 * scalar + c - d)
        - total(pt * np.sinh(eta)) ** 2
        - total(pt * np.sin(phi)) ** 2
    )
    return np.sqrt(np.maximum(square, 0.0))


def multiplicities(jets: Sequence[np.ndarray]) -> np.ndarray:
    """Numbers of constituents (N,)."""
    return np.array([len(jet) for jet in jets], np.float64)


def summed_pts(jets: Sequence[np.ndarray]) -> np.ndarray:
    """Scalar sums of the constituents' pt in GeV (N,)."""
    pt, _, _, jet = _flat(jets)
    return np.bincount(jet, pt, minlength=len(jets))


def girths(jets: Sequence[np.ndarray]) -> np.ndarray:
    """Mean distance from the pt-weighted centre in eta and phi, weighted by pt (N,), in radians:
    how broad a jet is.
    """
    pt, eta, phi, jet = _flat(jets)
    total = lambda term: np.bincount(jet, term, minlength=len(jets))
    scalar = np.maximum(total(pt), 1e-12)
    eta = eta - (total(pt * eta) / scalar)[jet]
    phi = wrap(phi - np.arctan2(total(pt * np.sin(phi)), total(pt * np.cos(phi)))[jet])
    return total(pt * np.hypot(eta, phi)) / scalar


def pt_dispersions(jets: Sequence[np.ndarray]) -> np.ndarray:
    """sqrt(sum pt^2) / sum pt (N,): 1 where one constituent carries all, small where many share."""
    pt, _, _, jet = _flat(jets)
    total = lambda term: np.bincount(jet, term, minlength=len(jets))
    return np.sqrt(total(pt**2)) / np.maximum(total(pt), 1e-12)


def w1(a: np.ndarray, b: np.ndarray) -> float:
    """Wasserstein-1 distance of two samples of numbers, exactly: the integral of |F_a - F_b|.

    In the samples' unit.
    """
    a, b = np.sort(np.asarray(a, np.float64)), np.sort(np.asarray(b, np.float64))
    if len(a) == 0 or len(b) == 0:
        raise ValueError("w1 needs two samples that are not empty")
    x = np.sort(np.concatenate((a, b)))
    difference = np.searchsorted(a, x[:-1], side="right") / len(a) - np.searchsorted(
        b, x[:-1], side="right"
    ) / len(b)
    return float(np.abs(difference) @ np.diff(x))


def w1_ratio(
    generated: np.ndarray, reference: np.ndarray, real_a: np.ndarray, real_b: np.ndarray
) -> float:
    """w1(generated, reference) in units of what two real samples differ by: w1(real_a, real_b), at
    least 1 % of the real mean.

    About 1 is as good as real; it grows with the size of the samples when the generator is not
    perfect.
    """
    floor = 0.01 * abs(float(np.mean(np.concatenate((real_a, real_b)))))
    return w1(generated, reference) / max(w1(real_a, real_b), floor)


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
    """Ratios of `w1_ratio` per observable: mass_w1, multiplicity_w1, pt_w1, girth_w1,
    pt_dispersion_w1 against `detokenised` (the round trip of real jets), and the same with the
    ending _raw against the raw real jets `real_a`. `real_a` and `real_b` share no event.
    """
    out = {}
    for name, observable in OBSERVABLES.items():
        ours, a, b = observable(generated), observable(real_a), observable(real_b)
        out[f"{name}_w1"] = w1_ratio(ours, observable(detokenised), a, b)
        out[f"{name}_w1_raw"] = w1_ratio(ours, a, a, b)
    return out


def jet_image(jets: Sequence[np.ndarray], bins: int = 32, half_width: float = 0.8) -> np.ndarray:
    """Mean pt in GeV per jet and pixel, (bins, bins): rows eta_rel, columns phi_rel, each from
    -half_width to half_width.
    """
    pt, eta, phi, _ = _flat(jets)
    edges = np.linspace(-half_width, half_width, bins + 1)
    image, _, _ = np.histogram2d(eta, wrap(phi), bins=(edges, edges), weights=pt)
    return image / max(len(jets), 1)


def wrap(phi: np.ndarray) -> np.ndarray:
    """An angle in radians, into [-pi, pi)."""
    return (phi + np.pi) % (2 * np.pi) - np.pi


def _flat(jets: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """pt, eta, phi (all P) in float64, and the index of each particle's jet."""
    values = np.concatenate(
        [np.zeros((0, 3)), *(np.asarray(jet, np.float64)[:, :3] for jet in jets)]
    )
    return (
        values[:, 0],
        values[:, 1],
        values[:, 2],
        np.repeat(np.arange(len(jets)), [len(jet) for jet in jets]),
    )
