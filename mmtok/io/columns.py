"""Columns of tables by name: as they are usually spelled, or as a user names them.

A user names columns as field=column: `--columns file=path,caption=sentence`. It serves every kind
of table: text between separators, JSON lines, Parquet, ROOT branches, hdf5 datasets. Where cells
may hold records, as in JSON and Parquet, translation.en is the part en of the column translation.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmtok.errors import UserError
from mmtok.io.messages import listed

N_NEAREST = 3


def chosen_column(
    field: str,
    there: Sequence[str],
    named: Mapping[str, str],
    spellings: Sequence[str],
    where: object,
    has_records: bool = False,
) -> str | None:
    """The column of a field: the one that the user named, else the first known spelling.

    Args:
        field: what the column holds, as `named` calls it.
        there: the columns that there are.
        named: field -> column, as the user says.
        spellings: how the column is called elsewhere, likeliest first.
        where: the file or table, in messages.
        has_records: whether cells may hold records, of which the user may name a part.

    Returns:
        The name as it is there; None where the user names none and no spelling is there.

    Raises:
        UserError: the user names a column that is not there.
    """
    if field in named:
        return named_column(named[field], there, where, has_records)
    return known_column(spellings, there)


def named_column(name: str, there: Sequence[str], where: object, has_records: bool = False) -> str:
    """The column of that name, in any case if only one is like it, or a part of one.

    Raises UserError, with the three nearest, where there is none.
    """
    top, dot, part = name.partition(".")
    for whole, rest in [(name, "")] + [(top, dot + part)] * (has_records and bool(part)):
        if whole in there:
            return whole + rest
        alike = [column for column in there if column.lower() == whole.lower()]
        if len(alike) == 1:
            return alike[0] + rest
    lowered = {column.lower(): column for column in there}
    close = difflib.get_close_matches(name.lower(), list(lowered), N_NEAREST, 0.0)
    nearest = [lowered[column] for column in close]
    raise UserError(
        f"{where}: has no column {name!r}; nearest: {', '.join(nearest) or 'none'} (of"
        f" {listed(there)})"
    )


def known_column(spellings: Sequence[str], there: Sequence[str]) -> str | None:
    """The first of these spellings that is there; case, blanks, - and _ do not count.

    "File Name" is file_name.
    """
    bare = {_bare(column): column for column in reversed(there)}
    return next((bare[_bare(name)] for name in spellings if _bare(name) in bare), None)


def _bare(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name.removeprefix("\ufeff").strip().strip('"').lower())


def cell_of(cells: Mapping[str, Any], column: str) -> Any:
    """The cell of a column of a row, or of a part of one; None where there is none."""
    if column in cells:
        return cells[column]
    cell: Any = cells
    for name in column.split("."):
        if not isinstance(cell, Mapping):
            return None
        cell = cell.get(name)
    return cell


def whole_columns(columns: Sequence[str], there: Sequence[str]) -> list[str]:
    """The columns that are to be read for these, or for these parts; without what is not there."""
    tops = [name if name in there else name.partition(".")[0] for name in columns]
    return [name for name in dict.fromkeys(tops) if name in there]


def check_named(named: Mapping[str, str], fields: Sequence[str], who: str) -> None:
    """Raise UserError where a user names a column for a field that there is not."""
    unknown = [field for field in named if field not in fields]
    if unknown:
        raise UserError(
            f"{who}: columns names {listed(unknown)}; the fields are {', '.join(fields)}, as in"
            f" {fields[0]}=COLUMN"
        )
