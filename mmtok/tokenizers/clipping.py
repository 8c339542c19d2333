"""What of many jets lies outside a grid or beyond a cap: counted, said once, refused where it is
much.

Shares are of the particles and of the pt that they carry, as three particles of a thousand may hold
a tenth of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from mmtok.errors import UserError
from mmtok.io.tally import Tally

SAID, REFUSED = (
    0.01,
    0.2,
)  # shares of the particles, or of the pt, above which clipping is said, and refused
MOST_GEV = 14_000.0  # no collider's jets have more pt
LEAST_GEV = 2.0  # and none of interest so little: it is a share of the jet's, or in TeV
OFF_AXIS = 0.3  # radians: a jet's middle is closer to its own axis
SIDES = ("below", "above")


@dataclass
class Count:
    """Particles of one kind: how many, how much pt they have, and which jet has the first one."""

    n: int = 0
    pt: float = 0.0
    first: int = 0

    def add(self, which: np.ndarray, pt: np.ndarray, jet: np.ndarray) -> None:
        """Count those of particles (P,) with pt (P,), of jets (P,), that `which` (P,) says."""
        if which.any():
            self.first = self.first if self.n else int(jet[np.argmax(which)])
            self.n += int(which.sum())
            self.pt += float(pt @ which)


@dataclass
class Clipping:
    """Counts over jets of one grid.

    features, edges  names of F features, and the range [low, high) of each, (F, 2), in its own unit
    most             the cap on a jet's particles
    allowed          any share may be clipped
    """

    features: Sequence[str]
    edges: np.ndarray
    most: int
    allowed: bool = False
    n_jets: int = 0
    n_full: int = 0
    all: Count = field(default_factory=Count)
    clipped: dict[tuple[int, int], Count] = field(default_factory=dict)
    left_out: Count = field(default_factory=Count)
    n_cut: int = 0
    off_axis: np.ndarray = field(init=False)

    def __post_init__(self):
        self.off_axis = np.zeros(len(self.features))

    def add(self, values: np.ndarray, sides: np.ndarray, n: np.ndarray) -> None:
        """Count particles (all P, F) of jets of n (N,) each, in the order in which the cap cuts;
        sides (all P, F): 0 below, 1 above, else -1.
        """
        jet, pt = np.repeat(np.arange(len(n)), n), values[:, 0].astype(np.float64)
        numbered = jet + self.n_jets
        for c, side in zip(*np.divmod(np.arange(2 * len(self.features)), 2)):
            self.clipped.setdefault((int(c), int(side)), Count()).add(
                sides[:, c] == side, pt, numbered
            )
        self.all.add(np.ones(len(pt), bool), pt, numbered)
        rank = np.arange(len(pt)) - np.repeat(np.cumsum(n) - n, n)
        self.left_out.add(rank >= self.most, pt, numbered)
        self._add_middles(values, pt, jet, len(n))
        self.n_cut += int((n > self.most).sum())
        self.n_jets += len(n)

    def _add_middles(
        self, values: np.ndarray, pt: np.ndarray, jet: np.ndarray, n_jets: int
    ) -> None:
        """Sum up how far from 0 the middle of each jet is: its mean feature, weighted by pt."""
        of_jet = np.bincount(jet, pt, n_jets)
        full = of_jet > 0
        self.n_full += int(full.sum())
        for c in range(values.shape[1]):
            self.off_axis[c] += np.abs(
                np.bincount(jet, pt * values[:, c], n_jets)[full] / of_jet[full]
            ).sum()

    def tell(self, said: set | None = None) -> None:
        """Say what was clipped and cut. Raises UserError where that is too much.

        said: kinds of what was said before, which are not said again; they are added to.
        """
        self.refuse()
        said = set() if said is None else said
        with Tally("jets") as tally:
            tally.count(self.n_jets)
            if self.n_cut and "cut" not in said:
                rest = f"{self.left_out.n:,} more, with {self._of_pt(self.left_out)}, are left out"
                tally.add(
                    f"cut to the {self.most} hardest particles: {rest}",
                    f"jet {self.left_out.first}",
                    self.n_cut,
                )
        with Tally("particles") as tally:
            tally.count(self.all.n)
            told = [
                (c, s)
                for c, sides in self._much(SAID)
                for s in sides
                if self._over(SAID / 2, c, [s])
            ]
            for c, s in told:
                if (c, s) not in said:
                    tally.add(
                        self._what(c, [s]), f"jet {self.clipped[c, s].first}", self.clipped[c, s].n
                    )
        said.update(["cut"] * bool(self.n_cut), told)

    def refuse(self) -> None:
        """Raise UserError where too much is clipped: so much of the pt, or of the particles where
        these are not all soft.
        """
        for c, sides in [] if self.allowed else self._much(REFUSED, SAID):
            counts = [self.clipped[c, s] for s in sides]
            n, first = sum(x.n for x in counts), min(x.first for x in counts)
            raise UserError(
                f"{n:,} of {self.all.n:,} particles would be {self._what(c, sides)} (first: jet"
                f" {first}). If it is to be so: tokenize --allow-clipping, or allow_clipping of"
                " JetGridConfig for training"
            )

    def _much(self, share: float, least_pt: float = 0.0) -> Iterator[tuple[int, list[int]]]:
        """Features of which more than a share lies outside, of the particles or of the pt, on both
        sides together; and these sides.

        least_pt: a side with no more than that share of the pt does not count.
        """
        for c in range(len(self.features)):
            sides = [
                s
                for f, s in self.clipped
                if f == c and self.clipped[f, s].pt > least_pt * self.all.pt
            ]
            if self._over(share, c, sides):
                yield c, sides

    def _over(self, share: float, c: int, sides: Sequence[int]) -> bool:
        """Whether these sides of a feature hold more than a share of the particles, or of the pt."""
        counts = [self.clipped[c, s] for s in sides]
        return (
            sum(x.n for x in counts) > share * self.all.n
            or sum(x.pt for x in counts) > share * self.all.pt
        )

    def _what(self, c: int, sides: Sequence[int]) -> str:
        counts = {s: self.clipped[c, s] for s in sides}
        shares = [
            f"{SIDES[s]} {self.edges[c, s]:.4g}, {x.n / self.all.n:.1%} of them, with"
            f" {self._of_pt(x)}"
            for s, x in counts.items()
        ]
        worst = max(sides, key=lambda s: counts[s].pt)
        return f"clipped in {self.features[c]}, {', and '.join(shares)}: {self._likely(c, worst)}"

    def _of_pt(self, count: Count) -> str:
        return (
            f"{count.pt / self.all.pt:.2g} of the pt"
            if count.pt < SAID * self.all.pt
            else f"{count.pt / self.all.pt:.1%} of the pt"
        )

    def _likely(self, c: int, side: int) -> str:
        """What is likely wrong, and what to do."""
        widen = f"widen the grid's {('low', 'high')[side]}"
        pt = self.all.pt / max(1, self.n_full)
        if c > 0 and self.off_axis[c] / max(1, self.n_full) > OFF_AXIS:
            return f"is it absolute, not relative to the jet's axis? Subtract that, or {widen}"
        if c > 0:
            return f"far from the axis; {widen}, or leave them out"
        if side == 1 and pt > MOST_GEV:
            return f"jets have {pt:,.0f} GeV on average; is pt in MeV? Give GeV, or {widen}"
        if side == 0 and pt < LEAST_GEV:
            return (
                f"jets have {pt:.3g} GeV on average; is pt relative to the jet's, or in TeV? Give"
                f" GeV, or {widen}"
            )
        return (
            f"harder than the grid's range; {widen}"
            if side
            else f"softer than the grid's range; {widen}"
        )
