"""Jets on a grid: each feature of each constituent is binned by itself.

Finke et al., arXiv 2303.07364, whose bins of angles are equal; here they are fine about the jet's
axis, where most of the pt is. One frame is one constituent, one channel is one feature. A jet is a
set, so its constituents come in the one order that all lists of them share: falling codes of pt,
among equal ones falling codes of the next feature, and so on. Nothing is assumed about the axis or
the mass of a jet but what its data states.

With `totals`, frames of the jet's own pt and mass go before the constituents (jet_totals.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from mmtok.core.segment import Segment, Signature
from mmtok.errors import UserError
from mmtok.nn.angles import wrap
from mmtok.tokenizers.base import TokenizerConfig, checked_codes, fingerprint
from mmtok.tokenizers.jet_clipping import Clipping, ClippingTokenizer
from mmtok.tokenizers.jet_order import ordered, particles
from mmtok.tokenizers.jet_totals import TOTALS, Totals, half_width, of_jets

ROUNDING = 1e-6  # relative; more than float32 is off by
# Where bins stop being equal, by feature, in its unit; of other features all are. Of 0.02 to 0.1
# radians, 0.03 keeps both narrow jets (quarks) and wide ones (top): scripts/bench_jets.py.
CORES = {"eta_rel": 0.03, "phi_rel": 0.03}


@dataclass(frozen=True)
class JetGridConfig(TokenizerConfig):
    """A grid per feature; the tuples run in parallel.

    Attributes:
        features: names of the signal's columns. "pt_gev" comes first, as constituents are ordered
            by their codes from the first on. Features whose name begins with "phi" are wrapped into
            [-pi, pi) before they are binned.
        bins: codes per feature, K: K - 2 bins within [low, high), one code for what lies below and
            one for what lies above.
        low: where the range of each feature begins: of ln(pt_gev) for "pt_gev", radians for angles,
            -1.5 for a charge with 5 bins.
        high: where it ends; 1.5 for such a charge.
        core: bins are equal steps of asinh(x / core), x the feature in its unit: about equal within
            the core, and further out as wide as a share of their distance. 0: equal everywhere,
            as those of ln(pt_gev) must be. (): 0.03 for eta_rel and phi_rel, else 0.
        max_constituents: so many are kept, the hardest; a jet with more becomes a truncated
            segment.
        totals: frames of the summed pt ("pt_gev") and the mass ("mass_gev") of what is kept. They
            need eta_rel and phi_rel as second and third feature, whose codes hold equal steps of
            the logarithm between 1 GeV and 20 TeV (0.3 % each at 61 bins).
        pt_share: bins are of ln of the share of its jet's pt that a constituent has, and low and
            high of "pt_gev" too, such as -9 and 0. It needs the total pt_gev, which turns shares
            into GeV.
        below: what the code below each range decodes to, in the feature's unit (GeV for "pt_gev").
            (): learned by `fit` as the mean of what lay there, or else the middle of one more bin.
        above: what the code above each range decodes to, likewise.
        allow_clipping: encode jets of which more than a fifth lies outside the ranges, which is
            refused otherwise.
    """

    modality: ClassVar[str] = "jets"
    learns: ClassVar[bool] = True
    presets: ClassVar[tuple[str, ...]] = ("jetclass",)

    features: tuple[str, ...] = ("pt_gev", "eta_rel", "phi_rel")
    bins: tuple[int, ...] = (41, 61, 61)
    low: tuple[float, ...] = (-2.0, -0.8, -0.8)
    high: tuple[float, ...] = (6.9, 0.8, 0.8)
    core: tuple[float, ...] = ()
    max_constituents: int = 128
    totals: tuple[str, ...] = ()
    pt_share: bool = False
    below: tuple[float, ...] = ()
    above: tuple[float, ...] = ()
    allow_clipping: bool = False

    @classmethod
    def jetclass(cls) -> JetGridConfig:
        """What JetClass (arXiv 2202.03772) has of a constituent, and `PythiaJets` too.

        Charge, the kind of particle (mmtok.sources.jet_coordinates.PARTICLE_IDS), and the impact
        parameters d0 and dz in mm, fine about 0 and up to 20 mm.
        """
        return cls(
            features=("pt_gev", "eta_rel", "phi_rel", "charge", "particle_id", "d0", "dz"),
            bins=(41, 61, 61, 5, 7, 31, 31),
            low=(-2.0, -0.8, -0.8, -1.5, -0.5, -20.0, -20.0),
            high=(6.9, 0.8, 0.8, 1.5, 4.5, 20.0, 20.0),
            core=(0.0, CORES["eta_rel"], CORES["phi_rel"], 0.0, 0.0, 0.02, 0.02),
        )

    def __post_init__(self) -> None:
        self._check_grid()
        self._check_core()
        self._check_totals()
        self._check_ends("below", self.below, -1, self.edges[:, 0])
        self._check_ends("above", self.above, 1, self.edges[:, 1])
        if self.below and self.below[0] <= 0:
            raise UserError(
                f"JetGridConfig: below of pt_gev is {self.below[0]}; it must be above 0"
            )

    def _check_grid(self) -> None:
        if not len(self.features) == len(self.bins) == len(self.low) == len(self.high):
            raise UserError("JetGridConfig: features, bins, low and high must have equal lengths")
        if not self.features or self.features[0] != "pt_gev":
            raise UserError(
                "JetGridConfig: the first feature must be pt_gev, got"
                f" {', '.join(self.features) or 'none'}"
            )
        ranges = zip(self.low, self.high, strict=True)
        are_ranges = all(-math.inf < low < high < math.inf for low, high in ranges)
        if min(self.bins) < 3 or not are_ranges or self.max_constituents < 1:
            raise UserError(
                "JetGridConfig: needs at least 3 bins per feature, low below high, and at least one"
                " constituent"
            )

    def _check_core(self) -> None:
        if not self.core:
            return
        are_sizes = all(0 <= size < math.inf for size in self.core)
        if len(self.core) != len(self.features) or not are_sizes or self.core[0]:
            raise UserError(
                "JetGridConfig: core has a size of at least 0 for each feature, that of pt_gev 0,"
                f" or none at all; got {self.core}"
            )

    def _check_totals(self) -> None:
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

        if self.pt_share and "pt_gev" not in self.totals:
            raise UserError("JetGridConfig: pt_share needs pt_gev among the totals")

    def _check_ends(self, name: str, ends: tuple[float, ...], sign: int, edges: np.ndarray) -> None:
        """Raise UserError unless `ends` is empty, or beyond the edges (F,) towards `sign`."""
        if not ends:
            return
        if len(ends) == len(edges):
            distances = [sign * (x - edge) for x, edge in zip(ends, edges, strict=True)]
            if all(0 <= distance < math.inf for distance in distances):
                return
        raise UserError(
            f"JetGridConfig: {name} has a value outside its range for each feature, or none"
            f" at all; got {ends}"
        )

    @property
    def takes(self) -> dict[str, tuple[str, ...]]:
        """The jets that the tokenizer takes: these columns."""
        return {"features": self.features}

    @property
    def edges(self) -> np.ndarray:
        """The range of each feature in its own unit, (F, 2): that of pt in GeV."""
        edges = np.stack([self.low, self.high], 1).astype(np.float64)
        edges[0] = np.exp(edges[0])
        return edges

    @property
    def cores(self) -> tuple[float, ...]:
        """`core`, or those of CORES where none are given."""
        return self.core or tuple(CORES.get(name, 0.0) for name in self.features)

    def signature(self) -> Signature:
        """Without the fingerprint, which is of `below` and `above` too."""
        return replace(self.build().signature, fingerprint="")

    def build(self) -> JetGrid:
        """The tokenizer without anything learned."""
        return JetGrid(self)

    def fit(self, signals: Sequence[np.ndarray]) -> JetGrid:
        """The tokenizer, with those of `below` and `above` learned that are not given.

        signals: jets (P, F). Raises UserError where too much lies outside the ranges.
        """
        below, above = self.build().mean_ends(signals)
        return JetGrid(replace(self, below=self.below or below, above=self.above or above))

    def load(self, folder: Path) -> JetGrid:
        """Open the tokenizer that was saved in `folder`."""
        return JetGrid.load(folder)

    def rate_texts(self, signature: Signature, fidelity: Mapping[str, float]) -> list[str]:
        """Bits of a particle."""
        text = f"{signature.bits_per_frame:.4g} bits a particle"
        if self.totals:
            text += f", the jet's totals before them: {len(self.totals)}"
        return [text]


class JetGrid(ClippingTokenizer):
    """Constituents (P, F) <-> codes (P, F), or (n_totals + P, F).

    Within the range of a feature, a round trip is off by at most half a bin: of ln pt for pt, of
    asinh(x / core) where bins are not equal. What lies outside is clipped to the code below or
    above. That decodes to the mean of what lay there, where it was learned, so that sums of pt stay
    right on average. Each call reports what it clipped and cut, once for each kind, and refuses
    where it is much (`Clipping`); within `counting`, all calls report together.

    With `totals`, a jet's pt and mass come back to a step of their own, within their range and as
    far as angles scaled by up to 2 reach the mass. The price: one factor is applied to all pt of
    a jet and one to all its angles, on top of half a bin. `unscaled` leaves them out.
    """

    config: JetGridConfig
    config_type: ClassVar[type] = JetGridConfig

    def __init__(self, config: JetGridConfig):
        super().__init__(config)
        self.signature = Signature(
            "jets",
            levels=config.bins,
            fingerprint=_fingerprint(config),
            descending=True,
            headers=len(config.totals),
        )
        self._last = np.array(config.bins) - 1  # the code above each range
        self._cores = config.cores
        self._low = np.array(self._stretched(config.low))
        self._width = (np.array(self._stretched(config.high)) - self._low) / (self._last - 1)
        self._angles = [c for c, name in enumerate(config.features) if name.startswith("phi")]
        # what each code decodes to, in the feature's unit: its bin's centre
        self._values = [self._centres(c) for c in range(len(config.features))]
        for ends, code in ((config.below, 0), (config.above, -1)):
            for table, end in zip(self._values, ends, strict=False):
                table[code] = end
        self._totals = Totals(config.totals, config.bins) if config.totals else None

    def encode_batch(self, signals: Sequence[np.ndarray]) -> list[Segment]:
        """Jets (P, F), one column per feature -> segments of codes (P, F) int32.

        P is at most max_constituents. Particles of zero pt are padding and left out. All orders of
        a jet's constituents give the same segment; a jet without any has no frames. Raises
        UserError for another number of features, NaN, infinities and negative pt, and where too
        much lies outside the grid.
        """
        with self.count_of_call() as count:
            values, codes, n, is_cut = self._kept(signals, count)
        if self._totals:
            codes, n = self._totals.prepend(codes, values, n)
        pieces = np.split(codes, np.cumsum(n)[:-1]) if len(n) else []
        return [
            Segment("jets", codes=piece, truncated=cut)
            for piece, cut in zip(pieces, is_cut.tolist(), strict=True)
        ]

    def decode_batch(self, segments: Sequence[Segment]) -> list[np.ndarray]:
        """Segments of codes (P, F) -> constituents (P, F) float32 at the centres of the bins.

        The centres are in the measure in which bins are equal; pt itself is given in GeV.
        """
        if not segments:
            return []
        codes = np.concatenate([checked_codes(segment, self.signature) for segment in segments])
        codes = codes.astype(np.int64)
        n = np.array([len(segment) for segment in segments], np.int64)
        columns = zip(self._values, codes.T, strict=True)
        values = np.stack([table[column] for table, column in columns], 1)
        if self._totals:
            values, n = self._totals.scale(values, codes, n)
        return np.split(values.astype(np.float32), np.cumsum(n)[:-1])

    def n_units(self, segment: Segment) -> int:
        """Particles: the frames without the totals."""
        return max(0, len(segment) - self.signature.headers)

    def new_count(self) -> Clipping:
        """Of what is clipped and cut."""
        c = self.config
        return Clipping(c.features, c.edges, c.max_constituents, c.allow_clipping)

    def mean_ends(
        self, signals: Sequence[np.ndarray]
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The means of what lies below and above the range of each feature.

        Where nothing does, the middle of one more bin. Raises UserError where too much does.
        """
        count = self.new_count()
        kept, codes, n, _ = self._kept(signals, count)
        count.refuse()
        values = self._shared(kept.astype(np.float64), np.repeat(np.arange(len(n)), n))
        for c in self._angles:
            values[:, c] = wrap(values[:, c])
        ends = np.array([[table[0], table[-1]] for table in self._values]).T  # (2, F)
        edges = self.config.edges.T  # (2, F)
        for c, last in enumerate(self._last):
            for side, code in enumerate((0, last)):
                is_out = codes[:, c] == code
                if is_out.any():
                    ends[side, c] = values[is_out, c].mean()
        # a mean close to the edge must not be rounded into the range
        margin = ROUNDING * np.where(edges, np.abs(edges), 1)
        below = np.minimum(ends[0], edges[0] - margin[0])
        above = np.maximum(ends[1], edges[1] + margin[1])
        return tuple(below.tolist()), tuple(above.tolist())

    def unscaled(self, segments: Sequence[Segment]) -> list[np.ndarray]:
        """As `decode_batch`, without the totals: what the constituents' codes say on their own.

        The total that shares of pt are of stays.
        """
        kept: tuple[str, ...] = ()
        if self.config.pt_share:
            kept = ("pt_gev",)
        plain = JetGrid(replace(self.config, totals=kept))
        n_totals = len(self.config.totals)
        first = [self.config.totals.index(name) for name in kept]
        pieces = []
        for segment in segments:
            codes = segment.values
            head = codes[first] if len(codes) >= n_totals else codes[:0]
            pieces.append(replace(segment, codes=np.concatenate([head, codes[n_totals:]])))
        return plain.decode_batch(pieces)

    def fidelity(self, signals: Sequence[np.ndarray]) -> dict[str, float]:
        """Figures of the round trip of jets.

        Of decoded over true summed pt, pt_ratio_width is half the width of the central 68 %, and
        pt_ratio_median the median. Of decoded minus true mass, mass_width_gev and mass_shift_gev
        are the same. clipped_share counts particles with a clipped feature, clipped_pt_share is
        their share of pt. truncated_share counts jets cut at the cap, and clipped_totals_share
        those with a total outside its range. A jet above it is scaled down to the end of the range,
        one below it is not scaled.

        Raises UserError when there is no constituent at all.
        """
        with self.counting(quiet=True):
            segments = self.encode_batch(signals)
        kept, codes, n, is_cut = self._kept(signals, self.new_count())
        if len(codes) == 0:
            raise UserError("fidelity of jets needs at least one constituent")
        is_clipped = ((codes == 0) | (codes == self._last)).any(1)
        full = [i for i, segment in enumerate(segments) if len(segment)]
        pt, mass = of_jets([signals[i] for i in full])
        decoded = self.decode_batch(segments)
        pt_back, mass_back = of_jets([decoded[i] for i in full])
        all_pt = kept[:, 0].sum(dtype=np.float64)
        figures = {
            "pt_ratio_width": half_width(pt_back / pt),
            "pt_ratio_median": np.median(pt_back / pt),
            "clipped_share": is_clipped.mean(),
            "clipped_pt_share": kept[is_clipped, 0].sum(dtype=np.float64) / all_pt,
            "truncated_share": is_cut.mean(),
        }
        if self._totals:
            is_outside = self._totals.is_outside(self._totals.measured(kept, n))
            figures["clipped_totals_share"] = is_outside.mean()
        if self.config.features[1:3] == ("eta_rel", "phi_rel"):
            figures["mass_width_gev"] = half_width(mass_back - mass)
            figures["mass_shift_gev"] = np.median(mass_back - mass)
        return {name: float(value) for name, value in figures.items()}

    def _kept(
        self, signals: Sequence[np.ndarray], count: Clipping
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The constituents that are kept of jets (P, F), in the order of their codes.

        Returns their values and codes (all P, F), the number per jet (N,), and which jets have more
        (N,). `count` gets all constituents.
        """
        lengths = [self._length(i, signal) for i, signal in enumerate(signals)]
        # float64, so that a jet's codes do not depend on the type of the jets next to it
        values = np.concatenate([np.zeros((0, len(self._last))), *signals])
        values, jet = particles(values, np.repeat(np.arange(len(lengths)), lengths))
        codes = self._codes(self._shared(values, jet))
        values, codes = ordered(values, codes, jet, self.config.bins)
        n = np.bincount(jet, minlength=len(lengths))
        sides = np.full(codes.shape, -1)
        sides[codes == 0] = 0
        sides[codes == self._last] = 1
        count.add(values, sides, n)
        n_kept = np.minimum(n, self.config.max_constituents)
        is_cut = n > n_kept
        if is_cut.any():
            rank = np.arange(len(values)) - np.repeat(np.cumsum(n) - n, n)
            is_kept = rank < self.config.max_constituents
            values = values[is_kept]
            codes = codes[is_kept]
        return values, codes, n_kept, is_cut

    def _shared(self, values: np.ndarray, jet: np.ndarray) -> np.ndarray:
        """The values (P, F), pt as the share of its jet where the config says so."""
        if not self.config.pt_share or not len(values):
            return values
        shares = values.copy()
        shares[:, 0] /= np.bincount(jet, values[:, 0])[jet]
        return shares

    def _length(self, i: int, signal: np.ndarray) -> int:
        """P of jet number i (P, F). Raises UserError for another shape or type."""
        signal = np.asarray(signal)
        n_features = len(self.config.features)
        if signal.ndim != 2 or signal.shape[1] != n_features or signal.dtype.kind not in "fiu":
            expected = f"numbers (P, {n_features}) with {', '.join(self.config.features)}"
            raise UserError(
                f"jet {i}: expected {expected}, got shape {signal.shape} of {signal.dtype}"
            )
        return len(signal)

    def _stretched(self, values: Sequence[float]) -> list[float]:
        """One value of each feature, in the measure in which its bins are equal."""
        pairs = zip(values, self._cores, strict=True)
        return [math.asinh(x / core) if core else float(x) for x, core in pairs]

    def _centres(self, c: int) -> np.ndarray:
        """The centre of each bin of a feature (K,), in its unit.

        Those of the first and last code are of one more bin beyond the range.
        """
        middles: np.ndarray = self._low[c] + (np.arange(self._last[c] + 1) - 0.5) * self._width[c]
        if c == 0:
            return np.exp(middles)
        if self._cores[c]:
            return self._cores[c] * np.sinh(middles)
        return middles

    def _codes(self, values: np.ndarray) -> np.ndarray:
        """Values (all P, F) -> codes (all P, F) int32. A bin holds its lower edge."""
        codes = np.empty(values.shape, np.int32)
        for c, last in enumerate(self._last):
            x = values[:, c]
            if c == 0:
                x = np.log(x)
            elif c in self._angles:
                x = wrap(x)
            if self._cores[c]:
                x = np.arcsinh(x / self._cores[c])
            bins = np.floor((x - self._low[c]) * (1 / self._width[c]))
            codes[:, c] = np.clip(bins + 1, 0, last)
        return codes


def _fingerprint(config: JetGridConfig) -> str:
    meaning = asdict(config)
    del meaning["allow_clipping"]  # it changes no code
    meaning["core"] = config.cores
    if not config.pt_share:
        del meaning["pt_share"]
    return fingerprint("JetGrid", {**meaning, "order": "lexicographic"})
