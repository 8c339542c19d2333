"""Jets as JetNet keeps them: Zenodo 6975118 (30 particles) and 6975117 (150), arXiv 2106.11535."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from mmtok.errors import UserError, reading
from mmtok.io.columns import known_column
from mmtok.io.messages import listed
from mmtok.sources.jet_columns import hdf5_members, hdf5_rows, open_hdf5
from mmtok.sources.jet_quantities import OTHER_NAMES, PARTS
from mmtok.sources.jet_reader import (
    FEATURES,
    JetReader,
    ReadSettings,
    as_caption,
    offsets_of,
    table_of,
)

JETNET = ("particle_features", "jet_features")
JETNET_PARTS = ("etarel", "phirel", "ptrel", "mask")
JETNET_JETS = ("pt", "eta", "mass", "num_particles")
LOOKED = 200  # jets of JetNet that tell which column is what
LOOKED_BYTES = 2**22  # of them, at most
SHARES_SUM = (0.2, 1.1)  # of a jet's shares of pt, in the median
MOST_OFF = 1.5  # the stated mass over the particles', or the inverse, of the middle half
UNITS = "pt: ptrel times the jet's, in GeV (as published), angles about the jet's axis"
JETNET_NAMES = ("ptrel", "deta", "eta_rel", "dphi", "phi_rel", "mask", "jet_pt", "caption")
JETNET_TYPES = {"g": "gluon", "q": "quark", "t": "top", "w": "W", "z": "Z"}


class JetNetJets(JetReader):
    """JetNet of 30 or 150 particles: pt_gev is ptrel times the jet's pt.

    Columns are in the published order (etarel, phirel, ptrel, mask; pt, eta, mass, num_particles)
    unless an attribute of the file names them, or the user does by number: `--columns
    ptrel=0,deta=1,dphi=2,jet_pt=1 --layout jetnet`. A mask is a column of two values, of which the
    greater one is of constituents; without, constituents of zero pt are padding. A user who asks
    for `caption=type` gets the type in the file's name, g, q, t, w or z.
    """

    features = FEATURES

    def __init__(self, path: Path, settings: ReadSettings) -> None:
        self.path = path
        self._file = open_hdf5(path)
        with reading(path, "jets"):
            there = list(self._file)
            tables = [self._file.get(name) for name in JETNET]
            shapes: list[Any] = [getattr(table, "shape", None) for table in tables]
            kinds: list[Any] = [getattr(table, "dtype", None) for table in tables]
        if None in shapes:
            raise UserError(
                f"{path}: not a JetNet file: it needs {' and '.join(JETNET)}, and has"
                f" {listed(there)}"
            )
        for name, kind in zip(JETNET, kinds, strict=True):
            if kind.kind not in "fiu":
                raise UserError(f"{path}: {name} holds {kind}, no numbers")
        self._particles, self._jets = tables
        shape, of_jets = shapes
        if (
            len(shape) != 3
            or shape[2] < 3
            or len(of_jets) != 2
            or of_jets[1] < 1
            or of_jets[0] != shape[0]
        ):
            raise UserError(
                f"{path}: expected particle_features (N, P, 4) and jet_features (N, 4), got"
                f" {shape} and {of_jets}"
            )
        self.n_jets = shape[0]
        self._widths = (int(shape[2]), int(of_jets[1]))
        self._find_columns(settings)
        self._find_caption(settings)

    def _find_columns(self, settings: ReadSettings) -> None:
        """Which column is what, by attributes, by the user's numbers, or as published."""
        width, jet_width = self._widths
        stated = _names_of(self.path, self._particles, width)
        names = stated or JETNET_PARTS[:width]
        at = {}
        for part in ("deta", "dphi", "ptrel", "mask"):
            name = known_column(PARTS[part], names)
            if name is not None:
                at[part] = names.index(name)
        for name, column in settings.columns.items():
            part = OTHER_NAMES.get(name, name)
            if part in ("deta", "dphi", "ptrel", "mask"):
                at[part] = _number(self.path, column, names, JETNET[0])
        missing = [part for part in ("deta", "dphi", "ptrel") if part not in at]
        if missing:
            raise UserError(
                f"{self.path}: the columns of particle_features are {listed(names)}, without"
                f" {', '.join(missing)}; number them: --columns ptrel=2,deta=0,dphi=1"
            )
        self._at = at
        if not stated and not set(settings.columns) & set(JETNET_NAMES[:6]):
            self._check_parts()
        self._find_mask(is_sure=bool(stated) or "mask" in settings.columns)
        stated = _names_of(self.path, self._jets, jet_width)
        of_jets = stated or JETNET_JETS
        if len(of_jets) < jet_width:
            of_jets = ("type", *of_jets)  # as the JetNet package gives them
        asked = settings.columns.get("jet_pt", "pt")
        if "pt" not in of_jets and asked == "pt":
            raise UserError(
                f"{self.path}: the columns of jet_features are {listed(of_jets)}, without pt;"
                " number it: --columns jet_pt=0"
            )
        self._pt_at = _number(self.path, asked, of_jets[:jet_width], JETNET[1])
        if not stated and "jet_pt" not in settings.columns and "mass" in of_jets[:jet_width]:
            self._check_pt(of_jets.index("mass"))
        self.note = UNITS
        if names != JETNET_PARTS or of_jets != JETNET_JETS:
            self.note = f"columns {', '.join(names)} and {', '.join(of_jets)}, {UNITS}"

    def _first(self, table: Any) -> np.ndarray:
        """The first rows, to tell by what a table holds."""
        row_bytes = math.prod(table.shape[1:]) * table.dtype.itemsize
        n = min(self.n_jets, LOOKED, LOOKED_BYTES // max(1, row_bytes))
        return hdf5_rows(self.path, table, 0, n).astype(np.float64)

    def _check_parts(self) -> None:
        """Raise UserError where columns that nothing names are not as published.

        A jet's shares of pt sum to about 1 (less where only the first particles are kept), and a
        mask is 0 or 1.
        """
        particles = self._first(self._particles)
        columns = np.moveaxis(particles[particles.any((1, 2))], 2, 0)
        if not columns.size:
            return
        shares = [i for i, column in enumerate(columns) if _are_shares(column)]
        masks = [i for i, column in enumerate(columns) if _mask_cut(column) is not None]
        if self._at["ptrel"] in shares and self._at.get("mask", -1) in (*masks, -1):
            return
        pts = [] if shares else self._absolute_pts()
        numbers = {}
        if shares or pts:
            numbers["ptrel" if shares else "pt"] = (shares or pts)[0]
        if masks:
            numbers["mask"] = masks[-1]
        others = [i for i in range(len(columns)) if i not in numbers.values()]
        numbers |= dict(zip(("deta", "dphi"), others, strict=False))
        raise UserError(
            f"{self.path}: nothing names the columns of particle_features, and they are not"
            f" {listed(JETNET_PARTS)}, as published: shares of pt, which sum to 1 a jet, are in"
            f" {_columns_text(shares)}, a mask in {_columns_text(masks)}; {_advice(numbers, pts)}"
        )

    def _absolute_pts(self) -> list[int]:
        """Columns of particles that sum to a column of their jets: pt, and no share of it."""
        particles = self._first(self._particles)
        jets = self._first(self._jets)
        found = []
        for i, column in enumerate(np.moveaxis(particles, 2, 0)):
            for of_jets in jets.T:
                is_there = of_jets > 0
                shares = column[is_there] / of_jets[is_there, None]
                if is_there.any() and _are_shares(shares) and _mask_cut(column) is None:
                    found.append(i)
                    break
        return found

    def _find_mask(self, is_sure: bool) -> None:
        """Where the mask is cut; a column that is none is taken for one only where that is sure."""
        if "mask" not in self._at:
            return
        cut = _mask_cut(self._first(self._particles)[..., self._at["mask"]])
        if cut is None and not is_sure:
            del self._at["mask"]
        self._mask_cut = 0.5 if cut is None else cut

    def _check_pt(self, mass_at: int) -> None:
        """Raise UserError where unnamed columns are in another order than published.

        The particles' mass, scaled to the jet's pt, is the jet's mass: this tells which they are.
        """
        particles = self._first(self._particles)
        pt, eta, phi = (particles[..., self._at[part]] for part in ("ptrel", "deta", "dphi"))
        is_real = pt > 0
        if "mask" in self._at:
            is_real &= particles[..., self._at["mask"]] > self._mask_cut
        pt = pt * is_real
        x, y, z, energy = (
            (pt * f).sum(1) for f in (np.cos(phi), np.sin(phi), np.sinh(eta), np.cosh(eta))
        )
        mass = np.sqrt(np.maximum(energy**2 - x**2 - y**2 - z**2, 0))
        jets = self._first(self._jets)
        known = (is_real.sum(1) >= 3) & (mass > 0)
        if not known.any():
            return
        jets = jets[known]
        published = (self._pt_at, mass_at)
        pairs = [published, *permutations(range(jets.shape[1]), 2)]
        fitting = [pair for pair in pairs if _are_masses(jets, *pair, mass[known])]
        if fitting[:1] == [published]:
            return
        if not fitting and (jets[:, self._pt_at] > 0).all():
            return  # its masses are of something else
        example = fitting[0][0] if fitting else 0
        raise UserError(
            f"{self.path}: nothing names the columns of jet_features, and column {self._pt_at} is"
            f" not the pt, as published; number it, such as --columns jet_pt={example}"
        )

    def _find_caption(self, settings: ReadSettings) -> None:
        """The type of the jets, where captions are asked for."""
        column = settings.columns.get("caption")
        if column is None:
            return
        kind = re.match(r"([gqtwz])(30|150)?$", self.path.stem.lower())
        if column != "type" or not kind:
            raise UserError(
                f"{self.path}: caption={column}: JetNet has caption=type, from files called"
                " g, q, t, w or z (or g150, ...)"
            )
        self._caption = JETNET_TYPES[kind[1]]
        self.has_captions = True

    def read(self, start: int, stop: int, features: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """As of the contract."""
        self.check_features(features)
        particles = hdf5_rows(self.path, self._particles, start, stop).astype(np.float64)
        jets = hdf5_rows(self.path, self._jets, start, stop).astype(np.float64)
        pt_rel = particles[..., self._at["ptrel"]]
        is_real = pt_rel != 0
        if "mask" in self._at:
            is_real = particles[..., self._at["mask"]] > self._mask_cut
        parts = {
            "pt_gev": (pt_rel * jets[:, self._pt_at, None])[is_real],
            "eta_rel": particles[..., self._at["deta"]][is_real],
            "phi_rel": particles[..., self._at["dphi"]][is_real],
        }
        return table_of(parts, features), offsets_of(is_real.sum(1))

    def captions(self, start: int, stop: int) -> list[str]:
        """As of the contract."""
        return [self._caption] * (stop - start)

    def close(self) -> None:
        """As of the contract."""
        self._file.close()


def _names_of(path: Path, table: Any, n: int) -> tuple[str, ...]:
    """The names of n columns in an attribute of a dataset or of its file; () where there are none.

    An attribute is a list of names, or one text with commas.
    """
    with reading(path, "jets"):
        own = list(dict(table.attrs).values())
        of_file = [v for k, v in table.file.attrs.items() if k.startswith(table.name[1:])]
        values = [np.asarray(value).reshape(-1).tolist() for value in (*own, *of_file)]
    for texts in values:
        names = [as_caption(text) for text in texts]
        if len(names) == 1:
            names = [name.strip(" '\"[]()") for name in names[0].split(",")]
        if len(names) == n and all(re.match(r"[A-Za-z]", name) for name in names):
            return tuple(names)
    return ()


def _mask_cut(column: np.ndarray) -> float | None:
    """What is above this in a mask is a constituent: 0.5 of 0 and 1; None for what is no mask."""
    values = np.unique(column)
    if len(values) > 2 or not len(values):
        return None
    if len(values) == 2:
        return float(values.mean())
    return float(min(0.5, values[0] / 2)) if values[0] > 0 else 0.5


def _advice(numbers: Mapping[str, int], pts: Sequence[int]) -> str:
    """How columns are numbered; numbers: of those that were found, `pts` those of no shares."""
    if "ptrel" in numbers:
        example = ",".join(f"{name}={i}" for name, i in numbers.items())
        return f"number them, such as --layout jetnet --columns {example}"
    if pts:
        example = ",".join(f"{name}=particle_features.{i}" for name, i in numbers.items())
        return (
            f"{_columns_text(pts)} sums to the jets' pt, so it is pt: --layout columns --columns"
            f" {example}"
        )
    return (
        "neither is pt in GeV; if there is one, say which: --layout jetnet --columns"
        " ptrel=N,deta=N,dphi=N for shares, or --layout columns --columns"
        " pt=particle_features.N,deta=particle_features.N,dphi=particle_features.N"
    )


def _are_shares(column: np.ndarray) -> bool:
    """Whether values (N, P) may be shares of a jet's pt."""
    total = np.median(column.sum(1))
    return bool((column >= 0).all() and SHARES_SUM[0] < total < SHARES_SUM[1])


def _are_masses(jets: np.ndarray, pt: int, mass: int, relative: np.ndarray) -> bool:
    """Whether two columns of jets (N, F) may be pt and mass, of jets of mass over pt (N,)."""
    scale = np.where(jets[:, pt] > 0, jets[:, pt], np.nan)
    low, high = np.nan_to_num(np.quantile(jets[:, mass] / (scale * relative), (0.25, 0.75)))
    return bool(low > 1 / MOST_OFF and high < MOST_OFF)


def _columns_text(numbers: Sequence[int]) -> str:
    """Columns by their numbers, in words."""
    if not numbers:
        return "none of them"
    return f"column {listed(numbers)}"


def _number(path: Path, column: str, names: Sequence[str], table: str) -> int:
    """The index of a column of a table that a user names or numbers."""
    if column in names:
        return list(names).index(column)
    if column.isdigit() and int(column) < len(names):
        return int(column)
    raise UserError(
        f"{path}: has no column {column!r} of {table}; name or number one, from 0, of"
        f" {listed(names)}"
    )


def jetnet_evidence(path: Path) -> str:
    """Both arrays of a JetNet file."""
    return "particle_features" if JETNET[0] in hdf5_members(path) else ""
