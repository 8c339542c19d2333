"""Jets of a user's file; a jet is float32 (P, F): its constituents by falling pt."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmtok.errors import UserError
from mmtok.io.messages import counted
from mmtok.io.tables import decoded
from mmtok.io.walk import file_at
from mmtok.sources.base import Example, check_heldout_share
from mmtok.sources.jet_formats import FEATURES, join_jets, read_flat_jets, split_jets
from mmtok.sources.screen import Limit, Screen, ScreenedSource


@dataclass(frozen=True)
class JetFile(ScreenedSource):
    """A user's file of jets, of which a share is held out.

    Its fields are `jets`, and `caption` where there are labels.

    Attributes:
        path: of the file: .npz, .npy, .parquet or .h5 (see `mmtok.sources.jet_formats`).
        labels: path of a text file with one caption per line, in the order of the jets; a jet whose
            line is empty cannot be used.
        features: the columns that are read, pt_gev among them.
        heldout_share: share of the jets that is held out.
        seed: of the choice which are held out.
        min_particles: of a jet; those with fewer are left out and counted. 0: any.
        max_particles: the most, likewise.
    """

    path: str = ""
    labels: str = ""
    features: tuple[str, ...] = FEATURES
    heldout_share: float = 0.1
    seed: int = 0
    min_particles: int = 0
    max_particles: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._limit()
        check_heldout_share(self, self.heldout_share)

    @property
    def fields(self) -> dict[str, str]:
        """Jets, and captions where there are labels."""
        if self.labels:
            return {"caption": "text", "jets": "jets"}
        return {"jets": "jets"}

    @property
    def gives(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """The features of the jets."""
        return {"jets": {"features": self.features}}

    def check(self) -> None:
        """Raise UserError where a file is missing, or too many of the jets cannot be used."""
        self._jets()

    def examples(self, split: str, cache: Path | None = None) -> Iterator[dict[str, Any]]:
        """The jets of a split, in the order of the file; nothing is cached."""
        self.check_split(split)
        jets, captions, numbers = self._jets()
        n_heldout = min(max(1, round(self.heldout_share * len(jets))), len(jets) - 1)
        order = np.random.default_rng(self.seed).permutation(len(jets))
        chosen = order[:n_heldout] if split == "heldout" else order[n_heldout:]
        for i in np.sort(chosen):
            caption = {} if captions is None else {"caption": captions[i]}
            yield Example({**caption, "jets": jets[i]}, f"{self.path}: jet {numbers[i]}")

    def _limit(self) -> Limit:
        return Limit("particles", self.min_particles, self.max_particles)

    def _jets(self) -> tuple[list[np.ndarray], list[str] | None, list[int]]:
        """The jets that can be used, their captions, and their numbers in the file."""
        path = file_at(self.path, "JetFile", "jets as .npz, .npy, .parquet or .h5")
        values, offsets = read_flat_jets(path, self.features)
        pt_column = self.features.index("pt_gev")
        n_jets = len(offsets) - 1
        captions = None
        if self.labels:
            labels = file_at(self.labels, "JetFile.labels", "one caption per line")
            captions = _captions(labels, n_jets)
        faults = _faults(values, offsets, pt_column)
        sizes = _n_particles(values, offsets, pt_column)

        def look(i: int) -> dict[str, float]:
            if i in faults:
                raise UserError(f"{path}: jet {i} {faults[i]}")
            if captions is not None and not captions[i].strip():
                raise UserError(
                    f"{labels}: line {i + 1} is empty; write the caption of jet {i}, or remove both"
                )
            return {"particles": int(sizes[i])}

        limits = (self._limit(),)
        kept = Screen(range(n_jets), look, self, "jets", limits, lambda i: f"jet {i}").items
        if len(kept) < 2:
            raise UserError(
                f"{path}: {counted(len(kept), 'jet')} cannot be split into train and heldout; give"
                " at least two"
            )
        values, offsets = join_jets(
            [values[offsets[i] : offsets[i + 1]] for i in kept], len(self.features)
        )
        jets = split_jets(*_cleaned(path, values, offsets, pt_column, kept))
        if captions is not None:
            captions = [captions[i] for i in kept]
        return jets, captions, kept


def _captions(path: Path, n_jets: int) -> list[str]:
    """The lines of a file, plain or .gz, one for each jet; some may be empty."""
    lines = decoded(path).replace("\r\n", "\n").removesuffix("\n").split("\n")
    if len(lines) != n_jets:
        raise UserError(
            f"{path}: {counted(len(lines), 'caption')} for {counted(n_jets, 'jet')}; give one line"
            " per jet"
        )
    return lines


def read_jets(path: str | Path, features: Sequence[str] = FEATURES) -> list[np.ndarray]:
    """The jets of a file, each float32 (P, F) with the columns `features`, by falling pt.

    "pt_gev" must be among the features. Warns of jets that were sorted, of particles of zero pt,
    which are dropped, and of jets without constituents: those are (0, F), so that jet i of the file
    is always row i.

    Raises UserError, naming file and jet, for a file that cannot be read, and for NaN, infinite or
    negative pt.
    """
    path = Path(path)
    values, offsets = read_flat_jets(path, tuple(features))
    return split_jets(*_cleaned(path, values, offsets, list(features).index("pt_gev")))


def checked_jet(values: object, name: str, features: Sequence[str] = FEATURES) -> np.ndarray:
    """One jet in memory, a list or array (P, F), as `read_jets` would give it.

    name: what messages call it.

    Raises UserError as `read_jets` does, and for a jet without constituents.
    """
    try:
        array = np.asarray(values, np.float32)
    except (TypeError, ValueError):
        array = np.zeros(0, np.float32)
    if array.ndim != 2 or array.shape[1] != len(features):
        raise UserError(
            f"{name}: a jet is a list of constituents of {len(features)} numbers"
            f" ({', '.join(features)})"
        )
    pt_column = list(features).index("pt_gev")
    if not array[:, pt_column].any():
        raise UserError(f"{name}: the jet has no constituents; remove it")
    return split_jets(*_cleaned(name, array, np.array([0, len(array)]), pt_column))[0]


def _cleaned(
    path: Path | str,
    values: np.ndarray,
    offsets: np.ndarray,
    pt_column: int,
    numbers: Sequence[int] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Flat values and offsets without particles of zero pt, each jet sorted by falling pt.

    numbers: of these jets in the file, where some were left out.

    Raises UserError for the first jet that has a fault.
    """
    for i, fault in _faults(values, offsets, pt_column).items():
        raise UserError(f"{path}: jet {i} {fault}")
    jet = _jet_of_particle(offsets)
    pt = values[:, pt_column]
    if not pt.all():
        warnings.warn(
            f"{path}: dropped {counted(np.sum(pt == 0), 'particle')} of zero pt", stacklevel=3
        )
        values = values[pt > 0]
        jet = jet[pt > 0]
    n_particles = np.bincount(jet, minlength=len(offsets) - 1)
    if not n_particles.all():
        first = int(np.argmin(n_particles))
        warnings.warn(
            f"{path}: {np.sum(n_particles == 0):,} of {len(n_particles):,} jets have no"
            f" constituents, the first is jet {numbers[first] if numbers else first}",
            stacklevel=3,
        )
    pt = values[:, pt_column]
    rises = (np.diff(pt) > 0) & (np.diff(jet) == 0)
    if rises.any():
        warnings.warn(
            f"{path}: sorted {counted(len(np.unique(jet[1:][rises])), 'jet')} by falling pt",
            stacklevel=3,
        )
        values = values[np.lexsort((-pt, jet))]
    return values, np.concatenate(([0], np.cumsum(n_particles)))


def _jet_of_particle(offsets: np.ndarray) -> np.ndarray:
    """(all P,) the index of the jet that each particle belongs to."""
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def _faults(values: np.ndarray, offsets: np.ndarray, pt_column: int) -> dict[int, str]:
    """What is wrong with the jets that cannot be used, by their index."""
    jet = _jet_of_particle(offsets)
    faults = {
        int(i): "has a negative pt; give pt in GeV, not its logarithm"
        for i in jet[values[:, pt_column] < 0]
    }
    for i in jet[~np.isfinite(values).all(1)]:
        faults[int(i)] = "has a NaN or infinite value; remove the jet or pad with zeros"
    return dict(sorted(faults.items()))


def _n_particles(values: np.ndarray, offsets: np.ndarray, pt_column: int) -> np.ndarray:
    """(N,) how many particles of each jet have a pt other than zero."""
    jet = _jet_of_particle(offsets)
    return np.bincount(jet[values[:, pt_column] != 0], minlength=len(offsets) - 1)
