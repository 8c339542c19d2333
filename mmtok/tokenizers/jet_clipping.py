"""Counts what of many jets lies outside a grid or beyond a cap; reports it once, or refuses.

Shares are of the particles and of their pt: three particles of a thousand may carry a tenth of it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from mmtok.errors import UserError
from mmtok.io.tally import Tally
from mmtok.tokenizers.counting import CountingTokenizer

# shares of the particles, or of the pt, above which clipping is reported, and refused
REPORTED = 0.01
REFUSED = 0.2
MOST_GEV = 14_000.0  # no collider's jets have more pt
LEAST_GEV = 2.0  # no jets of interest have less: their pt is relative to the jet's, or in TeV
OFF_AXIS = 0.3  # radians; the mean of a jet's particles is closer to its own axis than this
BELOW = 0
ABOVE = 1


@dataclass
class Count:
    """Particles of one kind: their number, their summed pt, and the jet of the first one."""

    n: int = 0
    pt: float = 0.0
    first: int = 0

    def add(self, which: np.ndarray, pt: np.ndarray, jet: np.ndarray) -> None:
        """Count the particles that `which` (P,) selects; pt (P,) and jet (P,) are of all."""
        if which.any():
            if not self.n:
                self.first = int(jet[np.argmax(which)])
            self.n += int(which.sum())
            self.pt += float(pt @ which)

    def merge(self, other: Count, n_jets: int) -> None:
        """Add another count, whose jets come after the `n_jets` of this one."""
        if not self.n and other.n:
            self.first = n_jets + other.first
        self.n += other.n
        self.pt += other.pt


@dataclass
class Clipping:
    """Counts over jets of one grid.

    Attributes:
        features: names of the F features.
        edges: their ranges [low, high), (F, 2), each in its own unit.
        most: the cap on a jet's particles.
        allowed: any share may be clipped.
        n_jets: jets so far.
        n_full: of these, those with any pt.
        all: all particles.
        clipped: (feature, side) -> particles that are clipped there.
        left_out: particles beyond the cap.
        n_cut: jets with more particles than the cap.
        off_axis: per feature, the sum over jets of the distance between 0 and its pt-weighted mean.
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

    def __post_init__(self) -> None:
        self.off_axis = np.zeros(len(self.features))

    def add(self, values: np.ndarray, sides: np.ndarray, n: np.ndarray) -> None:
        """Count the particles of jets of n (N,) each, in the order in which the cap cuts.

        Args:
            values: (all P, F).
            sides: (all P, F): BELOW, ABOVE, or -1 within the range.
            n: (N,) particles of each jet.
        """
        jet = np.repeat(np.arange(len(n)), n)
        number = jet + self.n_jets
        pt = values[:, 0].astype(np.float64)
        for c in range(len(self.features)):
            for side in (BELOW, ABOVE):
                count = self.clipped.setdefault((c, side), Count())
                count.add(sides[:, c] == side, pt, number)
        self.all.add(np.ones(len(pt), bool), pt, number)
        rank = np.arange(len(pt)) - np.repeat(np.cumsum(n) - n, n)
        self.left_out.add(rank >= self.most, pt, number)
        self._add_off_axis(values, pt, jet, len(n))
        self.n_cut += int((n > self.most).sum())
        self.n_jets += len(n)

    def _add_off_axis(
        self, values: np.ndarray, pt: np.ndarray, jet: np.ndarray, n_jets: int
    ) -> None:
        """Sum up how far the pt-weighted mean of each feature of each jet is from 0."""
        pt_of_jet = np.bincount(jet, pt, n_jets)
        is_full = pt_of_jet > 0
        self.n_full += int(is_full.sum())
        for c in range(values.shape[1]):
            weighted = np.bincount(jet, pt * values[:, c], n_jets)
            self.off_axis[c] += np.abs(weighted[is_full] / pt_of_jet[is_full]).sum()

    def merge(self, other: Clipping) -> None:
        """Add the counts of jets that come after these."""
        for key, count in other.clipped.items():
            self.clipped.setdefault(key, Count()).merge(count, self.n_jets)
        self.all.merge(other.all, self.n_jets)
        self.left_out.merge(other.left_out, self.n_jets)
        self.off_axis += other.off_axis
        self.n_cut += other.n_cut
        self.n_full += other.n_full
        self.n_jets += other.n_jets

    def as_plain(self) -> dict[str, Any]:
        """The counts as JSON values."""
        clipped = [[c, side, asdict(count)] for (c, side), count in self.clipped.items()]
        return {
            "n_jets": self.n_jets,
            "n_full": self.n_full,
            "n_cut": self.n_cut,
            "all": asdict(self.all),
            "left_out": asdict(self.left_out),
            "clipped": clipped,
            "off_axis": self.off_axis.tolist(),
        }

    def merge_plain(self, plain: Mapping[str, Any]) -> None:
        """Add counts that `as_plain` gave, of jets that come after these."""
        other = replace(self)
        other.n_jets = plain["n_jets"]
        other.n_full = plain["n_full"]
        other.n_cut = plain["n_cut"]
        other.all = Count(**plain["all"])
        other.left_out = Count(**plain["left_out"])
        other.clipped = {(c, side): Count(**count) for c, side, count in plain["clipped"]}
        other.off_axis = np.array(plain["off_axis"])
        self.merge(other)

    def report(self, reported: set | None = None) -> None:
        """Warn of what was clipped and cut. Raises UserError where it is too much.

        reported: kinds that were reported before and are not again; new ones are added.
        """
        self.refuse()
        if reported is None:
            reported = set()
        with Tally("jets") as tally:
            tally.count(self.n_jets)
            if self.n_cut and "cut" not in reported:
                rest = f"{self.left_out.n:,} more, with {self._of_pt(self.left_out)}, are left out"
                tally.add(
                    f"cut to the {self.most} hardest particles: {rest}",
                    f"jet {self.left_out.first}",
                    self.n_cut,
                )
                reported.add("cut")
        with Tally("particles") as tally:
            tally.count(self.all.n)
            for c, sides in self._much(REPORTED):
                for side in sides:
                    # together they are above the share; one with less than half of it is not named
                    if not self._over(REPORTED / 2, c, [side]) or (c, side) in reported:
                        continue
                    count = self.clipped[c, side]
                    tally.add(self._what(c, [side]), f"jet {count.first}", count.n)
                    reported.add((c, side))

    def refuse(self) -> None:
        """Raise UserError where more than the share REFUSED is clipped and not allowed.

        A side whose particles are all soft does not count.
        """
        if self.allowed:
            return
        for c, sides in self._much(REFUSED, REPORTED):
            counts = [self.clipped[c, side] for side in sides]
            n = sum(count.n for count in counts)
            first = min(count.first for count in counts)
            raise UserError(
                f"{n:,} of {self.all.n:,} particles would be {self._what(c, sides)} (first: jet"
                f" {first}). If it is to be so: tokenize --allow-clipping, or allow_clipping of"
                " JetGridConfig for training"
            )

    def _much(self, share: float, least_pt: float = 0.0) -> Iterator[tuple[int, list[int]]]:
        """Features with more than a share of the particles, or of their pt, outside; sides.

        Both sides count together, but for a side with no more than the share `least_pt` of the pt.
        """
        for c in range(len(self.features)):
            sides = [
                side
                for feature, side in self.clipped
                if feature == c and self.clipped[c, side].pt > least_pt * self.all.pt
            ]
            if self._over(share, c, sides):
                yield c, sides

    def _over(self, share: float, c: int, sides: Sequence[int]) -> bool:
        """Whether these sides of a feature hold more than a share of the particles, or the pt."""
        counts = [self.clipped[c, side] for side in sides]
        n = sum(count.n for count in counts)
        pt = sum(count.pt for count in counts)
        return n > share * self.all.n or pt > share * self.all.pt

    def _what(self, c: int, sides: Sequence[int]) -> str:
        """What is clipped, how much of it, and the likely cause."""
        shares = []
        for side in sides:
            count = self.clipped[c, side]
            shares.append(
                f"{('below', 'above')[side]} {self.edges[c, side]:.4g},"
                f" {count.n / self.all.n:.1%} of them, with {self._of_pt(count)}"
            )
        worst = max(sides, key=lambda side: self.clipped[c, side].pt)
        return f"clipped in {self.features[c]}, {', and '.join(shares)}: {self._likely(c, worst)}"

    def _of_pt(self, count: Count) -> str:
        share = count.pt / self.all.pt
        if count.pt < REPORTED * self.all.pt:
            return f"{share:.2g} of the pt"
        return f"{share:.1%} of the pt"

    def _likely(self, c: int, side: int) -> str:
        """The likely cause, and what to do."""
        widen = f"widen the grid's {('low', 'high')[side]}"
        pt = self.all.pt / max(1, self.n_full)
        if c > 0 and self.off_axis[c] / max(1, self.n_full) > OFF_AXIS:
            return f"is it absolute, not relative to the jet's axis? Subtract that, or {widen}"
        if c > 0:
            return f"far from the axis; {widen}, or leave them out"
        if side == ABOVE and pt > MOST_GEV:
            return (
                f"jets have {pt:,.0f} GeV on average; is pt in MeV? Say so (--pt_unit MeV, or"
                f" pt_unit of JetFile), or {widen}"
            )
        if side == BELOW and pt < LEAST_GEV:
            return (
                f"jets have {pt:.3g} GeV on average; is pt relative to the jet's, or in TeV? Give"
                f" GeV, or {widen}"
            )
        if side == ABOVE:
            return f"harder than the grid's range; {widen}"
        return f"softer than the grid's range; {widen}"


class ClippingTokenizer(CountingTokenizer):
    """A tokenizer of jets; single calls report each kind of loss once in the tokenizer's life."""

    def __init__(self, config: Any):
        super().__init__(config)
        self._reported: set = set()

    @abstractmethod
    def new_count(self) -> Clipping:
        """A count of nothing yet."""

    def report_call(self, count: Clipping) -> None:
        """Report what no call before it has reported."""
        count.report(self._reported)
