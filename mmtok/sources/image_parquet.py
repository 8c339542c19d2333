"""Pictures inside Parquet files, as the Hugging Face hub has them: bytes, or bytes with a path."""

from __future__ import annotations

import hashlib
import io
import json
import math
import sys
import warnings
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from mmtok.errors import UserError, reading, reason_of
from mmtok.io.columns import cell_of, chosen_column, whole_columns
from mmtok.io.filenames import inside
from mmtok.io.messages import counted, listed
from mmtok.io.remembered import Remembered
from mmtok.io.tables import as_text
from mmtok.io.tally import Tally
from mmtok.sources.base import CHUNK, Chunk, Example, Unusable
from mmtok.sources.captions import CAPTION_COLUMNS, caption_of, texts_of
from mmtok.sources.image_files import decode_image, open_image, size_of
from mmtok.sources.leaks import Content
from mmtok.sources.pictures import IMAGE_COLUMNS, SPLIT_COLUMNS, Pictures, Place, ReadSettings

ROWS = 16  # that are read at once, as each holds a picture
SMALL_ROWS = 65_536  # likewise, of cells that are small
MOST_HASHED_BYTES = 2**30  # of all files, whose pictures are compared
BUFFER_BYTES = 2**20  # of a column that is read a piece at a time
MOST_OF_ONE_FILE = 0.5  # of all rows that may name one file before names are no names of files


@dataclass(frozen=True)
class Columns:
    """What is read of the rows of a Parquet file.

    Attributes:
        image: the column of pictures.
        caption: that of captions.
        split: that of splits; None where there is none.
        names: of the classes 0, 1, ..., where captions are numbers.
    """

    image: str
    caption: str
    split: str | None
    names: tuple[str, ...]


def picture_columns(path: Path) -> list[str]:
    """The columns of a Parquet file that can hold pictures: bytes, or a struct with bytes."""
    import pyarrow as pa

    found = []
    for field in _schema(path):
        kind = field.type
        if pa.types.is_struct(kind):
            fields = [kind.field(i) for i in range(kind.num_fields)]
            if any(f.name == "bytes" and _may_be_binary(f.type) for f in fields):
                found.append(field.name)
        elif _is_binary(kind):
            found.append(field.name)
    return found


def _is_binary(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _may_be_binary(kind: Any) -> bool:
    """Whether it holds bytes, or nothing in all rows, as where a table names files instead."""
    import pyarrow as pa

    return _is_binary(kind) or pa.types.is_null(kind)


def _schema(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"{path}: not a Parquet file that can be read: {reason_of(error)}"
        ) from None


def parquet_files(place: Place) -> list[Path]:
    """The Parquet files of a place that hold pictures; the first one decides for all."""
    files = place.with_suffix(".parquet")
    return files if files and picture_columns(files[0]) else []


def columns_of(path: Path, settings: ReadSettings) -> Columns:
    """What to read of a Parquet file. Raises UserError where that is unclear."""
    schema = _schema(path)
    pictures = picture_columns(path)
    named = settings.columns
    image = chosen_column(
        "image", schema.names if "image" in named else pictures, named, IMAGE_COLUMNS, path
    )
    if image is None and len(pictures) == 1:
        image = pictures[0]
    if image not in pictures:
        raise UserError(
            f"{path}: which column holds the pictures? Bytes are in {listed(pictures) or 'none'}"
            f" (of {listed(schema.names)}); name it: --columns image=COLUMN"
        )
    others = [name for name in schema.names if name not in pictures]
    caption = chosen_column("caption", others, named, CAPTION_COLUMNS, path, True)
    if caption is None and len(others) == 1:
        caption = others[0]
    if caption is None:
        raise UserError(
            f"{path}: which column is the caption? It has {listed(others) or 'none beside'}; name"
            " it: --columns caption=COLUMN"
        )
    split = chosen_column("split", others, named, SPLIT_COLUMNS, path, True)
    return Columns(image, caption, split, settings.names or class_names(schema, caption))


def class_names(schema: Any, column: str) -> tuple[str, ...]:
    """The names of a column's classes, which `datasets` writes into the file; () for none."""
    try:
        about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        return tuple(about["info"]["features"][column]["names"])
    except (ValueError, KeyError, TypeError):
        return ()


# ---- rows


class _Cursor:
    """A Parquet file that is read forwards, a few rows at a time."""

    def __init__(self, path: Path, columns: tuple[str, ...]) -> None:
        import pyarrow.parquet as pq

        self.file = pq.ParquetFile(path, buffer_size=BUFFER_BYTES)
        self.columns = list(columns)
        groups = [self.file.metadata.row_group(i).num_rows for i in range(self.file.num_row_groups)]
        self.starts = np.concatenate([[0], np.cumsum(groups)]).astype(int)
        self.group = -1
        self.batches: Iterator[Any] = iter(())
        self.first = 0  # row of the batch at hand
        self.rows: list[dict[str, Any]] = []

    def row(self, i: int) -> dict[str, Any]:
        """The cells of a row; quick where rows are asked for in order."""
        group = int(np.searchsorted(self.starts, i, "right")) - 1
        if group != self.group or i < self.first:
            self.group = group
            self.batches = self.file.iter_batches(
                ROWS, row_groups=[group], columns=self.columns, use_threads=False
            )
            self.first = int(self.starts[group])
            self.rows = []
        while i >= self.first + len(self.rows):
            self.first += len(self.rows)
            batch = next(self.batches)
            # only the batch that holds the row becomes objects
            if i >= self.first + len(batch):
                self.rows = [{}] * len(batch)
            else:
                self.rows = batch.to_pylist()
        return self.rows[i - self.first]


_cursors: Remembered[_Cursor] = Remembered(4)


def read_row(path: Path, columns: tuple[str, ...], i: int) -> dict[str, Any]:
    """The cells of a row. Raises UserError, naming the row, where it cannot be read."""
    import pyarrow as pa

    try:
        return _cursors(path, lambda: _Cursor(path, columns), columns).row(i)
    except (pa.ArrowException, OSError, ValueError, StopIteration) as error:
        _cursors.forget()  # half read, it cannot go on
        raise UserError(f"{path}: row {i}: cannot be read: {reason_of(error)}") from None


@dataclass(frozen=True)
class ParquetChunk:
    """Some rows of a Parquet file, in order.

    Attributes:
        path: of the file.
        rows: their numbers, from 0.
        columns: what to read of them.
    """

    path: Path
    rows: array
    columns: Columns

    @property
    def files(self) -> tuple[Path, ...]:
        """The file alone."""
        return (self.path,)

    def read(self) -> Iterator[dict[str, Any] | Unusable]:
        """An example for each caption of each row."""
        wanted = (self.columns.image, self.columns.caption)
        for i in self.rows:
            where = f"{self.path}: row {i}"
            try:
                cells = read_row(self.path, wanted, i)
                examples = list(_examples(cells, self.columns, self.path, where))
            except UserError as error:
                yield Unusable(where, str(error))
            else:
                yield from examples


def _examples(cells: dict[str, Any], columns: Columns, path: Path, where: str) -> Iterator[Example]:
    texts = texts_of(cell_of(cells, columns.caption), where)
    captions = [caption_of(text or "", columns.names, where) for text in texts]
    if not captions:
        raise UserError(f"{where}: has no caption")
    file = picture_file(cells[columns.image], path, where)
    picture = open_image(file) if isinstance(file, Path) else decode_image(file, where)
    for caption in captions:
        yield Example({"caption": caption, "image": picture}, where)


def picture_file(cell: Any, path: Path, where: str) -> io.BytesIO | Path:
    """The bytes in a cell, or the file beside the table that it names.

    Raises UserError where it holds neither.
    """
    content = cell
    if isinstance(cell, dict):
        content = cell.get("bytes") or cell.get("path")
        if not content:
            raise UserError(f"{where}: holds no picture: no bytes and no path")
    if isinstance(content, bytes) and content:
        return io.BytesIO(content)
    if isinstance(content, str) and content:
        try:
            return inside(path.parent, content)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    raise UserError(f"{where}: holds no picture")


# ---- listed


class ParquetPictures(Pictures):
    """The rows of Parquet files that hold pictures.

    They are looked at only where the user sets limits, as that reads all of the files.
    """

    looks = False

    def __init__(self, folder: Path, files: Sequence[Path], columns: Columns) -> None:
        import pyarrow.parquet as pq

        self._files = files
        self._columns = columns
        self._parts = [file.relative_to(folder).as_posix() for file in files]
        self._hashes: np.ndarray | None = None
        self._ends = np.cumsum([pq.read_metadata(file).num_rows for file in files])
        self._splits: list[str] = []
        if columns.split is not None:
            self._splits = [
                sys.intern(as_text(cell, str(file)) or "")
                for file in files
                for cell in _leaf(file, columns.split, is_whole=False)
            ]

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _at(self, i: int) -> tuple[int, int]:
        """File and row."""
        file = int(np.searchsorted(self._ends, i, "right"))
        start = int(self._ends[file - 1]) if file else 0
        return file, i - start

    def name(self, i: int) -> str:
        """File and row."""
        file, row = self._at(i)
        return f"{self._files[file]}: row {row}"

    def pixels(self, i: int) -> int:
        """From its header; quick where pictures are asked for in order."""
        file, row = self._at(i)
        cells = read_row(self._files[file], (self._columns.image,), row)
        found = picture_file(cells[self._columns.image], self._files[file], self.name(i))
        return math.prod(size_of(found, self.name(i)))

    def parts(self, i: int) -> tuple[str, ...]:
        """Its split as the row says, else its file."""
        if self._splits:
            return (self._splits[i],)
        return (self._parts[self._at(i)[0]],)

    def content(self, i: int) -> Content:
        """A hash of its bytes, where all files together are small enough to be read for that."""
        if self._hashes is None:
            self._hashes = self._hashed()
        return int(self._hashes[i]) or None

    def _hashed(self) -> np.ndarray:
        """Hashes of all pictures; 0 where a cell holds no bytes, and in files that are large."""
        if sum(file.stat().st_size for file in self._files) > MOST_HASHED_BYTES:
            warnings.warn(
                f"{self._files[0].parent}: equal pictures are not looked for in its"
                f" {counted(len(self), 'row')}, as the files hold more than"
                f" {MOST_HASHED_BYTES / 2**30:g} GiB; rows of one picture may be in two splits",
                stacklevel=4,
            )
            return np.zeros(len(self), np.uint64)
        cells = (cell for file in self._files for cell in _leaf(file, self._columns.image, ROWS))
        try:
            return np.fromiter(map(_hash_of, cells), np.uint64, len(self))
        except UserError:
            return np.zeros(len(self), np.uint64)  # what is broken is said where it is read

    def groups(self) -> np.ndarray | None:
        """Rows of one picture, which has several captions: by its path, else by its bytes."""
        by_path = self._by_path()
        groups = self._by_content() if by_path is None else by_path
        _, counts = np.unique(groups, return_counts=True)
        if counts.max() > MOST_OF_ONE_FILE * len(self):
            return None
        return groups

    def _by_content(self) -> np.ndarray:
        """The first row with the same bytes; the row itself where they are not known."""
        hashes = np.array([self.content(i) or 0 for i in range(len(self))], np.uint64)
        known = np.flatnonzero(hashes)
        _, first, same = np.unique(hashes[known], return_index=True, return_inverse=True)
        groups = np.arange(len(self))
        groups[known] = known[first][same]
        return groups

    def _by_path(self) -> np.ndarray | None:
        """The first row with the same path; None where no row has one."""
        import pyarrow as pa

        numbers: dict[str, int] = {}
        groups = np.arange(len(self))
        i = 0
        for file in self._files:
            kind = _schema(file).field(self._columns.image).type
            if not pa.types.is_struct(kind) or "path" not in [f.name for f in kind]:
                return None
            for path in _leaf(file, f"{self._columns.image}.path", is_whole=False):
                if path:
                    groups[i] = numbers.setdefault(path, i)
                i += 1
        return groups if numbers else None

    def chunks(self, chosen: Sequence[int]) -> Iterator[Chunk]:
        """Rows of one file at a time."""
        places = (self._at(i) for i in chosen)
        for file, rows in groupby(places, _first):
            numbers = array("q", (row for _, row in rows))
            for start in range(0, len(numbers), CHUNK):
                yield ParquetChunk(self._files[file], numbers[start : start + CHUNK], self._columns)


def _hash_of(cell: Any) -> int:
    """Of the bytes of a picture; 0 where there are none."""
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if not content or not isinstance(content, bytes):
        return 0
    digest = hashlib.blake2b(content, digest_size=8).digest()
    return max(1, int.from_bytes(digest, "little"))


def _first(place: tuple[int, int]) -> int:
    return place[0]


def _leaf(path: Path, column: str, n: int = SMALL_ROWS, is_whole: bool = True) -> Iterator[Any]:
    """The cells of a column, or where that is not whole of a field of a struct, n at a time."""
    import pyarrow.parquet as pq

    opened = pq.ParquetFile(path, buffer_size=BUFFER_BYTES)
    with reading(path, "pictures in Parquet"), opened as file:
        for batch in file.iter_batches(n, columns=[column], use_threads=False):
            if is_whole:
                yield from batch.column(0).to_pylist()
            else:
                yield from (cell_of(row, column) for row in batch.to_pylist())


def read_parquet(place: Place, settings: ReadSettings) -> ParquetPictures:
    """The pictures in the Parquet files of a place.

    Raises UserError where they hold none, and for files of other columns than the first.
    """
    files = place.with_suffix(".parquet")
    if not files:
        raise UserError(f"{place.shown}: no Parquet files in it")
    columns = columns_of(files[0], settings)
    used = []
    with Tally("Parquet files") as tally:
        for file in files:
            tally.count()
            names = _schema(file).names
            if columns.image in names and whole_columns([columns.caption], names):
                used.append(file)
            else:
                tally.add(f"left out: without {columns.image} and {columns.caption}", file)
    return ParquetPictures(place.folder, used, columns)
