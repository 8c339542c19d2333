"""Layouts of speech corpora whose clips are the rows of tables.

LJSpeech and Coqui, Hugging Face's audiofolder, Common Voice, NeMo manifests, and any table with
columns of files and transcripts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from mmtok.errors import UserError
from mmtok.io.compressed import COMPRESSED
from mmtok.io.numbers import as_number
from mmtok.io.table_rows import (
    N_SNIFFED,
    TableFile,
    first_chars,
    is_list,
    listed_objects,
    open_table,
)
from mmtok.io.tables import LINES, as_text, suffix_of
from mmtok.io.tally import Tally
from mmtok.io.walk import walk
from mmtok.sources.clips import Clip
from mmtok.sources.layouts import is_part
from mmtok.sources.media import SOUNDS
from mmtok.sources.sound_files import sound_seconds
from mmtok.sources.sound_names import SoundFiles, bare_name, missing, none_found
from mmtok.sources.speech_columns import (
    PIPED,
    SPELLINGS,
    ReadSettings,
    check_second_cells,
    find_columns,
    need_columns,
    number_columns,
    seconds,
)
from mmtok.sources.transcripts import caption_of


def table_clips(
    table: TableFile, files: SoundFiles, settings: ReadSettings, tally: Tally, split: str = ""
) -> Iterator[Clip]:
    """The rows of a table as clips; those whose file is not there have that as their fault.

    split: of rows that name none.

    Raises UserError for a table without the columns, and for one that names no file that is there.
    """
    columns = find_columns(table.columns, settings, table.path)
    columns |= number_columns(table.columns, settings, table.path)
    need_columns(columns, table.columns, table.path)
    if problem := held_sounds(table.path, columns):
        raise UserError(f"{table.path}: {problem}")
    n_rows = 0
    n_timed = 0
    first_missing = ""
    n_found = 0
    speakers: dict[str, str] = {}  # one string each
    for number, cells in table.rows(list(columns.values()), files.is_known):
        n_rows += 1
        tally.count()
        where = table.where(number)
        row = dict(zip(columns, cells, strict=True))
        name = _name(row["file"], where)
        path = files.file(name, where, tally)
        if path is None:
            first_missing = first_missing or f"{where}, {name}"
            path = os.path.normpath(files.folder / bare_name(name))
            yield Clip(path, "", split=_split_of(row, where, split), fault=missing(where, name))
            continue
        n_found += 1
        clip = _row_clip(row, path, where, split, speakers, settings.numbers)
        if settings.looks and _is_timed(clip) and n_timed < N_TIMED:
            n_timed += 1
            _check_seconds(clip)
        yield clip
    if not n_rows:
        raise UserError(f"{table.path}: the table has no rows")
    if not n_found:
        raise none_found(table.path, n_rows, first_missing)


def held_sounds(path: Path, columns: Mapping[str, str], place: Path | None = None) -> str:
    """What to say of a Parquet table that holds sounds, and not the names of files; else "".

    columns: field -> column; place: where the whole table is, if not in this file alone.
    """
    if suffix_of(path) != ".parquet":
        return ""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pq.read_schema(path)
    kind = pa.struct(list(schema))
    for name in (
        [columns["file"]] if columns["file"] in schema.names else columns["file"].split(".")
    ):
        if not pa.types.is_struct(kind) or kind.get_field_index(name) < 0:
            return ""  # its rows name no file, which is said of them
        kind = kind.field(name).type
    has_bytes = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    if not (has_bytes or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        return ""
    named = {"speech": columns["file"], "caption": columns["caption"]}
    return (
        f"its column {columns['file']} holds the sounds themselves, not names of files; read it in"
        f" a recipe as HubTable({str(place or path)!r}, {named},"
        " {'speech': 'speech', 'caption': 'text'})"
    )


def _split_of(row: dict[str, Any], where: str, split: str) -> str:
    """The split that a row names; else the one that is given."""
    return as_text(row.get("split"), where) or split


def _row_clip(
    row: dict[str, Any],
    path: str,
    where: str,
    split: str,
    speakers: dict[str, str],
    numbers: Sequence[str],
) -> Clip:
    """A row as a clip, or with what is wrong with it.

    speakers: each name -> the same, once; numbers: the fields that are numbers.
    """
    try:
        split = _split_of(row, where, split)
        speaker = (as_text(row.get("speaker"), where) or "").strip()
        caption = caption_of(as_text(row["caption"], where) or "")
        times = _times(row, where)
        values = tuple(
            (name, as_number(row[name], f"{where}, {name}"))
            for name in numbers
            if row[name] not in (None, "")
        )
    except UserError as error:
        return Clip(path, "", split=split, fault=str(error))
    clip = Clip(path, caption, speakers.setdefault(speaker, speaker), split, *times, numbers=values)
    if not caption:
        return clip._replace(fault=f"{where}: the transcript is empty; write it, or remove the row")
    return clip


def _name(cell: Any, where: str) -> str:
    """The name of a file in a cell."""
    if isinstance(cell, dict) and "bytes" in cell:
        raise UserError(
            f"{where}: holds the sound itself, not the name of a file; read this table as a"
            " HubTable, whose id is the file"
        )
    return as_text(cell, where) or ""


def _times(row: dict[str, Any], where: str) -> tuple[float, float, float]:
    """(start, duration of the part, length of the clip) of a row, in seconds.

    A duration without a start is that of the file, and all of it is read.
    """
    duration = seconds(row.get("duration_s"), "duration", where)
    has_start = row.get("start_s") not in (None, "")
    if not has_start and row.get("end_s") in (None, ""):
        return 0.0, 0.0, duration
    start = seconds(row.get("start_s"), "start", where)
    end = seconds(row.get("end_s"), "end", where)
    if end:
        duration = end - start
        if duration <= 0:
            raise UserError(f"{where}: begins at {start:g} s and ends at {end:g} s")
    return start, duration, duration


def count_unused(clips: Sequence[Clip], folder: Path) -> None:
    """Count the sounds below a folder that no clip is of."""
    used = {clip.path for clip in clips}
    with Tally("sound files") as counted:
        for path in walk(folder, SOUNDS).files:
            counted.count()
            if str(path) not in used:
                counted.add("left out: no row that is read names them", path)


def folder_below(root: Path, path: str, n_inner: int = 0) -> str:
    """The folders between a corpus's and a file, without the inner ones: data/train."""
    parts = os.path.relpath(path, root).split("/")[:-1]
    return "/".join(parts[: len(parts) - n_inner])


# ---- the tables of a place


def wanted_tables(tables: Sequence[Path], settings: ReadSettings, whole: str = "") -> list[Path]:
    """Those of a corpus's tables that are to be read.

    With `train` these are the ones that `train` and `heldout` name; without either, the one that is
    called `whole`, but for its suffix; else, or where there is no such table, all. Splits that no
    table is called are looked for among the rows.
    """
    names = [name for name in (settings.train, settings.heldout) if name]
    named = [path for path in tables if any(is_part(name, path.name) for name in names)]
    if named and settings.train:
        return named
    if not names and whole:
        return [path for path in tables if stem_of_table(path) == whole] or list(tables)
    return list(tables)


def stem_of_table(path: Path) -> str:
    """The name of a table without suffixes: train of train.tsv.gz."""
    return path.name.split(".")[0]


def first_line(path: Path) -> str:
    """The beginning of the first line of a text; "" where it has none that can be read."""
    try:
        return first_chars(path).split("\n", 1)[0].strip()
    except UserError:
        return ""


def columns_in(path: Path) -> tuple[str, ...]:
    """The columns of a table; () where it cannot be read. Of JSON those of its first objects."""
    try:
        if suffix_of(path) in (".json", *LINES) and is_list(path):
            rows = islice(listed_objects(path), N_SNIFFED)
            return tuple(dict.fromkeys(chain.from_iterable(row.value for row in rows)))
        return open_table(path).columns
    except UserError:
        return ()


def common_folder(tables: Sequence[Path]) -> Path:
    """The folder of tables that lie in one."""
    return tables[0].parent


# ---- one layout each


def piped_clips(tables: Sequence[Path], settings: ReadSettings, tally: Tally) -> Iterator[Clip]:
    """LJSpeech: NAME|text|normalised text between pipes, without a header; Coqui's with one."""
    for path in wanted_tables(tables, settings, "metadata"):
        yield from table_clips(
            _piped(path, settings), SoundFiles(path.parent), settings, tally, split=path.name
        )


def _piped(path: Path, settings: ReadSettings) -> TableFile:
    """A table of two or three cells between pipes, or of any with a header."""
    cells = [cell.strip() for cell in first_line(path).split("|")]
    if set(cells) & set(SPELLINGS["file"]) and set(cells) & set(SPELLINGS["caption"]):
        return open_table(path, separator="|")
    if not 2 <= len(cells) <= len(PIPED):
        raise UserError(
            f"{path}: line 1 has {len(cells)} cells between pipes; without a header there are two"
            " or three, name|text|normalised text"
        )
    table = open_table(path, PIPED[: len(cells)], "|")
    if len(cells) == len(PIPED):
        check_second_cells((row for _, row in table.rows(PIPED[1:])), settings, path)
    return table


def audiofolder_clips(
    root: Path, tables: Sequence[Path], settings: ReadSettings, tally: Tally
) -> Iterator[Clip]:
    """Hugging Face's audiofolder: metadata.csv, .jsonl or .parquet names files below its folder."""
    for path in tables:
        files = SoundFiles(path.parent, [path.parent])
        for clip in table_clips(open_table(path), files, settings, tally):
            place = path if path.parent != root else clip.path
            yield clip._replace(split=clip.split or folder_below(root, str(place)))


def commonvoice_clips(
    tables: Sequence[Path], settings: ReadSettings, tally: Tally
) -> Iterator[Clip]:
    """Common Voice: validated.tsv, train.tsv, ... beside clips/, and clip_durations.tsv if there.

    Quotes do not enclose cells, but some releases have enclosed texts that hold quotes.
    """
    folder = common_folder(tables)
    lengths = _clip_lengths(folder)
    files = SoundFiles(folder, [folder / "clips", folder])
    names = {stem_of_table(path): path.name for path in tables}
    whole = next((name for name in ("validated", "train") if name in names), "")
    if settings.heldout and not settings.train and "train" in names:
        settings = replace(settings, train=names["train"])  # of the others none is for training
    for path in wanted_tables(tables, settings, whole):
        table = open_table(path, separator="\t", has_quotes=False)
        for clip in table_clips(table, files, settings, tally, split=path.name):
            yield clip._replace(
                caption=_unquoted(clip.caption),
                length_s=lengths.get(os.path.basename(clip.path), 0.0),
            )


def _unquoted(text: str) -> str:
    """A text without the quotes around it, where those within are doubled."""
    inner = re.fullmatch(r'"((?:[^"]|"")*)"', text, re.DOTALL)
    if inner is None or '""' not in inner[1]:
        return text
    return inner[1].replace('""', '"').strip()


def _clip_lengths(folder: Path) -> dict[str, float]:
    """Name of a clip -> its seconds; {} where the release has no such table."""
    paths = [folder / f"clip_durations.tsv{packed}" for packed in ("", *COMPRESSED)]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return {}
    table = open_table(path, separator="\t", has_quotes=False)
    durations = [name for name in table.columns if name.startswith("duration")]
    if "clip" not in table.columns or not durations:
        return {}
    lengths = {}
    for number, (clip, cell) in table.rows(["clip", durations[0]]):
        lengths[clip] = seconds(cell, durations[0], table.where(number)) / 1000
    return lengths


def manifest_clips(tables: Sequence[Path], settings: ReadSettings, tally: Tally) -> Iterator[Clip]:
    """JSON lines of NeMo and ESPnet, and any other table with columns of files and texts."""
    for path in wanted_tables(tables, settings):
        yield from table_clips(
            open_table(path), SoundFiles(path.parent), settings, tally, split=path.name
        )


# ---- durations


N_TIMED = 20  # rows of a table whose files are looked at, to tell its unit of time
LEAST_CUT_S = 0.05  # less is rounding
LEAST_CUT_SHARE = 0.01
MILLISECONDS = (900, 1100)  # times the seconds of a file
_seconds: dict[int, float] = {}  # hash of path, size and time of change -> seconds of a file


def nemo_clips(tables: Sequence[Path], settings: ReadSettings, tally: Tally) -> Iterator[Clip]:
    """The rows of NeMo's manifests; of a file that is longer than they say, only that much is read.

    So NeMo does. Raises UserError where durations are in milliseconds.
    """
    for clip in manifest_clips(tables, settings, tally):
        if not _is_timed(clip) or not settings.looks:
            yield clip
            continue
        yield _cut_to_duration(clip, tally)


def _is_timed(clip: Clip) -> bool:
    """Whether a row says how long its file is, and names no part of it."""
    return bool(clip.length_s and not (clip.fault or clip.start_s or clip.duration_s))


def _check_seconds(clip: Clip) -> float:
    """The seconds of a clip's file; 0 where it cannot be read, as reading it says why.

    Raises UserError where its table gives them in milliseconds.
    """
    try:
        length = _seconds_of(clip.path)
    except (UserError, OSError):
        return 0.0
    if MILLISECONDS[0] < clip.length_s / length < MILLISECONDS[1]:
        raise UserError(
            f"{clip.path}: its duration is {clip.length_s:g} and the file lasts {length:.3g} s, so"
            " its table has milliseconds; divide them by 1000"
        )
    return length


def _cut_to_duration(clip: Clip, tally: Tally) -> Clip:
    said = clip.length_s
    length = _check_seconds(clip)
    if not length:
        return clip
    if length - said <= max(LEAST_CUT_S, LEAST_CUT_SHARE * length):
        return clip._replace(length_s=length)
    tally.add("cut to the manifest's duration", clip.path)
    return clip._replace(duration_s=said)


def _seconds_of(path: str) -> float:
    """The length of a file by its header; less memory than `sound_seconds` for a million."""
    status = os.stat(path)
    key = hash((path, status.st_size, status.st_mtime_ns))
    if key not in _seconds:
        _seconds[key] = sound_seconds.__wrapped__(Path(path))  # type: ignore[attr-defined]
    return _seconds[key]
