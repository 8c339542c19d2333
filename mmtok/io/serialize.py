"""A dataclass as plain JSON values, and back; its fields listed, and set by name from the command
line.

This is the one schema check of the package: a recipe, a tokenizer's settings, a vocabulary, a row
of a log are dataclasses, and `from_plain` holds JSON against their types, `Within` against their
ranges, and each class against its own rules.

Where a field offers a choice (which tokenizer, which source, which head) the plain value carries
`kind`, the class's own name, looked up among the members of that field's union only. A field's name
is the dotted way to it: `train.steps`, `tasks.0.weight`.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmtok.errors import UserError
from mmtok.io.habits import field_habit
from mmtok.io.strict import parse_json, read_json

SHOWN = 80  # characters of a wrong value that a message quotes
NUMBER = re.compile(
    r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
)  # also as JSON does not write them: .5, 5., +5
UNIONS = (typing.Union, types.UnionType)


class Word(str):
    """A value in the words of the command line: the type of its field says how they are read."""


@dataclasses.dataclass(frozen=True)
class Within:
    """The range of a number, both ends included: a field's type is then Annotated[int, Within(1)]."""

    least: float
    most: float = math.inf

    def check(self, value: float, where: str) -> None:
        """Raise UserError for a value outside, which `where` names."""
        if not self.least <= value <= self.most:
            allowed = (
                f"at least {self.least:g}"
                if self.most == math.inf
                else f"from {self.least:g} to {self.most:g}"
            )
            raise UserError(f"{where} is {shown(value)}; it must be {allowed}")


def shown(value: Any) -> str:
    """A wrong value as a message quotes it: cut where it is long."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def listed(names: Sequence[object], most: int = 10) -> str:
    """Names as a message lists them: a, b, c and 7 more, each cut where it is long."""
    text = ", ".join(
        str(name) if len(str(name)) <= SHOWN else f"{str(name)[:SHOWN]}..." for name in names[:most]
    )
    return text + f" and {len(names) - most:,} more" * (len(names) > most)


def counted(n: int, what: str) -> str:
    """How many of what, a noun in the singular that takes an s: 1 row, 2,000 rows."""
    return f"{n:,} {what}" + ("s" if n != 1 else "")


def to_plain(value: Any) -> Any:
    """A dataclass (with its kind), mapping, sequence, path or JSON value as what JSON can say."""
    if dataclasses.is_dataclass(value):
        return {"kind": type(value).__name__} | {
            f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def leaves(plain: Any, way: str = "") -> dict[str, Any]:
    """The single values in a plain one, by the dotted way to each: {"train.steps": 30}.

    Two plain values are compared by them.
    """
    if isinstance(plain, dict):
        return {
            k: v
            for key, child in plain.items()
            for k, v in leaves(child, _joined(way, key)).items()
        }
    if isinstance(plain, list):
        return {
            k: v for i, child in enumerate(plain) for k, v in leaves(child, _joined(way, i)).items()
        }
    return {way: plain}


# ---- fields by name


def set_fields(plain: Any, overrides: Sequence[str]) -> None:
    """Set fields of a plain value in place: ["--train.steps", "30", "--width=128"]; a name may be
    shortened while it stays unique.

    A field that holds more than one value is set as JSON. Raises UserError for an unknown or
    ambiguous name and a missing value; whether values are of the right type, `from_plain` finds
    out.
    """
    for name, text in _pairs(overrides):
        *way, last = _way(name, plain)
        node = plain
        for step in way:
            node = node[step]
        value = text if isinstance(node[last], str) else _json(text)
        node[last] = value if isinstance(value, (dict, list)) else Word(text)


def field_groups(plain: Any, name: str = "") -> Iterator[tuple[str, str, dict[str, str]]]:
    """(name, kind, {a field's name: its value, in the words that set it}) of every dataclass in a
    plain value.
    """
    own = {}
    for key, child in _children(plain):
        if not _holds_kinds(child):
            own[_joined(name, key)] = (
                child if isinstance(child, str) else json.dumps(child, ensure_ascii=False)
            )
    if isinstance(plain, dict) and "kind" in plain:
        yield name, plain["kind"], own
    for key, child in _children(plain):
        if _holds_kinds(child):
            yield from field_groups(child, _joined(name, key))


def _children(node: Any) -> list[tuple[str | int, Any]]:
    items = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list)
        else ()
    )
    return [(key, child) for key, child in items if key != "kind"]


def _holds_kinds(node: Any) -> bool:
    return (isinstance(node, dict) and "kind" in node) or any(
        _holds_kinds(child) for _, child in _children(node)
    )


def _joined(*parts: str | int) -> str:
    return ".".join(str(part) for part in parts if part != "")


def _pairs(overrides: Sequence[str]) -> list[tuple[str, str]]:
    pairs, words = [], list(overrides)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise UserError(f"expected --field value, got {word!r}")
        name, equals, text = word[2:].partition("=")
        if not equals:
            if not words or words[0].startswith("--"):
                _refuse_habit(name)
                raise UserError(f"--{name} needs a value")
            text = words.pop(0)
        pairs.append((name, text))
    return pairs


def _ways(node: Any, way: tuple = ()) -> Iterator[tuple]:
    """The way to every value in a plain one, whatever it holds."""
    for key, child in _children(node):
        yield (*way, key)
        yield from _ways(child, (*way, key))


def _way(name: str, plain: Any) -> tuple:
    """The way to the field of this name: spelled out, or shortened from the left."""
    ways = {_joined(*way): way for way in _ways(plain)}
    for spelled in (name, name.replace("-", "_")):
        fits = (
            [spelled]
            if spelled in ways
            else [known for known in ways if known.endswith(f".{spelled}")]
        )
        if len(fits) == 1:
            return ways[fits[0]]
        if fits:
            raise UserError(f"--{name} is ambiguous: {', '.join('--' + known for known in fits)}")
    _refuse_habit(name)
    n_parts = name.count(".") + 1
    likeness = lambda known: difflib.SequenceMatcher(
        None, name, ".".join(known.split(".")[-n_parts:])
    ).ratio()
    best = sorted(ways, key=likeness, reverse=True)[:3]
    near = [known for known in best if likeness(known) > max(0.6, likeness(best[0]) - 0.1)]
    hint = f"nearest: {', '.join('--' + known for known in near)}; " if near else ""
    raise UserError(f"the recipe has no field --{name}; {hint}`mmtok show RECIPE` lists them all")


def _refuse_habit(name: str) -> None:
    """Raise UserError for a name that other programs have for a field, with ours."""
    habit = field_habit(name)
    if habit:
        raise UserError(f"the recipe has no field --{name}; here it is {habit}")


def _json(text: str) -> Any:
    """The value that a text writes in JSON, or as Python or people write constants and numbers;
    else the text.
    """
    try:
        return parse_json(text, "the value")
    except UserError:
        if NUMBER.fullmatch(text) and math.isfinite(float(text)):
            return float(text)
        return {"True": True, "False": False, "None": None}.get(text, str(text))


# ---- from plain values


def read_as(path: Path, hint: Any, nan: bool = False) -> Any:
    """The JSON in a file as what the type `hint` asks for.

    Raises UserError that names file and field; OSError where there is no file.
    """
    return as_word(read_json(path, nan), hint, path)


def as_word(value: Any, hint: Any, path: Path | str) -> Any:
    """A plain value out of the file `path` as what the type `hint` asks for.

    Raises UserError that names file and field.
    """
    try:
        return from_plain(value, hint, Path(path).stem)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def from_plain(value: Any, hint: Any, where: str, kinds: Sequence[type] = ()) -> Any:
    """A plain value -> what the type `hint` asks for; the inverse of `to_plain`.

    where: the place that errors name. kinds: classes that may stand for a member of any union.
    Raises UserError for a wrong type, an unknown kind or field, and for what a dataclass itself
    refuses.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(value, Word):
        return _from_told(value, hint, where, kinds)
    if origin is typing.Annotated:
        built = from_plain(value, args[0], where, kinds)
        args[1].check(built, where)
        return built
    if origin in UNIONS:
        return _from_union(value, args, where, kinds)
    if dataclasses.is_dataclass(hint):
        return _from_fields(value, hint, where, kinds)
    if origin is tuple:
        return _from_list(value, args, where, kinds)
    if origin in (dict, Mapping):
        if not isinstance(value, dict):
            raise UserError(
                f'{where} must be a mapping such as {{"name": ...}}, got {shown(value)}'
            )
        return {k: from_plain(v, args[1], f"{where}.{k}", kinds) for k, v in value.items()}
    if origin is typing.Literal:
        if value not in args:
            raise UserError(
                f"{where} must be one of {', '.join(map(repr, args))}, got {shown(value)}"
            )
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if (
        hint is not Any
        and isinstance(hint, type)
        and (not isinstance(value, hint) or (hint is int and isinstance(value, bool)))
    ):
        raise UserError(
            f"{where} must be {'true or false' if hint is bool else hint.__name__}, got"
            f" {shown(value)}"
        )
    return value


def check_known(
    value: Any, hints: Mapping[str, Any], where: str, needed: Sequence[str] = ()
) -> None:
    """Raise UserError, naming the field, unless a plain value is an object that has the `needed`
    fields, and those of `hints` as they say.

    Other fields may hold anything: a foreign file's own, or those of a class from outside the
    package.
    """
    if not isinstance(value, dict):
        raise UserError(f'{where} must be an object such as {{"name": ...}}, got {shown(value)}')
    missing = [name for name in needed if name not in value]
    if missing:
        raise UserError(f"{where} needs the field(s) {', '.join(missing)}")
    for name in hints.keys() & value.keys():
        from_plain(value[name], hints[name], f"{where}.{name}")


def _from_told(told: Word, hint: Any, where: str, kinds: Sequence[type]) -> Any:
    """As the field's type reads the words: as they stand where it is text, else as the JSON in
    them.
    """
    if hint is str:
        return str(told)
    value = str(told) if hint is Path else _json(told)
    try:
        return from_plain(value, hint, where, kinds)
    except UserError:
        if typing.get_origin(hint) not in UNIONS or str not in typing.get_args(hint):
            raise
        return str(told)  # a name such as 2024 in a field of text or nothing


def _from_list(value: Any, args: tuple, where: str, kinds: Sequence[type]) -> tuple:
    if not isinstance(value, list):
        raise UserError(
            f"{where} must be a list such as {json.dumps([value])[:SHOWN]}, got {shown(value)}"
        )
    each = [args[0]] * len(value) if args[1:] == (...,) else args
    if len(value) != len(each):
        raise UserError(f"{where} must be a list of {len(each)}, got {shown(value)}")
    return tuple(
        from_plain(v, h, f"{where}.{i}", kinds) for i, (v, h) in enumerate(zip(value, each))
    )


def _from_union(value: Any, members: tuple, where: str, kinds: Sequence[type]) -> Any:
    known = {c.__name__: c for c in (*kinds, *members) if dataclasses.is_dataclass(c)}
    if isinstance(value, dict) and "kind" in value:
        if not isinstance(value["kind"], str) or value["kind"] not in known:
            raise UserError(
                f"{where}: unknown kind {shown(value['kind'])}; known are {', '.join(known)} (a"
                " recipe's own classes come with --recipe FILE)"
            )
        return _from_fields(value, known[value["kind"]], where, kinds)
    if value is None and type(None) in members:
        return None
    choices = [member.__name__ for member in members if dataclasses.is_dataclass(member)]
    if len(choices) > 1 and (isinstance(value, dict) or len(choices) == len(members)):
        raise UserError(
            f'{where} must be {{"kind": ...}} with one of {", ".join(choices)}, got {shown(value)}'
        )
    errors = []
    for member in members:
        if member is not type(None):
            try:
                return from_plain(value, member, where, kinds)
            except UserError as error:
                errors.append(str(error))
    raise UserError(errors[-1])


def _from_fields(value: Any, hint: type, where: str, kinds: Sequence[type]) -> Any:
    if not isinstance(value, dict):
        raise UserError(f"{where} must be a {hint.__name__}, got {shown(value)}")
    hints = typing.get_type_hints(hint, include_extras=True)
    names = [f.name for f in dataclasses.fields(hint)]
    for name in value:
        if name != "kind" and name not in names:
            near = difflib.get_close_matches(name, names, 1)
            raise UserError(
                f"{where}: {hint.__name__} has no field {shown(name)}"
                + (f"; did you mean {near[0]!r}?" if near else "")
            )
    needed = [
        f.name
        for f in dataclasses.fields(hint)
        if f.default is f.default_factory is dataclasses.MISSING
    ]
    missing = [name for name in needed if name not in value]
    if missing:
        raise UserError(f"{where}: {hint.__name__} needs the field(s) {', '.join(missing)}")
    built = {n: from_plain(value[n], hints[n], f"{where}.{n}", kinds) for n in names if n in value}
    try:
        return hint(**built)
    except UserError:
        raise
    except ValueError as error:  # sizes that do not fit together
        raise UserError(f"{where}: {error}") from None
