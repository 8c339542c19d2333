"""Simulation of labelled jets: Pythia 8 collides protons, fastjet clusters the particles.

Assumptions: every constituent is massless; its three-momentum is kept, its energy is set to |p|
before clustering, so its rapidity and pseudorapidity coincide. Neutrinos are left out, muons stay.
`eta_rel` is the constituent's (pseudo)rapidity minus the RAPIDITY of the jet, `phi_rel` its azimuth
minus the jet's, wrapped into [-pi, pi): a boost along the beam changes neither.

Pythia 8.3 (arXiv 2203.11601), FastJet 3 (arXiv 1111.6097), anti-kT (arXiv 0802.1189).
"""

from __future__ import annotations

import hashlib
import json
import signal
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from mmtok.errors import UserError, missing_extra
from mmtok.io.progress import Progress
from mmtok.nn.angles import wrap
from mmtok.sources.base import Source
from mmtok.sources.jet_clustering import anti_kt
from mmtok.sources.jet_coordinates import check_numbers, jet_numbers
from mmtok.sources.jet_formats import FEATURES, load_flat, save_flat, split_jets

CLASSES = ("gluon", "quark", "top")
PROCESSES = {
    "gluon": ("HardQCD:gg2gg = on", "HardQCD:qqbar2gg = on"),
    "quark": (
        "HardQCD:qq2qq = on",
        "HardQCD:gg2qqbar = on",
        "HardQCD:qqbar2qqbarNew = on",
        "HardQCD:nQuarkNew = 3",
    ),
    "top": (
        "Top:gg2ttbar = on",
        "Top:qqbar2ttbar = on",
        "24:onMode = off",
        "24:onIfAny = 1 2 3 4 5",
    ),
}
JETS_PER_CHUNK = 500  # of one Pythia seed; a constant, since it changes the jets of a seed
EVENTS_PER_BATCH = 25
HARDEST_JETS = 2  # of an event; a third one is rarely that of a hard parton
BEAM_GEV = 6500.0  # of each of two protons; no parton has more
MOST_EVENTS = 2_000  # in a row without a jet of the class, then the settings are refused
MADE_BY = ("pythia8mc", "fastjet")  # packages whose versions change the jets
NEUTRINOS = (12, 14, 16)
OUTGOING = 23  # status of a parton that leaves the hard process
GLUON = 21
LIGHT_QUARKS = (1, 2, 3)  # d, u, s
TOP = 6
W_BOSON = 24


@dataclass(frozen=True)
class PythiaJets(Source):
    """Gluon, light-quark and hadronic top jets of proton collisions at 13 TeV.

    Examples are {"caption": "gluon jet", "jets": (P, 3) float32}. Jets are anti-kT, at most two of
    an event. A gluon or quark (u, d, s) jet lies within radius / 2 of a parton of its kind that
    left the hard process; a top jet has all three quarks of its decay within `radius`. All
    constituents are given, by falling pt: the tokenizer limits their number. Showers, multiple
    interactions and hadronisation are Pythia's defaults. Train and heldout share no event.

    Attributes:
        n_per_class: jets of each class in both splits.
        n_heldout: of n_per_class.
        pt_hat_min_gev: the least transverse momentum of the hard process.
        pt_min_gev: of a jet.
        radius: of the anti-kT algorithm.
        processes: changes the time, not the jets; with more than one, a script of your own needs
            the usual `if __name__ == "__main__"` guard.
        numbers: of each jet that are fields too, each a modality of its own: "pt_gev", "mass_gev".
    """

    seed: int = 0
    n_per_class: int = 6500
    n_heldout: int = 2000
    pt_hat_min_gev: float = 500.0
    pt_min_gev: float = 500.0
    radius: float = 0.8
    processes: int = 2
    numbers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_numbers("PythiaJets", self.numbers, FEATURES)

    @property
    def fields(self) -> dict[str, str]:
        """A jet, the name of its class, and its numbers."""
        return {"caption": "text", **{name: name for name in self.numbers}, "jets": "jets"}

    def check(self) -> None:
        """Raise UserError for settings that no collision can meet."""
        if not 0 < self.n_heldout < self.n_per_class:
            raise UserError(
                f"PythiaJets: n_heldout must lie between 0 and n_per_class, got {self.n_heldout} of"
                f" {self.n_per_class}"
            )
        for name, least in (("pt_hat_min_gev", 0.0), ("pt_min_gev", 1.0)):
            if not least <= getattr(self, name) < BEAM_GEV:
                raise UserError(
                    f"PythiaJets: {name} is {getattr(self, name):g}; it must be at least {least:g}"
                    f" and below {BEAM_GEV:g}, what a proton of a 13 TeV collision has"
                )
        if not 0 < self.radius <= np.pi / 2:
            raise UserError(
                f"PythiaJets: radius is {self.radius:g}; it must be above 0 and at most pi / 2"
            )
        if self.seed < 0 or self.processes < 1:
            raise UserError(
                f"PythiaJets: seed is {self.seed} and processes {self.processes}; they must be at"
                " least 0 and 1"
            )

    def description(self, cache: Path | None = None) -> str:
        """Which versions made the jets under `cache`, or would make them on this machine."""
        cached = self._cached(cache) if cache else []
        made_by = versions()
        if cached:
            made_by = cached[-1].stem.split("_")[3:]
        if not made_by:
            return "to be made by the extra jets, which is not installed"
        return f"made by {', '.join(made_by)}"

    def _cached(self, cache: Path) -> list[Path]:
        """The files of these settings under `cache`, made by any versions; the newest last."""
        return sorted(
            Path(cache).glob(f"pythia_jets_{self._key}_*.npz"),
            key=lambda path: path.stat().st_mtime,
        )

    @property
    def _key(self) -> str:
        settings = {k: v for k, v in asdict(self).items() if k not in ("processes", "numbers")}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]

    def count(self, split: str, cache: Path | None = None) -> int:
        """The number of examples of a split."""
        n = self.n_heldout
        if split != "heldout":
            n = self.n_per_class - self.n_heldout
        return len(CLASSES) * n

    def examples(self, split: str, cache: Path) -> Iterator[dict[str, Any]]:
        """The jets of a split, the classes in turn. Made on first use and kept under `cache`."""
        self.check_split(split)
        values, offsets, labels = load_flat(self.make(cache))
        of_name = jet_numbers(values, offsets, FEATURES, self.numbers)
        by_class: dict[str, list[dict[str, Any]]] = {name: [] for name in CLASSES}
        for i, jet in enumerate(split_jets(values, offsets)):
            of_split, _, name = str(labels[i]).partition("/")
            if of_split == split:
                numbers = {key: column[i] for key, column in of_name.items()}
                by_class[name].append({"caption": f"{name} jet", **numbers, "jets": jet})
        for jets in zip(*by_class.values(), strict=True):
            yield from jets

    def make(self, cache: Path) -> Path:
        """Make all splits in one file under `cache`, and return its path.

        A file that the installed versions made before is kept. Without the extra `jets` a file that
        other versions made is taken too.
        """
        self.check()
        made_by = versions()
        path = Path(cache) / f"pythia_jets_{self._key}_{'_'.join(made_by)}.npz"
        cached = self._cached(cache)
        if path in cached:
            return path
        if cached and len(made_by) < len(MADE_BY):
            warnings.warn(
                f"the jets in {cached[-1].name} are taken as they are: the extra jets is not"
                " installed",
                stacklevel=2,
            )
            return cached[-1]
        need_generators()
        if cached:
            warnings.warn(
                f"jets are made anew: those in {cached[-1].name} are of other versions",
                stacklevel=2,
            )
        chunks = self._chunks()
        jets: list[np.ndarray] = []
        with Progress("making jets", len(CLASSES) * self.n_per_class, "jets") as progress:
            for made in _run(self, chunks):
                jets += made
                progress.advance(len(made))
        names = [f"{split}/{name}" for split, name, n, _ in chunks for _ in range(n)]
        save_flat(path, jets, np.array(names))
        return path

    def _chunks(self) -> list[tuple[str, str, int, int]]:
        """(split, class, number of jets, Pythia's seed) of all chunks, by the settings alone."""
        chunks = []
        for split, n in (("heldout", self.n_heldout), ("train", self.n_per_class - self.n_heldout)):
            for start in range(0, n, JETS_PER_CHUNK):
                for c, name in enumerate(CLASSES):
                    entropy = np.random.SeedSequence(
                        [self.seed, self.splits.index(split), c, start]
                    )
                    # from 1, as Pythia's seed 0 means the clock
                    pythia_seed = 1 + int(entropy.generate_state(1)[0]) % 900_000_000
                    chunks.append((split, name, min(JETS_PER_CHUNK, n - start), pythia_seed))
        return chunks


def _run(source: PythiaJets, chunks: list) -> Iterator[list[np.ndarray]]:
    """The jets of each chunk in order, made by `source.processes` worker processes.

    One process is this one.
    """
    jobs = [(source, name, n, seed) for _, name, n, seed in chunks]
    if source.processes <= 1:
        yield from map(make_chunk, jobs)
        return
    try:
        # workers ignore Ctrl-C; the parent then cancels what has not begun
        with ProcessPoolExecutor(
            source.processes,
            mp_context=get_context("spawn"),
            initializer=signal.signal,
            initargs=(signal.SIGINT, signal.SIG_IGN),
        ) as pool:
            yield from pool.map(make_chunk, jobs)
    except BrokenProcessPool:
        raise UserError(
            'making jets: a worker died; guard your script by if __name__ == "__main__", or set'
            " processes=1"
        ) from None


def make_chunk(job: tuple[PythiaJets, str, int, int]) -> list[np.ndarray]:
    """`n` jets (P, 3) float32 of one class, from one Pythia seed; the work of one process."""
    source, name, n, seed = job
    pythia = _pythia(name, seed, source.pt_hat_min_gev)
    return list(islice(_endless(pythia, name, source), n))


def _endless(pythia: Any, name: str, source: PythiaJets) -> Iterator[np.ndarray]:
    """Endless jets of one class. Raises UserError once too many events in a row have none."""
    n_events = 0
    for batch in _batches(pythia):
        n_events += len(batch["n"])
        for jet in _jets(batch, name, source):
            n_events = 0
            yield jet
        if n_events >= MOST_EVENTS:
            raise UserError(
                f"PythiaJets: {n_events:,} events in a row without a {name} jet of pt_min_gev"
                f" {source.pt_min_gev:g}, at pt_hat_min_gev {source.pt_hat_min_gev:g} and radius"
                f" {source.radius:g}; bring the first two closer together, or widen the radius"
            )


def versions() -> list[str]:
    """NAME-VERSION of the installed packages among those that change the jets."""
    found = []
    for name in MADE_BY:
        with suppress(PackageNotFoundError):
            found.append(f"{name}-{version(name)}")
    return found


def need_generators() -> None:
    """Raise UserError where the extra `jets` is not installed."""
    try:
        import awkward  # noqa: F401
        import fastjet  # noqa: F401
        import pythia8mc  # noqa: F401
        import vector  # noqa: F401
    except ImportError:
        raise missing_extra("making jets", "jets") from None


def _pythia(name: str, seed: int, pt_hat_min_gev: float) -> Any:
    """A silent Pythia that makes one class."""
    import pythia8mc

    pythia = pythia8mc.Pythia("", False)
    settings = (
        "Print:quiet = on",
        "Random:setSeed = on",
        f"Random:seed = {seed}",
        "Beams:eCM = 13000.",
        f"PhaseSpace:pTHatMin = {pt_hat_min_gev}",
        *PROCESSES[name],
    )
    if not all(pythia.readString(line) for line in settings) or not pythia.init():
        raise UserError(
            f"PythiaJets: Pythia refuses to make {name} jets with pt_hat_min_gev {pt_hat_min_gev:g}"
        )
    return pythia


def _batches(pythia: Any) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches of events as flat columns: id, status, mother's id, px, py, pz.

    `n` is the number of particles of each event.
    """
    import awkward as ak

    while True:
        events = pythia.nextBatch(EVENTS_PER_BATCH).prt
        flat = ak.flatten(events)
        n = ak.num(events).to_numpy()
        batch = {key: np.asarray(flat[key]) for key in ("id", "status")}
        batch |= {key: np.asarray(flat.p[key]) for key in ("px", "py", "pz")}
        first = np.repeat(np.cumsum(n) - n, n)
        yield batch | {"mother": batch["id"][first + np.asarray(flat.mother1)], "n": n}


def _jets(batch: dict, name: str, source: PythiaJets) -> Iterator[np.ndarray]:
    """The jets of one class in a batch of events, hardest first within an event."""
    event = np.repeat(np.arange(len(batch["n"])), batch["n"])
    is_visible = (batch["status"] > 0) & ~np.isin(np.abs(batch["id"]), NEUTRINOS)
    partons = _hard_partons(batch, event)
    pt, eta, phi = _pt_eta_phi(batch, is_visible)
    for e, members in _cluster(batch, is_visible, event, source):
        # the jet's four-momentum is the sum of massless constituents (E scheme)
        pt_gev = pt[members]
        plus = pt_gev @ np.exp(eta[members])
        minus = pt_gev @ np.exp(-eta[members])
        y_jet = 0.5 * np.log(plus / minus)
        phi_jet = np.arctan2(pt_gev @ np.sin(phi[members]), pt_gev @ np.cos(phi[members]))
        near = [
            (parton_id, mother_id, np.hypot(parton_eta - y_jet, wrap(parton_phi - phi_jet)))
            for of_event, parton_id, mother_id, parton_eta, parton_phi in partons
            if of_event == e
        ]
        if _matches(near, name, source.radius):
            columns = (pt_gev, eta[members] - y_jet, wrap(phi[members] - phi_jet))
            yield np.stack(columns, 1)[np.argsort(-pt_gev, kind="stable")].astype(np.float32)


def _hard_partons(
    batch: dict, event: np.ndarray
) -> list[tuple[int, int, int, np.float64, np.float64]]:
    """(event, id, mother's id, rapidity, azimuth) of the partons of the hard processes.

    Decay products of their resonances are among them.
    """
    is_hard = np.abs(batch["status"]) == OUTGOING
    _, eta, phi = _pt_eta_phi(batch, is_hard)
    ids = batch["id"][is_hard]
    mothers = batch["mother"][is_hard]
    return list(zip(event[is_hard], ids, mothers, eta, phi, strict=True))


def _matches(near: list[tuple[int, int, np.float64]], name: str, radius: float) -> bool:
    """Whether a jet is of the class `name`.

    near: (id, mother's id, distance from the jet's axis) of the hard partons of its event.
    """
    if name == "top":
        # t -> b W+ and W+ -> q q': the mothers of the three quarks are t, W+, W+; for an
        # antiquark all ids are negative
        signs = [
            int(np.sign(mother))
            for parton, mother, distance in near
            if distance < radius and abs(mother) in (TOP, W_BOSON) and abs(parton) < TOP
        ]
        return signs.count(1) == 3 or signs.count(-1) == 3
    parton, _, distance = min(near, key=lambda item: item[2])
    wanted = (GLUON,) if name == "gluon" else LIGHT_QUARKS
    return bool(distance < radius / 2 and abs(parton) in wanted)


def _cluster(
    batch: dict, is_visible: np.ndarray, event: np.ndarray, source: PythiaJets
) -> Iterator[tuple[int, np.ndarray]]:
    """(event, indices among the visible particles) of each event's hardest jets."""
    p = {key: batch[key][is_visible] for key in ("px", "py", "pz")}
    n = np.bincount(event[is_visible], minlength=len(batch["n"]))
    p["E"] = np.sqrt(p["px"] ** 2 + p["py"] ** 2 + p["pz"] ** 2)  # massless
    for e, jets in enumerate(anti_kt(p, n, source.radius, source.pt_min_gev)):
        yield from ((e, jet) for jet in jets[:HARDEST_JETS])


def _pt_eta_phi(batch: dict, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Transverse momentum, pseudorapidity and azimuth of the particles in the mask.

    A particle along the beam gets a large but finite pseudorapidity.
    """
    px, py, pz = (batch[key][mask] for key in ("px", "py", "pz"))
    pt = np.hypot(px, py)
    eta = np.arcsinh(pz / np.maximum(pt, 1e-12))
    return pt, eta, np.arctan2(py, px)
