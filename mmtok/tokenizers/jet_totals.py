"""A jet's own pt and mass, as frames before those of its constituents.

p(jet) = p(totals) p(constituents | totals) is how the field's two-stage generators factorise it
(Buhmann et al., arXiv 2301.08128). Decoded constituents are scaled to the totals, so a jet's pt and
mass survive the bins of its constituents, and a sampled sum that is a little off.

A total is known to a step of its logarithm. Where it lies within the step, the constituents say by
the fraction of a step that their own sum is off a whole number of them: where that sum is right, so
is the total, and else it is anywhere in the step. With the middles of steps instead, decoded masses
would be a comb that any classifier sees.

Letters: N jets, P constituents of all jets one after another, F features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

TOTALS = ("pt_gev", "mass_gev")
LOW_GEV = 1.0  # the range of both
HIGH_GEV = 20_000.0
# The mass is proportional to the angles only while they are small, so scaling is repeated.
N_ITERATIONS = 4
# Angles are scaled by at most this, or its inverse: codes drawn at random must stay jets.
MAX_FACTOR = 2.0
SMALLEST = 1e-30  # instead of a division by 0
EDGE = 0.01  # of a step: totals keep away from its edges, so that they are encoded as they were


class Totals:
    """Totals in steps of their logarithm, written as two digits in the codes of one frame.

    The digits are the codes of the second and third feature. The code of the first is its highest;
    those of further features are their middle ones.

    Attributes:
        names: some of TOTALS, one frame each.
        n_bins: codes of each feature.
    """

    def __init__(self, names: Sequence[str], n_bins: Sequence[int]):
        self.names = names
        self.n_bins = n_bins
        self.n_steps = n_bins[1] * n_bins[2]
        self.low = np.log(LOW_GEV)
        self.range = np.log(HIGH_GEV) - np.log(LOW_GEV)

    def measured(self, values: np.ndarray, n: np.ndarray) -> np.ndarray:
        """The totals in GeV, one row per jet that has constituents, one column per name.

        values: constituents (P, F) of jets of n (N,) each.
        """
        found = dict(zip(TOTALS, pt_and_mass(values, n), strict=True))
        return np.stack([found[name][n > 0] for name in self.names], 1)

    def is_outside(self, measured: np.ndarray) -> np.ndarray:
        """Which jets have a total outside the range."""
        return np.any((measured < LOW_GEV) | (measured >= HIGH_GEV), axis=1)

    def prepend(
        self, codes: np.ndarray, values: np.ndarray, n: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Codes (P, F) with the frames of totals before each jet, and the numbers of frames (N,).

        Jets without constituents get none.
        """
        has_any = n > 0
        totals = self.measured(values, n)
        share = (np.log(np.maximum(totals, LOW_GEV)) - self.low) / self.range
        steps = share * self.n_bins[1] * self.n_bins[2]
        steps = np.minimum(steps, self.n_steps - 1).astype(np.int32).flatten()
        frames = np.tile(np.array(self.n_bins, np.int32) // 2, (len(steps), 1))
        frames[:, 0] = self.n_bins[0] - 1
        frames[:, 1] = steps // self.n_bins[2]
        frames[:, 2] = steps % self.n_bins[2]
        first = np.cumsum(n) - n
        places = np.repeat(first[has_any], len(self.names))
        return np.insert(codes, places, frames, 0), n + len(self.names) * has_any

    def scale(
        self, values: np.ndarray, codes: np.ndarray, n: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The constituents of jets of n (N,) frames, scaled to their totals; and their numbers.

        values: the frames (P, F), decoded as if they were constituents; codes: of the same.
        """
        n_totals = len(self.names)
        first = np.cumsum(n) - n
        rank = np.arange(len(values)) - np.repeat(first, n)
        values = values[rank >= n_totals]
        n_left = np.maximum(n - n_totals, 0)
        steps = self._steps(codes, first, n_left > 0)
        jet = np.repeat(np.arange(len(n)), n_left)
        if "pt_gev" in steps:
            pt = pt_and_mass(values, n_left)[0]
            factor = self._within(steps["pt_gev"], pt) / np.maximum(pt, SMALLEST)
            values[:, 0] *= np.where(np.isnan(factor), 1, factor)[jet]
        if "mass_gev" in steps:
            mass = pt_and_mass(values, n_left)[1]
            factor = _angle_factors(values, n_left, self._within(steps["mass_gev"], mass))
            values[:, 1:3] *= factor[jet, None]
        return values, n_left

    def _steps(
        self, codes: np.ndarray, first: np.ndarray, has_any: np.ndarray
    ) -> dict[str, np.ndarray]:
        """The step of each total (N,), as the frames say it.

        NaN: of jets without constituents, and of the lowest step, which only says "below".
        """
        steps = {}
        for i, name in enumerate(self.names):
            frame = codes[first[has_any] + i]
            step = frame[:, 1] * self.n_bins[2] + frame[:, 2]
            steps[name] = np.full(len(has_any), np.nan)
            steps[name][has_any] = np.where(step > 0, step, np.nan)
        return steps

    def _within(self, steps: np.ndarray, sums: np.ndarray) -> np.ndarray:
        """The totals (N,) in GeV within their steps (N,), by the constituents' sums (N,)."""
        width = self.range / self.n_steps
        position = (np.log(np.maximum(sums, SMALLEST)) - self.low) / width
        fraction = np.clip(position - np.floor(position), EDGE, 1 - EDGE)
        return np.exp(self.low + (steps + fraction) * width)


def _angle_factors(values: np.ndarray, n: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """The factors (N,) of all angles that give jets these masses in GeV; 1 where that is NaN."""
    jet = np.repeat(np.arange(len(n)), n)
    factor = np.ones(len(n))
    for _ in range(N_ITERATIONS):
        scaled = values.copy()
        scaled[:, 1:3] *= factor[jet, None]
        now = pt_and_mass(scaled, n)[1]
        ratio = np.where((now > 0) & ~np.isnan(mass), mass / np.maximum(now, SMALLEST), 1)
        factor = np.clip(factor * ratio, 1 / MAX_FACTOR, MAX_FACTOR)
    return factor


def pt_and_mass(values: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Summed pt and mass (N,) in GeV of jets of n (N,) massless constituents.

    m^2 = E^2 - |p|^2. values: (P, F), the first three features pt, eta and phi; the mass of jets
    with fewer features is 0.
    """
    jet = np.repeat(np.arange(len(n)), n)
    values = values.astype(np.float64)

    def total(term: np.ndarray) -> np.ndarray:
        return np.bincount(jet, term, minlength=len(n))

    pt = values[:, 0]
    if values.shape[1] < 3:
        return total(pt), np.zeros(len(n))
    eta = np.clip(values[:, 1], -30, 30)  # so that cosh does not overflow
    phi = values[:, 2]
    square = (
        total(pt * np.exp(eta)) * total(pt * np.exp(-eta))
        - total(pt * np.cos(phi)) ** 2
        - total(pt * np.sin(phi)) ** 2
    )
    return total(pt), np.sqrt(np.maximum(square, 0))


def half_width(x: np.ndarray) -> float:
    """Half the width of the central 68.27 %: of a Gaussian, its standard deviation."""
    low, high = np.quantile(x, (0.15865, 0.84135))
    return float(0.5 * (high - low))


def of_jets(jets: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """`pt_and_mass` of jets (P, F) each."""
    return pt_and_mass(np.concatenate(jets), np.array([len(jet) for jet in jets]))
