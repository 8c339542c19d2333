"""What speaks for each layout of a corpus of speech, seen at a glance: names, a few first lines.

Each function gives the evidence for one layout in a place, as messages show it, "" for none.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mmtok.errors import UserError
from mmtok.io.columns import known_column
from mmtok.io.compressed import COMPRESSED
from mmtok.io.messages import listed
from mmtok.io.tables import LINES, suffix_of
from mmtok.io.tables import SUFFIXES as TABLES
from mmtok.io.walk import walk
from mmtok.sources.media import SOUNDS
from mmtok.sources.sound_names import BELOW, SoundFiles
from mmtok.sources.speech_columns import NORMALIZED, SPELLINGS, TIMES, ReadSettings, find_columns
from mmtok.sources.speech_tables import columns_in, first_line
from mmtok.sources.speech_trees import kaldi_folders, vctk_trees
from mmtok.sources.transcripts import COMPANIONS, NAMES, TEXTS

DEPTH = 6  # of folders that are looked into, to find out a layout
N_FOLDERS = 3  # of each folder that are looked into
N_FILES = 2_000  # of each folder that are looked at
COMMON_VOICE = {"validated", "train", "dev", "test", "other", "invalidated"}
PACKED = ("", *COMPRESSED)
AUDIOFOLDER = {
    "metadata.parquet",
    *(f"metadata{kind}{packed}" for kind in (".csv", *LINES) for packed in PACKED),
}
PIPED_NAME = re.compile(r"(metadata|transcripts?)[\w-]*\.(csv|txt|psv)(\.gz|\.zst)?")
MANIFESTS = tuple(f"{kind}{packed}" for kind in (".json", *LINES) for packed in PACKED)
BOTH_TEXTS = "captions are the original text, --transcript normalized takes the other"


@dataclass(frozen=True)
class Place:
    """Where a corpus lies, and what is seen there at a glance.

    Attributes:
        path: a folder, or a table.
        settings: what the user says of it.
    """

    path: Path
    settings: ReadSettings

    @property
    def folder(self) -> Path:
        """The folder of the corpus."""
        return self.path if self.path.is_dir() else self.path.parent

    @cached_property
    def names(self) -> list[str]:
        """What lies in the folder itself and is not hidden, by name."""
        return sorted(name for name in os.listdir(self.folder) if not name.startswith("."))

    @cached_property
    def tables(self) -> list[Path]:
        """The table that the user named, or those in the folder itself."""
        if not self.path.is_dir():
            return [self.path]
        names = [
            name
            for name in self.names
            if name.lower().endswith(TABLES) or PIPED_NAME.fullmatch(name.lower())
        ]
        return [self.folder / name for name in names if (self.folder / name).is_file()]

    @cached_property
    def sample(self) -> list[Path]:
        """Files in the folder, and in the first few folders of each folder below."""
        found: list[Path] = []
        if self.path.is_dir():
            _collect(self.path, DEPTH, found)
        return found

    def has_folder(self, names: Iterable[str]) -> str:
        """The first folder here of one of these names; "" for none."""
        return next((name for name in names if (self.folder / name).is_dir()), "")


def _collect(folder: Path, depth: int, found: list[Path]) -> None:
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError:
        return
    below: list[Path] = []
    for i, name in enumerate(names):
        path = folder / name
        if name.lower().endswith((*SOUNDS, *COMPANIONS)):
            if i < N_FILES or name.lower() in AUDIOFOLDER:
                found.append(path)
        elif depth and len(below) < N_FOLDERS and path.is_dir():
            below.append(path)
    for path in below:
        _collect(path, depth - 1, found)


# ---- evidence


def librispeech_evidence(place: Place) -> str:
    """A .trans.txt."""
    return _first_named(place, ".trans.txt")


def libritts_evidence(place: Place) -> str:
    """A .normalized.txt or .original.txt."""
    shown = _first_named(place, ".normalized.txt") or _first_named(place, ".original.txt")
    return shown and f"{shown}; {_which_text(place)}"


def _first_named(place: Place, suffix: str) -> str:
    return next((path.name for path in place.sample if _is(path, (suffix,))), "")


def _which_text(place: Place) -> str:
    if column := place.settings.columns.get("caption"):
        return f"captions are the column {column}"
    if place.settings.transcript == "normalized":
        return "captions are the normalized text"
    return BOTH_TEXTS


def vctk_evidence(place: Place) -> str:
    """The folders txt and wav48*."""
    trees = vctk_trees(place.path)
    if not trees or not place.has_folder(["txt"]):
        return ""
    shown = f"txt/, {trees[0]}/"
    if any(re.search(r"_mic\d\.", path.name) for path in place.sample):
        shown += f"; of two microphones {place.settings.mic}, as --mic says"
    return shown


def kaldi_evidence(place: Place) -> str:
    """A wav.scp, here or in a folder directly below."""
    if not place.path.is_dir():
        return ""
    folders = kaldi_folders(place.path)
    return listed([os.path.relpath(path / "wav.scp", place.path) for path in folders], 3)


def commonvoice_tables(place: Place) -> list[Path]:
    """Tables of Common Voice beside its clips."""
    if not place.has_folder(["clips"]):
        return []
    return [
        path
        for path in place.tables
        if suffix_of(path) == ".tsv"
        and (path.name.split(".")[0] in COMMON_VOICE or path == place.path)
        and {"path", "sentence", "up_votes"} <= set(first_line(path).split("\t"))
    ]


def commonvoice_evidence(place: Place) -> str:
    """The folder clips with tables of votes."""
    tables = commonvoice_tables(place)
    if not tables:
        return ""
    return f"clips/, {listed([path.name for path in tables])}"


def nemo_tables(place: Place) -> list[Path]:
    """Files of JSON lines that begin with an audio_filepath."""
    return [
        path
        for path in place.tables
        if path.name.lower().endswith(MANIFESTS) and _has_manifest(path)
    ]


def _has_manifest(path: Path) -> bool:
    head = first_line(path)
    if head.startswith("["):
        return "audio_filepath" in columns_in(path)
    return "audio_filepath" in head


def nemo_evidence(place: Place) -> str:
    """A manifest of NeMo's."""
    shown = listed([path.name for path in nemo_tables(place)], 3)
    return shown and f"audio_filepath in {shown}"


def piped_tables(place: Place) -> list[Path]:
    """Tables between pipes, as LJSpeech and Coqui have them."""
    found = []
    for path in place.tables:
        is_named = bool(PIPED_NAME.fullmatch(path.name.lower()))
        if not is_named and path != place.path:
            continue
        cells = first_line(path).split("|")
        if len(cells) > 1 and (is_named or not _has_columns(cells)):
            found.append(path)
    return found


def _has_columns(cells: Sequence[str]) -> bool:
    """Whether the first cells of a table are names of columns, of files and of texts."""
    texts = (*SPELLINGS["caption"], *NORMALIZED)
    return bool(known_column(SPELLINGS["file"], cells) and known_column(texts, cells))


def ljspeech_evidence(place: Place) -> str:
    """A table between pipes, beside a folder of sounds."""
    tables = piped_tables(place)
    below = place.has_folder(BELOW)
    if not tables or not (below or _begins_with_a_file(place)):
        return ""
    shown = f"{listed([path.name for path in tables], 3)} between pipes"
    if below:
        shown += f", {below}/"
    cells = first_line(tables[0]).split("|")
    if len(cells) == 3 and (known_column(NORMALIZED, cells) or not _has_columns(cells)):
        shown += f"; {_which_text(place)}"
    return shown


def _begins_with_a_file(place: Place) -> bool:
    """Whether the table that the user names has no header, but a file in its first cell."""
    if place.path.is_dir():
        return False
    name = first_line(place.path).split("|")[0]
    try:
        return SoundFiles(place.folder).file(name, "") is not None
    except UserError:
        return True


def audiofolder_tables(place: Place) -> list[Path]:
    """The tables named metadata, in the folder and below it."""
    if not place.path.is_dir():
        return []
    found = walk(place.path, tuple(AUDIOFOLDER)).files
    return [path for path in found if path.name.lower() in AUDIOFOLDER]


def audiofolder_evidence(place: Place) -> str:
    """A metadata file in a folder below, and none here."""
    sampled = [path for path in place.sample if path.name.lower() in AUDIOFOLDER]
    below = [path for path in sampled if path.parent != place.path]
    if not below or own_table(place) or not any(map(_names_files, below[:N_FOLDERS])):
        return ""
    return listed([os.path.relpath(path, place.path) for path in below], 3)


def _names_files(path: Path) -> bool:
    columns = columns_in(path)
    return known_column(("file_name", "audio_file_name"), columns) is not None


def own_table(place: Place) -> str:
    """The table of transcripts that the plain layout reads; "" where there is none."""
    if any(field in place.settings.columns for field in TIMES):
        return ""  # it knows no parts of files
    others = {*nemo_tables(place), *(piped_tables(place) if ljspeech_evidence(place) else ())}
    return next(
        (
            path.name
            for path in place.tables
            if path.name.lower() in NAMES and path not in others and place.path.is_dir()
        ),
        "",
    )


def tables_with_columns(place: Place) -> list[Path]:
    """Tables with columns of files and texts, as usually spelled or as the user says."""
    named = {name for column in place.settings.columns.values() for name in (column, _top(column))}
    found = []
    for path in place.tables:
        columns = columns_in(path)
        if _has_columns(columns) or named & set(columns):
            found.append(path)
    return found


def _top(column: str) -> str:
    """A column, of which a part may be named."""
    return column.partition(".")[0]


def table_evidence(place: Place) -> str:
    """A table whose columns are known, where nothing else is."""
    if not place.path.is_dir():
        if (
            nemo_evidence(place)
            or commonvoice_evidence(place)
            or ljspeech_evidence(place)
            or not suffix_of(place.path, True)
        ):
            return ""
        return _shown_columns(place.path, place)
    if own_table(place):
        return ""
    others = {*nemo_tables(place), *commonvoice_tables(place), *piped_tables(place)}
    tables = [path for path in tables_with_columns(place) if path not in others]
    if place.has_folder(["clips"]) and commonvoice_evidence(place):
        tables = [path for path in tables if suffix_of(path) != ".tsv"]  # others are its own
    if not tables:
        return ""
    shown = listed([path.name for path in tables], 3)
    return f"{shown}; {_shown_columns(tables[0], place)}"


def _shown_columns(path: Path, place: Place) -> str:
    """What is read from which column of a table."""
    try:
        found = find_columns(columns_in(path), place.settings, path)
    except UserError:
        return "the columns of the table"
    return ", ".join(f"{name} from {column}" for name, column in found.items()) or "no column known"


def pair_in(place: Place) -> str:
    """A text beside a sound of its name; "" where there is none."""
    sounds = {os.path.splitext(path)[0] for path in place.sample if _is(path, SOUNDS)}
    pairs = (path for path in place.sample if _is(path, TEXTS))
    return next((path.name for path in pairs if os.path.splitext(path)[0] in sounds), "")


def _is(path: Path, suffixes: tuple[str, ...]) -> bool:
    return path.name.lower().endswith(suffixes)


def plain_evidence(place: Place) -> str:
    """A table of transcripts, or a text beside a sound of its name."""
    return own_table(place) or pair_in(place)
