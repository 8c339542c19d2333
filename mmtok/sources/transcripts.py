"""Finds the transcript of each sound file: NAME.txt or .lab beside NAME.wav, or a row of a table.

Files without a transcript, transcripts without a file, and files that two transcripts claim are
reported.
"""

from __future__ import annotations

import io
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from mmtok.errors import UserError
from mmtok.io.columns import known_column
from mmtok.io.numbers import as_number
from mmtok.io.tables import (
    SEPARATORS,
    SUFFIXES,
    Table,
    as_text,
    decoded,
    read_table,
    separated_records,
    separator_of,
    suffix_of,
)
from mmtok.io.tally import Tally
from mmtok.io.walk import Found
from mmtok.sources.clips import Clip
from mmtok.sources.sound_names import SoundFiles, bare_name, composed, missing, none_found
from mmtok.sources.speech_columns import (
    PIPED,
    SPELLINGS,
    ReadSettings,
    check_second_cells,
    find_columns,
    headless,
    need_columns,
    number_columns,
)

NAMES = {stem + suffix for stem in ("transcripts", "metadata") for suffix in SUFFIXES}
TEXTS = (".txt", ".lab")  # of transcripts beside a sound; the first one counts
COMPANIONS = (*TEXTS, *SUFFIXES)
FIELDS = ("file", "caption", "speaker", "split")
TIMED = re.compile(r"\s*\d+(\.\d+)?\s+\d+(\.\d+)?\s+\S")  # a label with its times


def caption_of(text: str) -> str:
    """A caption without a byte order mark and white space around it, which editors put there."""
    return text.removeprefix("\ufeff").strip()


def stem_of(path: Path) -> str:
    """What a sound and its transcript have in common: the path without its suffix."""
    return composed(str(path.with_suffix("")))


class Transcripts:
    """The transcripts of the sound files that a walk found.

    Transcripts without a sound file, and those of files that have a row of the table, are counted
    in `tally`.

    Attributes:
        missing: clips of rows whose file is not there, with that as their fault.

    Raises UserError for a table that cannot be used, and for two rows of one file.
    """

    def __init__(self, found: Found, settings: ReadSettings, tally: Tally) -> None:
        self.folder = found.folder
        self.table: Table | None = None
        self.missing: list[Clip] = []
        self._files = SoundFiles(found.folder, found=found)
        self._numbers = settings.numbers
        self._columns: dict[str, str] = {}
        self._row_of: dict[Path, int] = {}
        path = _table_in(found)
        if path is not None:
            self.table = _read(path, self._files, settings)
            self._columns = _columns(self.table, settings)
            with Tally("rows") as of_rows:
                self._row_of = self._rows(self.table, of_rows)
        elif settings.columns or settings.transcript != "original":
            raise UserError(
                f"{found.folder}: has no table of transcripts; columns and transcript choose in one"
            )
        self._texts: dict[str, Path] = {}
        for suffix in TEXTS:
            for path in found.companions:
                if path.suffix.lower() == suffix:
                    self._add_text(path, tally)
        self._count(found, tally)

    def _add_text(self, path: Path, tally: Tally) -> None:
        first = self._texts.setdefault(stem_of(path), path)
        if first.suffix.lower() != path.suffix.lower():
            tally.add("passed over: another transcript has that name", path)
        else:
            self._texts[stem_of(path)] = path

    def clip(self, path: Path) -> Clip:
        """A file with its transcript, or with what is wrong with that."""
        above = path.relative_to(self.folder).parent.as_posix().removeprefix(".")
        try:
            split = self._cell(path, "split") or above
            text = self.text(path)
            numbers = tuple(
                (name, as_number(cell, f"{path}, {name}"))
                for name in self._numbers
                if (cell := self._cell(path, name))
            )
            return Clip(str(path), text, self._cell(path, "speaker"), split, numbers=numbers)
        except UserError as error:
            return Clip(str(path), "", split=above, fault=str(error))

    def text(self, path: Path) -> str:
        """The transcript of a file.

        Raises UserError where there is none, where it is empty or not UTF-8.
        """
        text_file = self._texts.get(stem_of(path))
        if self.table is not None and path in self._row_of:
            where = self.table.where(self._row_of[path])
            text = self._cell(path, "caption")
        elif text_file is not None:
            where = str(text_file)
            text = decoded(text_file)
            if text_file.suffix.lower() == ".lab" and TIMED.match(text):
                raise UserError(
                    f"{where}: holds labels with times, not a transcript; write the words alone"
                )
        else:
            raise UserError(self._missing(path))
        if not text.strip():
            raise UserError(
                f"{where}: the transcript of {path.name} is empty; write it, or remove the file"
            )
        return caption_of(text)

    def _cell(self, path: Path, field: str) -> str:
        """The cell of a field in a file's row; "" where there is none."""
        if self.table is None or field not in self._columns or path not in self._row_of:
            return ""
        row = self._row_of[path]
        return as_text(self.table.cell(row, self._columns[field]), self.table.where(row)) or ""

    def _rows(self, table: Table, tally: Tally) -> dict[Path, int]:
        """File -> the row that names it."""
        rows: dict[Path, int] = {}
        first_missing = ""
        for i in range(len(table.rows)):
            cell = table.cell(i, self._columns["file"])
            tally.count()
            where = table.where(i)
            name = as_text(cell, where) or ""
            found = self._files.file(name, where, tally)
            if found is None:
                first_missing = first_missing or f"{where}, {name}"
                self.missing.append(self._missing_clip(table, i, name))
                continue
            path = Path(found)
            if path in rows:
                first = f"{table.unit} {table.numbers[rows[path]]}"
                raise UserError(
                    f"{where}: names {cell} a second time, after {first}; remove one of them"
                )
            rows[path] = i
        for i in table.broken:
            if problem := table.open_quote(i, self._files.names.is_known):
                raise UserError(problem)
        if not rows:
            raise none_found(table.path, len(table.rows), first_missing)
        table.count_broken(tally)
        return rows

    def _missing_clip(self, table: Table, i: int, name: str) -> Clip:
        """The row of a file that is not there."""
        where = table.where(i)
        name = bare_name(name)
        split = ""
        if "split" in self._columns:
            split = as_text(table.cell(i, self._columns["split"]), where) or ""
        return Clip(str(self.folder / name), "", split=split, fault=missing(where, name))

    def _count(self, found: Found, tally: Tally) -> None:
        """Count the transcripts that are not used."""
        tally.count(len(self._texts))
        sounds = defaultdict(list)
        for path in found.files:
            sounds[stem_of(path)].append(path)
        for stem, path in self._texts.items():
            if stem not in sounds:
                tally.add("left out: no sound file has that name", path)
            elif any(sound in self._row_of for sound in sounds[stem]):
                tally.add("passed over: the table has a row for that file", path)
            elif len(sounds[stem]) > 1:
                tally.add("shared by several sound files of one name", path)
        for path in found.companions:
            if path.suffix.lower() not in TEXTS and (self.table is None or path != self.table.path):
                tally.add("left out: not the folder's own table of transcripts", path)

    def _missing(self, path: Path) -> str:
        """The message for a file without a transcript: a row with an open quote may hold it."""
        listed = self.folder / "transcripts.csv"
        if self.table is not None:
            listed = self.table.path
            for i in self.table.broken:
                if any(path.stem in str(cell) for cell in self.table.rows[i]):
                    return (
                        f"{path}: no transcript of its own; {self.table.where(i)} holds its name:"
                        " is a quote left open there?"
                    )
        return (
            f"{path}: no transcript; put {path.with_suffix('.txt').name} beside it, or name it in"
            f" {listed}"
        )


def _table_in(found: Found) -> Path | None:
    """The folder's own table. Raises UserError where there are two."""
    tables = [path for path in found.companions if path.parent == found.folder]
    tables = [path for path in tables if path.name.lower() in NAMES]
    if not tables:
        return None
    if len(tables) > 1:
        raise UserError(
            f"{tables[0]}: {tables[1].name} lies beside it; keep one table of transcripts"
        )
    return tables[0]


def _read(path: Path, files: SoundFiles, settings: ReadSettings) -> Table:
    """A table, which between pipes may have no header. Raises UserError where another has none."""
    if suffix_of(path) not in SEPARATORS:
        return read_table(path)
    separator, cells = _first_cells(path)
    named = None
    if not _is_header(cells, settings):
        where = f"{path}: line 1"
        named = next((cell for cell in cells if files.file(cell, where)), None)
    if named is None:
        return read_table(path)
    if separator != "|" or not 2 <= len(cells) <= len(PIPED):
        raise UserError(headless(path, named))
    table = read_table(path, PIPED[: len(cells)])
    if len(table.columns) == len(PIPED):
        check_second_cells((row[1:] for row in table.rows), settings, path)
    return table


def _first_cells(path: Path) -> tuple[str, list[str]]:
    """The separator of a table, and the cells of its first row, whatever they are."""
    lines = io.StringIO(decoded(path), newline="")
    separator = separator_of(path, lines)
    lines.seek(0)
    _, _, cells = next(separated_records(path, lines, separator, separator != "|"), (1, 1, []))
    return separator, [cell.strip() for cell in cells]


def _columns(table: Table, settings: ReadSettings) -> dict[str, str]:
    """Field -> column. Raises UserError where there is no file or no text."""
    found = find_columns(table.columns, settings, table.path, FIELDS)
    found |= number_columns(table.columns, settings, table.path)
    need_columns(found, table.columns, table.path)
    return found


def _is_header(cells: Sequence[str], settings: ReadSettings) -> bool:
    """Whether the first line names columns: those that the user names, or file and text."""
    names = set(settings.columns.values())
    has_file = known_column(SPELLINGS["file"], cells)
    has_text = known_column(SPELLINGS["caption"], cells)
    return bool(names & set(cells) or (has_file and has_text))
