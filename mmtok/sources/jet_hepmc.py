"""Events of generators in HepMC files, clustered into jets: anti-kT of what reaches a detector.

Particles of the final state (status 1) but neutrinos are clustered as they are, with their masses.
A file is read from its start and clustered once in a process; its jets then lie in a temporary
file, so that memory does not grow with it. Event weights are not used.
"""

from __future__ import annotations

import atexit
import gzip
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from mmtok.errors import UserError, missing_extra, reading
from mmtok.io.progress import Progress
from mmtok.io.terminal import silenced_stdout
from mmtok.sources.jet_clustering import anti_kt
from mmtok.sources.jet_coordinates import about_axes, axes_of_sums, pt_eta_phi
from mmtok.sources.jet_energyflow import charges_by_id
from mmtok.sources.jet_events import remembered
from mmtok.sources.jet_reader import FEATURES, JetReader, ReadSettings, offsets_of, table_of

SUFFIXES = (".hepmc", ".hepmc3", ".hepmc2", ".hepmc.gz", ".hepmc3.gz", ".hepmc2.gz")
STORED = (*FEATURES, "mass_gev", "pdg_id", "charge")
RADIUS = 0.8  # where none is given
MIN_PT_GEV = 20.0  # likewise
FINAL = 1  # status of a particle that does not decay in the generator
NEUTRINOS = (12, 14, 16)
EVENTS = 25  # that are clustered at once
NUMBER_BYTES = np.dtype(np.float32).itemsize
END = b"END_EVENT_LISTING"
TAIL_BYTES = 200
SHOW_PROGRESS_FROM = 10_000_000  # bytes


def _each(file: Any) -> Iterator[Any]:
    """The events of an open file; what HepMC prints of broken ones is found out by counting."""
    events = iter(file)
    while True:
        with silenced_stdout():
            event = next(events, None)
        if event is None:
            return
        yield event


class Counted:
    """An open file as pyhepmc reads it, which counts the events that it announces.

    HepMC's parser stops without a word at what it cannot read.
    """

    def __init__(self, path: Path) -> None:
        self._raw = path.open("rb")
        is_packed = self._raw.read(2) == b"\x1f\x8b"
        self._raw.seek(0)
        self._file: IO[bytes] = self._raw
        if is_packed:
            self._file = gzip.GzipFile(fileobj=self._raw)  # type: ignore[assignment]
        self.seek(0)

    def seek(self, at: int) -> None:
        """Back to the start."""
        self._file.seek(at)
        self.n_events = 0
        self.tail = b""

    def seekable(self) -> bool:
        """As pyhepmc asks."""
        return True

    def read(self, n: int = -1) -> bytes:
        """The next bytes; none where the packing breaks off."""
        try:
            data = self._file.read1(n)  # type: ignore[attr-defined]
        except (EOFError, OSError, zlib.error):
            data = b""
        self.n_events += (self.tail[-2:] + data).count(b"\nE ")
        self.tail = (self.tail + data)[-TAIL_BYTES:]
        return data

    def readinto1(self, buffer: bytearray) -> int:
        """The next bytes into a buffer; how many."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def write(self, data: bytes) -> int:
        """Never called; pyhepmc takes what has it for a file."""
        raise OSError("opened for reading")

    def rest(self) -> None:
        """Read on to the end, to count."""
        while self.read(1 << 20):
            pass

    @property
    def position(self) -> int:
        """How many bytes of the file on disk were read."""
        return self._raw.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        self._raw.close()


@dataclass
class Clustered:
    """The jets of a file.

    Attributes:
        file: a temporary file with STORED of all constituents as float32, row by row.
        first: the number of the first of its rows.
        offsets: (N + 1,) of the jets, from that row on.
        left_out: what was left out -> how many jets.
        note: what was strange, in words; "" where nothing was.
        n_events: of the file, that were read.
    """

    file: IO[bytes]
    first: int
    offsets: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    left_out: dict[str, int] = field(default_factory=dict)
    note: str = ""
    n_events: int = 0


_FILES: dict[int, IO[bytes]] = {}


def _own_file() -> IO[bytes]:
    """The temporary file of this process, which holds the jets of all files that it clusters.

    One for all, since a process may have only so many files open. It vanishes with the process.
    """
    if os.getpid() not in _FILES:
        file = tempfile.TemporaryFile()  # noqa: SIM115 (it is open as long as the process)
        atexit.register(file.close)
        _FILES[os.getpid()] = file
    return _FILES[os.getpid()]


class HepmcJets(JetReader):
    """Jets that are clustered from the events of a HepMC file, hardest first in each event.

    The axis of a jet is the sum of its constituents.
    """

    features = STORED

    def __init__(self, path: Path, settings: ReadSettings) -> None:
        self.path = path
        if settings.columns or settings.pt_unit:
            raise UserError(f"{path}: HepMC files have no columns to name, and state their unit")
        self._radius = settings.radius or RADIUS
        if self._radius > np.pi / 2:
            raise UserError(f"{path}: radius is {self._radius:g}; it must be at most pi / 2")
        self._min_pt = settings.min_pt_gev or MIN_PT_GEV
        self._max_abs_eta = settings.max_abs_eta
        key = f"hepmc {self._radius} {self._min_pt} {self._max_abs_eta}"
        self._jets: Clustered = remembered(path, self._cluster, key)
        self.n_jets = len(self._jets.offsets) - 1
        self.left_out = self._jets.left_out
        if not self.left_out:
            self.if_none = (
                f" of pt from {self._min_pt:g} GeV in its {self._jets.n_events:,} events; lower"
                " min_pt_gev"
            )
        self.note = (
            f"events clustered by anti-kT, radius {self._radius:g}, pt from {self._min_pt:g} GeV,"
            f" without neutrinos, axis: the sum of the constituents (its rapidity){self._jets.note}"
        )

    def read(self, start: int, stop: int, features: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """As of the contract."""
        self.check_features(features)
        offsets = self._jets.offsets[start : stop + 1]
        width = NUMBER_BYTES * len(STORED)
        first = self._jets.first + int(offsets[0])
        # pread does not move the file's position, which forked processes share
        n_bytes = int(offsets[-1] - offsets[0]) * width
        data = os.pread(self._jets.file.fileno(), n_bytes, first * width)
        if len(data) != n_bytes:
            raise UserError(f"{self.path}: the temporary file of its jets cannot be read")
        values = np.frombuffer(data, np.float32).reshape(-1, len(STORED))
        return values[:, [STORED.index(name) for name in features]], offsets - offsets[0]

    # ---- clustering

    def _cluster(self) -> Clustered:
        """Read the file once, and keep its jets in a temporary file."""
        file = _own_file()
        width = NUMBER_BYTES * len(STORED)
        jets = Clustered(file, file.seek(0, os.SEEK_END) // width)
        sizes: list[np.ndarray] = [np.zeros(0, np.int64)]
        n_events = n_outside = 0
        with closing(Counted(self.path)) as source:
            events = self._events(source)
            size = self.path.stat().st_size
            with _progress(f"clustering {self.path.name}", size) as advance:
                done = 0
                while batch := list(islice(events, EVENTS)):
                    values, offsets, n_out = self._jets_of(batch)
                    file.write(values.tobytes())
                    sizes.append(np.diff(offsets))
                    n_events += len(batch)
                    n_outside += n_out
                    advance(source.position - done)
                    done = source.position
            jets.note = self._fault(source, n_events)
        jets.n_events = n_events
        file.flush()
        if n_outside:
            jets.left_out[f"left out: |eta| above {self._max_abs_eta:g}"] = n_outside
        jets.offsets = offsets_of(np.concatenate(sizes))
        return jets

    def _events(self, source: Counted) -> Iterator[dict[str, np.ndarray]]:
        """Visible particles of each event: px, py, pz, E in GeV, and pdg_id."""
        pyhepmc = _pyhepmc(self.path)
        pyhepmc.Setup.print_errors = False  # what it says is found out by counting
        pyhepmc.Setup.debug_level = 0
        head = source.read(256)
        source.seek(0)
        if b"HepMC::" not in head:
            raise UserError(f"{self.path}: not a HepMC file: HepMC::Version is not in its head")
        with reading(self.path, "HepMC"), pyhepmc.open(source) as file:
            for event in _each(file):
                scale = 1e-3 if event.momentum_unit == pyhepmc.Units.MEV else 1.0
                particles = event.numpy.particles
                pdg_id = np.asarray(particles.pid)
                is_seen = np.asarray(particles.status) == FINAL
                is_seen &= ~np.isin(np.abs(pdg_id), NEUTRINOS)
                parts = {"px": particles.px, "py": particles.py, "pz": particles.pz}
                seen = {name: scale * np.array(p)[is_seen] for name, p in parts.items()}
                seen["E"] = scale * np.array(particles.e)[is_seen]
                yield {**seen, "pdg_id": pdg_id[is_seen]}

    def _fault(self, source: Counted, n_events: int) -> str:
        """What is said of a file whose last event is cut off; "" for a whole one.

        Raises UserError for one that cannot be read in its middle, or holds no event.
        """
        source.rest()
        is_whole = END in source.tail
        n_lost = source.n_events - n_events
        if n_lost > 1 or (n_lost and is_whole):
            raise UserError(
                f"{self.path}: event {n_events + 1} of {source.n_events:,} cannot be read as HepMC;"
                " mend or remove it"
            )
        if not n_events:
            raise UserError(f"{self.path}: holds no event that can be read")
        if n_lost or not is_whole:
            return "; the file breaks off there, and an event that is cut off is left out"
        return ""

    def _jets_of(
        self, batch: Sequence[dict[str, np.ndarray]]
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """STORED of the jets of some events, their offsets, and how many lie outside |eta|."""
        flat = {name: np.concatenate([event[name] for event in batch]) for name in batch[0]}
        n = np.array([len(event["px"]) for event in batch])
        momenta = {name: flat[name] for name in ("px", "py", "pz", "E")}
        events = anti_kt(momenta, n, self._radius, self._min_pt)
        jets = [jet for event in events for jet in event]
        axes = axes_of_sums(*self._of(jets, momenta), self._offsets(jets))
        is_inside = np.ones(len(jets), bool)
        if self._max_abs_eta:
            is_inside = np.abs(axes.eta) <= self._max_abs_eta
        pt = np.hypot(momenta["px"], momenta["py"])
        kept = [
            jet[np.argsort(-pt[jet], kind="stable")]
            for jet, inside in zip(jets, is_inside, strict=True)
            if inside
        ]
        offsets = self._offsets(kept)
        px, py, pz, energy = self._of(kept, momenta)
        pt, eta, phi = pt_eta_phi(px, py, pz)
        eta_rel, phi_rel = about_axes(eta, phi, axes.y[is_inside], axes.phi[is_inside], offsets)
        pdg_id = flat["pdg_id"][_joined(kept)]
        parts = {
            "pt_gev": pt,
            "eta_rel": eta_rel,
            "phi_rel": phi_rel,
            "mass_gev": np.sqrt(np.maximum(energy**2 - px**2 - py**2 - pz**2, 0)),
            "pdg_id": pdg_id,
            "charge": charges_by_id(pdg_id),
        }
        return table_of(parts, STORED), offsets, int((~is_inside).sum())

    def _of(
        self, jets: Sequence[np.ndarray], momenta: dict[str, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        at = _joined(jets)
        return momenta["px"][at], momenta["py"][at], momenta["pz"][at], momenta["E"][at]

    def _offsets(self, jets: Sequence[np.ndarray]) -> np.ndarray:
        return offsets_of(np.array([len(jet) for jet in jets], np.int64))


def _say_nothing(n_bytes: int) -> None:
    pass


@contextmanager
def _progress(label: str, n_bytes: int) -> Iterator[Callable[[int], None]]:
    """Shows how much of a long file was read: gives what is called with the bytes since."""
    if n_bytes < SHOW_PROGRESS_FROM:
        yield _say_nothing
        return
    with Progress(label, n_bytes, "bytes") as progress:
        yield progress.advance


def _joined(jets: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int64), *jets]).astype(np.int64)


def _pyhepmc(path: Path) -> Any:
    try:
        import pyhepmc
    except ImportError:
        raise missing_extra(f"{path}: reading HepMC", "hep") from None
    try:
        import fastjet  # noqa: F401
    except ImportError:
        raise missing_extra(f"{path}: clustering its events", "jets") from None
    return pyhepmc


def hepmc_evidence(path: Path) -> str:
    """HepMC's name in the head of the file."""
    with closing(Counted(path)) as source, reading(path, "HepMC"):
        return "HepMC::Version" if b"HepMC::" in source.read(256) else ""
