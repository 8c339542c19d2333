"""Tables that lie beside those of a corpus and cannot be read: they are no small part of it.

One that by its name or header lists no files of the corpus, such as speakers.csv, is none of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmtok.errors import UserError
from mmtok.io.columns import known_column
from mmtok.io.compressed import FAULTS, open_bytes
from mmtok.io.table_rows import first_chars, open_table
from mmtok.io.tables import decoded, suffix_of
from mmtok.io.tally import Tally
from mmtok.sources.layouts import is_part
from mmtok.sources.screen import Broken, Tolerance

# a table of such a name is one of the corpus, or of one of its splits
LIST_NAME = re.compile(
    r"(?<![a-z])(train|training|dev|val|valid|validation|validated|invalidated|test|testing|eval"
    r"|evaluation|heldout|metadata|manifest|transcripts?|transcriptions?|captions?|annotations?"
    r"|labels?|list|file_?lists?|files|index|data|dataset|corpus|clips|images|pictures)(?![a-z])"
)
HEAD_BYTES = 2**16  # of a table that cannot be read, for what its header says
UTF_16 = (b"\xff\xfe", b"\xfe\xff")


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


def seems_list(
    path: Path,
    used: Sequence[Path],
    spellings: Sequence[str] = (),
    suffixes: tuple[str, ...] = (),
) -> bool:
    """Whether a table that cannot be used is by its name or first line one of the corpus.

    Args:
        path: of the table.
        used: the corpus's other tables; one whose name differs from theirs in digits is alike.
        spellings: how the column of its files is called.
        suffixes: of its files, which a line without a header may name.
    """
    alike = {_undigited(other.name) for other in used}
    if LIST_NAME.search(path.name.lower()) or _undigited(path.name) in alike:
        return True
    if not spellings:
        return False
    cells = [cell.strip(' "{[').rstrip(' "}]') for cell in re.split(r"[,;\t|:]", _first_line(path))]
    return bool(known_column(spellings, cells)) or any(
        cell.lower().endswith(suffixes) for cell in cells
    )


def _undigited(name: str) -> str:
    return re.sub(r"\d+", "0", name.lower())


def _first_line(path: Path) -> str:
    """The first line of a file, as far as it can be told in whichever encoding; "" for none."""
    try:
        with open_bytes(path) as file:
            head = file.read(HEAD_BYTES)
    except FAULTS:
        return ""
    encoding = "utf-16" if head[:2] in UTF_16 else "latin-1"
    return head.decode(encoding, "replace").lstrip().partition("\n")[0]


def check_unread(
    used: Sequence[Path],
    faults: Mapping[Path, str],
    lists: Sequence[Path],
    train: str,
    heldout: str,
    tolerance: Tolerance,
    tally: Tally,
) -> None:
    """Count the tables of a corpus that cannot be read.

    Args:
        used: those that can.
        faults: what is wrong with each of the others.
        lists: those of the others that seem to list files; the rest is no part of the corpus.
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
    remedy = f"mend or remove them, or name the one to read: --path {used[0]}"
    broken = Broken(len(used) + len(lists), "tables", tolerance, remedy)
    for path, fault in faults.items():
        if path in lists:
            broken.add(path.name, UserError(fault), counted)
        else:
            what = "left out: by name and first line they list no files, and cannot be read"
            tally.add(what, fault)
    broken.stop_if_many()
    tally.merge(counted.as_plain())
