"""A dataclass as plain JSON values, and back.

This is the one schema check of the package: a recipe, a tokenizer's settings, a vocabulary, a row
of a log are dataclasses. `from_plain` checks JSON against their types, `Within` against their
ranges, and each class against its own rules.

Where a field offers a choice (which tokenizer, which source, which head) the plain value carries
`kind`, the name of the class, which is looked up among the members of that field's union only, or
among its `Kinds`. A text there is one of the `presets` of these classes.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import types
import typing
from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmtok.errors import UserError
from mmtok.io.messages import MOST_CHARS, shown
from mmtok.io.strict_json import parse_json, read_json

# also as JSON does not write them: .5, 5., +5
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
UNIONS = (typing.Union, types.UnionType)


@dataclasses.dataclass(frozen=True)
class Kinds:
    """The classes that the package has for a field, as in Annotated[HeadConfig, Kinds(A | B)].

    The field's type is their base class, so that classes from outside the package are welcome.
    """

    union: Any


class CommandLineText(str):
    """A value as it was typed: the type of its field says how it is read."""


@dataclasses.dataclass(frozen=True)
class Within:
    """The range of a number, both ends included, as in Annotated[int, Within(1)]."""

    least: float
    most: float = math.inf

    def check(self, value: float, where: str) -> None:
        """Raise UserError for a value outside, which `where` names."""
        if self.least <= value <= self.most:
            return
        allowed = f"from {self.least:g} to {self.most:g}"
        if self.most == math.inf:
            allowed = f"at least {self.least:g}"
        raise UserError(f"{where} is {shown(value)}; it must be {allowed}")


def to_plain(value: Any) -> Any:
    """A dataclass (with its kind), mapping, sequence, path or JSON value as what JSON can say."""
    if dataclasses.is_dataclass(value):
        fields = {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"kind": type(value).__name__} | fields
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    return value


def parse_value(text: str) -> Any:
    """The value of a text: JSON, a constant as Python writes it, a number; else the text."""
    try:
        return parse_json(text, "the value")
    except UserError:
        if NUMBER.fullmatch(text) and math.isfinite(float(text)):
            return float(text)
        return {"True": True, "False": False, "None": None}.get(text, str(text))


def read_json_as(path: Path, hint: Any, nan: bool = False) -> Any:
    """The JSON in a file as the type `hint`.

    Raises UserError that names file and field; OSError where there is no file.
    """
    return json_as(read_json(path, nan), hint, path)


def json_as(value: Any, hint: Any, path: Path | str) -> Any:
    """A plain value that was read from the file `path` as the type `hint`.

    Raises UserError that names file and field.
    """
    try:
        return from_plain(value, hint, Path(path).stem)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def from_plain(value: Any, hint: Any, where: str, kinds: Sequence[type] = ()) -> Any:
    """A plain value as the type `hint`; the inverse of `to_plain`.

    Args:
        value: what JSON can say.
        hint: a type, as a dataclass annotates its fields.
        where: how errors name the value.
        kinds: classes that may stand for a member of any union.

    Raises UserError for a wrong type, an unknown kind or field, and for what a dataclass itself
    refuses.
    """
    origin = typing.get_origin(hint)
    args = typing.get_args(hint)
    if isinstance(value, CommandLineText):
        return _from_command_line(value, hint, where, kinds)
    if origin is typing.Annotated:
        if isinstance(args[1], Kinds):
            return from_plain(value, args[1].union, where, kinds)
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
        return _from_mapping(value, args[1], where, kinds)
    if origin is typing.Literal:
        if value not in args:
            options = ", ".join(map(repr, args))
            raise UserError(f"{where} must be one of {options}, got {shown(value)}")
        return value
    return _from_scalar(value, hint, where)


def check_known(
    value: Any, hints: Mapping[str, Any], where: str, needed: Sequence[str] = ()
) -> None:
    """Check the known fields of an object in JSON.

    Other fields may hold anything: those of a foreign file, or of a class from outside the package.

    Raises UserError, naming the field, unless the value is an object that has the `needed` fields,
    and those of `hints` with their types.
    """
    if not isinstance(value, dict):
        raise UserError(f'{where} must be an object such as {{"name": ...}}, got {shown(value)}')
    missing = [name for name in needed if name not in value]
    if missing:
        raise UserError(f"{where} needs the field(s) {', '.join(missing)}")
    for name in hints.keys() & value.keys():
        from_plain(value[name], hints[name], f"{where}.{name}")


def _from_command_line(text: CommandLineText, hint: Any, where: str, kinds: Sequence[type]) -> Any:
    """The text itself where the field holds text, else the JSON in it."""
    if hint is str:
        return str(text)
    if typing.get_origin(hint) in (dict, Mapping) and not text.lstrip().startswith("{"):
        return _mapping_in_words(text, typing.get_args(hint)[1], where, kinds)
    value = str(text) if hint is Path else parse_value(text)
    try:
        return from_plain(value, hint, where, kinds)
    except UserError:
        if typing.get_origin(hint) not in UNIONS or str not in typing.get_args(hint):
            raise
        return str(text)  # a name such as 2024 in a field of text or nothing


def mapping_of(text: str | None, where: str) -> dict[str, str]:
    """A mapping of texts as the command line says it: "pt=part_pt,eta=part_eta"; {} for nothing.

    Raises UserError where a part has no =, or a name comes twice.
    """
    if not text:
        return {}
    return _mapping_in_words(text, str, where, ())


def _mapping_in_words(text: str, hint: Any, where: str, kinds: Sequence[type]) -> dict[str, Any]:
    """A mapping as the command line says it: "file=path,caption=sentence".

    Raises UserError where a part has no =, or a name comes twice.
    """
    found: dict[str, Any] = {}
    for part in text.split(",") if text.strip() else ():
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not (name and equals and value):
            raise UserError(f"{where} is {shown(text)}; it must be NAME=VALUE,NAME=VALUE, or JSON")
        if name in found:
            raise UserError(f"{where} names {name} twice in {shown(text)}")
        found[name] = from_plain(CommandLineText(value), hint, f"{where}.{name}", kinds)
    return found


def _from_scalar(value: Any, hint: Any, where: str) -> Any:
    is_bool = isinstance(value, bool)
    if hint is float and isinstance(value, int) and not is_bool:
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is Any or not isinstance(hint, type):
        return value
    if not isinstance(value, hint) or (hint is int and is_bool):
        expected = "true or false" if hint is bool else hint.__name__
        raise UserError(f"{where} must be {expected}, got {shown(value)}")
    return value


def _from_mapping(value: Any, hint: Any, where: str, kinds: Sequence[type]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f'{where} must be a mapping such as {{"name": ...}}, got {shown(value)}')
    return {k: from_plain(v, hint, f"{where}.{k}", kinds) for k, v in value.items()}


def _from_list(value: Any, args: tuple, where: str, kinds: Sequence[type]) -> tuple:
    if not isinstance(value, list):
        example = json.dumps([value])[:MOST_CHARS]
        raise UserError(f"{where} must be a list such as {example}, got {shown(value)}")
    hints = args
    if args[1:] == (...,):
        hints = args[:1] * len(value)
    if len(value) != len(hints):
        raise UserError(f"{where} must be a list of {len(hints)}, got {shown(value)}")
    return tuple(
        from_plain(v, hint, f"{where}.{i}", kinds)
        for i, (v, hint) in enumerate(zip(value, hints, strict=True))
    )


def _from_union(value: Any, members: tuple, where: str, kinds: Sequence[type]) -> Any:
    own: list[Any] = [member for member in members if dataclasses.is_dataclass(member)]
    candidates: list[Any] = [cls for cls in (*kinds, *own) if dataclasses.is_dataclass(cls)]
    known = {cls.__name__: cls for cls in candidates}
    if isinstance(value, dict) and "kind" in value:
        kind = value["kind"]
        if not isinstance(kind, str) or kind not in known:
            raise UserError(
                f"{where}: unknown kind {shown(kind)}; known are {', '.join(known)} (a"
                " recipe's own classes come with --recipe FILE)"
            )
        return _from_fields(value, known[kind], where, kinds)
    if value is None and type(None) in members:
        return None
    presets = _presets([*_of_base(kinds, own), *own])
    if isinstance(value, str) and value.replace("_", "-") in presets:
        return presets[value.replace("_", "-")]()
    choices = [cls.__name__ for cls in own]
    if len(choices) > 1 and (isinstance(value, dict) or len(choices) == len(members)):
        or_preset = f", or a preset: {', '.join(presets)};" if presets else ","
        raise UserError(
            f'{where} must be {{"kind": ...}} with one of {", ".join(choices)}{or_preset} got'
            f" {shown(value)}"
        )
    errors = []
    for member in members:
        if member is not type(None):
            try:
                return from_plain(value, member, where, kinds)
            except UserError as error:
                errors.append(str(error))
    raise UserError(errors[-1])


def _of_base(kinds: Sequence[type], own: Sequence[type]) -> list[type]:
    """Those of a recipe's classes that share a base with all members of a union."""
    bases = [set(cls.__mro__) - {object, ABC} for cls in own]
    shared: set[type] = set.intersection(*bases) if bases else set()
    return [cls for cls in kinds if shared & set(cls.__mro__)]


def _presets(classes: Sequence[Any]) -> dict[str, Callable[[], Any]]:
    """The constructors that classes name in `presets`, by their names with hyphens."""
    return {
        name.replace("_", "-"): getattr(cls, name)
        for cls in classes
        for name in getattr(cls, "presets", ())
    }


def _from_fields(value: Any, cls: Any, where: str, kinds: Sequence[type]) -> Any:
    """An instance of the dataclass `cls`."""
    if not isinstance(value, dict):
        raise UserError(f"{where} must be a {cls.__name__}, got {shown(value)}")
    fields = dataclasses.fields(cls)
    names = [f.name for f in fields]
    for name in value:
        if name != "kind" and name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"{where}: {cls.__name__} has no field {shown(name)}{hint}")
    needed = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
    missing = [name for name in needed if name not in value]
    if missing:
        raise UserError(f"{where}: {cls.__name__} needs the field(s) {', '.join(missing)}")
    hints = typing.get_type_hints(cls, include_extras=True)
    built = {n: from_plain(value[n], hints[n], f"{where}.{n}", kinds) for n in names if n in value}
    try:
        return cls(**built)
    except UserError:
        raise
    except ValueError as error:  # sizes that do not fit together
        raise UserError(f"{where}: {error}") from None
