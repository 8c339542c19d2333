"""What `mmtok compare` does: two sets of signals as points, and two-sample tests of them."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
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
from mmtok.io.terminal import lines_text, print_status
from mmtok.metrics.deformations import Deformation
from mmtok.metrics.features import FEATURES, Points, code_features
from mmtok.metrics.jets import w1
from mmtok.metrics.statistics import LEAST_POINTS, TESTS, TwoSample, two_sample
from mmtok.sources.jet_reader import FEATURES as FEATURES_OF_JETS
from mmtok.sources.signal_files import SIGNAL_FILES
from mmtok.sources.text import read_text

NUMBERS = "numbers"  # columns of a table, or of an array
TOKENS = "tokens"
KINDS = (*FEATURES, NUMBERS, TOKENS)
STDIN = "-"
MOST_CHANNELS = 16  # of tokens, whose features are shown
DECLARED = Deformation("shift", 0.1)  # the alternative of power, in standard deviations
MISSING = ("", "nan", "null", "none", "na")


@dataclass(frozen=True)
class Side:
    """One of the two sets.

    Attributes:
        name: The path.
        points: (n, d).
        n_all: Signals that there are; n is smaller where they were cut at `most`.
    """

    name: str
    points: np.ndarray
    n_all: int

    def describe(self, kind: str) -> str:
        """How many signals were compared."""
        n = len(self.points)
        unit = unit_of(kind)
        if n < self.n_all:
            return f"{self.name}: {n:,} of {self.n_all:,} {unit}, chosen at random"
        return f"{self.name}: {n:,} {unit}"


@dataclass(frozen=True)
class Compared:
    """What `compare` found.

    Attributes:
        kind: One of KINDS.
        a: The first set, of standardised points.
        b: The second.
        features: Names of the coordinates.
        constant: Names of those that are the same in all signals, and left out.
        found: The tests.
        means: Means of both sets (2, d), in the features' own units.
        spread: Standard deviations (d,) of both sets together.
        apart: Wasserstein-1 distances (d,) of each feature alone, in `spread`.
    """

    kind: str
    a: Side
    b: Side
    features: tuple[str, ...]
    constant: tuple[str, ...]
    found: TwoSample
    means: np.ndarray
    spread: np.ndarray
    apart: np.ndarray


def compare(
    a: str,
    b: str,
    kind: str | None = None,
    columns: Sequence[str] = (),
    tests: Sequence[str] = (),
    most: int = 2_000,
    n_null: int = 500,
    n_power: int = 20,
    classifier: str = "boosted",
    reading: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Compared:
    """Compare the signals of two files or folders.

    Args:
        a: A path, or - for lines of text on stdin.
        b: Another.
        kind: One of KINDS; None finds it by the files' suffixes.
        columns: Of tables: those that are compared.
        tests: Of `mmtok.metrics.statistics.TESTS`; none for all.
        most: Signals of each set, at random; more are left out, and said.
        n_null: Permutations.
        n_power: Pairs of sets that power is of; 0 for none.
        classifier: Of the classifier test.
        reading: How files of jets are read (`SignalFiles.options`).
        seed: Of all that is random.

    Raises UserError for what cannot be read or compared.
    """
    for name, value, least in (("-n", most, LEAST_POINTS), ("--permutations", n_null, 1)):
        if value < least:
            raise UserError(f"compare: {name} is {value}; it must be at least {least}")
    kind = _kind_of_both(a, b, kind)
    read = [_read(place, kind, columns, most, reading or {}, seed) for place in (a, b)]
    names, points, totals = zip(*read, strict=True)
    if names[0] != names[1]:
        raise UserError(
            f"compare: {a} has the columns {listed(names[0])}, and {b} {listed(names[1])}; name"
            " some that both have: --columns NAME,..."
        )
    pooled = np.concatenate(points)
    spread = pooled.std(0)
    varied = spread > 1e-12 * np.abs(pooled).max(0)
    if not varied.any():
        raise UserError(f"compare: all {unit_of(kind)} of {a} and {b} have the same features")
    x, y = ((p[:, varied] - pooled[:, varied].mean(0)) / spread[varied] for p in points)
    alternative = None
    if n_power > 0:
        alternative = DECLARED
    found = two_sample(
        x,
        y,
        tests or TESTS,
        n_null=n_null,
        alternative=alternative,
        n_power=n_power,
        classifier=classifier,
        seed=seed,
    )
    return Compared(
        kind,
        Side(a, x, totals[0]),
        Side(b, y, totals[1]),
        tuple(np.array(names[0], object)[varied]),
        tuple(np.array(names[0], object)[~varied]),
        found,
        np.stack([p[:, varied].mean(0) for p in points]),
        spread[varied],
        _apart(x, y),
    )


def _kind_of_both(a: str, b: str, kind: str | None) -> str:
    """What both sides hold; `kind`, where it is given. Raises UserError where they differ."""
    if a == b == STDIN:
        raise UserError("compare: - is stdin, which only one side can read")
    kinds = [kind or kind_of(place) for place in (a, b)]
    if kinds[0] != kinds[1]:
        raise UserError(
            f"compare: {a} holds {kinds[0]} and {b} {kinds[1]}; --modality says what both are"
        )
    return kinds[0]


def _apart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Wasserstein-1 distances (d,) of each coordinate alone."""
    return np.array([w1(p, q) for p, q in zip(x.T, y.T, strict=True)])


def unit_of(kind: str) -> str:
    """What signals of a kind are called, in the plural."""
    if kind in SIGNAL_FILES:
        return SIGNAL_FILES[kind].unit
    return {NUMBERS: "rows", TOKENS: "rows of tokens"}[kind]


def comma_names(text: str | None) -> list[str]:
    """Names that a command line gives with commas between them."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def columns_of(text: str | None) -> tuple[list[str], str | None]:
    """What --columns says of tables, a list of names, and what of files of jets, pt=part_pt,..."""
    if text and "=" in text:
        return [], text
    return comma_names(text), None


# ---- reading


def kind_of(place: str) -> str:
    """What a file or folder holds, by its suffix; of a folder by its files.

    Raises UserError where that cannot be said.
    """
    if place == STDIN:
        return "text"
    path = Path(place)
    if not path.exists():
        raise UserError(f"compare: {place} does not exist")
    suffixes = [path.name.lower()]
    if path.is_dir():
        suffixes = sorted({p.name.lower() for p in path.rglob("*") if p.is_file()})
        if any(is_tokens(p) for p in sorted(path.glob("*.parquet"))[:1]):
            return TOKENS
    elif is_tokens(path):
        return TOKENS
    for kind in ("text", "speech", "image"):
        if any(name.endswith(SIGNAL_FILES[kind].suffixes) for name in suffixes):
            return kind
    if path.is_file() and path.name.lower().endswith((".npy", *TABLES)):
        return NUMBERS
    if any(name.endswith(SIGNAL_FILES["jets"].suffixes) for name in suffixes):
        return "jets"
    raise UserError(
        f"compare: {place} is no file or folder of a known modality; say which with --modality"
        f" {'|'.join(KINDS)}"
    )


def _read(
    place: str,
    kind: str,
    columns: Sequence[str],
    most: int,
    reading: Mapping[str, Any],
    seed: int,
) -> tuple[tuple[str, ...], np.ndarray, int]:
    """Names of the features, points (n, d) of at most `most` signals, and how many there are."""
    if place != STDIN and not Path(place).exists():
        raise UserError(f"compare: {place} does not exist")
    if columns and kind not in (NUMBERS, "text"):
        raise UserError(f"compare: --columns is for tables, and {place} holds {kind}")
    if reading and kind != "jets":
        raise UserError(f"compare: --{next(iter(reading))} is for files of jets, not of {kind}")
    if kind == NUMBERS:
        names, values = _numbers(Path(place), columns)
        n_all = len(values)
        chosen = random_subset(range(n_all), most, seed)
        points = values[chosen]
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
    return names, points, n_all


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


# ---- what is printed


def as_text(compared: Compared) -> str:
    """The comparison as lines of text."""
    found = compared.found
    lines = [
        f"A  {compared.a.describe(compared.kind)}",
        f"B  {compared.b.describe(compared.kind)}",
        "",
        f"{'feature':<32} {'mean of A':>12} {'mean of B':>12} {'sd':>12} {'W1 / sd':>8}",
    ]
    for i, name in enumerate(compared.features):
        a, b = compared.means[:, i]
        lines.append(
            f"{name:<32} {a:>12.5g} {b:>12.5g} {compared.spread[i]:>12.5g}"
            f" {compared.apart[i]:>8.3f}"
        )
    if compared.constant:
        lines.append(f"the same in all, so not compared: {', '.join(compared.constant)}")
    lines += ["", f"{'test':<6} {'statistic':>10} {'null 95 %':>10} {'p-value':>17} {'power':>12}"]
    for name, test in found.tests.items():
        power = "-"
        if math.isfinite(test.power):
            power = f"{test.power:.2f} ± {test.power_error:.2f}"
        p = f"{test.p_value:.4f} ± {test.p_error:.4f}"
        lines.append(
            f"{name:<6} {test.statistic:>10.4g} {test.quantiles[0.95]:>10.4g} {p:>17} {power:>12}"
        )
    n_null = next(iter(found.tests.values())).n_null
    lines.append(
        f"features are divided by their sd; null: {n_null:,} permutations, seed {found.seed}"
    )
    if found.alternative:
        lines.append(f"power: how often p < 0.05 of {found.alternative} sd of every feature")
    return lines_text(lines)


def as_json(compared: Compared) -> str:
    """The comparison as one JSON object."""
    found = compared.found
    features = {
        name: {
            "mean_a": float(compared.means[0, i]),
            "mean_b": float(compared.means[1, i]),
            "sd": float(compared.spread[i]),
            "w1_per_sd": float(compared.apart[i]),
        }
        for i, name in enumerate(compared.features)
    }
    plain = {
        "modality": compared.kind,
        "a": _side(compared.a),
        "b": _side(compared.b),
        "features": features,
        "constant": list(compared.constant),
        "null": found.null,
        "alternative": found.alternative,
        "seed": found.seed,
        "tests": {name: _finite(dataclasses.asdict(test)) for name, test in found.tests.items()},
    }
    return json.dumps(plain, indent=1)


def _side(side: Side) -> dict[str, Any]:
    return {"path": side.name, "n": len(side.points), "n_all": side.n_all}


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """None in the place of NaN, which JSON does not have."""
    found = dict(values)
    for key, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            found[key] = None
    return found
