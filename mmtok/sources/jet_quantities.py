"""Which column of a file is what of a jet, and the jets that such columns make.

A user names columns as quantity=column: `--columns pt=part_pt,eta=part_eta,phi=part_phi`. What is
not named is looked for under the names that it has elsewhere. Of a constituent that is

    pt_gev    pt, or px and py, or ptrel times jet_pt
    eta_rel   deta, or eta (from px, py, pz if need be) minus the axis; or y, the rapidity, likewise
    phi_rel   dphi, or phi minus the axis
    particle_id   the index in PARTICLE_IDS of the flags isPhoton, ..., or by PDG code and charge

The axis is jet_eta (jet_y) and jet_phi, or else the sum of the massless constituents.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mmtok.errors import UserError
from mmtok.io.columns import known_column, named_column
from mmtok.io.messages import listed
from mmtok.nn.angles import wrap
from mmtok.sources.jet_columns import Column, Columns, Lists
from mmtok.sources.jet_coordinates import (
    about_axes,
    axes_of_sums,
    four_momenta,
    particle_ids,
    pt_eta_phi,
)
from mmtok.sources.jet_reader import (
    FEATURES,
    GEV,
    JetReader,
    ReadSettings,
    as_caption,
    selected,
    table_of,
)

PREFIXES = ("", "part", "particle", "particles", "constituent", "constituents", "pfcand", "cand")
PARTS = {  # of a constituent -> how columns call it, after a prefix such as part_
    "pt": ("pt", "pt_gev", "pt_mev"),
    "ptrel": ("ptrel", "pt_rel"),
    "px": ("px",),
    "py": ("py",),
    "pz": ("pz",),
    "energy": ("energy", "e"),
    "eta": ("eta",),
    "y": ("y", "rapidity"),
    "phi": ("phi",),
    "deta": ("deta", "eta_rel", "etarel", "delta_eta"),
    "dphi": ("dphi", "phi_rel", "phirel", "delta_phi"),
    "mask": ("mask", "valid"),
    "charge": ("charge",),
    "pdg_id": ("pid", "pdgid", "pdg_id"),
    "d0": ("d0val", "d0"),
    "d0_err": ("d0err", "d0_err"),
    "dz": ("dzval", "dz"),
    "dz_err": ("dzerr", "dz_err"),
    "is_charged_hadron": ("isChargedHadron",),
    "is_neutral_hadron": ("isNeutralHadron",),
    "is_photon": ("isPhoton",),
    "is_electron": ("isElectron",),
    "is_muon": ("isMuon",),
}
OF_JET = {  # of a jet
    "jet_pt": ("jet_pt", "jet_pt_gev", "jet_pt_mev", "jets.pt"),
    "jet_eta": ("jet_eta", "jets.eta"),
    "jet_y": ("jet_y", "jet_rapidity"),
    "jet_phi": ("jet_phi", "jets.phi"),
}
OTHER_NAMES = {  # that a user may give a quantity
    "pt_gev": "pt",
    "eta_rel": "deta",
    "phi_rel": "dphi",
    "E": "energy",
    "e": "energy",
    "rapidity": "y",
}
MOMENTA = ("pt", "px", "py", "pz", "energy")  # of which the first that is used has the unit
FILLERS = (-1, -99, -999, -9999)  # that padded rows have where there is no constituent
COORDINATES = ("pt", "ptrel", "px", "eta", "y", "deta")
# what makes up the features; other quantities are features under their own names
KINEMATIC = ("pt", "ptrel", "px", "py", "pz", "energy", "eta", "y", "phi", "deta", "dphi", "mask")
PARTICLE_ID = "particle_id"
# of what it is made: flags in the order of PARTICLE_IDS, or else these two
FLAGS = ("is_photon", "is_neutral_hadron", "is_charged_hadron", "is_electron", "is_muon")
CODES = ("pdg_id", "charge")


OTHERS = ("caption", "particles", "tree")  # that are no quantities of constituents
NAMES = (*PARTS, *OF_JET, *OTHER_NAMES, *OTHERS)  # that a user may give columns


def is_named(columns: Mapping[str, str]) -> bool:
    """Whether a user names coordinates, and not only labels or further features."""
    return any(OTHER_NAMES.get(name, name) in COORDINATES for name in columns)


def found_quantities(columns: Columns, named: Mapping[str, str]) -> dict[str, str]:
    """Quantity -> column: those that a user names, and those that are known by their names.

    A user who names coordinates gets those: pt, eta and phi are not mixed with px of elsewhere.

    Raises UserError where a user names a column that is not there.
    """
    short = {name.rpartition("/")[2]: name for name in reversed(columns.names)}  # in a group
    there = list(dict.fromkeys((*short, *columns.names)))
    found: dict[str, str] = {}
    for name, column in named.items():
        if name not in OTHERS:
            found[OTHER_NAMES.get(name, name)] = named_column(column, there, columns.path)
    chosen = is_named(named)
    records = _records_of(columns.names)
    for quantity, spellings in PARTS.items():
        if quantity in found or (chosen and quantity in KINEMATIC):
            continue
        known = known_column(_prefixed(spellings, records), there)
        if known is not None:
            found[quantity] = known
    for quantity, spellings in OF_JET.items():
        known = known_column(spellings, there)
        if quantity not in found and known is not None:
            found[quantity] = known
    return {quantity: short.get(column, column) for quantity, column in found.items()}


def _records_of(names: Sequence[str]) -> tuple[str, ...]:
    """The names of the lists of records that have a pt or px, as "particles.": likeliest first."""
    heads = [name.rpartition(".")[0] for name in names if re.search(r"\.(pt|px)$", name)]
    return tuple(f"{head}." for head in heads if not head.startswith("jet"))


def _prefixed(spellings: Sequence[str], records: Sequence[str]) -> list[str]:
    prefixes = [*records, *(f"{prefix}_" if prefix else "" for prefix in PREFIXES)]
    return [f"{prefix}{spelling}" for prefix in prefixes for spelling in spellings]


@dataclass(frozen=True)
class Plan:
    """How the features of a constituent are made from the columns.

    Attributes:
        quantities: quantity -> column.
        scale: of momenta, to GeV.
        unit: in words, with the reason.
    """

    quantities: Mapping[str, str]
    scale: float = 1.0
    unit: str = ""

    def has(self, *names: str) -> bool:
        """Whether all of these quantities are there."""
        return all(name in self.quantities for name in names)

    @property
    def pt(self) -> str:
        """How the pt is made; "" where it cannot be."""
        if self.has("pt"):
            return "pt"
        if self.has("px", "py"):
            return "px"
        if self.has("ptrel", "jet_pt"):
            return "ptrel"
        return ""

    @property
    def angles(self) -> str:
        """How the angles are made: deta (as they are), y or eta (minus the axis), p; or ""."""
        if self.has("deta", "dphi"):
            return "deta"
        if self.has("eta", "phi"):
            return "eta"
        if self.has("y", "phi"):
            return "y"
        if self.has("px", "py", "pz"):
            return "p"
        return ""

    @property
    def axis(self) -> str:
        """jet_eta or jet_y where the file has the axis of jets; else sum."""
        name = "jet_y" if self.angles == "y" else "jet_eta"
        return name if self.has(name, "jet_phi") else "sum"

    def missing(self) -> str:
        """What is missing for the features, in words; "" where nothing is."""
        if not self.pt:
            return "a pt (pt; px and py; or ptrel and jet_pt)"
        if not self.angles:
            return "angles (eta and phi; deta and dphi; or px, py and pz)"
        return ""

    def needed(self) -> tuple[str, ...]:
        """The quantities that the kinematic features are made of."""
        of_pt = {"pt": ("pt",), "px": ("px", "py"), "ptrel": ("ptrel", "jet_pt")}[self.pt]
        of_angles = {
            "deta": ("deta", "dphi"),
            "eta": ("eta", "phi"),
            "y": ("y", "phi"),
            "p": ("px", "py", "pz"),
        }[self.angles]
        of_axis: tuple[str, ...] = ()
        if self.angles != "deta" and self.axis != "sum":
            of_axis = (self.axis, "jet_phi")
        of_mask = tuple(name for name in ("mask",) if self.has(name))
        return tuple(dict.fromkeys((*of_pt, *of_angles, *of_axis, *of_mask)))

    def note(self) -> str:
        """What was found out, in words."""
        columns = self.quantities
        words = [f"pt from {' and '.join(_named(columns, self.pt))} in {self.unit}"]
        if self.angles == "deta":
            words.append(
                f"angles about the axis as they are in {columns['deta']}, {columns['dphi']}"
            )
        else:
            what = {"y": "rapidity", "eta": "eta", "p": "eta"}[self.angles]
            of = {"p": "the momenta"}.get(self.angles) or columns[self.angles]
            words.append(f"{what} from {of}")
            axis = "the sum of the constituents (its rapidity)"
            if self.axis != "sum":
                axis = f"{columns[self.axis]}, {columns['jet_phi']}"
            words.append(f"axis: {axis}")
        return ", ".join(words)


def _named(columns: Mapping[str, str], how: str) -> list[str]:
    parts = {"pt": ("pt",), "px": ("px", "py"), "ptrel": ("ptrel", "jet_pt")}[how]
    return [columns[part] for part in parts]


def planned(columns: Columns, settings: ReadSettings, unit: str = "") -> Plan:
    """How the jets of these columns are made. unit: of the layout, where it has a fixed one.

    Raises UserError where something is missing.
    """
    if len(columns.alike) > 1 and "tree" not in settings.columns:
        choices = " or ".join(f"tree={name}" for name in columns.alike[:3])
        raise UserError(
            f"{columns.path}: the trees {listed(columns.alike)} have the same columns; say which to"
            f" read: --columns {choices}"
        )
    quantities = found_quantities(columns, settings.columns)
    plan = Plan(quantities)
    if missing := plan.missing():
        part = f" {columns.part}" if columns.part else ""
        raise UserError(
            f"{columns.path}: its columns{part} lack {missing}; name them, as in --columns"
            f" pt=COLUMN,eta=COLUMN,phi=COLUMN; they are {listed(columns.names)}"
        )
    name, reason = unit_of(
        settings.pt_unit, quantities[plan.pt if plan.pt != "ptrel" else "jet_pt"], unit
    )
    return Plan(quantities, GEV[name], f"{name} ({reason})")


def unit_of(asked: str, column: str, of_layout: str = "") -> tuple[str, str]:
    """The unit of momenta and why: as a user says, by a column's suffix, as of the layout, GeV."""
    if asked:
        return asked, "as named"
    by_suffix = re.search(r"[_\[( ](gev|mev|tev|kev)[\])]?$", column.lower())
    if by_suffix:
        return {name.lower(): name for name in GEV}[by_suffix[1]], f"by {column}"
    if of_layout:
        return of_layout, "as published"
    return "GeV", "assumed"


@dataclass
class ColumnJets(JetReader):
    """Jets made from the columns of a file.

    Attributes:
        columns: the open file.
        plan: how its jets are made.
        caption: the column of captions, "" for none.
        classes: column of 0 and 1 -> the caption of its jets, such as label_QCD -> QCD.
        values: value of the column of captions -> caption; others are themselves.
    """

    columns: Columns
    plan: Plan
    caption: str = ""
    classes: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.path = self.columns.path
        self.n_jets = self.columns.n_rows
        jet_wide = (*KINEMATIC, *OF_JET)
        others = [name for name in self.plan.quantities if name not in jet_wide]
        if self._of_particle_id():
            others.append(PARTICLE_ID)
        self.features = (*FEATURES, *others)
        self.has_captions = bool(self.caption or self.classes)
        self.note = self.plan.note()

    def read(self, start: int, stop: int, features: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """As of the contract."""
        self.check_features(features)
        others = [name for name in features if name not in (*FEATURES, PARTICLE_ID)]
        if PARTICLE_ID in features:
            others += [name for name in self._of_particle_id() if name not in others]
        quantities = (*self.plan.needed(), *others)
        names = {self.plan.quantities[quantity] for quantity in quantities}
        read = self.columns.read(sorted(names), start, stop)
        found = {quantity: read[self.plan.quantities[quantity]] for quantity in quantities}
        parts, offsets = flattened(found, self, start)
        kept = {name: parts[name].astype(np.float64) for name in parts}
        if PARTICLE_ID in features:
            kept[PARTICLE_ID] = kinds_of(kept)
        return table_of(kept | kinematics(kept, offsets, self.plan), features), offsets

    def _of_particle_id(self) -> tuple[str, ...]:
        """The quantities that particle_id is made of; () where it cannot be."""
        for names in (FLAGS, CODES):
            if self.plan.has(*names):
                return names
        return ()

    def captions(self, start: int, stop: int) -> list[str]:
        """As of the contract."""
        if self.classes:
            columns = self.columns.read(list(self.classes), start, stop)
            is_class = np.stack([np.asarray(columns[name]) for name in self.classes], 1) > 0
            names = list(self.classes.values())
            texts = [names[int(np.argmax(row))] if row.sum() == 1 else "" for row in is_class]
            return texts
        column = self.columns.read([self.caption], start, stop)[self.caption]
        if isinstance(column, Lists) or column.ndim != 1:
            raise UserError(
                f"{self.path}: the column {self.caption} has a list for each jet; a caption is one"
                " text or number"
            )
        return [self.values.get(text, text) for text in map(as_caption, column.tolist())]

    def verify(self) -> None:
        """As of the contract."""
        self.columns.verify()

    def close(self) -> None:
        """As of the contract."""
        self.columns.close()


# ---- from columns to constituents


def flattened(
    columns: Mapping[str, Column], reader: JetReader, start: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Columns of one stretch -> quantity -> values (all P,), and offsets; without the padding.

    What is of a jet, such as jet_pt, stays (n,). Padding is what has no pt (0, NaN or one of
    FILLERS) in padded rows, or no mask.

    Raises UserError where jets have other numbers of one quantity than of another.
    """
    of_jets = {
        name: np.asarray(c)
        for name, c in columns.items()
        if name in OF_JET and not isinstance(c, Lists)
    }
    lists: dict[str, Lists] = {}
    is_padded = False
    for name, column in columns.items():
        if name in of_jets:
            continue
        if isinstance(column, Lists):
            lists[name] = column
        elif column.ndim == 2:
            n, width = column.shape
            lists[name] = Lists(column.reshape(-1), np.arange(n + 1) * width)
            is_padded = True
        else:
            has = f"{column.ndim} axes"
            if column.ndim == 1:
                has = "one value for each jet"
            raise UserError(
                f"{reader.path}: {name} has {has}, expected one value for each constituent"
            )
        if lists[name].values.dtype.kind not in "fiub":
            raise UserError(
                f"{reader.path}: {name} holds {lists[name].values.dtype}, expected numbers"
            )
    first, *others = lists
    offsets = lists[first].offsets
    for name in others:
        differs = np.diff(lists[name].offsets) != np.diff(offsets)
        if len(differs) != len(offsets) - 1 or differs.any():
            raise UserError(
                f"{reader.path}: jet {start + int(np.argmax(differs))} has other numbers of {name}"
                f" than of {first}"
            )
    values = {name: column.values for name, column in lists.items()}
    is_real = np.ones(int(offsets[-1]), bool)
    if "mask" in values:
        is_real &= values.pop("mask") > 0.5
    if is_padded:
        sizes = [values[name] for name in ("pt", "ptrel", "px", "py") if name in values]
        is_real &= np.any([(size != 0) & ~np.isnan(size) for size in sizes], axis=0)
        for size in (values[name] for name in ("pt", "ptrel") if name in values):
            is_real &= ~np.isin(size, FILLERS)
    if not is_real.all():
        values = {name: value[is_real] for name, value in values.items()}
        _, offsets = selected(np.zeros((len(is_real), 0)), offsets, is_real)
    return values | of_jets, offsets


def kinds_of(parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """The feature particle_id (all P,); NaN where no flag, or more than one, is set."""
    if all(name in parts for name in FLAGS):
        flags = np.stack([parts[name] for name in FLAGS], 1) > 0.5
        return np.where(flags.sum(1) == 1, flags.argmax(1), np.nan)
    return particle_ids(parts["pdg_id"], parts["charge"])


def kinematics(
    parts: Mapping[str, np.ndarray], offsets: np.ndarray, plan: Plan
) -> dict[str, np.ndarray]:
    """The features pt_gev, eta_rel and phi_rel (all P,) of constituents."""
    per_jet = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    eta = phi = np.zeros(0)
    if plan.pt == "px" or plan.angles == "p":
        pz = parts.get("pz", np.zeros_like(parts["px"]))
        pt, eta, phi = pt_eta_phi(parts["px"], parts["py"], pz)
    if plan.pt == "pt":
        pt = parts["pt"]
    elif plan.pt == "ptrel":
        pt = parts["ptrel"] * parts["jet_pt"][per_jet]
    if plan.angles == "deta":
        phi_rel = wrap_if_needed(parts["dphi"])
        return {"pt_gev": pt * plan.scale, "eta_rel": parts["deta"], "phi_rel": phi_rel}
    if plan.angles in ("eta", "y"):
        eta = parts[plan.angles]
        phi = parts["phi"]
    if plan.axis == "sum":
        axes = axes_of_sums(*four_momenta(pt, eta, phi), offsets)
        axis_eta = axes.y
        axis_phi = axes.phi
    else:
        axis_eta = parts[plan.axis]
        axis_phi = parts["jet_phi"]
    eta_rel, phi_rel = about_axes(eta, phi, axis_eta, axis_phi, offsets)
    return {"pt_gev": pt * plan.scale, "eta_rel": eta_rel, "phi_rel": phi_rel}


def wrap_if_needed(phi: np.ndarray) -> np.ndarray:
    """Angles within [-pi, pi]; what is within already stays as it is, bit for bit."""
    outside = np.abs(phi) > np.pi
    if not outside.any():
        return phi
    return np.where(outside, wrap(phi), phi)
