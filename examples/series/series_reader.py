"""Time series in csv files: a column of times, then channels whose names say their units.

    time [s],temperature [degC],pressure [hPa]
    0,20.1,1013
    1,20.3,1013

Times are numbers or ISO 8601 dates (then in seconds), and rise. The sampling step is the median of
their differences. A row without a value, and a time that is no step after the one before, end a
series: what follows is another. Gaps, uneven steps and lost rows are counted, and said once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from mmtok.errors import UserError
from mmtok.io.compressed import COMPRESSED
from mmtok.io.files import write_text
from mmtok.io.numbers import as_number
from mmtok.io.signal_files import SignalFiles
from mmtok.io.tables import Table, read_table
from mmtok.io.tally import Tally
from mmtok.sources.base import Example, Source, check_heldout_share

UNEVEN = 0.1  # of a step: a time that is farther off ends a series
EXACT = 1e-3  # of a step: nearer times are on the grid
MISSING = ("", "nan", "na", "null")
APART = 10  # steps between series that are written into one file


def read_pieces(path: Path, channels: Sequence[str]) -> list[tuple[str, np.ndarray]]:
    """The series in a file, each (name of its first row, values (T, C)).

    channels: names of the columns, with their units, in their order.

    Raises UserError, naming the line, for a missing column, for what is no number and for times
    that do not rise.
    """
    table = read_table(path)
    if len(table.columns) < 2:
        raise UserError(f"{path}: holds one column; a series has times and channels")
    for name in channels:
        _check_unit(path, table.columns[1:], name)
    seconds = np.array([_time(cell, table, i) for i, cell in enumerate(_column(table, 0))])
    values = np.stack([_numbers(table, name) for name in channels], 1)
    steps = np.diff(seconds)
    if (steps <= 0).any():
        row = int(np.argmax(steps <= 0)) + 1
        raise UserError(f"{table.where(row)}: its time is not after the one before; sort the rows")
    missing = np.isnan(values).any(1)
    cuts = _cuts(table, steps, missing)
    pieces = []
    edges = [0, *cuts, len(values)]
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        start += int(missing[start])
        if stop > start:
            pieces.append((table.where(start), values[start:stop]))
    return pieces


def _cuts(table: Table, steps: np.ndarray, missing: np.ndarray) -> list[int]:
    """Where a new series begins: rows after a gap, and rows without a value; both are counted."""
    step = float(np.median(steps)) if len(steps) else 1.0
    off = np.append(0.0, steps / step - 1)
    uneven = np.abs(off) > UNEVEN
    kinds = {
        "left out, as a value is missing; another series begins after it": missing,
        "after a gap, and begin another series": uneven & (off > 0),
        "sooner than a step, and begin another series": uneven & (off < 0),
        "a little off an even step, and read as on it": ~uneven & (np.abs(off) > EXACT),
    }
    with Tally("rows") as tally:
        tally.count(len(missing))
        for what, found in kinds.items():
            if found.any():
                tally.add(what, table.where(int(found.argmax())), int(found.sum()))
    begins = missing | uneven
    begins[1:] |= missing[:-1]
    return [int(i) for i in np.flatnonzero(begins) if i > 0]


def _check_unit(path: Path, columns: Sequence[str], name: str) -> None:
    """Raise UserError where a channel is there in another unit, or not at all."""
    bare = name.partition("[")[0].strip()
    if name in columns:
        return
    for column in columns:
        if column.partition("[")[0].strip() == bare:
            raise UserError(f"{path}: {bare} is there as {column!r}, not as {name!r}: convert it")
    raise UserError(f"{path}: has no column {name!r}; it has {', '.join(map(repr, columns))}")


def _column(table: Table, index: int) -> list[Any]:
    return [row[index] for row in table.rows]


def _numbers(table: Table, name: str) -> np.ndarray:
    """The numbers of a column (T,); NaN where a value is missing."""
    cells = enumerate(table.column(name))
    return np.array([_number(cell, f"{table.where(i)}: {name}") for i, cell in cells])


def _number(cell: Any, where: str) -> float:
    if cell is None or str(cell).strip().lower() in MISSING:
        return np.nan
    return as_number(cell, where)


def _time(cell: Any, table: Table, row: int) -> float:
    """A time in the file's unit, or in seconds for a date; dates without a zone are in UTC."""
    try:
        date = datetime.fromisoformat(str(cell).strip())
    except ValueError:
        return as_number(cell, f"{table.where(row)}: {table.columns[0]}")
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()


def read_series(path: Path, takes: Mapping[str, Any]) -> Iterator[np.ndarray]:
    """The series in a file, each (T, C)."""
    return (values for _, values in read_pieces(path, takes["channels"]))


def write_series(path: Path, many: Sequence[np.ndarray], takes: Mapping[str, Any]) -> None:
    """All in one file, APART steps from each other, so that they are read as they were."""
    lines = [",".join(["time", *takes["channels"]])]
    time = 0
    for values in many:
        for row in values:
            lines.append(",".join([str(time), *(repr(float(x)) for x in row)]))
            time += 1
        time += APART
    write_text(path, "\n".join(lines) + "\n")


SUFFIX = ".series.csv"  # plain .csv holds tables of all kinds
SERIES = SignalFiles(
    (SUFFIX, *(SUFFIX + more for more in COMPRESSED)),
    SUFFIX,
    read_series,
    write_series,
    many=True,
    unit="series",
)


@dataclass(frozen=True)
class SeriesFile(Source):
    """Examples {"series": (T, C)}: windows of the series in a file.

    The last windows, in time, are held out.

    Attributes:
        path: of a csv file, which may be compressed.
        channels: the names of its columns, with their units.
        window: rows of an example. What a series has beyond whole windows is left out.
        heldout_share: of the windows.
    """

    path: str = ""
    channels: tuple[str, ...] = ()
    window: int = 64
    heldout_share: float = 0.2

    def __post_init__(self) -> None:
        if self.window < 2:
            raise UserError(f"SeriesFile: window is {self.window}; it must be at least 2 rows")
        check_heldout_share(self, self.heldout_share)

    @property
    def fields(self) -> dict[str, str]:
        """One field."""
        return {"series": "series"}

    def check(self) -> None:
        """Raise UserError where there is no such file."""
        if not Path(self.path).is_file():
            raise UserError(f"{self.path or 'SeriesFile'}: no such file; give --path FILE.csv")

    def examples(self, split: str, cache: Path) -> Iterator[Example]:
        """The windows of a split, in the order of time."""
        self.check_split(split)
        windows: list[Example] = []
        with Tally("rows") as tally:
            for name, values in read_pieces(Path(self.path), self.channels):
                tally.count(len(values))
                n_windows, rest = divmod(len(values), self.window)
                if rest:
                    tally.add("left out, as they fill no window", name, rest)
                windows += [
                    Example({"series": part}, f"{name}, window {k}")
                    for k, part in enumerate(
                        values[: len(values) - rest].reshape(n_windows, self.window, -1)
                    )
                ]
        n_heldout = max(1, round(len(windows) * self.heldout_share))
        if len(windows) <= n_heldout:
            raise UserError(
                f"{self.path}: holds {len(windows)} windows of {self.window} rows; give more rows,"
                " or a smaller window"
            )
        chosen = windows[-n_heldout:] if split == "heldout" else windows[:-n_heldout]
        yield from chosen
