"""What `mmtok compare` reads: signals of a file, folder or pipe, as points of a few features."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mmtok.commands.signal_files import named_files
from mmtok.data.subset import random_subset
from mmtok.data.tokens import is_tokens, read_tokens
from mmtok.errors import UserError
from mmtok.io.arrays import read_npy
from mmtok.io.messages import listed
from mmtok.io.numbers import as_number
from mmtok.io.tables import SUFFIXES as TABLES
from mmtok.io.tables import read_table
from mmtok.io.tally import Tally
from mmtok.io.terminal import print_status
from mmtok.metrics.features import FEATURES, Points, code_features
from mmtok.metrics.statistics import LEAST_POINTS
from mmtok.sources.jet_reader import FEATURES as FEATURES_OF_JETS
from mmtok.sources.signal_files import SIGNAL_FILES
from mmtok.sources.text import read_text

NUMBERS = "numbers"  # columns of a table, or of an array
TOKENS = "tokens"
KINDS = (*FEATURES, NUMBERS, TOKENS)
BY_NAME = ("speech", "image", "jets", "text")  # modalities whose files are told by their names
STDIN = "-"
MOST_CHANNELS = 16  # of tokens, whose features are shown
MISSING = ("", "nan", "null", "none", "na")


@dataclass(frozen=True)
class Read:
    """What was read of one side.

    Attributes:
        names: Of the features.
        points: (n, d).
        n_all: How many signals there are.
        signals: Those that the points are of, as `_signals` gives them; () of rows of numbers.
    """

    names: tuple[str, ...]
    points: np.ndarray
    n_all: int
    signals: Sequence[Any]


def unit_of(kind: str) -> str:
    """What signals of a kind are called, in the plural."""
    if kind in SIGNAL_FILES:
        return SIGNAL_FILES[kind].unit
    return {NUMBERS: "rows", TOKENS: "rows of tokens"}[kind]


def kind_of(place: str) -> str:
    """What a file or folder holds, by its suffix; of a folder what most of its files are.

    Raises UserError where that cannot be said.
    """
    if place == STDIN:
        return "text"
    path = Path(place)
    if not path.exists():
        raise UserError(f"compare: {place} does not exist")
    kind: str | None
    if path.is_dir():
        kind = _kind_of_folder(path)
    elif is_tokens(path):
        kind = TOKENS
    elif path.name.lower().endswith((".npy", *TABLES)):
        kind = NUMBERS
    else:
        kind = _kind_of_name(path.name)
    if kind is not None:
        return kind
    raise UserError(
        f"compare: {place} is no file or folder of a known modality; say which with --modality"
        f" {'|'.join(KINDS)}"
    )


def _kind_of_folder(folder: Path) -> str | None:
    """What most of its files are; as many texts as others are taken for what is said of these."""
    if any(is_tokens(path) for path in sorted(folder.glob("*.parquet"))[:1]):
        return TOKENS
    kinds = Counter(_kind_of_name(path.name) for path in folder.rglob("*") if path.is_file())
    kind = max(BY_NAME, key=lambda name: kinds[name])
    if not kinds[kind]:
        return None
    return kind


def _kind_of_name(name: str) -> str | None:
    """The modality of files of this name."""
    for kind in BY_NAME:
        if name.lower().endswith(SIGNAL_FILES[kind].suffixes):
            return kind
    return None


def read_points(
    place: str,
    kind: str,
    columns: Sequence[str],
    most: int,
    reading: Mapping[str, Any],
    seed: int,
) -> Read:
    """At most `most` signals of a place as points.

    Raises UserError for what cannot be read, and for too few.
    """
    chosen: Sequence[Any] = ()
    if place != STDIN and not Path(place).exists():
        raise UserError(f"compare: {place} does not exist")
    if columns and kind not in (NUMBERS, "text"):
        raise UserError(f"compare: --columns is for tables, and {place} holds {kind}")
    if reading and kind != "jets":
        raise UserError(f"compare: --{next(iter(reading))} is for files of jets, not of {kind}")
    if kind == NUMBERS:
        names, values = _numbers(Path(place), columns)
        n_all = len(values)
        points = values[random_subset(range(n_all), most, seed)]
    else:
        counted = _Counted(_signals(place, kind, columns, reading))
        chosen = random_subset(counted, most, seed)
        n_all = counted.n
        if len(chosen) < LEAST_POINTS:
            raise _too_few(place, kind, len(chosen))
        names, points = _features(kind, chosen)
    if len(points) < LEAST_POINTS:
        raise _too_few(place, kind, len(points))
    wrong = np.count_nonzero(~np.isfinite(points).all(1))
    if wrong:
        raise UserError(f"compare: {place}: {wrong} {unit_of(kind)} have no finite features")
    return Read(names, points, n_all, chosen)


def _too_few(place: str, kind: str, n: int) -> UserError:
    where = place
    if place != STDIN and Path(place).is_file() and kind in ("speech", "image"):
        where = f"{place} is one of {unit_of(kind)}: name a folder of them; it"
    return UserError(
        f"compare: {where} holds {n} {unit_of(kind)}, and tests need at least {LEAST_POINTS}"
    )


class _Counted:
    """An iterable that counts what was taken from it."""

    def __init__(self, items: Iterable[Any]):
        self._items = items
        self.n = 0

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            self.n += 1
            yield item


def _features(kind: str, chosen: Sequence[Any]) -> Points:
    """Features of signals; files that hold one each are opened only now."""
    if kind == TOKENS:
        return code_features(chosen)
    if kind in ("speech", "image"):
        chosen = [open_signal() for open_signal in chosen]
    return FEATURES[kind](chosen)


def _signals(
    place: str, kind: str, columns: Sequence[str], reading: Mapping[str, Any]
) -> Iterator[Any]:
    """The signals at a place; of speech and images functions that open them."""
    if kind == TOKENS:
        yield from _frames(Path(place))
        return
    if kind == "text":
        yield from _texts(place, columns)
        return
    files = SIGNAL_FILES[kind].reading(reading)
    paths = named_files([Path(place)], kind, files)
    for path in paths:
        if kind == "jets":
            yield from files.read(path, {"features": FEATURES_OF_JETS})
        elif kind == "speech":
            yield partial(_sound, path)
        else:
            yield partial(_pixels, path)


def _sound(path: Path) -> tuple[np.ndarray, int]:
    sound = SIGNAL_FILES["speech"].read(path, {})
    return sound.samples, sound.rate_hz


def _pixels(path: Path) -> np.ndarray:
    return SIGNAL_FILES["image"].read(path, {}).pixels


def _texts(place: str, columns: Sequence[str]) -> Iterator[str]:
    """Lines of a file or of stdin; files of a folder; cells of a table's column."""
    if place == STDIN:
        yield from _lines(sys.stdin.read())
        return
    path = Path(place)
    if path.is_dir():
        for file in named_files([path], "text", SIGNAL_FILES["text"]):
            yield read_text(file)
    elif path.name.lower().endswith(TABLES):
        (name,) = columns or ("text",)
        yield from (str(cell) for cell in read_table(path).column(name) if cell is not None)
    else:
        yield from _lines(read_text(path))


def _lines(text: str) -> Iterator[str]:
    """Lines that are not blank."""
    return (line for line in text.splitlines() if line.strip())


def _frames(path: Path) -> Iterator[np.ndarray]:
    """Codes or latents (T, C) of the first field of every row that has it."""
    tokens = read_tokens(path)
    field, *others = tokens.signatures
    if others:
        print_status(f"note: {path}: the field {field} is compared; not {listed(others)}")
    for i in np.flatnonzero(tokens.has(field)):
        values = tokens.segment(field, int(i)).values
        yield values[:, :MOST_CHANNELS]


def _numbers(path: Path, columns: Sequence[str]) -> Points:
    """Columns of a table, or of an array (n, d) or (n,).

    Rows with a missing number are left out, and counted. Without named columns those are taken
    whose cells are all numbers, or missing.
    """
    if path.is_dir():
        raise UserError(f"compare: {path} is a folder; name one table or .npy file")
    if path.name.lower().endswith(".npy"):
        array = read_npy(path, "columns of numbers")
        if array.ndim not in (1, 2) or array.dtype.kind not in "fiub":
            raise UserError(f"compare: {path} holds {array.dtype} {array.shape}; needed are (n, d)")
        values = array.reshape(len(array), -1).astype(np.float64)
        names = tuple(f"column {i}" for i in range(values.shape[1]))
    else:
        table = read_table(path)
        found = {}
        for name in columns or table.columns:
            cells = _cells(table.column(name), f"{path}: column {name}", bool(columns))
            if cells is not None:
                found[name] = cells
        if not found:
            raise UserError(f"compare: {path} has no column of numbers")
        left = [name for name in table.columns if name not in found]
        if left and not columns:
            print_status(f"note: {path}: not compared, as no numbers: {listed(left)}")
        names = tuple(found)
        values = np.stack(list(found.values()), 1)
    kept = np.isfinite(values).all(1)
    with Tally("rows") as tally:
        tally.count(len(values))
        if not kept.all():
            first = f"{path}, row {int(np.argmin(kept)) + 1}"
            tally.add("left out: a number is missing", first, int((~kept).sum()))
    return names, values[kept]


def _cells(cells: Sequence[Any], where: str, is_named: bool) -> np.ndarray | None:
    """A column as numbers, NaN where one is missing; None if it is of something else.

    Raises UserError for a cell of a named column that is no number.
    """
    values = np.full(len(cells), np.nan)
    for i, cell in enumerate(cells):
        if cell is None or str(cell).strip().lower() in MISSING:
            continue
        try:
            values[i] = as_number(cell, f"{where}, row {i + 1}")
        except UserError:
            if is_named:
                raise
            return None
    if not np.isfinite(values).any():
        return None
    return values
