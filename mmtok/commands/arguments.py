"""The command line as typed functions: a verb's parameters are its arguments.

`Annotated` types carry their help:

    positional parameter               an argument that must be given; Sequence[...]: one or more,
                                       or none where the parameter has a default
    keyword-only parameter             an option `--name`; bool: a switch; Sequence[...]: may be
                                       given several times
    a dataclass as a parameter's type  its fields are options, as if each were such a parameter
    parameter named `overrides`        takes all options that are left over

A recipe's fields are set by name (`--train.steps 200`). They are passed on as they are, and checked
against the recipe once it is loaded.

This is argparse, not tyro: a misspelt option must give ONE line with the nearest names. tyro prints
its errors as boxes, and has no public hook to change that.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import types
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, NoReturn, Union, get_args, get_origin, get_type_hints

from mmtok.errors import UserError
from mmtok.io.option_hints import option_hint


@dataclass(frozen=True)
class Arg:
    """What a parameter's type does not say.

    Attributes:
        help: one phrase for `--help`.
        metavar: the value's name in the usage line.
        short: a short option, such as "-n".
        choices: the legal values; () for all.
        alone: the value of an option that is given without one; None if it needs one.
    """

    help: str
    metavar: str | None = None
    short: str | None = None
    choices: tuple[str, ...] = ()
    alone: str | None = None


def nearest(name: str, known: Iterable[str]) -> str:
    """', did you mean a or b?' if names of `known` resemble `name`, else '; one of a, b, c'."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f", did you mean {' or '.join(close)}?"
    return f"; one of {', '.join(known)}"


class _Parser(argparse.ArgumentParser):
    command = ""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message} ({self.command} --help)")

    @property
    def option_names(self) -> list[str]:
        """The verb's own options, short and long."""
        return [option for action in self._actions for option in action.option_strings]


def parse(verb: Callable, words: list[str], command: str | None = None) -> dict[str, Any]:
    """The arguments for `verb` from the words after it.

    `--help` prints and raises SystemExit. Raises UserError, in one line, for wrong words.

    Args:
        verb: a function as the module's docstring describes it.
        words: the words after the verb.
        command: what one types before these words, if it is not `mmtok VERB`.
    """
    command = command or f"mmtok {verb.__name__}"
    parser = parser_of(verb, command)
    takes_fields = "overrides" in _parameters(verb)
    _refuse_habits(words, parser)
    words = _spelled(words, parser)
    if takes_fields:
        namespace, left = parser.parse_known_args(words)
    else:
        namespace, left = parser.parse_known_intermixed_args(words)
    values = vars(namespace)
    if takes_fields:
        if left and not left[0].startswith("--"):
            raise UserError(
                f"{parser.prog}: did not expect {left[0]!r}; fields are set as --field value"
                f" ({command} --help)"
            )
        values["overrides"] = left
    elif left:
        _refuse_left_over(left[0], parser)
    for name, group in _groups(verb).items():
        values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
    return values


def _refuse_left_over(word: str, parser: _Parser) -> NoReturn:
    """Raise UserError for a word that no parameter takes."""
    if word.startswith("-"):
        options = [option for option in parser.option_names if option.startswith("--")]
        raise UserError(
            f"{parser.prog}: unknown option {word}{nearest(word.split('=')[0], options)}"
        )
    raise UserError(f"{parser.prog}: did not expect {word!r} ({parser.command} --help)")


def _refuse_habits(words: list[str], parser: _Parser) -> None:
    """Raise UserError for the first option that only other programs have; name ours."""
    options = set(parser.option_names)
    for word in _before_dashes(words):
        name = word.partition("=")[0]
        known = name in options or name.replace("_", "-") in options
        habit = option_hint(name, options) if word.startswith("--") and not known else None
        if habit:
            raise UserError(
                f"{parser.prog}: there is no {name} here; it is {habit} ({parser.command} --help)"
            )


def _spelled(words: list[str], parser: _Parser) -> list[str]:
    """The words with the verb's own options as argparse knows them.

    --max_frames becomes --max-frames, as a recipe's fields may be written either way.
    """
    known = {option.replace("-", "_"): option for option in parser.option_names}
    spelled = []
    before = _before_dashes(words)
    for word in before:
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            name = known.get(name.replace("-", "_"), name)
        spelled.append(name + equals + value)
    return spelled + words[len(before) :]


def _before_dashes(words: list[str]) -> list[str]:
    """The words before `--`, after which none is an option."""
    return words[: words.index("--")] if "--" in words else words


def parser_of(verb: Callable, command: str) -> _Parser:
    """The argparse parser of one verb; its docstring is the help."""
    parser = _Parser(
        verb.__name__,
        allow_abbrev=False,
        description=inspect.getdoc(verb),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.command = command
    for parameter, kind, about in _parameters(verb).values():
        if parameter.name != "overrides":
            _add(parser, parameter, kind, about)
    parser.usage = _usage(parser, verb)
    return parser


def _usage(parser: _Parser, verb: Callable) -> str:
    """The usage line: arguments first, then options.

    An option with several values would swallow an argument after it.
    """
    words = [parser.command]
    for action in sorted(parser._actions, key=lambda action: bool(action.option_strings)):
        if action.dest == "help":
            continue
        value = str(action.metavar or "")
        match action.nargs:
            case 0:
                value = ""
            case "+" | "*":
                value = f"{value}..."
            case "?":
                value = f"[{value}]"
        text = " ".join(part for part in (*action.option_strings[:1], value) if part)
        is_needed = action.required and action.nargs != "*"
        words.append(text if is_needed else f"[{text}]")
    if "overrides" in _parameters(verb):
        words.append("[--field value ...]")
    return " ".join(words)


def _parameters(verb: Callable) -> dict[str, tuple[inspect.Parameter, Any, Arg]]:
    """Name -> (parameter, type, Arg) in the order of the signature, groups as their fields."""
    hints = get_type_hints(verb, include_extras=True)
    found: dict[str, tuple[inspect.Parameter, Any, Arg]] = {}
    for name, parameter in inspect.signature(verb).parameters.items():
        if is_dataclass(hints[name]):
            found |= _parameters_of_group(hints[name])
        else:
            found[name] = parameter, *_kind_and_about(hints[name])
    return found


def _groups(verb: Callable) -> dict[str, type]:
    """Parameter -> the dataclass whose fields are its options."""
    hints = get_type_hints(verb, include_extras=True)
    return {
        name: hints[name]
        for name in inspect.signature(verb).parameters
        if is_dataclass(hints[name])
    }


def _parameters_of_group(group: type) -> dict[str, tuple[inspect.Parameter, Any, Arg]]:
    """The same of a dataclass's fields, each with its default."""
    hints = get_type_hints(group, include_extras=True)
    only = inspect.Parameter.KEYWORD_ONLY
    return {
        field.name: (
            inspect.Parameter(field.name, only, default=field.default),
            *_kind_and_about(hints[field.name]),
        )
        for field in fields(group)
    }


def _kind_and_about(hint: Any) -> tuple[Any, Arg]:
    if get_origin(hint) is Annotated:
        kind, about = get_args(hint)
        return kind, about
    return hint, Arg("")


def _add(
    parser: argparse.ArgumentParser, parameter: inspect.Parameter, kind: Any, about: Arg
) -> None:
    """Add a parameter to the parser, as an argument or an option."""
    if get_origin(kind) in (Union, types.UnionType):  # X | None: an option that may be left out
        kind = next(part for part in get_args(kind) if part is not type(None))
    many = get_origin(kind) is Sequence
    settings: dict[str, Any] = {
        "help": about.help,
        "choices": about.choices or None,
        "metavar": about.metavar,
        "type": get_args(kind)[0] if many else kind,
    }
    if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
        settings["metavar"] = about.metavar or parameter.name.upper()
        if many:
            is_needed = parameter.default is inspect.Parameter.empty
            settings["nargs"] = "+" if is_needed else "*"
        parser.add_argument(parameter.name, **settings)
        return
    names = [about.short] if about.short else []
    if len(parameter.name) > 1:
        names.append("--" + parameter.name.replace("_", "-"))
    if kind is bool:
        parser.add_argument(*names, action="store_true", help=about.help)
        return
    required = parameter.default is inspect.Parameter.empty
    default = None if required else parameter.default
    if many:
        settings |= {"nargs": "+", "action": "extend"}
        default = list(default or ())
    elif default is not None:
        settings["help"] += f" (default: {default})"
    if about.alone is not None:
        settings |= {"nargs": "?", "const": about.alone}
    parser.add_argument(*names, dest=parameter.name, required=required, default=default, **settings)
