"""Cells of a table as signals: what a column of each modality may hold, and how it is read."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mmtok.errors import UserError
from mmtok.io.columns import known_column
from mmtok.io.messages import listed
from mmtok.io.numbers import as_number
from mmtok.io.tables import as_text
from mmtok.sources.base import Picture, Sound
from mmtok.sources.image_files import PICTURES, decode_image, size_of
from mmtok.sources.jets import checked_jet
from mmtok.sources.media import SUFFIXES as SOUNDS
from mmtok.sources.rows import Rows
from mmtok.sources.sound_files import decode_sound, seconds_of


class CellReader(Protocol):
    """What reading a cell depends on: the settings of a table, and where its files are."""

    @property
    def features(self) -> Sequence[str]:
        """Of the constituents of jets."""

    @property
    def join(self) -> str:
        """What joins the strings of a list; "": lists are refused."""

    def file_in(self, cell: Any, where: str, suffixes: tuple[str, ...] = ()) -> io.BytesIO | Path:
        """The bytes that a cell of sound or picture holds, or the file that it names.

        suffixes: of the files that it may name without their suffix, folder or case.
        """


@dataclass(frozen=True)
class ColumnKind:
    """How the cells of a column of one modality are read.

    Attributes:
        unit: what the limits of the field count.
        read: a function (table, rows, column, cell, where it is) -> signal.
        size: a function (file, where it is) -> its size in that unit, by its header; None where
            cells hold signals, not files: then it is the signal's length.
        may_be_empty: whether an empty string is a signal too.
        suffixes: of the files that cells may name.
    """

    unit: str
    read: Callable[[CellReader, Rows, str, Any, str], Any]
    size: Callable[[io.BytesIO | Path, str], float] | None = None
    may_be_empty: bool = False
    suffixes: tuple[str, ...] = ()

    @property
    def of_files(self) -> bool:
        """Whether a cell holds a file, or the name of one."""
        return self.size is not None


def _text(table: CellReader, rows: Rows, column: str, cell: Any, where: str) -> str | None:
    """A cell as text: the name of its class where it is the index of one."""
    classes: Sequence[str] = ()
    if column in rows.columns:
        classes = rows.classes(column)
    if not isinstance(cell, (list, tuple)):
        return _one_text(cell, classes, where)
    if not table.join:
        raise UserError(
            f"{where}: holds {type(cell).__name__}, not text; a list of strings is joined where"
            " join says with what (--sources.0.join ' ')"
        )
    return table.join.join(_one_text(part, classes, where) or "" for part in cell)


def _one_text(cell: Any, classes: Sequence[str], where: str) -> str | None:
    if classes and isinstance(cell, int) and 0 <= cell < len(classes):
        return classes[cell]
    return as_text(cell, where)


def _sound(table: CellReader, rows: Rows, column: str, cell: Any, where: str) -> Sound:
    return decode_sound(table.file_in(cell, where, SOUNDS), where)


def _picture(table: CellReader, rows: Rows, column: str, cell: Any, where: str) -> Picture:
    return decode_image(table.file_in(cell, where, PICTURES), where)


def _n_pixels(file: io.BytesIO | Path, where: str) -> float:
    return math.prod(size_of(file, where))


def _jet(table: CellReader, rows: Rows, column: str, cell: Any, where: str) -> np.ndarray:
    """A jet as a list of constituents, of records of them, or a record of lists.

    Constituents of no pt are padding.
    """
    features = tuple(table.features)
    if isinstance(cell, Mapping):
        names = _features_in(list(cell), features, where)
        columns = [cell[name] for name in names]
        if len({len(column) for column in columns if isinstance(column, list)}) != 1:
            raise UserError(f"{where}: the lists of a jet's features differ in length")
        cell = list(zip(*columns, strict=True))
    elif isinstance(cell, (list, tuple)) and cell and isinstance(cell[0], Mapping):
        names = _features_in(list(cell[0]), features, where)
        cell = [[constituent.get(name) for name in names] for constituent in cell]
    return checked_jet(cell, where, features, of=f"the column {column!r}")


def _features_in(there: Sequence[str], features: Sequence[str], where: str) -> list[str]:
    """What each feature is called in a record: pt_gev, or pt."""
    found = {f: known_column((f, f.removesuffix("_gev")), there) for f in features}
    missing = [f for f, name in found.items() if name is None]
    if missing:
        raise UserError(
            f"{where}: the constituents have no {listed(missing)}, but {listed(there)}; a jet of"
            " other quantities is read by a JetFile"
        )
    return [name for name in found.values() if name is not None]


def _number(table: CellReader, rows: Rows, column: str, cell: Any, where: str) -> float:
    return as_number(cell, where)


COLUMN_KINDS = {  # by modality
    "text": ColumnKind("chars", _text, may_be_empty=True),
    "speech": ColumnKind("duration_s", _sound, seconds_of, suffixes=SOUNDS),
    "image": ColumnKind("pixels", _picture, _n_pixels, suffixes=PICTURES),
    "jets": ColumnKind("particles", _jet),
    "number": ColumnKind("value", _number),
}
