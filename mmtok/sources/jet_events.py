"""Jets that lie in events: each event has jets and constituents, and links between them.

The common part of the readers of NanoAOD, PFNano and PHYSLITE. Which jets there are is found out
when a file is opened, by cuts on the pt and eta that it states; jets without constituents are left
out. Constituents are read for the events of the jets that are asked for, in blocks.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmtok.errors import UserError
from mmtok.io.columns import named_column
from mmtok.io.messages import listed
from mmtok.io.remembered import Remembered
from mmtok.sources.jet_columns import Lists, RootColumns
from mmtok.sources.jet_coordinates import about_axes, axes_of_sums, four_momenta
from mmtok.sources.jet_reader import (
    FEATURES,
    JetReader,
    ReadSettings,
    as_caption,
    offsets_of,
    table_of,
)

EVENTS = 1000  # that are read at once, at least
BLOCK_BYTES = 4_000_000  # of one column that are read at once, where baskets are larger
N_COMPARED = 256  # jets whose sums are compared with what the file states
MOST_DISAGREEMENT = 0.02  # of pt, in the median, where constituents are right
COORDINATES = ("pt", "eta", "phi", "mass")


@dataclass(frozen=True)
class Links:
    """Which constituents jets of a stretch of events have; all (L,).

    Attributes:
        jet: the number of the jet in the stretch.
        constituent: the number of the constituent in the stretch.
        weight: that its momentum is multiplied by, where the links have weights.
    """

    jet: np.ndarray
    constituent: np.ndarray
    weight: np.ndarray | None = None


@dataclass(frozen=True)
class Gathered:
    """The constituents of n jets.

    Attributes:
        parts: quantity -> (all P,), momenta in the file's unit; pt and mass with their weights.
        offsets: (n + 1,).
        jets: quantity of the jets -> (n,).
    """

    parts: Mapping[str, np.ndarray]
    offsets: np.ndarray
    jets: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Found:
    """What was found out about a file.

    Attributes:
        event: (N,) the event of each jet.
        number: (N,) its number among the jets of its event.
        left_out: what cuts left out -> how many jets.
    """

    event: np.ndarray
    number: np.ndarray
    left_out: Mapping[str, int]


@dataclass(frozen=True)
class Agreement:
    """How far sums of constituents are from the jets that the file states, in the median.

    Attributes:
        pt: relative difference.
        mass: likewise; NaN where constituents have no mass or the file states none.
    """

    pt: float
    mass: float

    def __str__(self) -> str:
        """Rounded up to powers of ten, so that files of one kind say the same."""
        sizes = {"pt": self.pt, "mass": self.mass}
        stated = {name: size for name, size in sizes.items() if not np.isnan(size)}
        parts = [f"{name} {_rounded_up(100 * size):g} %" for name, size in stated.items()]
        return ", ".join(parts) or "nothing to compare"


def _rounded_up(percent: float) -> float:
    return 10.0 ** max(-3, math.ceil(math.log10(max(percent, 1e-3))))


remembered: Remembered[Any] = Remembered(1_000)  # what was found in files of events


@dataclass
class EventJets(JetReader):
    """Jets of the events of a tree; constituents by falling pt, without those of weight 0.

    A format sets `of_jets`, `quantities` and `reference` and gives the links and the constituents;
    then it calls `find_jets`.

    Attributes:
        columns: the open tree.
        collection: whose jets are read.
        settings: as the user says.
        of_jets: pt, eta, phi, mass of the jets as the file states them -> column.
        scale: of momenta, to GeV.
        is_weighted: whether links' or constituents' weights are applied.
    """

    columns: RootColumns
    collection: str
    settings: ReadSettings
    scale: float = 1.0
    of_jets: dict[str, str] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    is_weighted: bool = False
    found: Found = field(init=False)

    def __post_init__(self) -> None:
        self.path = self.columns.path
        self.left_out = {}
        self._last: Any = None
        self.n_block = EVENTS
        caption = self.settings.columns.get("caption", "")
        if caption:
            prefixed = self.column_of_jets(caption)
            there = self.columns.names
            self.of_jets["caption"] = named_column(
                prefixed if prefixed in there else caption, there, self.path
            )
            self.has_captions = True

    # ---- what a format gives

    @abstractmethod
    def links(self, first: int, last: int, offsets: np.ndarray) -> Links:
        """The links of events first to last. offsets: where each event's jets begin."""

    @abstractmethod
    def constituents(
        self, first: int, last: int, quantities: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Quantities of all constituents of events first to last, each (all of them,).

        pt, eta, phi and mass are among those that can be asked for; the weight is "weight".
        """

    @abstractmethod
    def reference(self, jets: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """The pt and mass of jets that the constituents should sum to, in the file's unit."""

    def column_of_jets(self, name: str) -> str:
        """The column of a quantity of the jets."""
        return f"{self.collection}_{name}"

    def fit_blocks(self, column: str) -> None:
        """Read as many events at once as the first basket of a column holds, within bounds.

        A basket is unpacked for every block that it has events of.
        """
        branch = self.columns.tree[column]
        if not self.columns.n_rows or not getattr(branch, "num_baskets", 0):
            return  # an RNTuple has small pages instead
        start, stop = branch.basket_entry_start_stop(0)
        event_bytes = max(1.0, branch.uncompressed_bytes / self.columns.n_rows)
        self.n_block = max(EVENTS, min(int(stop - start), int(BLOCK_BYTES / event_bytes)))

    # ---- which jets

    def find_jets(self, about: str = "") -> None:
        """Find the jets that pass the cuts, once. about: what else the links depend on."""
        key = f"{type(self).__name__} {self.collection} {self.settings} {about}"
        self.found = remembered(self.path, self._find, key)
        self.left_out = dict(self.found.left_out)
        self.n_jets = len(self.found.event)
        self.features = (*FEATURES, "mass_gev", *self.others)

    def _find(self) -> Found:
        events: list[np.ndarray] = []
        numbers: list[np.ndarray] = []
        left_out: dict[str, int] = {}
        for first in range(0, self.columns.n_rows, self.n_block):
            last = min(first + self.n_block, self.columns.n_rows)
            jets = self._jets(first, last, ("pt", "eta"))
            offsets = jets["pt"].offsets
            n_linked = np.bincount(self.links(first, last, offsets).jet, minlength=int(offsets[-1]))
            is_kept = np.ones(int(offsets[-1]), bool)
            for words, is_out in self._cuts(jets, n_linked):
                n_out = int((is_out & is_kept).sum())
                if n_out:
                    left_out[words] = left_out.get(words, 0) + n_out
                is_kept &= ~is_out
            event = np.repeat(np.arange(last - first), np.diff(offsets))
            at = np.flatnonzero(is_kept)
            events.append((first + event[at]).astype(np.int32))
            numbers.append((at - offsets[event[at]]).astype(np.int32))
        empty = np.zeros(0, np.int32)
        return Found(np.concatenate([empty, *events]), np.concatenate([empty, *numbers]), left_out)

    def _cuts(
        self, jets: Mapping[str, Lists], n_linked: np.ndarray
    ) -> Iterator[tuple[str, np.ndarray]]:
        """What is left out in words, and which jets that is."""
        settings = self.settings
        if settings.min_pt_gev:
            words = f"left out: {self.of_jets['pt']} below {settings.min_pt_gev:g} GeV"
            yield words, jets["pt"].values * self.scale < settings.min_pt_gev
        if settings.max_abs_eta:
            words = f"left out: |{self.of_jets['eta']}| above {settings.max_abs_eta:g}"
            yield words, np.abs(jets["eta"].values) > settings.max_abs_eta
        yield "left out: no constituents in the file", n_linked == 0

    def _jets(self, first: int, last: int, quantities: Sequence[str]) -> dict[str, Lists]:
        """Quantities of all jets of events first to last."""
        columns = self.columns.read([self.of_jets[name] for name in quantities], first, last)
        found: dict[str, Lists] = {}
        for name in quantities:
            column = columns[self.of_jets[name]]
            if not isinstance(column, Lists):
                raise UserError(
                    f"{self.path}: {self.of_jets[name]} has one value for each event, expected one"
                    " for each jet"
                )
            found[name] = column
        first_offsets = found[quantities[0]].offsets
        for name, lists in found.items():
            if not np.array_equal(lists.offsets, first_offsets):
                raise UserError(
                    f"{self.path}: {self.of_jets[name]} and {self.of_jets[quantities[0]]} have"
                    " other numbers of jets in an event"
                )
        return found

    # ---- their constituents

    def gathered(
        self, start: int, stop: int, quantities: Sequence[str], of_jets: Sequence[str]
    ) -> Gathered:
        """The constituents of jets start to stop, block by block."""
        pieces = [self._block(a, b, quantities, of_jets) for a, b in self._blocks(start, stop)]
        nothing = np.zeros(0)
        return Gathered(
            {q: np.concatenate([nothing, *(p.parts[q] for p in pieces)]) for q in quantities},
            offsets_of(np.concatenate([nothing, *(np.diff(p.offsets) for p in pieces)])),
            {q: np.concatenate([nothing, *(p.jets[q] for p in pieces)]) for q in of_jets},
        )

    def _blocks(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Jets start to stop as stretches that are each of one block of events."""
        block = self.found.event[start:stop] // self.n_block
        edges = [start, *(start + 1 + np.flatnonzero(np.diff(block))).tolist(), stop]
        return [(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True) if a < b]

    def _block(
        self, start: int, stop: int, quantities: Sequence[str], of_jets: Sequence[str]
    ) -> Gathered:
        """The constituents of jets start to stop, all of one block of events."""
        event = self.found.event[start:stop]
        first = int(event[0]) // self.n_block * self.n_block
        jets, links, every = self._events(first, tuple(quantities), tuple(of_jets))
        offsets = jets[of_jets[0]].offsets
        at = offsets[event - first] + self.found.number[start:stop]
        place = np.full(int(offsets[-1]), -1)
        place[at] = np.arange(stop - start)
        jet = place[links.jet]
        used = np.flatnonzero(jet >= 0)
        parts = {
            name: np.asarray(values)[links.constituent[used]].astype(np.float64)
            for name, values in every.items()
        }
        if self.is_weighted and links.weight is not None:
            parts["weight"] = links.weight[used].astype(np.float64)
        jet = jet[used]
        if "weight" in parts:
            for name in {"pt", "mass"} & set(parts):
                parts[name] = parts[name] * parts["weight"]
            jet, parts = _without(parts["weight"] == 0, jet, parts)
        order = np.lexsort((-parts["pt"], jet)) if "pt" in parts else np.argsort(jet, kind="stable")
        parts = {name: values[order] for name, values in parts.items()}
        n_particles = np.bincount(jet, minlength=stop - start)
        picked = {name: np.asarray(lists.values)[at] for name, lists in jets.items()}
        return Gathered(parts, offsets_of(n_particles), picked)

    def _events(
        self, first: int, quantities: tuple[str, ...], of_jets: tuple[str, ...]
    ) -> tuple[dict[str, Lists], Links, dict[str, np.ndarray]]:
        """Jets, links and constituents of a block of events; the last one is kept.

        A stretch of jets is mostly less than a block, and a file's baskets hold more events.
        """
        key = (first, self.is_weighted, quantities, of_jets)
        if self._last is None or self._last[0] != key:
            last = min(first + self.n_block, self.columns.n_rows)
            jets = self._jets(first, last, of_jets)
            links = self.links(first, last, jets[of_jets[0]].offsets)
            wanted = quantities
            if self.is_weighted and links.weight is None:
                wanted = (*quantities, "weight")
            self._last = (key, (jets, links, self.constituents(first, last, wanted)))
        return self._last[1]

    def agreement(self) -> Agreement:
        """How well the sums of the first jets' constituents agree with what the file states."""
        n = min(N_COMPARED, self.n_jets)
        of_jets = [name for name in self.of_jets if name != "caption"]
        jets = self.gathered(0, n, COORDINATES, of_jets)
        parts = jets.parts
        momenta = four_momenta(parts["pt"], parts["eta"], parts["phi"], parts["mass"])
        axes = axes_of_sums(*momenta, jets.offsets)
        pt, mass = self.reference(jets.jets)
        return Agreement(_median_difference(axes.pt, pt), _median_difference(axes.mass, mass))

    def read(self, start: int, stop: int, features: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """As of the contract."""
        self.check_features(features)
        others = [name for name in features if name in self.others]
        quantities = ["pt", "eta", "phi", *others]
        if "mass_gev" in features:
            quantities.append("mass")
        jets = self.gathered(start, stop, quantities, ("eta", "phi"))
        parts = dict(jets.parts)
        parts["pt_gev"] = parts["pt"] * self.scale
        if "mass_gev" in features:
            parts["mass_gev"] = parts["mass"] * self.scale
        parts["eta_rel"], parts["phi_rel"] = about_axes(
            parts["eta"], parts["phi"], jets.jets["eta"], jets.jets["phi"], jets.offsets
        )
        return table_of(parts, features), jets.offsets

    def captions(self, start: int, stop: int) -> list[str]:
        """As of the contract."""
        texts: list[str] = []
        for a, b in self._blocks(start, stop):
            event = self.found.event[a:b]
            first = int(event[0])
            column = self._jets(first, int(event[-1]) + 1, ("caption",))["caption"]
            at = column.offsets[event - first] + self.found.number[a:b]
            texts += map(as_caption, np.asarray(column.values)[at].tolist())
        return texts

    def close(self) -> None:
        """As of the contract."""
        self.columns.close()


def _without(
    is_out: np.ndarray, jet: np.ndarray, parts: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Constituents without some of them."""
    return jet[~is_out], {name: values[~is_out] for name, values in parts.items()}


def _median_difference(found: np.ndarray, stated: np.ndarray) -> float:
    """The median of relative differences, of what is above zero."""
    is_stated = np.isfinite(stated) & (stated > 0) & np.isfinite(found)
    if not is_stated.any():
        return float("nan")
    return float(np.median(np.abs(found[is_stated] / stated[is_stated] - 1)))


def chosen_collection(path: Path, asked: str, there: Sequence[str], what: str) -> str:
    """The collection of jets that is asked for, or the only one.

    Args:
        path: the file.
        asked: as the user names it; "" for none.
        there: those that have constituents; those of truth are used only by name.
        what: what the file lacks where there are none, in words.

    Raises:
        UserError: there is none, none is named of several, or the named one is not there.
    """
    if not there:
        raise UserError(f"{path}: {what}")
    if asked:
        if asked not in there:
            raise UserError(
                f"{path}: has no jets {asked!r} with constituents; collection is one of"
                f" {listed(there)}"
            )
        return asked
    measured = [name for name in there if "Gen" not in name and "Truth" not in name] or list(there)
    if len(measured) > 1:
        raise UserError(
            f"{path}: holds jets of {listed(there)}; name one: --collection {measured[0]} or"
            f" --collection {measured[1]}"
        )
    return measured[0]


def tree_of(path: Path, names: Sequence[str]) -> RootColumns | None:
    """The first tree of a ROOT file with one of these names; None where there is none."""
    columns = RootColumns(path)
    if columns.tree.name in names:
        return columns
    name = next((name for name in names if name in columns.trees), "")
    columns.close()
    return RootColumns(path, name) if name else None
