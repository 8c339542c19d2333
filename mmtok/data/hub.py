"""Tables by hub id, or in a local file or folder, read through `datasets`.

Columns of sound and pictures are taken as the bytes that the table holds and decoded by this room's own readers: decoding
inside `datasets` would need FFmpeg for sound.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmtok.data.images import decode_image, resized, split_order
from mmtok.data.jets import FEATURES, checked_jet
from mmtok.data.speech import decode_sound
from mmtok.segment import BadInput

KINDS = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".arrow": "arrow"}
MODALITIES = ("text", "speech", "image", "jets")


@dataclass(frozen=True)
class HubTable:
    """A table whose columns are the fields of the examples: HubTable("ylecun/mnist", {"caption": "label", "image": "image"}, ...).

    id          on the Hugging Face hub; or a file (parquet, csv, json lines), or a folder that `datasets` can read (a folder of loose
                sound files it reads only with torchcodec: `SpeechFolder` needs none)
    columns     field -> column of the table
    modalities  field -> text, speech, image or jets. Text columns hold strings, or classes, whose names are then the text;
                sound and pictures their bytes, files, or file names beside the table; jets a list of constituents per row
    subset      the hub's name of a part of the table
    train       the table's own split to train on
    heldout     the table's own split to hold out; "": a share of `train`, chosen by `seed`
    limit       at most so many rows of each split; 0: all
    rate_hz     of the speech yielded; height, width, channels: of the images yielded (height 0: as they are)
    features    of the jets' constituents, in the order of the table
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
    rate_hz: int = 16_000
    height: int = 0
    width: int = 0
    channels: int = 3
    features: tuple[str, ...] = FEATURES

    def __post_init__(self):
        if not self.columns or set(self.columns) != set(self.modalities):
            raise BadInput(f"HubTable {self.id!r}: columns names the fields {sorted(self.columns)}, modalities {sorted(self.modalities)}; "
                           "both must name the same, at least one")
        for name, modality in self.modalities.items():
            if modality not in MODALITIES:
                raise BadInput(f"HubTable {self.id!r}: field {name!r} is {modality!r}; a table's columns are {', '.join(MODALITIES)}")
        if not 0 < self.heldout_share < 1 or self.limit < 0:
            raise BadInput(f"HubTable {self.id!r}: heldout_share is {self.heldout_share}, limit {self.limit}; "
                           "the share must be between 0 and 1, the limit not negative")

    @property
    def fields(self) -> dict[str, str]:
        return dict(self.modalities)

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "heldout")

    def check(self) -> None:
        """Raise BadInput when there is no id, or nothing to read it with."""
        if not self.id:
            raise BadInput("HubTable: no id given; pass --id OWNER/NAME of the hub, or a file or folder")
        if self.heldout and Path(self.id).is_file():
            raise BadInput(f"HubTable: {self.id} is one file, without a split {self.heldout!r}; leave heldout empty to hold a share out")
        _datasets()

    def examples(self, split: str, cache: Path) -> Iterator[dict[str, Any]]:
        """The rows of "train" or "heldout". Raises BadInput, naming the row, for what cannot be read."""
        if split not in self.splits:
            raise BadInput(f"HubTable has no split {split!r}; one of {', '.join(self.splits)}")
        own = self.train if split == "train" or not self.heldout else self.heldout
        table = self._load(own, Path(cache))
        rows = np.arange(len(table))
        if not self.heldout:
            if len(table) < 2:
                raise BadInput(f"{self.id}, split {own!r}: {len(table)} rows cannot be split into train and heldout; at least two are needed")
            rows = np.sort(split_order(len(table), self.heldout_share, self.seed)[split])
        read = {name: self._reader(table, name) for name in self.columns}
        for row in rows[: self.limit or None].tolist():
            values = table[row]
            yield {name: read[name](values[self.columns[name]], f"{self.id}, row {row}, column {self.columns[name]!r}") for name in read}

    def _load(self, split: str, cache: Path) -> Any:
        """The table of one split, its sounds and pictures left undecoded."""
        datasets = _datasets()
        self.check()
        path = Path(self.id)
        try:
            if path.is_file():
                kind = KINDS.get(path.suffix)
                if kind is None:
                    raise BadInput(f"{path}: not a table that can be read; known are {', '.join(KINDS)}")
                options = {"sep": "\t"} if path.suffix == ".tsv" else {}
                table = datasets.load_dataset(kind, data_files={split: str(path)}, split=split, cache_dir=str(cache / "datasets"), **options)
            elif path.is_dir():
                table = datasets.load_dataset(str(path), self.subset or None, split=split, cache_dir=str(cache / "datasets"))
            else:  # what the hub gives is kept where huggingface keeps it, for all runs
                table = datasets.load_dataset(self.id, self.subset or None, split=split)
        except BadInput:
            raise
        except Exception as error:  # `datasets` raises some thirty types, its own, fsspec's, pyarrow's and requests'
            raise BadInput(f"{self.id}, split {split!r}: `datasets` cannot read it: {_first_line(error)}") from None
        missing = [c for c in self.columns.values() if c not in table.column_names]
        if missing:
            raise BadInput(f"{self.id}, split {split!r}: has no column {', '.join(missing)}; its columns are {', '.join(table.column_names)}")
        table = table.select_columns(list(dict.fromkeys(self.columns.values())))
        for column, feature in table.features.items():
            if isinstance(feature, (datasets.Audio, datasets.Image)):
                table = table.cast_column(column, type(feature)(decode=False))
        return table

    def _reader(self, table: Any, name: str) -> Callable[[Any, str], Any]:
        """What turns a cell of this field's column into a signal; its second argument says where the cell is."""
        column = self.columns[name]
        match self.modalities[name]:
            case "text":
                names = getattr(table.features[column], "names", None)
                return lambda cell, where: _text(names[cell] if names and isinstance(cell, int) and 0 <= cell < len(names) else cell, where)
            case "speech":
                return lambda cell, where: decode_sound(self._file(cell, where), where, self.rate_hz)
            case "image":
                return lambda cell, where: self._sized(decode_image(self._file(cell, where), where))
            case _:
                return lambda cell, where: checked_jet(cell, where, self.features)

    def _sized(self, image: np.ndarray) -> np.ndarray:
        return resized(image, self.height, self.width or self.height, self.channels) if self.height else image

    def _file(self, cell: Any, where: str) -> io.BytesIO | Path:
        """A cell of sound or picture as something to read: its bytes, or the file it names."""
        if isinstance(cell, Mapping):
            cell = cell.get("bytes") or cell.get("path")
        if isinstance(cell, bytes) and cell:
            return io.BytesIO(cell)
        if isinstance(cell, str) and cell:
            beside = Path(self.id) if Path(self.id).is_dir() else Path(self.id).parent
            path = next((p for p in (Path(cell), beside / cell) if p.is_file()), None)
            if path is None:
                raise BadInput(f"{where}: no file {cell}")
            return path
        raise BadInput(f"{where}: holds {type(cell).__name__}, neither the bytes of a file nor its name")


def _text(cell: Any, where: str) -> str:
    if not isinstance(cell, (str, int, float)):
        raise BadInput(f"{where}: holds {type(cell).__name__}, not text")
    return str(cell)


def _first_line(error: BaseException) -> str:
    """The first line of what began it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise BadInput("reading a table needs the extra: pip install -e '.[hub]' in the project's folder") from None
    datasets.disable_progress_bars()
    return datasets
