"""Tables by hub id, or in a local file or folder: text files are read strictly, all others through
`datasets`.

Columns of sound and pictures are taken as the bytes that the table holds and decoded by this room's
own readers: decoding inside `datasets` would need FFmpeg for sound.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mmtok.errors import UserError, missing_extra
from mmtok.io.filenames import inside
from mmtok.io.messages import counted, listed
from mmtok.io.tables import SUFFIXES, as_text, suffix_of
from mmtok.sources.base import Example
from mmtok.sources.images import decode_image, size_of, split_order
from mmtok.sources.jets import FEATURES, checked_jet
from mmtok.sources.rows import DatasetRows, Rows, TextRows, grouped
from mmtok.sources.screen import Limit, Screen, Screened
from mmtok.sources.speech import decode_sound, seconds_of

KINDS = {".parquet": "parquet", ".arrow": "arrow"}
UNITS = {
    "text": "chars",
    "speech": "duration_s",
    "image": "pixels",
    "jets": "particles",
}  # that limits count
MODALITIES = tuple(UNITS)
FILLED = Limit("filled cells", 1)  # a row without any is no example


@dataclass(frozen=True)
class HubTable(Screened):
    """A table whose columns are the fields of the examples: HubTable("ylecun/mnist", {"caption":
    "label", "image": "image"}, ...).

    id          on the Hugging Face hub; or a file (parquet; csv or json lines, also .gz), or a
                folder that `datasets` can read (a folder of loose
                sound files it reads only with torchcodec: `SpeechFolder` needs none)
    columns     field -> column of the table
    modalities  field -> text, speech, image or jets. Text columns hold strings, or classes, whose
                names are then the text; sound and pictures their bytes, files, or file names beside
                the table; jets a list of constituents per row
    subset      the hub's name of a part of the table
    train       the table's own split to train on
    heldout     the table's own split to hold out; "": a share of `train`, chosen by `seed`
    limit       at most so many rows of each split; 0: all
    features    of the jets' constituents, in the order of the table
    limits      field -> the least and the most that it may have: characters of a text, seconds of
                speech, pixels of an image, particles of a jet; other rows are left out and counted.
                A most of 0: any

    A cell without a value is a field that the example lacks, and a row of such cells alone is left
    out and counted; in a csv an empty text is a text.
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

    def __post_init__(self):
        super().__post_init__()
        if not self.columns or set(self.columns) != set(self.modalities):
            raise UserError(
                f"HubTable {self.id!r}: columns names the fields {sorted(self.columns)}, modalities"
                f" {sorted(self.modalities)}; both must name the same, at least one"
            )
        for name, modality in self.modalities.items():
            if modality not in MODALITIES:
                raise UserError(
                    f"HubTable {self.id!r}: field {name!r} is {modality!r}; a table's columns are"
                    f" {', '.join(MODALITIES)}"
                )
        if not 0 < self.heldout_share < 1 or self.limit < 0:
            raise UserError(
                f"HubTable {self.id!r}: heldout_share is {self.heldout_share}, limit {self.limit}; "
                "the share must be between 0 and 1, the limit not negative"
            )
        if unknown := set(self.limits) - set(self.columns):
            raise UserError(
                f"HubTable {self.id!r}: limits names {', '.join(sorted(unknown))}; its fields are"
                f" {', '.join(self.columns)}"
            )
        self._limits()

    @property
    def fields(self) -> dict[str, str]:
        return dict(self.modalities)

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "heldout")

    def check(self) -> None:
        """Raise UserError when there is no id, or nothing to read it with."""
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

    def examples(self, split: str, cache: Path) -> Iterator[dict[str, Any]]:
        """The rows of "train" or "heldout".

        Raises UserError, naming the rows, where more than `on_error` passes over cannot be read.
        """
        if split not in self.splits:
            raise UserError(f"HubTable has no split {split!r}; one of {', '.join(self.splits)}")
        own = self.train if split == "train" or not self.heldout else self.heldout
        rows = self._load(own, Path(cache))
        missing = [c for c in self.columns.values() if c not in rows.columns]
        if missing:
            raise UserError(
                f"{self.id}, split {own!r}: has no column {listed(missing)}; its columns are"
                f" {listed(rows.columns)}"
            )
        parts = {split: range(len(rows))} if self.heldout else self._shares(rows, own)
        parts = {name: part[: self.limit or None] for name, part in parts.items()}
        screen = Screen(
            sorted(i for part in parts.values() for i in part),
            partial(self._sizes, rows),
            self,
            "rows",
            self._limits(),
            rows.where,
        )
        mine = set(parts[split])
        yield from screen.read([i for i in screen.items if i in mine], partial(self._example, rows))

    def _place(self) -> Path:
        return Path(self.id).expanduser() if self.id.startswith("~") else Path(self.id)

    def _shares(self, rows: Rows, own: str) -> dict[str, list[int]]:
        """The rows of each split, where a share is held out; those that name one file stay
        together.
        """
        groups = grouped(
            rows,
            [self.columns[name] for name, m in self.modalities.items() if m in ("speech", "image")],
        )
        if len(groups) < 2:
            raise UserError(
                f"{self.id}, split {own!r}: {counted(len(groups), 'row')} cannot be split into"
                " train and heldout; at least two are needed"
            )
        order = split_order(len(groups), self.heldout_share, self.seed)
        return {
            split: sorted(i for k in taken for i in groups[k]) for split, taken in order.items()
        }

    def _example(self, rows: Rows, i: int) -> dict[str, Any]:
        return Example(
            {
                name: self._reader(rows, name)(cell, where)
                for name, cell, where in self._cells(rows, i)
            },
            rows.where(i),
        )

    def _cells(self, rows: Rows, i: int) -> Iterator[tuple[str, Any, str]]:
        """(field, cell, where it is) of a row's cells that hold something."""
        cells = rows.row(i)
        for name, column in self.columns.items():
            if cells[column] is not None and (
                cells[column] != "" or self.modalities[name] == "text"
            ):
                yield name, cells[column], f"{rows.where(i)}, column {column!r}"

    def _limits(self) -> tuple[Limit, ...]:
        return FILLED, *(
            Limit(UNITS[self.modalities[name]], *bounds, of=name)
            for name, bounds in self.limits.items()
        )

    def _sizes(self, rows: Rows, i: int) -> dict[str, float]:
        """How much each field of a row has of its unit, and how many have any.

        Raises UserError for a broken file.
        """
        rows.check_whole(i, self._names_file)
        sizes = {
            name: self._size(rows, name, cell, where) for name, cell, where in self._cells(rows, i)
        }
        return {FILLED.unit: len(sizes), **sizes}

    def _size(self, rows: Rows, name: str, cell: Any, where: str) -> float:
        match self.modalities[name]:
            case "speech":
                return seconds_of(self._file(cell, where), where)
            case "image":
                return math.prod(size_of(self._file(cell, where), where))
            case _:
                return len(self._reader(rows, name)(cell, where))

    def _load(self, split: str, cache: Path) -> Rows:
        """The table of one split, its sounds and pictures left undecoded."""
        self.check()
        path = self._place()
        if path.is_file() and _is_text(path):
            return TextRows([path])
        datasets = _datasets()
        try:
            if path.is_file():
                kind = KINDS.get(path.suffix.lower())
                if kind is None:
                    raise UserError(
                        f"{path}: not a table that can be read; known are"
                        f" {', '.join(dict.fromkeys((*KINDS, *SUFFIXES)))}"
                    )
                builder = datasets.load_dataset_builder(
                    kind, data_files={split: str(path)}, cache_dir=str(cache / "datasets")
                )
            elif path.is_dir():
                builder = datasets.load_dataset_builder(
                    str(path), self.subset or None, cache_dir=str(cache / "datasets")
                )
            else:  # what the hub gives is kept where huggingface keeps it, for all runs
                builder = datasets.load_dataset_builder(self.id, self.subset or None)
            if texts := _text_files(datasets, builder, split):
                return TextRows(texts)
            builder.download_and_prepare()
            table = builder.as_dataset(split=split)
        except UserError:
            raise
        except Exception as error:  # `datasets` raises some thirty types, its own, fsspec's, pyarrow's and requests'
            raise UserError(
                f"{self.id}, split {split!r}: `datasets` cannot read it: {_first_line(error)}"
            ) from None
        table = table.select_columns(
            [c for c in dict.fromkeys(self.columns.values()) if c in table.column_names]
            or table.column_names
        )
        for column, feature in table.features.items():
            if isinstance(feature, (datasets.Audio, datasets.Image)):
                table = table.cast_column(column, type(feature)(decode=False))
        return DatasetRows(table, self.id)

    def _reader(self, rows: Rows, name: str) -> Callable[[Any, str], Any]:
        """What turns a cell of this field's column into a signal; its second argument says where
        the cell is.
        """
        column = self.columns[name]
        match self.modalities[name]:
            case "text":
                return partial(_text, rows.classes(column))
            case "speech":
                return lambda cell, where: decode_sound(self._file(cell, where), where)
            case "image":
                return lambda cell, where: decode_image(self._file(cell, where), where)
            case _:
                return lambda cell, where: checked_jet(cell, where, self.features)

    def _file(self, cell: Any, where: str) -> io.BytesIO | Path:
        """A cell of sound or picture as something to read: its bytes, or the file it names."""
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
        """Whether a cell would be the name of a file that the table may name."""
        if not {"speech", "image"} & set(self.modalities.values()):
            return False
        try:
            return inside(self._home(), cell).is_file()
        except UserError:
            return False

    def _home(self) -> Path:
        """The folder of the files that the table may name: where it lies itself, and of the hub's
        what `datasets` has fetched.
        """
        place = self._place()
        if place.exists():
            return place if place.is_dir() else place.parent
        return Path(_datasets().config.HF_CACHE_HOME)


def _is_text(path: Path) -> bool:
    """Whether a file is a table of text, packed or not, by its name."""
    return suffix_of(path) not in (None, ".parquet")


def _text(classes: Sequence[str], cell: Any, where: str) -> str:
    """A cell as text: the class's name where it is the number of one."""
    if classes and isinstance(cell, int) and 0 <= cell < len(classes):
        return classes[cell]
    return as_text(cell, where)


def _text_files(datasets: Any, builder: Any, split: str) -> list[Path]:
    """The files of a split that hold text, which `datasets` would guess types for: numbers, dates,
    what is missing.
    """
    from datasets.packaged_modules.csv.csv import Csv
    from datasets.packaged_modules.json.json import Json

    files = builder.config.data_files or {}
    if not isinstance(builder, (Csv, Json)):
        if any(
            Path(str(file)).name.lower() == "metadata.csv"
            for mine in files.values()
            for file in mine
        ):
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
    """The first line of what began it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise missing_extra("reading a table", "hub") from None
    datasets.disable_progress_bars()
    return datasets
