"""JSON from outside, strictly: what it says is unambiguous, and small enough to be looked at.

Python's own reader takes NaN, the last of two equal keys, strings that no file can hold, and fails
on long numbers and deep nests in ways of its own. Here each is refused in one line that names the
file and the field. What the values mean, `mmtok.io.serialize` checks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmtok.errors import UserError
from mmtok.io import memory_budget

DEEPEST = 64  # levels; our own files have less than ten
MOST_DIGITS = 19  # of a whole number: what 64 bits hold
BYTES_PER_BYTE = 30  # of Python's objects, per byte of JSON: a list of small numbers


class _Refused(str):
    """What is wrong with a value; it stands in its place until its path is known."""


def read_json(path: Path, nan: bool = False) -> Any:
    """The value in a JSON file; OSError where there is none.

    Raises UserError, naming file and field, as `parse_json` does.
    """
    path = Path(path)
    memory_budget.check(path.stat().st_size * BYTES_PER_BYTE, path)
    return parse_json(path.read_bytes(), str(path), nan)


def parse_json(text: str | bytes, where: str, nan: bool = False) -> Any:
    """The value that JSON holds, where `where` is what messages call it.

    nan: NaN and infinities are values (of measurements, as Python writes them).
    Raises UserError for what is no JSON in UTF-8, numbers beyond 64 bits, keys that occur twice,
    lone surrogates, and deep nests.
    """
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not valid JSON: not UTF-8 at byte {error.start}") from None
    if not text.strip():
        raise UserError(f"{where} is not valid JSON: it is empty")
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_whole,
            parse_float=_real,
            parse_constant=float if nan else _refused_constant,
        )
    except RecursionError:
        raise UserError(f"{where} is not valid JSON: it is nested too deeply") from None
    except ValueError as error:
        raise UserError(f"{where} is not valid JSON: {error}") from None
    for way, wrong in _refusals(value, ()):
        raise UserError(f"{where}: {'.'.join(way)[:200] or 'its value'} {wrong}")
    return value


class RepeatedKey(ValueError):
    """A key that comes twice in an object, of which JSON's own reader keeps the last one."""


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; the hook of readers of rows. Raises RepeatedKey."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise RepeatedKey(f"the key {next(key for key in keys if keys.count(key) > 1)} comes twice")
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        found[key] = _Refused("occurs twice") if key in found else value
    return found


def _whole(digits: str) -> int | _Refused:
    n = len(digits.lstrip("-"))
    if n > MOST_DIGITS:
        return _Refused(f"is a whole number of {n:,} digits; at most {MOST_DIGITS} are read")
    return int(digits)


def _real(digits: str) -> float | _Refused:
    value = float(digits)
    if not math.isfinite(value):
        return _Refused("is a number too large for 64 bits")
    return value


def _refused_constant(name: str) -> _Refused:
    return _Refused(f"is {name}, which is no number of JSON")


def _refusals(value: Any, way: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """(way to a value, what is wrong with it) of all that is refused."""
    if isinstance(value, _Refused):
        yield way, str(value)
    elif isinstance(value, str):
        if not _encodable(value):
            yield way, "holds a lone surrogate, which no UTF-8 file can"
    elif isinstance(value, (dict, list)):
        if len(way) >= DEEPEST:
            yield (*way[:4], "..."), f"is nested deeper than {DEEPEST} levels"
            return
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, child in items:
            name = str(key)
            if not _encodable(name):
                yield (*way, ascii(name)), "holds a lone surrogate, which no UTF-8 file can"
            yield from _refusals(child, (*way, name))


def _encodable(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)
