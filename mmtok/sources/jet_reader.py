"""The contract of a format of jets: a reader gives any stretch of a file's jets, and no more."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from mmtok.errors import UserError
from mmtok.io.messages import listed
from mmtok.sources.layouts import Layout

FEATURES = ("pt_gev", "eta_rel", "phi_rel")
EVENT_SETTINGS = ("collection", "min_pt_gev", "max_abs_eta", "radius", "puppi")
GEV = {"GeV": 1.0, "MeV": 1e-3, "TeV": 1e3, "keV": 1e-6}  # of a unit of pt


@dataclass(frozen=True)
class ReadSettings:
    """What a user says of how a file is to be read; picklable.

    Attributes:
        columns: quantity or feature -> column, as in {"pt": "part_pt", "caption": "label"}.
        pt_unit: of momenta and energies: GeV, MeV, ...; "": as the file says, else GeV.
        collection: of files of events, whose jets are read, such as FatJet; "": the only ones.
        min_pt_gev: of files of events, the least pt of a jet as the file states it.
        max_abs_eta: likewise, the most |eta|; 0: any.
        radius: of events that are clustered here, of the anti-kt algorithm; 0: 0.8.
        puppi: on: constituents are weighted by PUPPI; off: they are not; "": as it fits the jets.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    pt_unit: str = ""
    collection: str = ""
    min_pt_gev: float = 0.0
    max_abs_eta: float = 0.0
    radius: float = 0.0
    puppi: str = ""

    def __post_init__(self) -> None:
        if self.pt_unit:
            unit = {name.lower(): name for name in GEV}.get(self.pt_unit.lower())
            if unit is None:
                raise UserError(f"pt_unit is {self.pt_unit!r}; it is one of {', '.join(GEV)}")
            object.__setattr__(self, "pt_unit", unit)
        if self.puppi not in ("", "on", "off"):
            raise UserError(f"puppi is {self.puppi!r}; it is on, off or nothing")
        for name in ("min_pt_gev", "max_abs_eta", "radius"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise UserError(f"{name} is {value}; it must be at least 0")

    def of_events(self) -> list[str]:
        """The names of those that are set and mean something for files of events only."""
        return [name for name in EVENT_SETTINGS if getattr(self, name)]


class JetReader(ABC):
    """The jets of one open file, read stretch by stretch.

    Opening looks at headers, and at what is needed to know how many jets there are. Nothing is
    checked of single jets: that is the source's work.

    Attributes:
        path: the file.
        n_jets: how many jets it holds, after the reader's own cuts; 0 is allowed.
        features: what can be asked of a constituent, "pt_gev" among them: eta_rel and phi_rel are
            relative to the jet's axis, phi_rel within [-pi, pi]; others such as charge or d0.
        has_captions: whether its jets have captions.
        left_out: what the reader's own cuts left out -> how many jets.
        note: what was found out or assumed, to be said in one line: "axis: sum of the constituents,
            unit: MeV (by _mev), padding: pt 0"; "" where nothing was.
        if_none: what a line on a file without jets adds: why, and what to do.
    """

    path: Path
    n_jets: int
    features: tuple[str, ...]
    has_captions: bool = False
    left_out: Mapping[str, int] = MappingProxyType({})
    note: str = ""
    if_none: str = ""

    @abstractmethod
    def read(self, start: int, stop: int, features: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Jets start to stop: values (all P, F) float32, and offsets (stop - start + 1) int64.

        Columns are in the order of `features`, without the padding; constituents in any order. A
        jet of which a number is missing gets NaN there, and one without constituents has none.

        Raises UserError, naming the file, where it cannot be read.
        """

    def captions(self, start: int, stop: int) -> list[str]:
        """The captions of jets start to stop, "" where there is none; if `has_captions`."""
        raise NotImplementedError

    def check_features(self, features: Sequence[str]) -> None:
        """Raise UserError where a feature is not there."""
        missing = [name for name in features if name not in self.features]
        if missing:
            raise UserError(
                f"{self.path}: has no feature {', '.join(missing)}; it has {listed(self.features)}"
            )

    # not abstract: most have nothing to do
    def verify(self) -> None:  # noqa: B027
        """Raise UserError where checksums say that the file was changed; called once of a file."""

    def close(self) -> None:  # noqa: B027
        """Close what is open; the reader is not used afterwards."""


@dataclass(frozen=True)
class JetLayout(Layout[Path, Callable[[Path, ReadSettings], JetReader]]):
    """A published way of keeping jets in files.

    `evidence` is asked of files with one of the suffixes, and raises UserError for what is broken.
    `reader` opens one, and raises UserError for what is not of this layout.

    Attributes:
        suffixes: of its files, in lower case.
        has_captions: whether the layout itself has labels, which are then the captions.
        settings: of `ReadSettings.of_events`, those that it has; () where a file is no events.
        is_gev: whether its pt is in GeV whatever a user says.
    """

    suffixes: tuple[str, ...] = ()
    has_captions: bool = False
    settings: tuple[str, ...] = ()
    is_gev: bool = False


def offsets_of(n_particles: np.ndarray) -> np.ndarray:
    """(N,) particles of each jet -> (N + 1,) int64 where it starts and the last one ends."""
    return np.concatenate(([0], np.cumsum(n_particles, dtype=np.int64)))


def jet_of_particle(offsets: np.ndarray) -> np.ndarray:
    """(all P,) the index of the jet that each particle belongs to."""
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def selected(
    values: np.ndarray, offsets: np.ndarray, is_kept: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Values and offsets of the particles that are kept; `is_kept` is (all P,) bool."""
    kept_before = np.concatenate(([0], np.cumsum(is_kept, dtype=np.int64)))
    return values[is_kept], kept_before[offsets]


def table_of(parts: Mapping[str, np.ndarray], features: Sequence[str]) -> np.ndarray:
    """Features (all P,) each as one float32 array (all P, F)."""
    return np.stack([parts[name] for name in features], 1).astype(np.float32)


def as_caption(value: Any) -> str:
    """A label as text: whole numbers without a point, bytes decoded, nothing as ""."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
