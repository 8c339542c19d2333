"""Simulation of labelled jets: Pythia 8 collides protons, fastjet clusters the particles.

What is assumed of particles, axes and classes is in `pythia_events`, of pile-up in
`pythia_pileup`.
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

from mmtok.errors import UserError
from mmtok.io.progress import Progress
from mmtok.sources.base import Source
from mmtok.sources.jet_coordinates import check_numbers, jet_numbers
from mmtok.sources.jet_formats import FEATURES, load_flat, save_flat, split_jets
from mmtok.sources.pythia_events import (
    CLASSES,
    TRACKS,
    JetCuts,
    event_batches,
    hard_pythia,
    jets_in,
    need_generators,
    soft_events,
)

JETS_PER_CHUNK = 500  # of one Pythia seed; a constant, since it changes the jets of a seed
BEAM_GEV = 6500.0  # of each of two protons; no parton has more
MOST_EVENTS = 2_000  # in a row without a jet of the class, then the settings are refused
MOST_PILEUP = 1_000  # collisions on average; no collider has more
MADE_BY = ("pythia8mc", "fastjet")  # packages whose versions change the jets
IS_PILEUP = "is_pileup"
LATER = ("classes", "mu", "features")  # settings that the names of files have where they are set


@dataclass(frozen=True)
class PythiaJets(Source):
    """Jets of proton collisions at 13 TeV, by class.

    Examples are {"caption": "gluon jet", "jets": (P, F) float32}. Jets are anti-kT, at most two of
    an event. A gluon or quark (u, d, s) jet lies within radius / 2 of a parton of its kind that
    left the hard process; a top, W, Z or Higgs jet has all quarks of its decay (b q q', q q', b b)
    within `radius`. All
    constituents are given, by falling pt: the tokenizer limits their number. Showers, multiple
    interactions and hadronisation are Pythia's defaults. Train and heldout share no event.

    With pile-up, jets are clustered anew with it, about an axis of their own, and the field
    `clean_jets` is the jet without the particles of pile-up, about the same axis.

    Attributes:
        n_per_class: jets of each class in both splits.
        n_heldout: of n_per_class.
        pt_hat_min_gev: the least transverse momentum of the hard process.
        pt_min_gev: of a jet.
        radius: of the anti-kT algorithm.
        processes: changes the time, not the jets; with more than one, a script of your own needs
            the usual `if __name__ == "__main__"` guard.
        numbers: of each jet that are fields too, each a modality of its own: "pt_gev", "mass_gev".
        classes: some of gluon, quark, top, W, Z, Higgs (to b quarks).
        mu: the mean number of collisions of pile-up in an event, Poisson distributed; 0: none.
        features: columns of a jet: pt_gev, eta_rel, phi_rel, and of charge, particle_id (see
            `jet_coordinates.PARTICLE_IDS`), d0, dz (mm) and is_pileup (0 or 1).
    """

    seed: int = 0
    n_per_class: int = 6500
    n_heldout: int = 2000
    pt_hat_min_gev: float = 500.0
    pt_min_gev: float = 500.0
    radius: float = 0.8
    processes: int = 2
    numbers: tuple[str, ...] = ()
    classes: tuple[str, ...] = ("gluon", "quark", "top")
    mu: float = 0.0
    features: tuple[str, ...] = FEATURES

    def __post_init__(self) -> None:
        check_numbers("PythiaJets", self.numbers, self.features)
        self._check_named("classes", self.classes, CLASSES)
        self._check_named("features", self.features, (*FEATURES, *TRACKS, IS_PILEUP))
        if self.features[0] != FEATURES[0]:
            raise UserError(f"PythiaJets: the first of features must be {FEATURES[0]}")
        if not 0 <= self.mu <= MOST_PILEUP:
            raise UserError(
                f"PythiaJets: mu is {self.mu:g}, the mean number of collisions of pile-up; it must"
                f" be 0 to {MOST_PILEUP:,}"
            )

    def _check_named(self, field: str, names: tuple[str, ...], known: tuple[str, ...]) -> None:
        """Raise UserError unless a field names some of what is known, each once."""
        if not names or not set(names) <= set(known) or len(set(names)) < len(names):
            raise UserError(
                f"PythiaJets: {field} are some of {', '.join(known)}, each once; got"
                f" {', '.join(names) or 'none'}"
            )

    @property
    def fields(self) -> dict[str, str]:
        """A jet, the name of its class, and its numbers; with pile-up, the jet without it too."""
        found = {"caption": "text", **{name: name for name in self.numbers}, "jets": "jets"}
        if self.mu:
            found["clean_jets"] = "jets"
        return found

    @property
    def gives(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """The features of the jets."""
        return {"jets": {"features": self.features}}

    @property
    def kept_features(self) -> tuple[str, ...]:
        """Columns of the file: with pile-up, which particles are of it is always among them."""
        if self.mu and IS_PILEUP not in self.features:
            return (*self.features, IS_PILEUP)
        return self.features

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
        for name in LATER:
            if settings[name] == getattr(PythiaJets, name):
                del settings[name]
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]

    def count(self, split: str, cache: Path | None = None) -> int:
        """The number of examples of a split."""
        n = self.n_heldout
        if split != "heldout":
            n = self.n_per_class - self.n_heldout
        return len(self.classes) * n

    def examples(self, split: str, cache: Path) -> Iterator[dict[str, Any]]:
        """The jets of a split, the classes in turn. Made on first use and kept under `cache`."""
        self.check_split(split)
        values, offsets, labels = load_flat(self.make(cache))
        of_name = jet_numbers(values, offsets, self.kept_features, self.numbers)
        by_class: dict[str, list[dict[str, Any]]] = {name: [] for name in self.classes}
        for i, jet in enumerate(split_jets(values, offsets)):
            of_split, _, name = str(labels[i]).partition("/")
            if of_split == split:
                numbers = {key: column[i] for key, column in of_name.items()}
                by_class[name].append({"caption": f"{name} jet", **numbers, **self._fields_of(jet)})
        for jets in zip(*by_class.values(), strict=True):
            yield from jets

    def _fields_of(self, jet: np.ndarray) -> dict[str, np.ndarray]:
        """The jet (P, F), and with pile-up the one without it, of a jet as it is kept."""
        asked = jet[:, : len(self.features)]
        if not self.mu:
            return {"jets": asked}
        is_pileup = jet[:, self.kept_features.index(IS_PILEUP)] > 0
        return {"jets": asked, "clean_jets": asked[~is_pileup]}

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
        with Progress("making jets", len(self.classes) * self.n_per_class, "jets") as progress:
            for made in _run(self, chunks):
                jets += made
                progress.advance(len(made))
        names = [f"{split}/{name}" for split, name, n, _ in chunks for _ in range(n)]
        save_flat(path, jets, np.array(names), self.kept_features)
        return path

    def _chunks(self) -> list[tuple[str, str, int, int]]:
        """(split, class, number of jets, Pythia's seed) of all chunks, by the settings alone."""
        chunks = []
        for split, n in (("heldout", self.n_heldout), ("train", self.n_per_class - self.n_heldout)):
            for start in range(0, n, JETS_PER_CHUNK):
                for name in self.classes:
                    entropy = np.random.SeedSequence(
                        [self.seed, self.splits.index(split), CLASSES.index(name), start]
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
    """`n` jets (P, F) float32 of one class, from one Pythia seed; the work of one process."""
    source, name, n, seed = job
    return list(islice(_endless(name, source, seed), n))


def _endless(name: str, source: PythiaJets, seed: int) -> Iterator[np.ndarray]:
    """Endless jets of one class. Raises UserError once too many events in a row have none."""
    pythia = hard_pythia(name, seed, source.pt_hat_min_gev)
    pileup = None
    if source.mu:
        pileup = soft_events(source.mu, seed)
    cuts = JetCuts(source.radius, source.pt_min_gev, source.kept_features)
    n_events = 0
    for batch in event_batches(pythia):
        n_events += len(batch["n"])
        for jet in jets_in(batch, name, cuts, pythia, pileup):
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
