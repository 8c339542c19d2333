"""Neutrinos of simulated W bosons and top quarks: what is measured, and what it leaves open.

Two toys of proton collisions at 13 TeV, by Pythia 8 (arXiv 2203.11601), whose partons are the jets:

"W"      q qbar' -> W -> l nu, recoiling against radiation. The lepton and the missing transverse
         momentum are exact, so that the W's mass leaves two solutions for the neutrino's pz,
         (mu pz_l +- sqrt(mu^2 pz_l^2 - pT_l^2 (E_l^2 pT_nu^2 - mu^2))) / pT_l^2 with
         mu = m_W^2 / 2 + pT_l . pT_nu, each as wide as the W's mass is.
"ttbar"  t tbar -> l nu b, q q' b. Momenta of jets are smeared, and the missing transverse momentum
         is the neutrino's with their errors and that of a soft part. As of nu-flows (Leigh et al.
         2022, arXiv 2207.00664), what is asked for is the neutrino's momentum.

Each event is turned about the beam until the lepton's transverse momentum is along x: nothing else
of it depends on that angle. All in GeV.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mmtok.errors import UserError
from mmtok.io.files import atomic_write
from mmtok.io.progress import Progress
from mmtok.sources.base import Source
from mmtok.sources.pythia import versions
from mmtok.sources.pythia_events import event_batches, need_generators, silent_pythia

W_MASS_GEV = 80.385  # Pythia's
LEPTONS = (11, 13)
NEUTRINOS = (12, 14)
LIGHT = (1, 2, 3, 4)
BOTTOM = 5
W_BOSON = 24
HARD = 23  # status of what leaves the hard process, or the decay of its resonances
PARTONS_ONLY = ("PartonLevel:MPI = off", "PartonLevel:FSR = off", "HadronLevel:all = off")
PROCESSES = {
    "W": ("WeakSingleBoson:ffbar2W = on", "24:onMode = off", "24:onIfAny = 11 13"),
    "ttbar": (
        "Top:gg2ttbar = on",
        "Top:qqbar2ttbar = on",
        "24:onMode = off",
        "24:onPosIfAny = 11 13",
        "24:onNegIfAny = 1 2 3 4 5",
    ),
}
FIELDS: dict[str, tuple[str, ...]] = {
    "W": ("lepton", "met", "neutrino_pz"),
    "ttbar": ("lepton", "met", "partons", "neutrino"),
}
STOCHASTIC = 0.8  # sigma(E) / E = STOCHASTIC / sqrt(E) and CONSTANT in quadrature, of a jet
CONSTANT = 0.05
SOFT_GEV = 10.0  # of each component of the missing transverse momentum, beside the jets' errors
PER_SEED = 5_000  # events of one Pythia seed; a constant, since it changes the events of a seed


@dataclass(frozen=True)
class NeutrinoEvents(Source):
    """Events with one charged lepton and its neutrino; see the module's docstring.

    Fields, each a vector in GeV: `lepton` (pt, pz), `met` (along the lepton, across), and for ttbar
    `partons` (px, py, pz of the two b by falling pt, then of the two light quarks). For W
    `neutrino_pz`, for ttbar `neutrino` (px, py, pz).

    Attributes:
        process: "W" or "ttbar".
        n_train: events to train on.
        n_heldout: events held out.
        lepton_pt_min_gev: least transverse momentum of the lepton.
        lepton_max_abs_eta: largest absolute pseudorapidity of the lepton.
        met_min_gev: least missing transverse momentum.
        seed: of Pythia, and of the errors of jets.
    """

    process: Literal["W", "ttbar"] = "W"
    n_train: int = 50_000
    n_heldout: int = 10_000
    lepton_pt_min_gev: float = 25.0
    lepton_max_abs_eta: float = 2.5
    met_min_gev: float = 25.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.process not in PROCESSES:
            raise UserError(
                f"NeutrinoEvents: process is {self.process!r}; it must be one of"
                f" {', '.join(PROCESSES)}"
            )
        for name in ("n_train", "n_heldout"):
            if getattr(self, name) < 1:
                raise UserError(f"NeutrinoEvents: {name} is {getattr(self, name)}; at least 1")
        cuts = (self.lepton_pt_min_gev, self.met_min_gev)
        if (
            not (min(cuts) >= 0 and max(cuts) <= 100 and self.lepton_max_abs_eta > 0)
            or self.seed < 0
        ):
            raise UserError(
                "NeutrinoEvents: lepton_pt_min_gev and met_min_gev must be 0 to 100,"
                " lepton_max_abs_eta above 0 and seed not negative"
            )

    @property
    def fields(self) -> dict[str, str]:
        """Each is a modality of its own."""
        names = FIELDS[self.process]
        return dict(zip(names, names, strict=True))

    def count(self, split: str, cache: Path) -> int:
        """As the settings say."""
        return self.n_train if split == "train" else self.n_heldout

    def examples(self, split: str, cache: Path) -> Iterator[dict[str, Any]]:
        """The events of a split; made on first use and kept under `cache`."""
        self.check_split(split)
        made = self._made(split, cache)
        for i in range(self.count(split, cache)):
            yield {name: made[name][i] for name in self.fields}

    def _made(self, split: str, cache: Path) -> dict[str, np.ndarray]:
        """Columns (N, D) of a split."""
        settings = {k: v for k, v in asdict(self).items() if k not in ("n_train", "n_heldout")}
        settings |= {"split": split, "n": self.count(split, cache), "made_by": versions()}
        text = json.dumps(settings, sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()[:12]
        path = Path(cache) / f"neutrinos_{self.process}_{split}_{key}.npz"
        if not path.exists():
            made = self._make(split, self.count(split, cache))
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as temporary, open(temporary, "wb") as file:
                np.savez(file, allow_pickle=False, **made)
        with np.load(path) as stored:
            return {name: stored[name] for name in self.fields}

    def _make(self, split: str, n: int) -> dict[str, np.ndarray]:
        """n events, by so many Pythia seeds as they need."""
        need_generators()
        parts: list[dict[str, np.ndarray]] = []
        found = 0
        with Progress("making events", n, "events") as progress:
            while found < n:
                words = (self.seed, self.splits.index(split), len(parts))
                part = self._one_seed(np.random.SeedSequence(words), min(PER_SEED, n - found))
                parts.append(part)
                found += len(part["lepton"])
                progress.advance(len(part["lepton"]))
        return {name: np.concatenate([part[name] for part in parts]) for name in self.fields}

    def _one_seed(self, entropy: np.random.SeedSequence, n: int) -> dict[str, np.ndarray]:
        """The first n events that pass the cuts, of one seed of Pythia."""
        settings = (*PARTONS_ONLY, *PROCESSES[self.process])
        # from 1, as Pythia's seed 0 means the clock
        pythia = silent_pythia(1 + int(entropy.generate_state(1)[0]) % 900_000_000, settings)
        if pythia is None:
            raise UserError(f"NeutrinoEvents: Pythia refuses to make {self.process} events")
        rng = np.random.default_rng(entropy)
        kept: list[dict[str, np.ndarray]] = []
        found = 0
        for batch in event_batches(pythia):
            columns = self._measured(batch, rng)
            pt, pz = columns["lepton"].T
            passed = (pt > self.lepton_pt_min_gev) & (
                np.abs(np.arcsinh(pz / pt)) < self.lepton_max_abs_eta
            )
            passed &= np.hypot(*columns["met"].T) > self.met_min_gev
            kept.append({name: column[passed] for name, column in columns.items()})
            found += int(np.count_nonzero(passed))
            if found >= n:
                break
        return {name: np.concatenate([part[name] for part in kept])[:n] for name in kept[0]}

    def _measured(
        self, batch: Mapping[str, Any], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """The fields of every event of a batch that has the particles that it should."""
        event = np.repeat(np.arange(len(batch["n"])), batch["n"])
        of_w = (batch["status"] > 0) & (np.abs(batch["mother"]) == W_BOSON)
        lepton = _of_each(batch, event, of_w, LEPTONS, 1)
        neutrino = _of_each(batch, event, of_w, NEUTRINOS, 1)
        complete = np.isfinite(lepton + neutrino).all((1, 2))
        met = neutrino[:, 0, :2].copy()
        partons = np.zeros((len(lepton), 0, 3))
        if self.process == "ttbar":
            hard = np.abs(batch["status"]) == HARD
            bottom = hard & (np.abs(batch["mother"]) == BOTTOM + 1)
            exact = [_of_each(batch, event, bottom, (BOTTOM,), 2)]
            exact.append(_of_each(batch, event, hard & of_w, (*LIGHT, BOTTOM), 2))
            partons = np.concatenate(exact, 1)
            complete &= np.isfinite(partons).all((1, 2))
            energy = np.linalg.norm(partons, axis=2, keepdims=True)
            width = np.sqrt(STOCHASTIC**2 / np.maximum(energy, 1.0) + CONSTANT**2)
            error = partons * width * rng.normal(size=energy.shape)
            met += SOFT_GEV * rng.normal(size=met.shape) - error[:, :, :2].sum(1)
            partons = _by_falling_pt(partons + error)
        lepton, met, partons, neutrino = (
            x[complete] for x in (lepton, met[:, None], partons, neutrino)
        )
        angle = np.arctan2(lepton[:, 0, 1], lepton[:, 0, 0])
        lepton = _turned(lepton, angle)[:, 0]
        neutrino = _turned(neutrino, angle)[:, 0]
        return {
            "lepton": lepton[:, [0, 2]],
            "met": _turned(met, angle)[:, 0],
            "partons": _turned(partons, angle).reshape(len(lepton), -1),
            "neutrino": neutrino,
            "neutrino_pz": neutrino[:, 2:],
        }


def _of_each(
    batch: Mapping[str, Any], event: np.ndarray, chosen: np.ndarray, kinds: tuple[int, ...], n: int
) -> np.ndarray:
    """Momenta (events, n, 3) of chosen particles of these kinds; NaN where they are not n."""
    chosen = chosen & np.isin(np.abs(batch["id"]), kinds)
    momenta = np.full((len(batch["n"]), n, 3), np.nan)
    counts = np.bincount(event[chosen], minlength=len(momenta))
    exact = counts[event[chosen]] == n
    flat = np.stack([batch[key][chosen] for key in ("px", "py", "pz")], 1)[exact]
    momenta[counts == n] = flat.reshape(-1, n, 3)
    return momenta


def _by_falling_pt(partons: np.ndarray) -> np.ndarray:
    """Partons (N, 4, 3), each pair with the harder one first."""
    pairs = partons.reshape(-1, 2, 2, 3)
    order = np.argsort(-np.hypot(pairs[..., 0], pairs[..., 1]), axis=2)
    return np.take_along_axis(pairs, order[..., None], 2).reshape(partons.shape)


def _turned(momenta: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Momenta (N, n, 2 or 3) turned about the beam by minus the angle (N,)."""
    c = np.cos(angle)[:, None]
    s = np.sin(angle)[:, None]
    x = momenta[..., 0]
    y = momenta[..., 1]
    turned = momenta.copy()
    turned[..., 0] = c * x + s * y
    turned[..., 1] = c * y - s * x
    return turned


def pz_solutions(lepton: np.ndarray, met: np.ndarray, mass_gev: float = W_MASS_GEV) -> np.ndarray:
    """The two pz (N, 2) in GeV, lower first, that a W's mass leaves to its neutrino.

    lepton (N, 2) and met (N, 2) as of `NeutrinoEvents`. Where there is none (a transverse mass
    above the W's), both are the real part.
    """
    pt, pz = lepton.T
    mu = mass_gev**2 / 2 + pt * met[:, 0]
    square = (mu * pz) ** 2 - pt**2 * ((pt**2 + pz**2) * np.square(met).sum(1) - mu**2)
    root = np.sqrt(np.maximum(square, 0))
    return np.stack([mu * pz - root, mu * pz + root], 1) / pt[:, None] ** 2
