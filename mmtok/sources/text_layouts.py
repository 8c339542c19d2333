"""The layouts of text: which files a place has, and how they are told apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from mmtok.errors import UserError
from mmtok.io.columns import known_column
from mmtok.io.compressed import COMPRESSED, bare_path
from mmtok.io.messages import listed
from mmtok.io.patterns import named_places
from mmtok.io.remembered import Remembered
from mmtok.io.tables import LINES
from mmtok.io.tally import Tally
from mmtok.io.walk import corpus_among, file_at, files_among, is_about, walk
from mmtok.sources.layouts import Layout, chosen_layout
from mmtok.sources.text_rows import (
    MESSAGES,
    SPELLINGS,
    columns_of,
    is_table,
)
from mmtok.sources.unread_tables import seems_list

TXT = ".txt"
TXT_FILES = (TXT, *(TXT + more for more in COMPRESSED))
PLAIN = (TXT, ".text", ".md", ".markdown", ".rst", ".tex")
PLAIN_FILES = (*PLAIN, *(suffix + more for suffix in PLAIN for more in COMPRESSED))
ROWS = (*LINES, ".csv", ".tsv", ".tab", ".psv", ".json")
ROW_FILES = (*ROWS, *(suffix + more for suffix in ROWS for more in COMPRESSED), ".parquet")
N_LOOKED = 20  # tables of a folder
N_REMEMBERED = 10_000  # tables, whose columns are known
WANTED = "a UTF-8 text, a table of texts, or a folder of them"


@dataclass
class TextPlace:
    """The files that a name stands for, by kind.

    Attributes:
        named: files that are named themselves, or by a pattern.
        folders: that are named.
        plain: the first file of characters in each.
        tables: the first tables in each.
        txt_bytes: what the .txt files of folders hold.
    """

    named: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    plain: list[Path] = field(default_factory=list)
    tables: list[Path] = field(default_factory=list)
    has_txt: bool = False
    txt_bytes: int = 0

    def files(self, layout: str, named: Mapping[str, str]) -> list[Path]:
        """The files of a layout, in order.

        A warning says what is left out of a folder. Raises UserError for a folder without any.

        named: text or messages -> column of tables, as the user says.
        """
        suffixes: Sequence[str] = TXT_FILES
        if layout in ("table", "chat"):
            suffixes = ROW_FILES
        elif not self.has_txt:
            return [*self.named, *files_among(self.folders, PLAIN_FILES)]
        found = corpus_among(self.folders, suffixes)
        if layout == "chat":
            found = _with_column(found, "messages", MESSAGES, named)
        elif layout == "table":
            found = _with_column(found, "text", SPELLINGS, named)
        return [*self.named, *found]


def _with_column(
    tables: list[Path], field: str, spellings: Sequence[str], named: Mapping[str, str]
) -> list[Path]:
    """Those tables of folders that are of the corpus; others, such as config.json, are counted.

    They have the column, or a name like a corpus's tables, so that what is wrong in them is said.
    Where none has a known column, all are of the corpus, and their only column is the one.

    Raises UserError where several tables have a single column, each another one.
    """
    if field in named:
        spellings = (named[field], named[field].partition(".")[0])
    having = [path for path in tables if known_column(spellings, _columns(path)) is not None]
    if not having:
        _check_single_columns(tables, field)
        return tables
    kept = []
    with Tally("tables") as tally:
        for path in tables:
            tally.count()
            if path in having or seems_list(path, having):
                kept.append(path)
            else:
                tally.add(f"left out: without a column of {field}", path)
    return kept


def _check_single_columns(tables: Sequence[Path], field: str) -> None:
    """Raise UserError where tables have a single column, each another one."""
    columns = {path: _columns(path) for path in tables}
    single = {names[0]: path for path, names in columns.items() if len(names) == 1}
    if len(single) > 1:
        shown = listed([f"{name} in {path.name}" for name, path in single.items()], 3)
        raise UserError(
            f"{tables[0].parent}: which column is the {field}? Its tables have {shown}; say"
            f" --columns {field}=COLUMN"
        )


def text_place(path: str) -> TextPlace:
    """The files that a name stands for.

    Raises UserError where there are none.
    """
    place = TextPlace()
    for one in named_places(path, "TextFile", WANTED):
        if not one.is_dir():
            place.named.append(file_at(one, "TextFile", WANTED))
            (place.tables if is_table(one) else place.plain).append(one)
            continue
        place.folders.append(one)
        found = walk(one, (*PLAIN_FILES, *ROW_FILES)).files
        telling = [file for file in found if not is_about(file.name)]
        texts = [file for file in telling if bare_path(file).suffix.lower() == TXT]
        place.has_txt |= bool(texts)
        place.txt_bytes += sum(file.stat().st_size for file in texts)
        place.tables += [file for file in telling if is_table(file)][:N_LOOKED]
        place.plain += [file for file in telling if not is_table(file)][:1]
    return place


def layouts_of(place: TextPlace | None = None) -> tuple[Layout, ...]:
    """The layouts of text. Characters are read without a word where there is no table."""
    has_tables = place is not None and bool(place.tables)
    return (
        Layout(
            "plain",
            "files of characters: .txt, .md, .rst, .tex, each also .gz or .zst",
            _plain_evidence,
            "plain",
            plain=not has_tables,
        ),
        Layout(
            "table",
            "tables with a column of texts: .jsonl, .csv, .tsv, each also .gz or .zst; .parquet",
            _table_evidence,
            "table",
        ),
        Layout(
            "chat",
            "tables with a column of conversations, lists of role and content",
            _chat_evidence,
            "chat",
        ),
    )


def _plain_evidence(place: TextPlace) -> str:
    return ", ".join(path.name for path in place.plain[:1])


def _table_evidence(place: TextPlace) -> str:
    """The column of texts in a table; "" where the first holds conversations and no text.

    Beside .txt files a table that is smaller than they, and has no known column of texts, is about
    them.
    """
    if shown := _first_with(place.tables, SPELLINGS):
        return shown
    if not place.has_txt and _first_with(place.tables, MESSAGES):
        return ""
    for path in place.tables if place.has_txt else place.tables[:1]:
        names = _columns(path)
        is_large = not place.has_txt or path.stat().st_size >= place.txt_bytes
        may_be = is_large or (not names and seems_list(path, ()))
        if may_be and not known_column(MESSAGES, names):
            return path.name
    return ""


def _chat_evidence(place: TextPlace) -> str:
    """The column of conversations in a table."""
    return _first_with(place.tables, MESSAGES)


def _first_with(tables: Sequence[Path], spellings: Sequence[str]) -> str:
    """The column of the first table that has one of these; "" where there is none."""
    for path in tables:
        column = known_column(spellings, _columns(path))
        if column is not None:
            return f"{column} in {path.name}"
    return ""


_looked: Remembered[tuple[str, ...]] = Remembered(N_REMEMBERED)


def _columns(path: Path) -> tuple[str, ...]:
    try:
        return _looked(path, partial(_columns_in, path))
    except OSError:
        return ()  # its reader says what is wrong


def _columns_in(path: Path) -> tuple[str, ...]:
    try:
        return columns_of(path)[1]
    except UserError:
        return ()  # likewise


def layout_of(place: TextPlace, wanted: str, where: str) -> str:
    """The layout that is wanted, else the one that the place has.

    Raises UserError where it has two.
    """
    chosen = chosen_layout(layouts_of(place), place, wanted, where)
    if chosen is None:
        return "plain"  # its files say what is wrong
    return chosen.name
