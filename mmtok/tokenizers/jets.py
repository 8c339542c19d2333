"""Jets on a grid: every feature of every constituent is binned by itself (Finke et al., arXiv
2303.07364).

One frame is one constituent, one channel is one feature. A jet is a set, so its constituents come
in the one order that all lists of them
share: falling codes of pt, among equal ones falling codes of the next feature, and so on. The rest
of the package assumes nothing more about the axis or the mass of a jet than its data states.

With `totals`, frames of the jet itself go before them: its summed pt, its mass, in fine steps.
p(jet) = p(totals) p(constituents | totals) is how the field's two-stage generators factorise it
(Buhmann et al., arXiv 2301.08128). Once decoded, the constituents are
scaled to these totals: a jet's own pt and mass survive the bins of its constituents, and a sampled
sum that is a little off.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from mmtok.core.segment import Segment, Signature
from mmtok.errors import UserError
from mmtok.tokenizers.base import Batched, fingerprint, load_config, write_config
from mmtok.tokenizers.clipping import Clipping

TOTALS = ("pt_gev", "mass_gev")
TOTAL_GEV = (1.0, 20_000.0)  # the range of both
ROUNDING = 1e-6  # more than float32 is off by
N_TURNS = 4  # towards the mass: it is proportional to the angles only while they are small
MOST = (
    2.0  # angles are scaled by this at most, or its inverse: codes drawn at random must stay jets
)


@dataclass(frozen=True)
class JetGridConfig:
    """A uniform grid per feature; the tuples run in parallel.

    features          names of the signal's columns; "pt_gev" comes first, as the constituents are
                      ordered by their codes from the first on
    bins              codes per feature, K: K - 2 bins within [low, high), one code below and one
                      above
    low, high         range of each feature; of ln(pt_gev) for "pt_gev", radians for angles.
                      Features whose name begins with "phi" are first wrapped into [-pi, pi);
                      further features (charge: bins 5, range -1.5 to 1.5) are binned as they are
    max_constituents  the first so many in that order are kept, the hardest; a jet with more becomes
                      a truncated segment
    totals            first frames that tell the summed pt ("pt_gev") and the mass ("mass_gev") of
                      what is kept: two digits, in the codes of the second and third feature, count
                      equal steps of the logarithm between 1 GeV and 20 TeV (1 % each at 31 bins).
                      Their first code is the highest
    below, above      what the codes below and above each range come back as, in the feature's unit
                      (GeV of "pt_gev"); ()  is learned by `fit`, as the mean of what lay there, or
                      else the middle of one more bin
    allow_clipping    encode jets of which more than a fifth lies outside the ranges, which is
                      refused otherwise
    """

    modality: ClassVar[str] = "jets"
    features: tuple[str, ...] = ("pt_gev", "eta_rel", "phi_rel")
    bins: tuple[int, ...] = (41, 31, 31)
    low: tuple[float, ...] = (-2.0, -0.8, -0.8)
    high: tuple[float, ...] = (6.9, 0.8, 0.8)
    max_constituents: int = 128
    totals: tuple[str, ...] = ()
    below: tuple[float, ...] = ()
    above: tuple[float, ...] = ()
    allow_clipping: bool = False

    def __post_init__(self):
        if not len(self.features) == len(self.bins) == len(self.low) == len(self.high):
            raise UserError("JetGridConfig: features, bins, low and high must have equal lengths")
        if not self.features or self.features[0] != "pt_gev":
            raise UserError(
                "JetGridConfig: the first feature must be pt_gev, got"
                f" {', '.join(self.features) or 'none'}"
            )
        if (
            min(self.bins) < 3
            or not all(-math.inf < a < b < math.inf for a, b in zip(self.low, self.high))
            or self.max_constituents < 1
        ):
            raise UserError(
                "JetGridConfig: needs at least 3 bins per feature, low below high, and at least one"
                " constituent"
            )
        if not set(self.totals) <= set(TOTALS) or len(set(self.totals)) < len(self.totals):
            raise UserError(
                f"JetGridConfig: totals are some of {', '.join(TOTALS)}, each once; got"
                f" {', '.join(self.totals)}"
            )
        if self.totals and self.features[1:3] != ("eta_rel", "phi_rel"):
            raise UserError(
                "JetGridConfig: totals need eta_rel and phi_rel as the second and third feature,"
                " whose codes hold the digits"
            )
        for name, ends, sign, edges in (
            ("below", self.below, -1, self.edges[:, 0]),
            ("above", self.above, 1, self.edges[:, 1]),
        ):
            if len(ends) not in (0, len(self.features)) or not all(
                0 <= sign * (x - edge) < math.inf for x, edge in zip(ends, edges)
            ):
                raise UserError(
                    f"JetGridConfig: {name} has a value outside its range for each feature, or none"
                    f" at all; got {ends}"
                )
        if self.below and self.below[0] <= 0:
            raise UserError(
                f"JetGridConfig: below of pt_gev is {self.below[0]}; it must be above 0"
            )

    @property
    def takes(self) -> dict[str, tuple[str, ...]]:
        """The jets that its tokenizer takes: these columns."""
        return {"features": self.features}

    @property
    def edges(self) -> np.ndarray:
        """The range of each feature in its own unit, (F, 2): that of pt in GeV."""
        edges = np.stack([self.low, self.high], 1).astype(np.float64)
        edges[0] = np.exp(edges[0])
        return edges

    def build(self) -> JetGrid:
        """The tokenizer without anything learned."""
        return JetGrid(self)

    def fit(self, signals: Sequence[np.ndarray]) -> JetGrid:
        """The tokenizer with `below` and `above`, where they are not given, learned from jets (P,
        F).
        """
        below, above = self.build().ends_of(signals)
        return JetGrid(replace(self, below=self.below or below, above=self.above or above))


class JetGrid(Batched):
    """Constituents (P, F) <-> codes (P, F), or (n_totals + P, F).

    Error of a round trip: at most half a bin per feature within the range (half a bin of ln pt).
    What lies outside is clipped to the code below or above, which decodes to the mean of what lay
    there, where it was learned, so that sums of pt stay right on average. What was clipped and cut
    is said by every call, once for each kind, or once for all calls within `counting`, and refused
    where it is much (`Clipping`); `fidelity` counts it and says nothing. With `totals` these come
    back to half a step of their own, within their range and where factors of the angles up to 2
    reach the mass; the price is that one factor comes to all pt of a jet and one to all its angles,
    on top of half a bin (`unscaled` leaves them out).
    """

    def __init__(self, config: JetGridConfig):
        self.config = config
        meaning = {
            name: value for name, value in asdict(config).items() if name != "allow_clipping"
        }
        own = fingerprint("JetGrid", {**meaning, "order": "lexicographic"})
        self.signature = Signature(
            "jets", levels=config.bins, fingerprint=own, descending=True, headers=len(config.totals)
        )
        self._low = np.array(config.low, np.float64)
        self._width = (np.array(config.high) - self._low) / (np.array(config.bins) - 2)
        self._angles = [c for c, name in enumerate(config.features) if name.startswith("phi")]
        self._ends = np.stack(
            [self._low - self._width / 2, np.array(config.high) + self._width / 2]
        )  # (2, F) below, above
        self._ends[:, 0] = np.exp(self._ends[:, 0])
        for side, ends in enumerate((config.below, config.above)):
            self._ends[side] = ends or self._ends[side]
        self._count: Clipping | None = None  # of the calls that speak together
        self._said: set = set()  # by calls of their own

    def encode_batch(self, signals: Sequence[np.ndarray]) -> list[Segment]:
        """Jets (P, F), one column per feature -> segments of codes (P, F) int32, P <=
        max_constituents.

        Particles of zero pt are padding and left out. All orders of a jet's constituents give the
        same segment; a jet without any has no frames. Raises UserError for another number of
        features, NaN, infinities and negative pt, and where too much lies outside the grid.
        """
        count = self._count or self._clipping()
        values, codes, n, truncated = self._kept(signals, count)
        if count is not self._count:
            count.tell(self._said)
        if self.config.totals:
            codes, n = self._headed(codes, values, n)
        ends = np.cumsum(n).tolist()
        return [
            Segment("jets", codes=codes[a:b], truncated=cut)
            for a, b, cut in zip([0, *ends], ends, truncated.tolist())
        ]

    def decode_batch(self, segments: Sequence[Segment]) -> list[np.ndarray]:
        """Segments of codes (P, F) -> constituents (P, F) float32 at the bins' centres (of ln pt,
        given back in GeV).
        """
        for segment in segments:
            if segment.codes is None or segment.codes.shape[1] != len(self._low):
                raise UserError(
                    f"a jet's segment has codes (P, {len(self._low)}), got {segment.values.shape}"
                )
            if (
                len(segment)
                and not ((segment.codes >= 0) & (segment.codes < self.config.bins)).all()
            ):
                raise UserError(
                    f"a jet's segment has codes below {', '.join(map(str, self.config.bins))}; got"
                    f" up to {segment.codes.max(0).tolist()}, and from"
                    f" {segment.codes.min(0).tolist()} on"
                )
        n = np.array([len(segment) for segment in segments], np.int64)
        codes = np.concatenate(
            [np.zeros((0, len(self._low)), np.int64), *(segment.codes for segment in segments)]
        )
        values = self._low + (codes - 0.5) * self._width
        values[:, 0] = np.exp(values[:, 0])
        for end, code in zip(self._ends, (0, np.array(self.config.bins) - 1)):
            values = np.where(codes == code, end, values)
        if self.config.totals:
            values, n = self._scaled(values, codes, n)
        return np.split(values.astype(np.float32), np.cumsum(n)[:-1]) if len(n) else []

    @contextmanager
    def counting(self, quiet: bool = False) -> Iterator[None]:
        """What was clipped and cut is said once for all calls inside, and refused at the end;
        `quiet`: neither, as it was before.
        """
        outer, self._count = self._count, self._clipping()
        try:
            yield
            count = self._count
        finally:
            self._count = outer
        if not quiet:
            count.tell()

    def _clipping(self) -> Clipping:
        return Clipping(
            self.config.features,
            self.config.edges,
            self.config.max_constituents,
            self.config.allow_clipping,
        )

    def ends_of(self, signals: Sequence[np.ndarray]) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The means of what lies below and above the ranges of the features, of those without any
        the middle of one more bin.

        Raises UserError where too much lies outside.
        """
        count = self._clipping()
        values, codes, _, _ = self._kept(signals, count)
        count.refuse()
        values = values.astype(np.float64)
        for c in self._angles:
            values[:, c] = _wrapped(values[:, c])
        ends, edges = self._ends.copy(), self.config.edges
        for c, k in enumerate(self.config.bins):
            for side, code in enumerate((0, k - 1)):
                out = codes[:, c] == code
                if out.any():
                    ends[side, c] = values[out, c].mean()
        margin = (
            ROUNDING * np.where(edges, np.abs(edges), 1).T
        )  # a mean close to the edge must not be rounded into the range
        ends[0], ends[1] = (
            np.minimum(ends[0], edges[:, 0] - margin[0]),
            np.maximum(ends[1], edges[:, 1] + margin[1]),
        )
        return tuple(ends[0].tolist()), tuple(ends[1].tolist())

    def unscaled(self, segments: Sequence[Segment]) -> list[np.ndarray]:
        """As `decode_batch`, the totals unheeded: what the constituents' codes say on their own."""
        bare = JetGrid(replace(self.config, totals=()))
        return bare.decode_batch(
            [
                replace(segment, codes=segment.codes[len(self.config.totals) :])
                for segment in segments
            ]
        )

    def fidelity(self, signals: Sequence[np.ndarray]) -> dict[str, float]:
        """Round-trip figures over jets: half the width of the central 68 % and the median of
        decoded minus true mass (GeV) and of decoded over true summed pt; the share of particles
        with a clipped feature, and of pt that they carry; the share of jets cut at the cap. With
        `totals` also, of the jets with constituents, the share of which one of these lies outside
        their range: above it the jet is scaled down to the range's end, below it is not scaled.
        Raises UserError when there is no constituent at all.
        """
        with self.counting(quiet=True):
            segments = self.encode_batch(signals)
        kept, codes, n, truncated = self._kept(signals, self._clipping())
        if len(codes) == 0:
            raise UserError("fidelity of jets needs at least one constituent")
        clipped = ((codes == 0) | (codes == np.array(self.config.bins) - 1)).any(1)
        full = [i for i, segment in enumerate(segments) if len(segment)]
        (pt, mass), (pt_back, mass_back) = (
            _pt_and_mass([jets[i] for i in full]) for jets in (signals, self.decode_batch(segments))
        )
        figures = {
            "pt_ratio_width": _half_width(pt_back / pt),
            "pt_ratio_median": np.median(pt_back / pt),
            "clipped_share": clipped.mean(),
            "clipped_pt_share": (
                kept[clipped, 0].sum(dtype=np.float64) / kept[:, 0].sum(dtype=np.float64)
            ),
            "truncated_share": truncated.mean(),
        }
        if self.config.totals:
            found = self._wanted(kept, n)
            figures["clipped_totals_share"] = (
                ((found < TOTAL_GEV[0]) | (found >= TOTAL_GEV[1])).any(1).mean()
            )
        if self.config.features[1:3] == ("eta_rel", "phi_rel"):
            figures["mass_width_gev"] = _half_width(mass_back - mass)
            figures["mass_shift_gev"] = np.median(mass_back - mass)
        return {name: float(value) for name, value in figures.items()}

    def save(self, folder: Path) -> None:
        write_config(Path(folder), "JetGrid", asdict(self.config))

    @classmethod
    def load(cls, folder: Path) -> Self:
        return cls(load_config(folder, "JetGrid", JetGridConfig))

    def _kept(
        self, signals: Sequence[np.ndarray], count: Clipping
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The constituents (all P, F) that are written of jets (P, F), and their codes, in the
        order of these; their number (N,); whether there were more (N,). `count` is told of all of
        them.
        """
        lengths = [self._length(i, signal) for i, signal in enumerate(signals)]
        values = np.concatenate(
            [np.zeros((0, len(self.config.features))), *signals]
        )  # float64, whatever stands beside a jet
        values, jet = _particles(values, np.repeat(np.arange(len(lengths)), lengths))
        values, codes = _ordered(values, self._codes(values), jet, self.config.bins)
        n = np.bincount(jet, minlength=len(lengths))
        above = codes == np.array(self.config.bins) - 1
        count.add(values, np.where(codes == 0, 0, np.where(above, 1, -1)), n)
        n_kept = np.minimum(n, self.config.max_constituents)
        if (n > n_kept).any():
            rank = np.arange(len(values)) - np.repeat(np.cumsum(n) - n, n)
            values, codes = (
                values[rank < self.config.max_constituents],
                codes[rank < self.config.max_constituents],
            )
        return values, codes, n_kept, n > n_kept

    def _length(self, i: int, signal: np.ndarray) -> int:
        """P of one jet (P, F), once its shape and type are right."""
        signal, n_features = np.asarray(signal), len(self.config.features)
        if signal.ndim != 2 or signal.shape[1] != n_features or signal.dtype.kind not in "fiu":
            expected = f"numbers (P, {n_features}) with {', '.join(self.config.features)}"
            raise UserError(
                f"jet {i}: expected {expected}, got shape {signal.shape} of {signal.dtype}"
            )
        return len(signal)

    def _codes(self, values: np.ndarray) -> np.ndarray:
        """(all P, F) -> codes (all P, F) int32. A bin holds its lower edge."""
        codes = np.empty(values.shape, np.int32)
        for c, levels in enumerate(self.config.bins):
            x = values[:, c]
            x = np.log(x) if c == 0 else _wrapped(x) if c in self._angles else x
            codes[:, c] = np.clip(
                np.floor((x - self._low[c]) * (1 / self._width[c])) + 1, 0, levels - 1
            )
        return codes

    # ---- totals: a step of the logarithm, written as two digits in the second and third code of a
    # first frame

    def _headed(
        self, codes: np.ndarray, values: np.ndarray, n: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Codes (all P, F) of jets of n (N,) constituents, with frames before each jet that has
        any; and their numbers of frames.
        """
        full, first, totals = n > 0, np.cumsum(n) - n, self._wanted(values, n)
        (k0, k1, k2), (low, high) = self.config.bins[:3], np.log(TOTAL_GEV)
        step = (np.log(np.maximum(totals, TOTAL_GEV[0])) - low) / (high - low) * k1 * k2
        step = np.minimum(step, k1 * k2 - 1).astype(np.int32).flatten()
        headers = np.tile(np.array(self.config.bins, np.int32) // 2, (len(step), 1))
        headers[:, 0], headers[:, 1], headers[:, 2] = k0 - 1, step // k2, step % k2
        return (
            np.insert(codes, np.repeat(first[full], totals.shape[1]), headers, 0),
            n + totals.shape[1] * full,
        )

    def _wanted(self, values: np.ndarray, n: np.ndarray) -> np.ndarray:
        """The totals in GeV (full N, n_totals) of those jets of n (N,) constituents, values (all P,
        F), that have any.
        """
        found = dict(zip(TOTALS, _totals(values, n)))
        return np.stack([found[name][n > 0] for name in self.config.totals], 1)

    def _scaled(
        self, values: np.ndarray, codes: np.ndarray, n: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Decoded frames (all P, F) of jets of n (N,) frames -> their constituents, scaled to the
        totals; and their numbers.
        """
        first, k = np.cumsum(n) - n, len(self.config.totals)
        place = np.arange(len(values)) - np.repeat(first, n)
        (_, k1, k2), (low, high) = self.config.bins[:3], np.log(TOTAL_GEV)
        values, n_left = values[place >= k], np.maximum(n - k, 0)
        jet = np.repeat(np.arange(len(n)), n_left)
        has, wanted = (
            n_left > 0,
            np.full((k, len(n)), np.nan),
        )  # where the lowest step says no more than "below", nothing is scaled
        for i in range(k):
            step = codes[first[has] + i, 1] * k2 + codes[first[has] + i, 2]
            wanted[i, has] = np.where(
                step > 0, np.exp(low + (step + 0.5) * (high - low) / (k1 * k2)), np.nan
            )
        for name, total in zip(self.config.totals, wanted):
            if name == "pt_gev":
                factor = total / np.maximum(_totals(values, n_left)[0], 1e-30)
                values[:, 0] *= np.where(np.isnan(factor), 1, factor)[jet]
        for name, total in zip(self.config.totals, wanted):
            if name == "mass_gev":
                values[:, 1:3] *= _turns(values, n_left, total)[jet, None]
        return values, n_left


def _wrapped(x: np.ndarray) -> np.ndarray:
    """Angles in radians, into [-pi, pi)."""
    return (x + np.pi) % (2 * np.pi) - np.pi


def _particles(values: np.ndarray, jet: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Refuse what is no particle, leave zero pt out: particles (all P, F) and the jet of each."""
    pt = values[:, 0]
    finite = np.isfinite(values).all(1)
    if not finite.all():
        raise UserError(
            f"jet {jet[np.argmin(finite)]}: has a NaN or infinite value; remove the jet, or pad"
            " with zeros"
        )
    if (pt < 0).any():
        raise UserError(
            f"jet {jet[np.argmax(pt < 0)]}: has a negative pt; give pt in GeV, not its logarithm"
        )
    return (values, jet) if pt.all() else (values[pt > 0], jet[pt > 0])


def _ordered(
    values: np.ndarray, codes: np.ndarray, jet: np.ndarray, bins: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Particles (all P, F) and their codes, jet by jet in falling lexicographic order of the codes.

    Among equal codes the values decide in the same way, so that what is cut off at the cap, and how
    sums round, is the same for all orders that a jet may come in.
    """
    keys = _keys(jet, codes, bins)
    order = np.lexsort(keys[::-1])
    same = np.all([np.diff(key[order]) == 0 for key in keys], 0)
    tied = np.zeros(len(order), bool)
    tied[1:] |= same
    tied[:-1] |= same
    among = order[tied]
    order[tied] = among[np.lexsort((*-values[among].T[::-1], *(key[among] for key in keys[::-1])))]
    return values[order], codes[order]


def _keys(jet: np.ndarray, codes: np.ndarray, bins: Sequence[int]) -> list[np.ndarray]:
    """Numbers that rise, the first ones deciding, as jets rise and codes fall: as few as 63 bits
    hold, since sorting costs time for each.
    """
    keys, size = [jet.astype(np.int64)], int(jet[-1]) + 1 if len(jet) else 1
    for column, k in zip(codes.T, bins):
        if size * k >= 2**63:
            keys, size = [*keys, np.zeros_like(keys[0])], 1
        keys[-1] = keys[-1] * k + (k - 1 - column)
        size *= k
    return keys


def _turns(values: np.ndarray, n: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """The factors (N,) of all angles by which jets of n constituents get these masses in GeV, 1
    where that is NaN.
    """
    jet, factor = np.repeat(np.arange(len(n)), n), np.ones(len(n))
    for _ in range(N_TURNS):
        turned = values.copy()
        turned[:, 1:3] *= factor[jet, None]
        now = _totals(turned, n)[1]
        factor = np.clip(
            factor * np.where((now > 0) & ~np.isnan(mass), mass / np.maximum(now, 1e-30), 1),
            1 / MOST,
            MOST,
        )
    return factor


def _totals(values: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Summed pt and mass in GeV (N,) of jets of n (N,) massless constituents, values (all P, F):
    m^2 = E^2 - |p|^2.
    """
    jet, values = np.repeat(np.arange(len(n)), n), values.astype(np.float64)
    total = lambda term: np.bincount(jet, term, minlength=len(n))
    pt, eta, phi = values[:, 0], np.clip(values[:, 1], -30, 30), values[:, 2]  # no cosh overflows
    square = (
        total(pt * np.exp(eta)) * total(pt * np.exp(-eta))
        - total(pt * np.cos(phi)) ** 2
        - total(pt * np.sin(phi)) ** 2
    )
    return total(pt), np.sqrt(np.maximum(square, 0))


def _half_width(x: np.ndarray) -> float:
    """Half the width of the central 68.27 %: the standard deviation, were it Gaussian."""
    low, high = np.quantile(x, (0.15865, 0.84135))
    return 0.5 * (high - low)


def _pt_and_mass(jets: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Summed pt and, where the next two features are there, mass, in GeV (N,)."""
    n, values = np.array([len(j) for j in jets]), np.concatenate(jets)
    if values.shape[1] < 3:
        return np.bincount(
            np.repeat(np.arange(len(n)), n), values[:, 0].astype(np.float64)
        ), np.zeros(len(jets))
    return _totals(values, n)
