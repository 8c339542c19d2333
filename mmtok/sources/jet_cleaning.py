"""What is wrong with jets, and the order and the constituents that they get."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from mmtok.io.messages import counted
from mmtok.sources.jet_reader import jet_of_particle, offsets_of, selected


@dataclass
class Cleaned:
    """What was done to jets, summed over the stretches of one or several files.

    Attributes:
        dropped: particles of zero pt.
        sorted: jets whose constituents were not by falling pt.
        empty: jets without constituents.
        first_empty: what messages call the first of these.
        jets: how many jets came by.
    """

    dropped: int = 0
    sorted: int = 0
    empty: int = 0
    first_empty: str = ""
    jets: int = 0

    def add(self, other: Cleaned) -> None:
        """Sum with what was done to later jets."""
        self.dropped += other.dropped
        self.sorted += other.sorted
        self.empty += other.empty
        self.first_empty = self.first_empty or other.first_empty
        self.jets += other.jets

    def report(self, place: object) -> None:
        """Warn once for each kind of thing that was done; `place` is the file or folder."""
        if self.dropped:
            warnings.warn(
                f"{place}: dropped {counted(self.dropped, 'particle')} of zero pt", stacklevel=3
            )
        if self.empty:
            warnings.warn(
                f"{place}: {self.empty:,} of {self.jets:,} jets have no constituents, the first is"
                f" {self.first_empty}",
                stacklevel=3,
            )
        if self.sorted:
            warnings.warn(
                f"{place}: sorted {counted(self.sorted, 'jet')} by falling pt", stacklevel=3
            )

    def report_kinds(self, place: object) -> None:
        """Warn of what was done without numbers, as of one jet of many; `place` holds all."""
        if self.dropped:
            warnings.warn(f"{place}: particles of zero pt are dropped", stacklevel=3)
        if self.sorted:
            warnings.warn(f"{place}: jets are sorted by falling pt", stacklevel=3)


def faults_of(values: np.ndarray, offsets: np.ndarray, pt_column: int) -> dict[int, str]:
    """What is wrong with the jets that cannot be used, by their index."""
    is_negative = values[:, pt_column] < 0
    is_finite = np.isfinite(values).all(1)
    if is_finite.all() and not is_negative.any():
        return {}
    jet = jet_of_particle(offsets)
    faults = {
        int(i): "has a negative pt; give pt in GeV, not its logarithm; and pad with zeros"
        for i in jet[is_negative]
    }
    for i in jet[~is_finite]:
        faults.setdefault(int(i), "has a NaN or infinite value; remove the jet or pad with zeros")
    return dict(sorted(faults.items()))


def n_particles_of(values: np.ndarray, offsets: np.ndarray, pt_column: int) -> np.ndarray:
    """(N,) how many particles of each jet have a pt other than zero."""
    is_real = values[:, pt_column] != 0
    if is_real.all():
        return np.diff(offsets)
    return np.bincount(jet_of_particle(offsets)[is_real], minlength=len(offsets) - 1)


def chosen(
    values: np.ndarray, offsets: np.ndarray, jets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Values and offsets of the jets of these indices, in their order in the file."""
    if len(jets) == len(offsets) - 1:
        return values, offsets
    is_chosen = np.zeros(len(offsets) - 1, bool)
    is_chosen[jets] = True
    n_particles = np.diff(offsets)
    kept = values[np.repeat(is_chosen, n_particles)]
    return kept, offsets_of(n_particles[is_chosen])


def cleaned(
    values: np.ndarray, offsets: np.ndarray, pt_column: int
) -> tuple[np.ndarray, np.ndarray, Cleaned]:
    """Values and offsets without particles of zero pt, each jet by falling pt; and what was done.

    The jets have no faults. `Cleaned.first_empty` is left to the caller, who knows their names.
    """
    done = Cleaned(jets=len(offsets) - 1)
    is_real = values[:, pt_column] != 0
    if not is_real.all():
        done.dropped = int(np.sum(~is_real))
        values, offsets = selected(values, offsets, is_real)
    done.empty = int(np.sum(np.diff(offsets) == 0))
    pt = values[:, pt_column]
    rises = np.diff(pt) > 0
    if rises.any():
        jet = jet_of_particle(offsets)
        rises &= np.diff(jet) == 0
        if rises.any():
            done.sorted = len(np.unique(jet[1:][rises]))
            values = values[np.lexsort((-pt, jet))]
    return values, offsets, done
