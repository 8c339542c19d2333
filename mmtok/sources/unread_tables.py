"""Tables that lie beside those of a corpus and cannot be read: they are no small part of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mmtok.errors import UserError
from mmtok.io.table_rows import first_chars, open_table
from mmtok.io.tables import decoded, suffix_of
from mmtok.io.tally import Tally
from mmtok.sources.layouts import is_part
from mmtok.sources.screen import Broken, Tolerance


def fault_in(path: Path, separator: str = "") -> str:
    """Why a table cannot be read, by its beginning; "" where it can, or is no table.

    A .json file may hold anything; only as a text must it be readable.
    """
    try:
        suffix = suffix_of(path, named=True)
        if suffix != ".parquet":
            _check_text(path)
        if suffix != ".json":
            open_table(path, separator=separator)
    except UserError as error:
        return str(error)
    return ""


def _check_text(path: Path) -> None:
    """Raise UserError where a file does not begin as a text in UTF-8, and where it is empty."""
    try:
        head = first_chars(path)
    except UserError:
        decoded(path)  # raises, and says where
        raise
    if "\0" in head:
        decoded(path)
    if not head.strip():
        raise UserError(f"{path}: the file is empty; remove it, or write its rows")


def check_unread(
    used: Sequence[Path],
    faults: Mapping[Path, str],
    train: str,
    heldout: str,
    tolerance: Tolerance,
    tally: Tally,
) -> None:
    """Count the tables of a corpus that cannot be read.

    Args:
        used: those that can.
        faults: what is wrong with each of the others.
        train: the split to train on, as the user names it; tables that it does not mean are not
            asked for where it means one of `used`.
        heldout: that to hold out.
        tolerance: which share may be passed over.
        tally: of the tables.

    Raises:
        UserError: one that is meant cannot be read, or too many.
    """
    names = [name for name in (train, heldout) if name]
    for path, fault in faults.items():
        if any(is_part(name, path.name) for name in names):
            raise UserError(fault)
    if train and any(is_part(train, path.name) for path in used):
        return
    counted = Tally("tables")  # which speaks only where they are few
    broken = Broken(len(used) + len(faults), "tables", tolerance)
    for path, fault in faults.items():
        broken.add(path.name, UserError(fault), counted)
    broken.stop_if_many()
    tally.merge(counted.as_plain())
