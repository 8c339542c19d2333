"""The command line as typed functions: a verb's parameters are its arguments, `Annotated` with
their help.

argparse, not tyro: a misspelt option must come out as ONE line with the nearest names, and tyro
prints its errors as boxes itself, with no hook for them outside its private modules. (A recipe's
fields are overridden by name, `--train.steps 200`: these are handed on as they stand, and checked
against the recipe once it is loaded.)

    positional parameter               an argument that must be given; list[...]: one or more
    keyword-only parameter             an option `--name`; bool: a switch; list[...]: may be given
                                       several times
    parameter named `overrides`        takes whatever options are left over
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn, Union, get_args, get_origin, get_type_hints

from mmtok.errors import UserError
from mmtok.io.option_hints import option_hint


@dataclass(frozen=True)
class Arg:
    """What a parameter's type does not say: its help, its name in the usage line, a short option,
    the legal values, and what an option means that is given without a value (None: it needs
    one).
    """

    help: str
    metavar: str | None = None
    short: str | None = None
    choices: tuple[str, ...] = ()
    alone: str | None = None


def nearest(name: str, known: Iterable[str]) -> str:
    """', did you mean a or b?' for the names of `known` that look like `name`, else '; one of a, b,
    c'.
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f", did you mean {' or '.join(close)}?" if close else f"; one of {', '.join(known)}"


class _Parser(argparse.ArgumentParser):
    command = ""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message} ({self.command} --help)")


def parse(verb: Callable, words: list[str], command: str | None = None) -> dict[str, Any]:
    """The arguments for `verb` from the words after it.

    Raises UserError in one line; `--help` prints and raises SystemExit.

    command: what one types before these words, where it is not `mmtok VERB`.
    """
    command = command or f"mmtok {verb.__name__}"
    parser = parser_of(verb, command)
    hints = _parameters(verb)
    _refuse_habits(words, parser)
    read = parser.parse_known_args if "overrides" in hints else parser.parse_known_intermixed_args
    given, left = read(_spelled(words, parser))
    values = vars(given)
    if "overrides" in hints:
        if left and not left[0].startswith("--"):
            raise UserError(
                f"{parser.prog}: did not expect {left[0]!r}; fields are set as --field value"
                f" ({command} --help)"
            )
        values["overrides"] = left
    elif left:
        options = [
            option
            for action in parser._actions
            for option in action.option_strings
            if option.startswith("--")
        ]
        if left[0].startswith("-"):
            raise UserError(
                f"{parser.prog}: unknown option {left[0]}{nearest(left[0].split('=')[0], options)}"
            )
        raise UserError(f"{parser.prog}: did not expect {left[0]!r} ({command} --help)")
    return values


def _refuse_habits(words: list[str], parser: _Parser) -> None:
    """Raise UserError for the first option that other programs have and this verb does not, with
    ours.
    """
    options = {option for action in parser._actions for option in action.option_strings}
    end = words.index("--") if "--" in words else len(words)
    for word in words[:end]:
        name = word.partition("=")[0]
        known = name in options or name.replace("_", "-") in options
        habit = option_hint(name, options) if word.startswith("--") and not known else None
        if habit:
            raise UserError(
                f"{parser.prog}: there is no {name} here; it is {habit} ({parser.command} --help)"
            )


def _spelled(words: list[str], parser: argparse.ArgumentParser) -> list[str]:
    """The words with a verb's own options spelled as argparse knows them: --max_frames is
    --max-frames, as in a recipe's fields.
    """
    options = [option for action in parser._actions for option in action.option_strings]
    known = {option.replace("-", "_"): option for option in options if option.startswith("--")}
    end = words.index("--") if "--" in words else len(words)
    parts = [word.partition("=") for word in words[:end]]
    spelled = lambda name: (
        known.get(name.replace("-", "_"), name) if name.startswith("--") else name
    )
    return ["".join((spelled(name), equals, value)) for name, equals, value in parts] + words[end:]


def parser_of(verb: Callable, command: str) -> _Parser:
    """The argparse parser of one verb; its docstring is the help."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        verb.__name__, allow_abbrev=False, description=inspect.getdoc(verb), formatter_class=layout
    )
    parser.command = command
    for parameter, kind, about in _parameters(verb).values():
        if parameter.name != "overrides":
            _add(parser, parameter, kind, about)
    parser.usage = _usage(parser, verb)
    return parser


def _usage(parser: _Parser, verb: Callable) -> str:
    """Arguments first, then options: an option with several values would swallow an argument after
    it.
    """
    words = [parser.command]
    for action in sorted(parser._actions, key=lambda action: bool(action.option_strings)):
        if action.dest != "help":
            shown = {0: "", "+": f"{action.metavar}...", "?": f"[{action.metavar}]"}
            value = shown.get(action.nargs, action.metavar)
            text = " ".join(part for part in (*action.option_strings[:1], value) if part)
            words.append(text if action.required else f"[{text}]")
    return " ".join(words + ["[--field value ...]"] * ("overrides" in _parameters(verb)))


def _parameters(verb: Callable) -> dict[str, tuple[inspect.Parameter, Any, Arg]]:
    """Name -> (parameter, type, Arg) in the order of the signature."""
    hints = get_type_hints(verb, include_extras=True)
    found = {}
    for name, parameter in inspect.signature(verb).parameters.items():
        kind, about = (
            get_args(hints[name])
            if get_origin(hints[name]) is Annotated
            else (hints[name], Arg(""))
        )
        found[name] = parameter, kind, about
    return found


def _add(
    parser: argparse.ArgumentParser, parameter: inspect.Parameter, kind: Any, about: Arg
) -> None:
    if get_origin(kind) in (Union, types.UnionType):  # X | None: an option that may be left out
        kind = next(part for part in get_args(kind) if part is not type(None))
    many = get_origin(kind) is list
    scalar = get_args(kind)[0] if many else kind
    settings: dict[str, Any] = {
        "help": about.help,
        "choices": about.choices or None,
        "metavar": about.metavar,
    }
    if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
        settings |= {
            "nargs": "+" if many else None,
            "metavar": about.metavar or parameter.name.upper(),
        }
        parser.add_argument(parameter.name, type=scalar, **settings)
        return
    names = ([about.short] if about.short else []) + (
        ["--" + parameter.name.replace("_", "-")] if len(parameter.name) > 1 else []
    )
    required = parameter.default is inspect.Parameter.empty
    default = None if required else parameter.default
    if kind is bool:
        parser.add_argument(*names, action="store_true", help=about.help)
    elif many:
        settings |= {"nargs": "+", "action": "extend"}
        parser.add_argument(
            *names,
            dest=parameter.name,
            type=scalar,
            required=required,
            default=list(default or ()),
            **settings,
        )
    else:
        settings["help"] += f" (default: {default})" if default is not None else ""
        settings |= {} if about.alone is None else {"nargs": "?", "const": about.alone}
        parser.add_argument(
            *names, dest=parameter.name, type=scalar, required=required, default=default, **settings
        )
