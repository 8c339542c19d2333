"""The layouts of text: which files a place has, and how they are told apart."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmtok.errors import UserError
from mmtok.io.columns import known_column
from mmtok.io.compressed import COMPRESSED, bare_path
from mmtok.io.messages import listed
from mmtok.io.patterns import named_places
from mmtok.io.tables import LINES
from mmtok.io.walk import file_at, files_among, walk
from mmtok.sources.layouts import Layout, chosen_layout
from mmtok.sources.text_rows import (
    MESSAGES,
    SPELLINGS,
    columns_of,
    is_table,
)

TXT = ".txt"
TXT_FILES = (TXT, *(TXT + more for more in COMPRESSED))
PLAIN = (TXT, ".text", ".md", ".markdown", ".rst", ".tex")
PLAIN_FILES = (*PLAIN, *(suffix + more for suffix in PLAIN for more in COMPRESSED))
ROWS = (*LINES, ".csv", ".tsv", ".tab", ".psv", ".json")
ROW_FILES = (*ROWS, *(suffix + more for suffix in ROWS for more in COMPRESSED), ".parquet")
ABOUT = re.compile(r"(readme|licen[cs]e|changelog|dataset_infos?)(\.[a-z0-9]+)*", re.IGNORECASE)
N_LOOKED = 20  # tables of a folder
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

    def files(self, layout: str) -> list[Path]:
        """The files of a layout, in order.

        A warning says what is left out of a folder. Raises UserError for a folder without any.
        """
        suffixes: Sequence[str] = TXT_FILES
        if layout in ("table", "chat"):
            suffixes = ROW_FILES
        elif not self.has_txt:
            return [*self.named, *files_among(self.folders, PLAIN_FILES)]
        found = files_among(self.folders, suffixes)
        about = [file for file in found if _is_about(file)]
        if about:
            names = listed([file.name for file in about])
            warnings.warn(
                f"{about[0].parent}: left out what tells of the corpus: {names}", stacklevel=2
            )
        return [*self.named, *(file for file in found if not _is_about(file))]


def _is_about(file: Path) -> bool:
    """Whether a file's name says that it tells of a corpus."""
    return bool(ABOUT.fullmatch(file.name))


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
        telling = [file for file in found if not _is_about(file)]
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
    tables = place.tables if place.has_txt else place.tables[:1]
    for path in tables:
        column = known_column(SPELLINGS, _columns(path))
        if column:
            return f"{column} in {path.name}"
    for path in tables:
        names = _columns(path)
        is_large = not place.has_txt or path.stat().st_size >= place.txt_bytes
        if (is_large or not names) and not known_column(MESSAGES, names):
            return path.name
    return ""


def _chat_evidence(place: TextPlace) -> str:
    """The column of conversations in the first table."""
    for path in place.tables[:1]:
        column = known_column(MESSAGES, _columns(path))
        if column:
            return f"{column} in {path.name}"
    return ""


def _columns(path: Path) -> tuple[str, ...]:
    try:
        return columns_of(path)[1]
    except UserError:
        return ()  # its reader says what is wrong


def layout_of(place: TextPlace, wanted: str, where: str) -> str:
    """The layout that is wanted, else the one that the place has.

    Raises UserError where it has two.
    """
    chosen = chosen_layout(layouts_of(place), place, wanted, where)
    if chosen is None:
        return "plain"  # its files say what is wrong
    return chosen.name
