"""Jets of a user's files; a jet is float32 (P, F): its constituents by falling pt."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mmtok.errors import UserError
from mmtok.io import memory_budget
from mmtok.io.messages import counted, listed
from mmtok.io.remembered import Remembered
from mmtok.io.tally import Tally
from mmtok.io.walk import file_at, files_at
from mmtok.sources.base import Listing, check_heldout_share
from mmtok.sources.jet_cleaning import Cleaned, cleaned, faults_of
from mmtok.sources.jet_coordinates import check_numbers
from mmtok.sources.jet_events import remembered
from mmtok.sources.jet_formats import (
    AS_FOUND,
    FEATURES,
    SUFFIXES,
    layout_named,
    layout_of,
    open_jets,
    split_jets,
    suffix_of,
)
from mmtok.sources.jet_reader import EVENT_SETTINGS, ReadSettings
from mmtok.sources.jet_screen import (
    JETS,
    JetPlace,
    Labels,
    Screened,
    chunks,
    cut_words,
    no_jets,
    screened,
)
from mmtok.sources.layouts import is_part
from mmtok.sources.leaks import equal_contents, refuse_leaks
from mmtok.sources.screen import Limit, ScreenedSource

WANTED = "jets as .npz, .npy, .parquet, .h5, .root, .jsonl, .json or .hepmc"
N_KEPT = 4  # screenings that are kept in memory


@dataclass(frozen=True)
class JetFile(ScreenedSource):
    """A user's files of jets, of which a share is held out.

    Its fields are `jets`, and `caption` where there are labels: a file of them, a column of them
    (`columns={"caption": "label"}`), or those that the layout itself has.

    Attributes:
        path: of a file, a folder, or a pattern such as "jets/*.root"; see
            `mmtok.sources.jet_formats`.
        labels: path of a text file with one caption per line, in the order of the jets; a jet whose
            line is empty cannot be used.
        features: the columns that are read, pt_gev among them.
        heldout_share: share of the jets that is held out.
        seed: of the choice which are held out.
        min_particles: of a jet; others are left out and counted. 0: any.
        max_particles: likewise.
        layout: how the files are read, such as jetclass; "": by what is in them.
        columns: quantity -> column of the files, {"pt": "part_pt", ...}; see
            `mmtok.sources.jet_quantities`.
        pt_unit: GeV, MeV, ...: the unit of momenta; "": as the file says, else GeV.
        train: the files to train on, by their name or folder below `path`, such as "train"; "": all
            that are not held out.
        heldout: the files to hold out, likewise; "": a share of all jets.
        numbers: of each jet that are fields too, each a modality of its own: "pt_gev", "mass_gev",
            of the sum of its constituents, which are taken as massless.
        collection: of files of events, whose jets are read, such as FatJet; "": the only ones.
        min_pt_gev: of files of events, the least pt of a jet; others are left out and counted.
        max_abs_eta: likewise, the most |eta|; 0: any.
        radius: of events that are clustered here (HepMC), of anti-kT; 0: 0.8.
        puppi: on: PUPPI's weights of constituents are applied; off: they are not; "": as the jets
            of the file were made.
    """

    path: str = ""
    labels: str = ""
    features: tuple[str, ...] = FEATURES
    heldout_share: float = 0.1
    seed: int = 0
    min_particles: int = 0
    max_particles: int = 0
    layout: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    pt_unit: str = ""
    train: str = ""
    heldout: str = ""
    numbers: tuple[str, ...] = ()
    collection: str = ""
    min_pt_gev: float = 0.0
    max_abs_eta: float = 0.0
    radius: float = 0.0
    puppi: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers("JetFile", self.numbers, self.features)
        self._limit()
        check_heldout_share(self, self.heldout_share)
        if self.layout:
            layout_named(self.layout)
        self._settings()
        if self.train and not self.heldout:
            raise UserError("JetFile: train names files, but heldout none; name both, or heldout")

    @property
    def fields(self) -> dict[str, str]:
        """Jets, and captions where there are labels, and numbers where they are asked for."""
        own = {name: name for name in self.numbers}
        if self.labels or "caption" in self.columns or self._has_own_captions():
            return {"caption": "text", **own, "jets": "jets"}
        return {**own, "jets": "jets"}

    @property
    def gives(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """The features of the jets."""
        return {"jets": {"features": self.features}}

    def check(self) -> None:
        """Raise UserError where a file is missing, or too many of the jets cannot be used.

        Likewise where too many of the held-out ones lie in copies of files that have others.
        """
        found, _ = self._screened()
        self._check_leaks(found)

    def _check_leaks(self, found: Screened) -> None:
        counts = {}
        for split in self.splits:
            ends = np.concatenate([[0], np.cumsum(self._chosen(found, split))])
            counts[split] = np.diff(ends[found.firsts])  # jets of each file
        paths = [str(place.path) for place in found.places]
        n = 0
        firsts = []
        for copies in equal_contents(paths, range(len(paths))):
            for f in copies:
                others = [g for g in copies if g != f and counts["train"][g]]
                if counts["heldout"][f] and others:
                    n += int(counts["heldout"][f])
                    firsts.append(paths[f])
        if n:
            n_heldout = int(counts["heldout"].sum())
            refuse_leaks(n, n_heldout, min(firsts), self, "jets")

    def listing(self, split: str, cache: Path | None = None) -> Listing:
        """The jets of a split, in the order of the files; nothing is cached."""
        self.check_split(split)
        found, labels = self._screened()
        is_chosen = self._chosen(found, split)
        has_captions = "caption" in self.fields
        return Listing(
            chunks(found, is_chosen, labels, has_captions, self.numbers),
            found.fresh_faults(),
            int(is_chosen.sum()),
        )

    def reading(self, modality: str, path: Path) -> Mapping[str, Any]:
        """How its own files are read; nothing of jets as `write_jets` writes.

        Of what is said of events, what means something for this file; the layout, where files of it
        end so; no captions, which are not read with the jets.
        """
        if modality != "jets":
            return {}
        found = layout_of(path)
        if found.name == "plain" and found.evidence(path):
            return {}
        foreign = set(EVENT_SETTINGS) - set(found.settings)
        columns = {name: column for name, column in self.columns.items() if name != "caption"}
        options = {**vars(self._settings()), "columns": columns}
        if self.layout and suffix_of(path) in layout_named(self.layout).suffixes:
            options["layout"] = self.layout
        return {name: value for name, value in options.items() if value and name not in foreign}

    def _limit(self) -> Limit:
        return Limit("particles", self.min_particles, self.max_particles)

    def _settings(self) -> ReadSettings:
        return ReadSettings(
            self.columns,
            self.pt_unit,
            self.collection,
            self.min_pt_gev,
            self.max_abs_eta,
            self.radius,
            self.puppi,
        )

    def _has_own_captions(self) -> bool:
        """Whether the layout has labels itself.

        Where the files are not there any more, nobody knows, and tasks may name captions.
        """
        if self.layout:
            return layout_named(self.layout).has_captions
        if not self.path:
            return False
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                file = self._files()[0]
            settings = self._settings()
            return remembered(file, lambda: layout_of(file, settings).has_captions, repr(settings))
        except (UserError, OSError):
            return not Path(self.path).expanduser().exists()

    def found(self) -> str:
        """The layout and the files; their jets are counted where they are read."""
        places = self._places()
        n_bytes = sum(place.path.stat().st_size for place in places)
        layouts = listed(sorted({place.layout for place in places}))
        return f"read as {layouts}: {counted(len(places), 'file')} of {n_bytes:,} bytes"

    # ---- files

    def _files(self) -> list[Path]:
        suffixes: Sequence[str] = SUFFIXES
        if self.layout:
            suffixes = layout_named(self.layout).suffixes
        return files_at(self.path, suffixes, "JetFile", WANTED)

    def _places(self) -> list[JetPlace]:
        """The files with their layout. Raises UserError where there are several."""
        files = self._files()
        if self.train or self.heldout:
            splits = {file: self._split_of(file) for file in files}
            for split in self.splits:
                if split not in splits.values():
                    names = listed([file.name for file in files])
                    raise UserError(
                        f"{self.path}: no jets for {split} (train={self.train!r},"
                        f" heldout={self.heldout!r}); the files are {names}; name"
                        " one, or its folder"
                    )
            files = [file for file, split in splits.items() if split]
        settings = self._settings()
        layouts = layouts_of(self.path, files, settings, self.layout)
        single = self.path if len(files) == 1 and files[0] == Path(self.path) else ""
        return [
            JetPlace(file, single or str(file), layout, settings, self.features)
            for file, layout in layouts.items()
        ]

    def _split_of(self, file: Path) -> str:
        """The split that a file is of, where splits are named; "" for neither."""
        if _is_named(file, self.path, self.heldout):
            return "heldout"
        if not self.train or _is_named(file, self.path, self.train):
            return "train"
        return ""

    # ---- jets

    def _screened(self) -> tuple[Screened, Labels | None]:
        """What was found in the files, and their labels; said each time, looked at once."""
        place = file_or_folder(self.path)
        places = self._places()
        labels = None
        files = [place.path for place in places]
        if self.labels:
            files.append(file_at(self.labels, "JetFile.labels", "one caption per line"))
        key = (repr(self), *((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files))
        if key not in _SCREENED:
            if self.labels:
                labels = Labels(files[-1])
            _SCREENED[key] = (screened(places, self, self._limit(), labels), labels)
            while len(_SCREENED) > N_KEPT:
                del _SCREENED[next(iter(_SCREENED))]
        found, labels = _SCREENED[key]
        found.report(place)
        n_kept = int(found.is_usable.sum())
        if n_kept < 2:
            raise UserError(
                f"{place}: {counted(n_kept, 'jet')} cannot be split into train and heldout; give"
                " at least two"
            )
        return found, labels

    def _chosen(self, found: Screened, split: str) -> np.ndarray:
        """(all jets,) which are of a split: those of its files, or by a permutation with the seed.

        Raises UserError for a split without jets.
        """
        if not self.heldout:
            return _share(found.is_usable, self.heldout_share, self.seed, split)
        is_chosen = np.zeros(found.n_jets, bool)
        for f, place in enumerate(found.places):
            if self._split_of(place.path) == split:
                jets = slice(int(found.firsts[f]), int(found.firsts[f + 1]))
                is_chosen[jets] = found.is_usable[jets]
        if not is_chosen.any():
            names = [
                place.path.name for place in found.places if self._split_of(place.path) == split
            ]
            raise UserError(
                f"{self.path}: none of the jets for {split}, in {listed(names)}, can be used; mend"
                " them, or widen the limits"
            )
        return is_chosen


_SCREENED: dict[tuple[Any, ...], tuple[Screened, Labels | None]] = {}


def file_or_folder(path: str) -> str:
    """How messages call what a user named; ~ is the home."""
    return str(Path(path).expanduser())


_LAYOUTS: Remembered[str] = Remembered(100_000)  # of files, by what is in them


def layouts_of(
    place: str | Path, files: Sequence[Path], settings: ReadSettings, wanted: str
) -> dict[Path, str]:
    """File -> the name of its layout, which is one for all; others are left out and counted.

    A file that nobody can look into has the layout of the others; reading it says what is wrong.

    Args:
        place: what the user named.
        files: those of the place.
        settings: how they are read.
        wanted: the layout's name; "": any.

    Raises:
        UserError: there are several, and the user names none.
    """
    found: dict[Path, str] = {}
    faults = []
    for file in files:
        try:
            found[file] = _LAYOUTS(file, partial(_name_of, file, settings), repr(settings))
        except (UserError, OSError) as error:
            faults.append(error)
    if wanted:
        return _of_wanted(files, found, settings, wanted)
    firsts: dict[str, Path] = {}
    for file, name in found.items():
        firsts.setdefault(name, file)
    if not firsts:
        raise faults[0]
    _check_one(place, firsts)
    return dict.fromkeys(files, next(iter(firsts)))


def _name_of(file: Path, settings: ReadSettings) -> str:
    return layout_of(file, settings).name


def _of_wanted(
    files: Sequence[Path], found: Mapping[Path, str], settings: ReadSettings, wanted: str
) -> dict[Path, str]:
    """The files that are of the wanted layout, or may be; all where none is by what is in it."""
    kept = dict.fromkeys(files, wanted)
    if wanted in found.values():
        others = [file for file, name in found.items() if name != wanted]
        with Tally("files") as tally:
            tally.count(len(files))
            for file in others:
                tally.add(f"left out: read as {found[file]}, not {wanted}", file)
                del kept[file]
    for file in kept:
        layout_of(file, settings, wanted)  # raises for a suffix that the layout has not
    return kept


def _check_one(place: str | Path, firsts: Mapping[str, Path]) -> None:
    """Raise UserError where files are of several layouts. firsts: layout -> its first file."""
    if len(firsts) > 1:
        reasons = " and ".join(f"{name} (such as {file.name})" for name, file in firsts.items())
        choices = " or ".join(f"--layout {name}" for name in firsts)
        raise UserError(f"{place}: holds files of {reasons}; say which to read: {choices}")


def _is_named(file: Path, place: str, name: str) -> bool:
    """Whether a split's name is that of a file, with or without suffix, or of a folder of it."""
    if not name:
        return False
    home = Path(place).expanduser()
    inner = Path(file.name)
    if file.is_relative_to(home) and file != home:
        inner = file.relative_to(home)
    return inner.as_posix() == name or any(is_part(name, part) for part in inner.parts)


def _share(is_usable: np.ndarray, share: float, seed: int, split: str) -> np.ndarray:
    """Which of all jets are of a split: of the usable ones, a permutation's first are held out."""
    n = int(is_usable.sum())
    n_heldout = min(max(1, round(share * n)), n - 1)
    order = np.random.default_rng(seed).permutation(n)
    is_heldout = np.zeros(n, bool)
    is_heldout[order[:n_heldout]] = True
    is_chosen = np.zeros(len(is_usable), bool)
    is_chosen[is_usable] = is_heldout if split == "heldout" else ~is_heldout
    return is_chosen


# ---- whole files


def each_jet(
    path: str | Path,
    features: Sequence[str] = FEATURES,
    settings: ReadSettings = AS_FOUND,
    layout: str = "",
) -> Iterator[np.ndarray]:
    """The jets of a file one after another, each float32 (P, F) with the columns `features`.

    "pt_gev" must be among the features. Constituents are by falling pt. Warns at the end of jets
    that were sorted, of particles of zero pt, which are dropped, and of jets without constituents:
    those are (0, F), so that jet i of the file is always row i.

    Raises UserError, naming file and jet, for a file that cannot be read, and for NaN, infinite or
    negative pt.
    """
    path = Path(path)
    done = Cleaned()
    pt_column = list(features).index("pt_gev") if "pt_gev" in features else 0
    with closing(open_jets(path, features, settings, layout)) as reader:
        if not reader.n_jets:
            raise UserError(no_jets([reader], path))
        if reader.note:
            warnings.warn(f"{path}: {reader.note}", stacklevel=2)
        if reader.left_out:
            warnings.warn(f"{path}: jets{cut_words(reader.left_out)}", stacklevel=2)
        reader.verify()
        for start in range(0, reader.n_jets, JETS):
            values, offsets = reader.read(start, min(start + JETS, reader.n_jets), features)
            for i, fault in faults_of(values, offsets, pt_column).items():
                raise UserError(f"{path}: jet {start + i} {fault}")
            values, offsets, more = cleaned(values, offsets, pt_column)
            if more.empty:
                more.first_empty = f"jet {start + int(np.argmin(np.diff(offsets)))}"
            done.add(more)
            yield from split_jets(values, offsets)
    done.report(path)


def read_jets(
    path: str | Path,
    features: Sequence[str] = FEATURES,
    settings: ReadSettings = AS_FOUND,
    layout: str = "",
) -> list[np.ndarray]:
    """The jets of a file in memory, as `each_jet` gives them."""
    jets = []
    n_bytes = 0
    for jet in each_jet(path, features, settings, layout):
        jets.append(jet)
        n_bytes += jet.nbytes
        if len(jets) % JETS == 0:
            memory_budget.check(n_bytes, path, f"its first {len(jets):,} jets")
    return jets


def checked_jet(
    values: object, name: str, features: Sequence[str] = FEATURES, of: str = ""
) -> np.ndarray:
    """One jet in memory, a list or array (P, F), as `read_jets` would give it.

    Args:
        values: the jet.
        name: what messages call it.
        features: its columns.
        of: what messages call all the jets that it is one of, so that they are the same for each.

    Raises:
        UserError: as `read_jets` does, and for a jet without constituents.
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
    offsets = np.array([0, len(array)])
    for fault in faults_of(array, offsets, pt_column).values():
        raise UserError(f"{name}: jet 0 {fault}")
    jet, _, done = cleaned(array, offsets, pt_column)
    if of:
        done.report_kinds(of)
    else:
        done.report(name)
    return jet
