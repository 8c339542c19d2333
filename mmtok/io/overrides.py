"""Fields of a plain value (see `mmtok.io.serialize`), listed and set by name.

The name of a field is the dotted path to it: `train.steps`, `tasks.0.weight`. It may be shortened
from the left while it stays unique.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Sequence
from typing import Any

from mmtok.errors import UserError
from mmtok.io.option_hints import field_hint
from mmtok.io.serialize import CommandLineText, parse_value

N_NEAREST = 3  # known names that an error suggests
LEAST_LIKENESS = 0.6


def leaves(plain: Any, path: str = "") -> dict[str, Any]:
    """The single values in a plain one, by dotted path: {"train.steps": 30}."""
    if not isinstance(plain, (dict, list)):
        return {path: plain}
    items = plain.items() if isinstance(plain, dict) else enumerate(plain)
    found: dict[str, Any] = {}
    for key, child in items:
        found |= leaves(child, _dotted(path, key))
    return found


def set_fields(plain: Any, overrides: Sequence[str]) -> None:
    """Set fields of a plain value in place: ["--train.steps", "30", "--width=128"].

    A field that holds more than one value is set as JSON, a mapping also as NAME=VALUE,NAME=VALUE.
    Types are not checked here but by
    `from_plain`.

    Raises UserError for an unknown or ambiguous name and a missing value.
    """
    for name, text in _pairs(overrides):
        *parents, last = _path(name, plain)
        node = plain
        for key in parents:
            node = node[key]
        value = text if isinstance(node[last], str) else parse_value(text)
        node[last] = value if isinstance(value, (dict, list)) else CommandLineText(text)


def field_groups(plain: Any, name: str = "") -> Iterator[tuple[str, str, dict[str, str]]]:
    """The fields of every dataclass in a plain value.

    Yields (the dataclass's name, its kind, {field name: value as the command line sets it}).
    """
    fields = {
        _dotted(name, key): _as_set(child)
        for key, child in _children(plain)
        if not _holds_kinds(child)
    }
    if isinstance(plain, dict) and "kind" in plain:
        yield name, plain["kind"], fields
    for key, child in _children(plain):
        if _holds_kinds(child):
            yield from field_groups(child, _dotted(name, key))


def _as_set(value: Any) -> str:
    """A value in the words that set it on the command line."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _children(node: Any) -> list[tuple[str | int, Any]]:
    if isinstance(node, dict):
        return [(key, child) for key, child in node.items() if key != "kind"]
    if isinstance(node, list):
        return list(enumerate(node))
    return []


def _holds_kinds(node: Any) -> bool:
    """Whether a plain value is a dataclass, or holds one."""
    if isinstance(node, dict) and "kind" in node:
        return True
    return any(_holds_kinds(child) for _, child in _children(node))


def _dotted(*parts: str | int) -> str:
    return ".".join(str(part) for part in parts if part != "")


def _pairs(overrides: Sequence[str]) -> list[tuple[str, str]]:
    """(name, value) of "--name value" and "--name=value"."""
    pairs = []
    words = list(overrides)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise UserError(f"expected --field value, got {word!r}")
        name, equals, text = word[2:].partition("=")
        if not equals:
            if not words or words[0].startswith("--"):
                _raise_hint(name)
                raise UserError(f"--{name} needs a value")
            text = words.pop(0)
        pairs.append((name, text))
    return pairs


def _paths(node: Any, above: tuple = ()) -> Iterator[tuple]:
    """The path to every value in a plain one, whatever it holds."""
    for key, child in _children(node):
        yield (*above, key)
        yield from _paths(child, (*above, key))


def _path(name: str, plain: Any) -> tuple:
    """The path to the field of this name, in full or shortened from the left.

    Raises UserError with the nearest names for an unknown one, and for an ambiguous one.
    """
    paths = {_dotted(*path): path for path in _paths(plain)}
    for spelled in (name, name.replace("-", "_")):
        if spelled in paths:
            return paths[spelled]
        matches = [known for known in paths if known.endswith(f".{spelled}")]
        if len(matches) == 1:
            return paths[matches[0]]
        if matches:
            raise UserError(f"--{name} is ambiguous: {_options(matches)}")
    _raise_hint(name)
    nearest = _nearest(name, list(paths))
    hint = f"nearest: {_options(nearest)}; " if nearest else ""
    raise UserError(f"the recipe has no field --{name}; {hint}`mmtok show RECIPE` lists them all")


def _nearest(name: str, known: Sequence[str]) -> list[str]:
    """The known names most like this one, compared over as many parts as it has."""
    n_parts = name.count(".") + 1

    def likeness(other: str) -> float:
        tail = ".".join(other.split(".")[-n_parts:])
        return difflib.SequenceMatcher(None, name, tail).ratio()

    best = sorted(known, key=likeness, reverse=True)[:N_NEAREST]
    return [
        other for other in best if likeness(other) > max(LEAST_LIKENESS, likeness(best[0]) - 0.1)
    ]


def _options(names: Sequence[str]) -> str:
    return ", ".join(f"--{name}" for name in names)


def _raise_hint(name: str) -> None:
    """Raise UserError for a name that other programs have for a field, with ours."""
    hint = field_hint(name)
    if hint:
        raise UserError(f"the recipe has no field --{name}; here it is {hint}")
