"""The columns of tables of clips: which one holds the file, the transcript, the speaker, the time.

A table names them by its header, as corpora usually spell them, or the user does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from mmtok.errors import UserError
from mmtok.io.columns import chosen_column
from mmtok.io.messages import listed
from mmtok.io.tables import LINES, as_text, suffix_of
from mmtok.sources.media import SOUNDS
from mmtok.sources.screen import Tolerance

# field -> spellings of its column, likeliest first
SPELLINGS: dict[str, tuple[str, ...]] = {
    "file": (
        "file", "file_name", "filename", "path", "audio", "audio_filepath", "audio_file",
        "audio_path", "file_path", "filepath", "wav", "wav_path", "wav_filename", "wav_file",
    ),
    "caption": ("text", "transcript", "transcription", "sentence", "caption", "raw_text"),
    "speaker": ("speaker", "speaker_id", "speaker_name", "client_id", "spk", "spk_id", "utt2spk"),
    "start_s": ("offset", "start_s", "start", "start_time"),
    "end_s": ("end_s", "end", "end_time"),
    "duration_s": ("duration", "duration_s"),
    "split": ("split",),
}  # fmt: skip
NORMALIZED = (
    "normalized", "normalized_text", "text_normalized", "normalized_transcription",
    "normalized_transcript",
)  # fmt: skip
TIMES = ("start_s", "end_s", "duration_s")
PIPED = ("file", "text", "normalized")  # columns between pipes without a header, as in LJSpeech
N_LOOKED_AT = 10_000  # rows between pipes, to tell speakers from texts
FIELDS = tuple(SPELLINGS)


@dataclass(frozen=True)
class ReadSettings:
    """What a user says of how a corpus is to be read.

    Attributes:
        columns: field -> column of its tables.
        transcript: which one, where a corpus has the text as written and one with numbers and
            abbreviations spelled out.
        mic: the microphone, where a corpus has recordings of several.
        train: the corpus's own split to train on, "" for none.
        heldout: that to hold out.
        numbers: fields that are numbers in the column that `columns` says, else of the same name.
        looks: whether headers of sounds are read; else what the corpus says of them is taken.
        tolerance: what to do with tars that cannot be read.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    transcript: Literal["original", "normalized"] = "original"
    mic: str = "mic2"
    train: str = ""
    heldout: str = ""
    numbers: tuple[str, ...] = ()
    looks: bool = True
    tolerance: Tolerance = Tolerance()


def number_columns(there: Sequence[str], settings: ReadSettings, where: object) -> dict[str, str]:
    """Number field -> its column. Raises UserError for one that is not there."""
    columns = {name: settings.columns.get(name, name) for name in settings.numbers}
    found = {}
    for name in columns:
        column = chosen_column(name, there, columns, (), where, _has_records(where))
        if column is not None:
            found[name] = column
    return found


def _has_records(where: object) -> bool:
    """Whether the cells of a table may hold records, of which a user may name a part."""
    return isinstance(where, Path) and suffix_of(where) in (".json", *LINES, ".parquet")


def find_columns(
    there: Sequence[str], settings: ReadSettings, where: object, fields: Sequence[str] = FIELDS
) -> dict[str, str]:
    """Field -> column, of those fields that a table has.

    Raises UserError for a column that the user names and that is not there, and where there is no
    normalised transcript though the user wants it.
    """
    found = {}
    for name in fields:
        spellings = SPELLINGS[name]
        if name == "caption":
            spellings = (*spellings, *NORMALIZED)
            if settings.transcript == "normalized":
                spellings = NORMALIZED
        column = chosen_column(name, there, settings.columns, spellings, where, _has_records(where))
        if column is not None:
            found[name] = column
    if settings.transcript == "normalized" and "caption" in fields and "caption" not in found:
        raise UserError(
            f"{where}: has no normalised transcript (a column {NORMALIZED[0]}), but"
            f" {listed(there)}; name it (--columns caption=COLUMN) or take --transcript original"
        )
    return found


def need_columns(found: Mapping[str, str], there: Sequence[str], where: object) -> None:
    """Raise UserError unless the columns of files and of transcripts were found."""
    if "file" not in found or "caption" not in found:
        named = sound_among(there)
        if named is not None:
            raise UserError(headless(where, named))
        raise UserError(
            f"{where}: needs the columns file and text, has {listed(there)}; name them as in"
            " --columns file=COLUMN,caption=COLUMN"
        )


def sound_among(cells: Sequence[str]) -> str | None:
    """The first cell of a header that is the name of a sound file, so that it is no header."""
    return next((cell for cell in cells if cell.lower().endswith(SOUNDS)), None)


def headless(where: object, named: str) -> str:
    """What is said of a table whose first line names a file."""
    return (
        f"{where}: line 1 names the file {named}, so it is no header; put the names of the columns,"
        " file and text, in a line above it"
    )


def seconds(cell: Any, what: str, where: str) -> float:
    """A cell as seconds, 0 where it is empty. Raises UserError for what is no time."""
    text = (as_text(cell, where) or "").strip()
    if not text:
        return 0.0
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise UserError(f"{where}: {what} is {text!r}; it must be a number of seconds")
    return value


def check_second_cells(
    rows: Iterable[Sequence[str]], settings: ReadSettings, where: object
) -> None:
    """Raise UserError where second cells seem to be speakers: NAME|speaker|text, as VITS has it.

    They are one word each, and few different ones or numbers, where texts of several words follow.

    Args:
        rows: the second and third cell of each row of a table without a header.
        settings: where these say which cell is the text, nothing is checked.
        where: the table, in messages.
    """
    if settings.columns or settings.transcript != "original":
        return
    looked_at = list(islice(rows, N_LOOKED_AT))
    words = [row[0].strip() for row in looked_at]
    n_sentences = sum(len(row[1].split()) > 1 for row in looked_at)
    names = list(dict.fromkeys(words))
    are_words = all(len(name.split()) == 1 for name in names)
    repeat = 2 * len(names) <= len(words) or all(name.isdecimal() for name in names)
    if are_words and repeat and 2 * n_sentences > len(looked_at):
        raise UserError(
            f"{where}: its second cells, such as {listed(names, 3)}, seem to be speakers, and the"
            " third ones texts; say so (--columns speaker=text,caption=normalized), or that the"
            " second ones are texts (--columns caption=text)"
        )
