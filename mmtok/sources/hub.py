"""Tables on the Hugging Face hub, or in a local file or folder.

Tables of text are read strictly by this package, all others through `datasets`. Sounds and pictures
are read as bytes and decoded here: decoding inside `datasets` would need FFmpeg for sound.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mmtok.errors import UserError, missing_extra
from mmtok.io.filenames import inside
from mmtok.io.messages import counted, listed
from mmtok.io.numbers import as_number
from mmtok.io.tables import SUFFIXES, as_text, suffix_of
from mmtok.sources.base import Example, Picture, Sound, check_heldout_share, split_order
from mmtok.sources.image_files import decode_image, size_of
from mmtok.sources.jet_formats import FEATURES
from mmtok.sources.jets import checked_jet
from mmtok.sources.rows import DatasetRows, Rows, TextRows, grouped
from mmtok.sources.screen import Limit, Screen, ScreenedSource
from mmtok.sources.speech import decode_sound, seconds_of

KINDS = {".parquet": "parquet", ".arrow": "arrow"}
FILLED = Limit("filled cells", 1)  # a row without any is no example


@dataclass(frozen=True)
class ColumnKind:
    """How the cells of a column of one modality are read.

    Attributes:
        unit: what the limits of the field count.
        read: a function (source, rows, column, cell, where it is) -> signal.
        size: a function (file, where it is) -> its size in that unit, by its header; None where
            cells hold signals, not files: then it is the signal's length.
        may_be_empty: whether an empty string is a signal too.
    """

    unit: str
    read: Callable[[HubTable, Rows, str, Any, str], Any]
    size: Callable[[io.BytesIO | Path, str], float] | None = None
    may_be_empty: bool = False

    @property
    def of_files(self) -> bool:
        """Whether a cell holds a file, or the name of one."""
        return self.size is not None


def _text(source: HubTable, rows: Rows, column: str, cell: Any, where: str) -> str | None:
    """A cell as text: the name of its class where it is the index of one."""
    classes = rows.classes(column)
    if classes and isinstance(cell, int) and 0 <= cell < len(classes):
        return classes[cell]
    return as_text(cell, where)


def _sound(source: HubTable, rows: Rows, column: str, cell: Any, where: str) -> Sound:
    return decode_sound(source.file_in(cell, where), where)


def _picture(source: HubTable, rows: Rows, column: str, cell: Any, where: str) -> Picture:
    return decode_image(source.file_in(cell, where), where)


def _n_pixels(file: io.BytesIO | Path, where: str) -> float:
    return math.prod(size_of(file, where))


def _jet(source: HubTable, rows: Rows, column: str, cell: Any, where: str) -> np.ndarray:
    return checked_jet(cell, where, source.features)


def _number(source: HubTable, rows: Rows, column: str, cell: Any, where: str) -> float:
    return as_number(cell, where)


COLUMN_KINDS = {  # by modality
    "text": ColumnKind("chars", _text, may_be_empty=True),
    "speech": ColumnKind("duration_s", _sound, seconds_of),
    "image": ColumnKind("pixels", _picture, _n_pixels),
    "jets": ColumnKind("particles", _jet),
    "number": ColumnKind("value", _number),
}


@dataclass(frozen=True)
class HubTable(ScreenedSource):
    """A table whose columns are the fields of the examples.

    HubTable("ylecun/mnist", {"caption": "label", "image": "image"}, ...). An example lacks the
    fields whose cells are empty; a row of empty cells is left out and counted. In a csv an empty
    text is a text.

    Attributes:
        id: on the Hugging Face hub; or a file (parquet; csv or json lines, also .gz), or a folder
            that `datasets` can read (a folder of loose sound files it reads only with torchcodec:
            `SpeechFolder` needs none).
        columns: field -> column of the table.
        modalities: field -> text, speech, image, jets or number. A text is a string, or a class,
            whose name is then the text; a sound or picture its bytes, a file, or the name of a file
            in the table's folder; a jet a list of constituents; a number a number, or a text that
            is one. A field of numbers is a modality of its own, of the same name.
        subset: the hub's name of a part of the table.
        train: the table's own split to train on.
        heldout: the table's own split to hold out; "": a share of `train`, chosen by `seed`.
        heldout_share: that share.
        limit: at most so many rows of each split; 0: all.
        features: of the jets' constituents, in the order of the table.
        limits: field -> (least, most): characters of a text, seconds of speech, pixels of an image,
            particles of a jet, the number itself; other rows are left out and counted. A most of
            0: any.
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
        if self.limit < 0:
            raise UserError(f"HubTable {self.id!r}: limit is {self.limit}; it must not be negative")
        if unknown := set(self.limits) - set(self.columns):
            raise UserError(
                f"HubTable {self.id!r}: limits names {', '.join(sorted(unknown))}; its fields are"
                f" {', '.join(self.columns)}"
            )
        self._limits()

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
        if self.heldout and self._place().is_file():
            raise UserError(
                f"HubTable: {self.id} is one file, without a split {self.heldout!r}; leave heldout"
                " empty to hold a share out"
            )
        if not _is_text(self._place()):
            _datasets()

    def examples(self, split: str, cache: Path | None = None) -> Iterator[dict[str, Any]]:
        """The rows of a split.

        Raises UserError, naming the rows, where more than `max_error_share` cannot be read.
        """
        self.check_split(split)
        own = self.train
        if split == "heldout" and self.heldout:
            own = self.heldout
        rows = self._load(own, Path(cache or "."))
        missing = [c for c in self.columns.values() if c not in rows.columns]
        if missing:
            raise UserError(
                f"{self.id}, split {own!r}: has no column {listed(missing)}; its columns are"
                f" {listed(rows.columns)}"
            )
        parts = {split: list(range(len(rows)))}
        if not self.heldout:
            parts = self._shares(rows, own)
        parts = {name: part[: self.limit or None] for name, part in parts.items()}
        screen = Screen(
            sorted(i for part in parts.values() for i in part),
            partial(self._sizes, rows),
            self,
            "rows",
            self._limits(),
            rows.where,
        )
        chosen = set(parts[split])
        items = [i for i in screen.items if i in chosen]
        yield from screen.listing(items, partial(self._example, rows), rows.where).examples()

    def _place(self) -> Path:
        """The file or folder that the id names, if it is one."""
        if self.id.startswith("~"):
            return Path(self.id).expanduser()
        return Path(self.id)

    def _shares(self, rows: Rows, own: str) -> dict[str, list[int]]:
        """The rows of each split where a share is held out; those of one file stay together."""
        of_files = [name for name in self.columns if self._kind(name).of_files]
        groups = grouped(rows, [self.columns[name] for name in of_files])
        if len(groups) < 2:
            raise UserError(
                f"{self.id}, split {own!r}: {counted(len(groups), 'row')} cannot be split into"
                " train and heldout; at least two are needed"
            )
        order = split_order(len(groups), self.heldout_share, self.seed)
        return {
            split: sorted(i for k in chosen for i in groups[k]) for split, chosen in order.items()
        }

    def _kind(self, name: str) -> ColumnKind:
        """How the cells of a field are read."""
        return COLUMN_KINDS[self.modalities[name]]

    def _example(self, rows: Rows, i: int) -> dict[str, Any]:
        fields = {
            name: self._kind(name).read(self, rows, self.columns[name], cell, where)
            for name, cell, where in self._cells(rows, i)
        }
        return Example(fields, rows.where(i))

    def _cells(self, rows: Rows, i: int) -> Iterator[tuple[str, Any, str]]:
        """(field, cell, where it is) of the cells of a row that are not empty."""
        cells = rows.row(i)
        for name, column in self.columns.items():
            cell = cells[column]
            if cell is not None and (cell != "" or self._kind(name).may_be_empty):
                yield name, cell, f"{rows.where(i)}, column {column!r}"

    def _limits(self) -> tuple[Limit, ...]:
        return FILLED, *(
            Limit(self._kind(name).unit, *bounds, of=name) for name, bounds in self.limits.items()
        )

    def _sizes(self, rows: Rows, i: int) -> dict[str, float]:
        """The size of each field of a row in its unit, and how many fields are not empty.

        Raises UserError for a broken file.
        """
        if problem := rows.open_quote(i, self._names_file):
            raise UserError(problem)
        sizes = {
            name: self._size(rows, name, cell, where) for name, cell, where in self._cells(rows, i)
        }
        return {FILLED.unit: len(sizes), **sizes}

    def _size(self, rows: Rows, name: str, cell: Any, where: str) -> float:
        kind = self._kind(name)
        if kind.size is not None:
            return kind.size(self.file_in(cell, where), where)
        signal = kind.read(self, rows, self.columns[name], cell, where)
        return signal if isinstance(signal, float) else len(signal)

    def _load(self, split: str, cache: Path) -> Rows:
        """The table of one split, its sounds and pictures left undecoded."""
        self.check()
        path = self._place()
        if path.is_file() and _is_text(path):
            return TextRows([path])
        datasets = _datasets()
        try:
            builder = self._builder(datasets, split, cache)
            if texts := _text_files(datasets, builder, split):
                return TextRows(texts)
            builder.download_and_prepare()
            table = builder.as_dataset(split=split)
        except UserError:
            raise
        # `datasets` raises some thirty types: its own, fsspec's, pyarrow's and requests'
        except Exception as error:
            raise UserError(
                f"{self.id}, split {split!r}: `datasets` cannot read it: {_first_line(error)}"
            ) from None
        wanted = dict.fromkeys(self.columns.values())
        there = [column for column in wanted if column in table.column_names]
        table = table.select_columns(there or table.column_names)
        for column, feature in table.features.items():
            if isinstance(feature, (datasets.Audio, datasets.Image)):
                table = table.cast_column(column, type(feature)(decode=False))
        return DatasetRows(table, self.id)

    def _builder(self, datasets: Any, split: str, cache: Path) -> Any:
        """What `datasets` builds the table with."""
        path = self._place()
        subset = self.subset or None
        if path.is_file():
            kind = KINDS.get(path.suffix.lower())
            if kind is None:
                raise UserError(
                    f"{path}: not a table that can be read; known are"
                    f" {', '.join(dict.fromkeys((*KINDS, *SUFFIXES)))}"
                )
            return datasets.load_dataset_builder(
                kind, data_files={split: str(path)}, cache_dir=str(cache / "datasets")
            )
        if path.is_dir():
            return datasets.load_dataset_builder(
                str(path), subset, cache_dir=str(cache / "datasets")
            )
        # what comes from the hub stays in Hugging Face's own cache, for all runs
        return datasets.load_dataset_builder(self.id, subset)

    def file_in(self, cell: Any, where: str) -> io.BytesIO | Path:
        """The bytes that a cell of sound or picture holds, or the file that it names."""
        if isinstance(cell, Mapping):
            cell = cell.get("bytes") or cell.get("path")
        if isinstance(cell, bytes) and cell:
            return io.BytesIO(cell)
        if isinstance(cell, str) and cell:
            try:
                path = inside(self._home(), cell)
            except UserError as error:
                raise UserError(f"{where}: {error}") from None
            if not path.is_file():
                raise UserError(f"{where}: no file {cell} in {self._home()}")
            return path
        raise UserError(
            f"{where}: holds {type(cell).__name__}, neither the bytes of a file nor its name"
        )

    def _names_file(self, cell: str) -> bool:
        """Whether a cell could be the name of a sound or picture of this table."""
        if not any(self._kind(field).of_files for field in self.columns):
            return False
        try:
            return inside(self._home(), cell).is_file()
        except UserError:
            return False

    def _home(self) -> Path:
        """The folder of the files that the table may name.

        That is the table's own folder; of a table on the hub, what `datasets` has downloaded.
        """
        place = self._place()
        if place.is_dir():
            return place
        if place.exists():
            return place.parent
        return Path(_datasets().config.HF_CACHE_HOME)


def _is_text(path: Path) -> bool:
    """Whether a file is a table of text by its suffix, packed or not."""
    return suffix_of(path) not in (None, ".parquet")


def _text_files(datasets: Any, builder: Any, split: str) -> list[Path]:
    """The files of a split that are tables of text; [] where it is of another kind.

    They are not read through `datasets`, which would guess types: numbers, dates, missing values.
    """
    from datasets.packaged_modules.csv.csv import Csv
    from datasets.packaged_modules.json.json import Json

    files = builder.config.data_files or {}
    if not isinstance(builder, (Csv, Json)):
        names = {Path(str(file)).name.lower() for of_split in files.values() for file in of_split}
        if "metadata.csv" in names:
            raise UserError(
                f"{builder.base_path}: `datasets` would read the texts of metadata.csv as numbers"
                " where they look like some; name the table itself: --id FOLDER/metadata.csv"
            )
        return []
    if split not in files:
        raise UserError(
            f"{builder.base_path}: has no split {split!r}; its splits are {listed(list(files))}"
        )
    return [Path(file) for file in datasets.DownloadManager().download(list(files[split]))]


def _first_line(error: BaseException) -> str:
    """The first line of the error that caused this one."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).splitlines()
    return (lines and lines[0]) or type(error).__name__


def _datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise missing_extra("reading a table", "hub") from None
    datasets.disable_progress_bars()
    return datasets
