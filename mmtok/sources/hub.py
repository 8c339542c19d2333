"""Tables on the Hugging Face hub, or in local files or folders.

Tables of text are read strictly by this package, all others through `datasets`. Sounds and pictures
are read as bytes and decoded here: decoding inside `datasets` would need FFmpeg for sound.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mmtok.errors import UserError
from mmtok.io.columns import cell_of
from mmtok.io.filenames import inside
from mmtok.io.messages import counted
from mmtok.io.tally import Tally
from mmtok.io.walk import walk
from mmtok.sources.base import (
    CHUNK,
    Chunk,
    Example,
    Listing,
    Unusable,
    batched_lists,
    check_heldout_share,
    split_order,
)
from mmtok.sources.hub_cells import COLUMN_KINDS, ColumnKind
from mmtok.sources.hub_stream import stream_listing
from mmtok.sources.hub_tables import TablePlace, load_datasets
from mmtok.sources.jet_formats import FEATURES
from mmtok.sources.leaks import Content, check_leaks, content_of_signals
from mmtok.sources.rows import Rows, group_numbers, hash_of
from mmtok.sources.screen import Limit, Screen, ScreenedSource
from mmtok.sources.sound_names import Names, difference

FILLED = Limit("filled cells", 1)  # a row without any is no example
_COMPARED: set[str] = set()  # tables whose own splits were compared in this process


@dataclass(frozen=True)
class HubTable(ScreenedSource):
    """A table whose columns are the fields of the examples.

    HubTable("ylecun/mnist", {"caption": "label", "image": "image"}, ...). An example lacks the
    fields whose cells are empty; a row of empty cells is left out and counted. In a csv an empty
    text is a text.

    Attributes:
        id: on the Hugging Face hub; or a file (parquet, arrow, tar; csv, tsv, txt or json lines,
            also .gz), a pattern of files, or a folder that `datasets` can read (a folder of loose
            sound files it reads only with torchcodec: `SpeechFolder` needs none).
        columns: field -> column of the table; of a column of records also its part, as in
            translation.en.
        modalities: field -> text, speech, image, jets or number. A text is a string, or a class,
            whose name is then the text; a sound or picture its bytes, a file, or the name of a file
            in the table's folder; a jet a list of constituents, or of records of them; a number a
            number, or a text that is one. A field of numbers is a modality of its own, of the same
            name.
        subset: the hub's name of a part of the table.
        train: the table's own split to train on.
        heldout: the table's own split to hold out; "": a share of `train`, chosen by `seed`.
        heldout_share: that share.
        limit: at most so many rows of each split; 0: all.
        features: of the jets' constituents, in the order of the table.
        limits: field -> (least, most): characters of a text, seconds of speech, pixels of an image,
            particles of a jet, the number itself; other rows are left out and counted. A most of
            0: any.
        join: what joins the strings of a list to one text; "": lists are refused.
        streaming: take rows as they come, without a copy of the table on disk. Nothing is looked
            at before, and the rows that are held out are chosen by a hash of what they hold.
        shuffle: how many rows are shuffled at once, by `seed`, while they stream; 0: none.
    """

    id: str
    columns: Mapping[str, str]
    modalities: Mapping[str, str]
    subset: str = ""
    train: str = "train"
    heldout: str = ""
    heldout_share: float = 0.1
    seed: int = 0
    limit: int = 0
    features: tuple[str, ...] = FEATURES
    limits: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    join: str = ""
    streaming: bool = False
    shuffle: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.columns or set(self.columns) != set(self.modalities):
            raise UserError(
                f"HubTable {self.id!r}: columns names the fields {sorted(self.columns)}, modalities"
                f" {sorted(self.modalities)}; both must name the same, at least one"
            )
        for name, modality in self.modalities.items():
            if modality not in COLUMN_KINDS:
                raise UserError(
                    f"HubTable {self.id!r}: field {name!r} is {modality!r}; a table's columns are"
                    f" {', '.join(COLUMN_KINDS)}"
                )
        check_heldout_share(self, self.heldout_share)
        if self.heldout == self.train:
            raise UserError(
                f"HubTable {self.id!r}: train and heldout are both {self.train!r}; name two splits,"
                " or leave heldout empty to hold a share out"
            )
        if self.limit < 0 or self.shuffle < 0:
            raise UserError(
                f"HubTable {self.id!r}: limit is {self.limit} and shuffle {self.shuffle}; neither"
                " may be negative"
            )
        if self.shuffle and not self.streaming:
            raise UserError(
                f"HubTable {self.id!r}: shuffle is of streaming tables, and training shuffles the"
                " others; set streaming, or leave shuffle out"
            )
        if unknown := set(self.limits) - set(self.columns):
            raise UserError(
                f"HubTable {self.id!r}: limits names {', '.join(sorted(unknown))}; its fields are"
                f" {', '.join(self.columns)}"
            )
        self.all_limits()

    @property
    def fields(self) -> dict[str, str]:
        """As `modalities` says; a field of numbers is a modality of its own."""
        return {f: f if m == "number" else m for f, m in self.modalities.items()}

    @property
    def gives(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """The features of jets, if a column holds jets."""
        if "jets" not in self.modalities.values():
            return {}
        return {"jets": {"features": self.features}}

    def check(self) -> None:
        """Raise UserError where there is no id, or `datasets` is needed and not installed."""
        if not self.id:
            raise UserError(
                "HubTable: no id given; pass --id OWNER/NAME of the hub, or a file or folder"
            )
        is_files = bool(self.place.files())
        if is_files and self.subset:
            raise UserError(
                f"HubTable: {self.id} names files, which have no subset {self.subset!r} as tables"
                " of the hub have; leave subset out, or name the files of that part"
            )
        if is_files and self.train != "train":
            raise UserError(
                f"HubTable: {self.id} names files, without a split {self.train!r}; leave train out,"
                " or name the files of that split"
            )
        if self.heldout and is_files:
            raise UserError(
                f"HubTable: {self.id} is one file, without a split {self.heldout!r}; leave heldout"
                " empty to hold a share out"
            )
        if self.place.needs_datasets():
            load_datasets()

    @property
    def place(self) -> TablePlace:
        """Where the table is."""
        return TablePlace(self.id, self.subset)

    def listing(self, split: str, cache: Path | None = None) -> Listing:
        """The rows of a split.

        Raises UserError, naming the rows, where more than `max_error_share` cannot be read.
        """
        self.check_split(split)
        self.check()
        cache = Path(cache or ".")
        if self.streaming:
            streamed = stream_listing(self, self, split, cache)
            if streamed is not None:
                return streamed
        rows = self._rows(split, cache)
        parts = {split: np.arange(len(rows))}
        if not self.heldout:
            parts = self._shares(rows)
        parts = {name: part[: self.limit or None] for name, part in parts.items()}
        contents: list[Content] = [None] * len(rows)
        tally = Tally("rows")

        def look(i: int) -> dict[str, float]:
            tally.count()
            sizes, contents[i] = self._look(rows, i, tally)
            return sizes

        looked_at = np.sort(np.concatenate(list(parts.values()))).tolist()
        with tally:
            screen = Screen(looked_at, look, self, "rows", self.all_limits(), rows.where)
        usable = np.array(screen.items)
        chosen = {name: usable[np.isin(usable, part)].tolist() for name, part in parts.items()}
        for name in (name for name in chosen if not chosen[name]):
            said = f"{self.id}: none of its {counted(len(usable), 'usable row')} is for {name}"
            if name == "train":
                raise UserError(f"{said}; give more rows, or name splits of the table")
            warnings.warn(f"{said}, so nothing can be compared with it", stacklevel=2)
        self._check_leaks(rows, chosen, contents, cache)
        listed = chosen[split]
        return screen.listing_of(self._chunks(rows, listed), len(listed))

    def _check_leaks(
        self,
        rows: Rows,
        chosen: Mapping[str, Sequence[int]],
        contents: Sequence[Content],
        cache: Path,
    ) -> None:
        """Raise UserError where too much of the held-out split is in training too.

        Where both are splits of the table, the held-out one is read for this, once in a process.
        """
        held_rows = rows
        if self.heldout:
            if "train" not in chosen or repr(self) in _COMPARED:
                return
            _COMPARED.add(repr(self))
            held_rows = self._rows("heldout", cache)
            n = len(held_rows)
            held = [self._content(held_rows, i) for i in range(n)[: self.limit or None]]
        else:
            held = [contents[i] for i in chosen["heldout"]]

        def name(i: int) -> str:
            return held_rows.where(i if self.heldout else chosen["heldout"][i])

        check_leaks([contents[i] for i in chosen["train"]], held, name, self, "rows")

    def own_split(self, split: str) -> str:
        """What the table calls the split that these rows are taken from."""
        if split == "heldout" and self.heldout:
            return self.heldout
        return self.train

    def _rows(self, split: str, cache: Path) -> Rows:
        return self.place.rows(self.own_split(split), list(self.columns.values()), cache)

    def _shares(self, rows: Rows) -> dict[str, np.ndarray]:
        """The rows of each split where a share is held out; those of one file stay together."""
        group = group_numbers(rows, self.file_columns)
        n_groups = 1 + int(group.max(initial=-1))
        if n_groups < 2:
            raise UserError(
                f"{self.id}, split {self.train!r}: {counted(n_groups, 'row')} cannot be split into"
                " train and heldout; at least two are needed"
            )
        order = split_order(n_groups, self.heldout_share, self.seed)
        return {split: np.flatnonzero(np.isin(group, chosen)) for split, chosen in order.items()}

    def _chunks(self, rows: Rows, chosen: Sequence[int]) -> Iterator[Chunk]:
        for some in batched_lists(chosen, CHUNK):
            yield RowChunk(self, rows.some(some))

    @property
    def file_columns(self) -> list[str]:
        """Columns that hold files, or their names."""
        return [self.columns[name] for name in self.columns if self.kind(name).of_files]

    def kind(self, name: str) -> ColumnKind:
        """How the cells of a field are read."""
        return COLUMN_KINDS[self.modalities[name]]

    def all_limits(self) -> tuple[Limit, ...]:
        """Of the sizes of a row."""
        return FILLED, *(
            Limit(self.kind(name).unit, *bounds, of=name) for name, bounds in self.limits.items()
        )

    # ---- rows

    def example(self, rows: Rows, i: int) -> dict[str, Any]:
        """A row, read. Raises UserError where it cannot be."""
        fields = {
            name: self.kind(name).read(self, rows, self.columns[name], cell, where)
            for name, cell, where in self.cells(rows, i)
        }
        return Example(fields, rows.where(i))

    def cells(self, rows: Rows, i: int) -> Iterator[tuple[str, Any, str]]:
        """(field, cell, where it is) of the cells of a row that are not empty."""
        cells = rows.row(i)
        for name, column in self.columns.items():
            cell = cell_of(cells, column)
            if cell is not None and (cell != "" or self.kind(name).may_be_empty):
                yield name, cell, f"{rows.where(i)}, column {column!r}"

    def sizes(self, rows: Rows, i: int) -> dict[str, float]:
        """The size of each field of a row in its unit, and how many fields are not empty.

        Raises UserError for a broken file.
        """
        return self._look(rows, i)[0]

    def _look(
        self, rows: Rows, i: int, tally: Tally | None = None
    ) -> tuple[dict[str, float], Content]:
        """The sizes of a row, and what it holds, for `check_leaks`.

        tally: counts files whose names differ from what the row says.
        """
        if problem := rows.open_quote(i, self._names_file):
            raise UserError(problem)
        sizes: dict[str, float] = {}
        content: Content = None
        signals = []
        for name, cell, where in self.cells(rows, i):
            kind = self.kind(name)
            if kind.size is not None:
                file = self.file_in(cell, where, kind.suffixes)
                if tally is not None and isinstance(file, Path):
                    named = cell.get("path") if isinstance(cell, Mapping) else cell
                    if otherwise := difference(file, str(named)):
                        tally.add(otherwise, file)
                sizes[name] = kind.size(file, where)
                content = content or (
                    str(file) if isinstance(file, Path) else hash_of(file.getvalue())
                )
            else:
                signal = kind.read(self, rows, self.columns[name], cell, where)
                sizes[name] = signal if isinstance(signal, float) else len(signal)
                signals.append(signal)
        if not self.file_columns:
            content = content_of_signals(signals)
        return {FILLED.unit: len(sizes), **sizes}, content

    def _content(self, rows: Rows, i: int) -> Content:
        """What a row holds; None for one that cannot be used."""
        try:
            return self._look(rows, i)[1]
        except UserError:
            return None

    def file_in(self, cell: Any, where: str, suffixes: tuple[str, ...] = ()) -> io.BytesIO | Path:
        """The bytes that a cell of sound or picture holds, or the file that it names."""
        if isinstance(cell, Mapping):
            cell = cell.get("bytes") or cell.get("path")
            if not cell:
                raise UserError(f"{where}: has no bytes and no path")
        if isinstance(cell, bytes) and cell:
            return io.BytesIO(cell)
        if isinstance(cell, str) and cell:
            home = self.place.home
            try:
                path = _file(home, cell)
                if path.is_file():
                    return path
                found = None
                if suffixes and self.place.is_here:
                    found = _alike(home, cell, suffixes)
            except UserError as error:
                raise UserError(f"{where}: {error}") from None
            if found is None:
                raise UserError(f"{where}: no file {cell} in {home}")
            return found
        raise UserError(
            f"{where}: holds {type(cell).__name__}, neither the bytes of a file nor its name"
        )

    def _names_file(self, cell: str) -> bool:
        """Whether a cell could be the name of a sound or picture of this table."""
        if not self.file_columns:
            return False
        try:
            return _file(self.place.home, cell).is_file()
        except UserError:
            return False


def _file(home: Path, name: str) -> Path:
    r"""The file of a name in a cell; one such as wavs\1.wav was written on Windows."""
    path = inside(home, name)
    if "\\" in name and not path.is_file():
        return inside(home, name.replace("\\", "/"))
    return path


def _alike(home: Path, name: str, suffixes: tuple[str, ...]) -> Path | None:
    """The file below a folder that is called so but for its folder, its suffix or its case."""
    names = _names_below(home, suffixes)
    found = names.file(name, str(home)) or names.in_any_case(name, str(home))
    if found is None:
        return None
    return inside(home, found.relative_to(home).as_posix())


@lru_cache(maxsize=4)
def _names_below(home: Path, suffixes: tuple[str, ...]) -> Names:
    """The names of all files of a kind in a folder; it is walked through once in a process."""
    return Names(walk(home, suffixes))


@dataclass(frozen=True)
class RowChunk:
    """Some rows of a table.

    Attributes:
        source: how they are read.
        rows: they alone.
    """

    source: HubTable
    rows: Rows

    @property
    def files(self) -> Sequence[Path]:
        """Those of the rows."""
        return self.rows.files

    def read(self) -> Iterator[dict[str, Any] | Unusable]:
        """Their examples."""
        for i in range(len(self.rows)):
            try:
                yield self.source.example(self.rows, i)
            except UserError as error:
                yield Unusable(self.rows.where(i), str(error))
