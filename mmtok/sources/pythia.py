"""Synthesis of labelled jets: Pythia 8 collides protons, fastjet clusters what comes out.

Hypotheses, stated once. Every constituent is massless: its three-momentum is kept, its energy is
set to |p| before clustering, so its rapidity and pseudorapidity coincide. Neutrinos are left out,
muons stay. `eta_rel` is the constituent's (pseudo)rapidity minus the RAPIDITY of the jet, `phi_rel`
its azimuth minus the jet's, wrapped into [-pi, pi): a boost along the beam changes neither.

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

import numpy as np

from mmtok.errors import UserError, missing_extra
from mmtok.io.progress import Progress
from mmtok.sources.jets import load_flat, save_flat, split_jets

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
JETS_PER_CHUNK = 500  # one Pythia seed each: part of what the seed means, so no dial
EVENTS_PER_BATCH = 25
HARDEST_JETS = 2  # of an event; a third one is rarely that of a hard parton
BEAM_GEV = 6500.0  # of each of two protons; no parton has more
MOST_EVENTS = (
    2_000  # in a row without a jet of the class: with these settings it would take for ever
)
MADE_BY = ("pythia8mc", "fastjet")  # whose versions decide the jets, too


@dataclass(frozen=True)
class PythiaJets:
    """Gluon, light-quark and hadronic top jets of proton collisions at 13 TeV. Fields: caption
    ("gluon jet"), jets (P, 3) float32.

    Jets are anti-kT with pt > pt_min_gev, at most two of an event. A gluon or quark (u, d, s) jet
    lies within radius / 2 of a parton of its kind that left the hard process; a top jet holds all
    three quarks of its decay within `radius`. All constituents are
    given, by falling pt: a cap on their number is the tokenizer's. Showers, multiple interactions
    and hadronisation are Pythia's defaults. Train and heldout share no event. `processes` changes
    the time, not the jets; with more than one, a script of your own needs the usual `if __name__ ==
    "__main__"` guard.
    """

    seed: int = 0
    n_per_class: int = 6500
    n_heldout: int = 2000  # of n_per_class
    pt_hat_min_gev: float = 500.0
    pt_min_gev: float = 500.0
    radius: float = 0.8
    processes: int = 2

    @property
    def fields(self) -> dict[str, str]:
        return {"caption": "text", "jets": "jets"}

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "heldout")

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

    def described(self, cache: Path | None = None) -> str:
        """Which versions made the jets under `cache`, or would make them on this machine."""
        there = self._made(cache) if cache else []
        made_by = (
            there[-1].stem.split("_")[3:]
            if there
            else [f"{name}-{version}" for name, version in versions().items()]
        )
        return (
            f"made by {', '.join(made_by)}"
            if made_by
            else "to be made by the extra jets, which is not installed"
        )

    def _made(self, cache: Path) -> list[Path]:
        """The files of these settings under `cache`, whichever versions made them; the newest last."""
        return sorted(
            Path(cache).glob(f"pythia_jets_{self._key}_*.npz"),
            key=lambda path: path.stat().st_mtime,
        )

    @property
    def _key(self) -> str:
        settings = {name: value for name, value in asdict(self).items() if name != "processes"}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]

    def count(self, split: str, cache: Path | None = None) -> int:
        """How many examples a split has."""
        return len(CLASSES) * (
            self.n_heldout if split == "heldout" else self.n_per_class - self.n_heldout
        )

    def examples(self, split: str, cache: Path) -> Iterator[dict]:
        """The jets of a split, the classes in turn. Made on first use and kept under `cache`."""
        if split not in self.splits:
            raise UserError(f"PythiaJets has no split {split!r}, only {', '.join(self.splits)}")
        path = self.make(cache)
        values, offsets, names = load_flat(path)
        by_class = {name: [] for name in CLASSES}
        for jet, name in zip(split_jets(values, offsets), names):
            which, _, class_name = str(name).partition("/")
            if which == split:
                by_class[class_name].append(jet)
        for row in zip(*by_class.values()):
            yield from ({"caption": f"{name} jet", "jets": jet} for name, jet in zip(by_class, row))

    def make(self, cache: Path) -> Path:
        """Generate all splits into one file under `cache`, unless it is there, made by the
        installed versions. Returns its path.

        Without the extra `jets` what other versions made is taken too.
        """
        self.check()
        made_by = versions()
        path = (
            Path(cache)
            / f"pythia_jets_{self._key}_{'_'.join(f'{name}-{version}' for name, version in made_by.items())}.npz"
        )
        there = self._made(cache)
        if path in there:
            return path
        if there and len(made_by) < len(MADE_BY):
            warnings.warn(
                f"the jets in {there[-1].name} are taken as they are: the extra jets is not"
                " installed",
                stacklevel=2,
            )
            return there[-1]
        need_generators()
        if there:
            warnings.warn(
                f"jets are made anew: those in {there[-1].name} are of other versions", stacklevel=2
            )
        chunks, jets = self._chunks(), []
        with Progress("making jets", len(CLASSES) * self.n_per_class, "jets") as progress:
            for made in _run(self, chunks):
                jets += made
                progress.advance(len(made))
        names = [f"{split}/{name}" for split, name, n, _ in chunks for _ in range(n)]
        save_flat(path, jets, np.array(names))
        return path

    def _chunks(self) -> list[tuple[str, str, int, int]]:
        """(split, class, jets, Pythia's seed) of every piece of work; a function of the settings
        only.
        """
        chunks = []
        for split, n in (("heldout", self.n_heldout), ("train", self.n_per_class - self.n_heldout)):
            for start in range(0, n, JETS_PER_CHUNK):
                for c, name in enumerate(CLASSES):
                    entropy = np.random.SeedSequence(
                        [self.seed, self.splits.index(split), c, start]
                    )
                    pythia_seed = (
                        1 + int(entropy.generate_state(1)[0]) % 900_000_000
                    )  # 0 would mean the clock
                    chunks.append((split, name, min(JETS_PER_CHUNK, n - start), pythia_seed))
        return chunks


def _run(source: PythiaJets, chunks: list) -> Iterator[list[np.ndarray]]:
    """The chunks' jets in order, made by `source.processes` spawned workers, or here when that is
    one.
    """
    jobs = [(source, name, n, seed) for _, name, n, seed in chunks]
    if source.processes <= 1:
        yield from map(make_chunk, jobs)
        return
    # workers leave Ctrl-C to the parent, which then cancels what has not begun
    quiet = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_IGN)}
    try:
        with ProcessPoolExecutor(
            source.processes, mp_context=get_context("spawn"), **quiet
        ) as pool:
            yield from pool.map(make_chunk, jobs)
    except BrokenProcessPool:
        raise UserError(
            'making jets: a worker died; guard your script by if __name__ == "__main__", or set'
            " processes=1"
        ) from None


def make_chunk(job: tuple[PythiaJets, str, int, int]) -> list[np.ndarray]:
    """One worker's job: `n` jets of one class from one Pythia seed, as (P, 3) float32."""
    source, name, n, seed = job
    pythia = _pythia(name, seed, source.pt_hat_min_gev)
    return list(islice(_endless(pythia, name, source), n))


def _endless(pythia, name: str, source: PythiaJets) -> Iterator[np.ndarray]:
    """Jets of one class. Raises UserError once too many events in a row have none."""
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


def versions() -> dict[str, str]:
    """The installed ones of what decides the jets."""
    found = {}
    for name in MADE_BY:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def need_generators() -> None:
    """Raises UserError when the extra `jets` is not installed."""
    try:
        import awkward  # noqa: F401
        import fastjet  # noqa: F401
        import pythia8mc  # noqa: F401
        import vector  # noqa: F401
    except ImportError:
        raise missing_extra("making jets", "jets") from None


def _pythia(name: str, seed: int, pt_hat_min_gev: float):
    """A Pythia that makes one class, silent."""
    import pythia8mc

    pythia = pythia8mc.Pythia("", False)
    settings = ("Print:quiet = on", "Random:setSeed = on", f"Random:seed = {seed}", "Beams:eCM = 13000.",
                f"PhaseSpace:pTHatMin = {pt_hat_min_gev}", *PROCESSES[name])  # fmt: skip
    if not all(pythia.readString(line) for line in settings) or not pythia.init():
        raise UserError(
            f"PythiaJets: Pythia refuses to make {name} jets with pt_hat_min_gev {pt_hat_min_gev:g}"
        )
    return pythia


def _batches(pythia) -> Iterator[dict]:
    """Endless batches of events as flat columns: id, status, mother id, px, py, pz, and n, the
    entries of each event.
    """
    import awkward as ak

    while True:
        events = pythia.nextBatch(EVENTS_PER_BATCH).prt
        flat, n = ak.flatten(events), ak.num(events).to_numpy()
        batch = {key: np.asarray(flat[key]) for key in ("id", "status")}
        batch |= {key: np.asarray(flat.p[key]) for key in ("px", "py", "pz")}
        first = np.repeat(np.cumsum(n) - n, n)
        yield batch | {"mother": batch["id"][first + np.asarray(flat.mother1)], "n": n}


def _jets(batch: dict, name: str, source: PythiaJets) -> Iterator[np.ndarray]:
    """The labelled jets of a batch of events, hardest first within an event."""
    event = np.repeat(np.arange(len(batch["n"])), batch["n"])
    absolute = np.abs(batch["id"])
    seen = (batch["status"] > 0) & ~np.isin(absolute, (12, 14, 16))
    hard = np.abs(batch["status"]) == 23
    targets = list(zip(*_targets(batch, event, hard)))
    pt, eta, phi = _pt_eta_phi(*(batch[k][seen] for k in ("px", "py", "pz")))
    for e, members in _cluster(batch, seen, event, source):
        # the jet's four-momentum is the sum of massless constituents (E scheme)
        weight = pt[members]
        plus, minus = weight @ np.exp(eta[members]), weight @ np.exp(-eta[members])
        y_jet = 0.5 * np.log(plus / minus)
        phi_jet = np.arctan2(weight @ np.sin(phi[members]), weight @ np.cos(phi[members]))
        near = [
            (ids, np.hypot(t_eta - y_jet, wrap(t_phi - phi_jet)))
            for t, ids, t_eta, t_phi in targets
            if t == e
        ]
        if _matched(near, name, source.radius):
            columns = (weight, eta[members] - y_jet, wrap(phi[members] - phi_jet))
            yield np.stack(columns, 1)[np.argsort(-weight, kind="stable")].astype(np.float32)


def _targets(batch: dict, event: np.ndarray, hard: np.ndarray) -> tuple[np.ndarray, ...]:
    """Event, (id, mother's id), rapidity and azimuth of what left the hard process, or a resonance
    of it.
    """
    _, eta, phi = _pt_eta_phi(*(batch[k][hard] for k in ("px", "py", "pz")))
    return event[hard], np.stack((batch["id"][hard], batch["mother"][hard]), 1), eta, phi


def _matched(near: list[tuple[np.ndarray, float]], name: str, radius: float) -> bool:
    """Whether a jet, given (id, mother's id) and distance of its event's hard partons, is one of
    the class `name`.
    """
    if (
        name == "top"
    ):  # t -> b W+ and W+ -> q q': the mothers of the three are 6, 24, 24; all negative for the antiquark
        inside = [
            int(np.sign(ids[1]))
            for ids, distance in near
            if distance < radius and abs(ids[1]) in (6, 24) and abs(ids[0]) <= 5
        ]
        return inside.count(1) == 3 or inside.count(-1) == 3
    ids, distance = min(near, key=lambda target: target[1])
    return bool(
        distance < radius / 2 and (ids[0] == 21 if name == "gluon" else abs(ids[0]) in (1, 2, 3))
    )


def _cluster(
    batch: dict, seen: np.ndarray, event: np.ndarray, source: PythiaJets
) -> Iterator[tuple[int, np.ndarray]]:
    """(event, indices among the seen particles) of each event's hardest jets above pt_min_gev."""
    import awkward as ak
    import fastjet

    _hush_fastjet(fastjet)
    p = {key: batch[key][seen] for key in ("px", "py", "pz")}
    n = np.bincount(event[seen], minlength=len(batch["n"]))
    energy = np.sqrt(p["px"] ** 2 + p["py"] ** 2 + p["pz"] ** 2)  # massless
    particles = ak.unflatten(ak.zip({**p, "E": energy}, with_name="Momentum4D"), n)
    definition = fastjet.JetDefinition(fastjet.antikt_algorithm, source.radius)
    found = fastjet.ClusterSequence(particles, definition).constituent_index(
        min_pt=source.pt_min_gev
    )
    for e, (start, jets) in enumerate(zip(np.cumsum(n) - n, found)):
        members = [start + np.asarray(jet) for jet in jets]
        members.sort(key=lambda jet: -np.hypot(p["px"][jet].sum(), p["py"][jet].sum()))
        yield from ((e, jet) for jet in members[:HARDEST_JETS])


def _hush_fastjet(fastjet) -> None:
    """Turn fastjet's banner off where this build lets us; its licence asks for the citation that
    this module's head gives.
    """
    sequence = getattr(getattr(fastjet, "_swig", None), "ClusterSequence", None)
    if sequence is not None:
        sequence.set_fastjet_banner_stream(None)


def _pt_eta_phi(
    px: np.ndarray, py: np.ndarray, pz: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Transverse momentum, pseudorapidity, azimuth; a particle along the beam gets a large but
    finite pseudorapidity.
    """
    pt = np.hypot(px, py)
    return pt, np.arcsinh(pz / np.maximum(pt, 1e-12)), np.arctan2(py, px)


def wrap(phi: np.ndarray) -> np.ndarray:
    """An angle in radians, into [-pi, pi)."""
    return (phi + np.pi) % (2 * np.pi) - np.pi
