"""A recipe's form of prompts that give several fields in one text: "{caption}, pt {pt_gev} GeV"."""

from __future__ import annotations

import re
from collections.abc import Collection
from string import Formatter

from mmtok.errors import UserError
from mmtok.io.messages import listed, shown
from mmtok.io.numbers import NUMBER


def format_fields(form: str) -> list[str]:
    """The fields that a form names, in its order.

    Raises UserError for a form that cannot be read back: without fields, with one twice, or with
    two that nothing stands between.
    """
    names: list[str] = []
    try:
        pieces = list(Formatter().parse(form))
    except ValueError as error:
        raise UserError(f"prompt_format {shown(form)}: {error}") from None
    for i, (literal, name, spec, conversion) in enumerate(pieces):
        if name is None:
            continue
        if not name or spec or conversion or name in names:
            raise UserError(
                f"prompt_format {shown(form)}: names each field once, as {{NAME}} and no more"
            )
        if i and not literal:
            raise UserError(
                f"prompt_format {shown(form)}: nothing stands between {names[-1]!r} and {name!r},"
                " so that a prompt could not be taken apart"
            )
        names.append(name)
    if not names:
        raise UserError(f'prompt_format {shown(form)}: names no field, as in "pt {{pt_gev}} GeV"')
    return names


def parse_prompt(text: str, form: str, numbers: Collection[str]) -> dict[str, str]:
    """The value of each field in a prompt, in the order of the form, which must match exactly.

    numbers: the fields that are numbers.

    Raises UserError, with the form, for any other text.
    """
    pattern = ""
    names = format_fields(form)
    for literal, name, _, _ in Formatter().parse(form):
        pattern += re.escape(literal)
        if name is not None:
            pattern += f"({NUMBER})" if name in numbers else "(.+?)"
    found = re.fullmatch(pattern, text, re.DOTALL)
    if found is None:
        which = [name for name in names if name in numbers]
        verb = "is a number" if len(which) == 1 else "are numbers"
        hint = f", where {listed(which)} {verb}" if which else ""
        raise UserError(
            f'{shown(text)} is not of the form "{form}" of this recipe{hint}; or give each field'
            f" by itself: {' '.join(f'{name}=...' for name in names)}"
        )
    return dict(zip(names, found.groups(), strict=True))
