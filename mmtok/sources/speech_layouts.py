"""The layouts in which corpora of speech are published, and how each is told from the others.

`list_clips` gives the clips of a folder or of a table. LAYOUTS names the layouts; what reads them
is in `speech_trees`, `speech_tables` and, for the plain one, `transcripts`.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from mmtok.errors import UserError
from mmtok.io.columns import known_column
from mmtok.io.messages import listed
from mmtok.io.tables import SUFFIXES as TABLES
from mmtok.io.tables import suffix_of
from mmtok.io.tally import Tally
from mmtok.io.walk import file_at, folder_at, walk
from mmtok.sources.clips import Clip, in_order, wanted_clips
from mmtok.sources.layouts import Layout, chosen_layout
from mmtok.sources.media import SOUNDS, SUFFIXES
from mmtok.sources.speech_columns import NORMALIZED, SPELLINGS, TIMES, ReadSettings, find_columns
from mmtok.sources.speech_tables import (
    BELOW,
    SoundFiles,
    audiofolder_clips,
    columns_in,
    commonvoice_clips,
    count_unused,
    first_line,
    manifest_clips,
    piped_clips,
)
from mmtok.sources.speech_trees import (
    kaldi_clips,
    kaldi_folders,
    librispeech_clips,
    libritts_clips,
    vctk_clips,
    vctk_trees,
)
from mmtok.sources.transcripts import COMPANIONS, NAMES, TEXTS, Transcripts

WANTED = "sound files with transcripts (NAME.txt beside NAME.wav)"
DEPTH = 6  # of folders that are looked into, to find out a layout
N_FOLDERS = 3  # of each folder that are looked into
N_FILES = 2_000  # of each folder that are looked at
N_BELOW = 20  # folders that are looked at where a folder has no layout itself
COMMON_VOICE = {"validated", "train", "dev", "test", "other", "invalidated"}
AUDIOFOLDER = {"metadata.csv", "metadata.jsonl", "metadata.parquet"}
PIPED_NAME = re.compile(r"(metadata|transcripts?)[\w-]*\.(csv|txt|psv)(\.gz)?")
MANIFESTS = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
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
            if i < N_FILES or name in AUDIOFOLDER:
                found.append(path)
        elif depth and len(below) < N_FOLDERS and path.is_dir():
            below.append(path)
    for path in below:
        _collect(path, depth - 1, found)


# ---- evidence


def _librispeech(place: Place) -> str:
    return _first_named(place, ".trans.txt")


def _libritts(place: Place) -> str:
    shown = _first_named(place, ".normalized.txt") or _first_named(place, ".original.txt")
    return shown and f"{shown}; {_which_text(place)}"


def _first_named(place: Place, suffix: str) -> str:
    return next((path.name for path in place.sample if path.name.endswith(suffix)), "")


def _which_text(place: Place) -> str:
    if place.settings.transcript == "normalized":
        return "captions are the normalized text"
    return BOTH_TEXTS


def _vctk(place: Place) -> str:
    trees = vctk_trees(place.path)
    if not trees or not place.has_folder(["txt"]):
        return ""
    shown = f"txt/, {trees[0]}/"
    if any(re.search(r"_mic\d\.", path.name) for path in place.sample):
        shown += f"; of two microphones {place.settings.mic}, as --mic says"
    return shown


def _kaldi(place: Place) -> str:
    if not place.path.is_dir():
        return ""
    folders = kaldi_folders(place.path)
    return listed([os.path.relpath(path / "wav.scp", place.path) for path in folders], 3)


def _commonvoice_tables(place: Place) -> list[Path]:
    if not place.has_folder(["clips"]):
        return []
    return [
        path
        for path in place.tables
        if suffix_of(path) == ".tsv"
        and (path.name.split(".")[0] in COMMON_VOICE or path == place.path)
        and {"path", "sentence", "up_votes"} <= set(first_line(path).split("\t"))
    ]


def _commonvoice(place: Place) -> str:
    tables = _commonvoice_tables(place)
    if not tables:
        return ""
    return f"clips/, {listed([path.name for path in tables])}"


def _nemo_tables(place: Place) -> list[Path]:
    return [
        path
        for path in place.tables
        if path.name.lower().endswith(MANIFESTS) and "audio_filepath" in first_line(path)
    ]


def _nemo(place: Place) -> str:
    shown = listed([path.name for path in _nemo_tables(place)], 3)
    return shown and f"audio_filepath in {shown}"


def _piped_tables(place: Place) -> list[Path]:
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


def _ljspeech(place: Place) -> str:
    tables = _piped_tables(place)
    below = place.has_folder(BELOW)
    if not tables or not (below or _begins_with_a_file(place)):
        return ""
    shown = f"{listed([path.name for path in tables], 3)} between pipes"
    if below:
        shown += f", {below}/"
    if first_line(tables[0]).count("|") == 2:
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


def _audiofolder_tables(place: Place) -> list[Path]:
    """The tables named metadata, in the folder and below it."""
    if not place.path.is_dir():
        return []
    found = walk(place.path, tuple(AUDIOFOLDER)).files
    return [path for path in found if path.name in AUDIOFOLDER]


def _audiofolder(place: Place) -> str:
    sampled = [path for path in place.sample if path.name in AUDIOFOLDER]
    below = [path for path in sampled if path.parent != place.path]
    if not below or _own_table(place) or not _names_files(below[0]):
        return ""
    return listed([os.path.relpath(path, place.path) for path in below], 3)


def _names_files(path: Path) -> bool:
    columns = columns_in(path)
    return known_column(("file_name", "audio_file_name"), columns) is not None


def _own_table(place: Place) -> str:
    """The table of transcripts that the plain layout reads; "" where there is none."""
    if any(field in place.settings.columns for field in TIMES):
        return ""  # it knows no parts of files
    others = {*_nemo_tables(place), *(_piped_tables(place) if _ljspeech(place) else ())}
    return next(
        (
            path.name
            for path in place.tables
            if path.name.lower() in NAMES and path not in others and place.path.is_dir()
        ),
        "",
    )


def _table_tables(place: Place) -> list[Path]:
    """Tables with columns of files and texts, as usually spelled or as the user says."""
    named = set(place.settings.columns.values())
    found = []
    for path in place.tables:
        if place.path.is_dir() and first_line(path).startswith("["):
            continue  # of a list of JSON objects the columns are known when all of it is read
        columns = columns_in(path)
        if _has_columns(columns) or named & set(columns):
            found.append(path)
    return found


def _table(place: Place) -> str:
    if not place.path.is_dir():
        if (
            _nemo(place)
            or _commonvoice(place)
            or _ljspeech(place)
            or not suffix_of(place.path, True)
        ):
            return ""
        return _shown_columns(place.path, place)
    if _own_table(place) or _pair(place):
        return ""
    others = {*_nemo_tables(place), *_commonvoice_tables(place), *_piped_tables(place)}
    tables = [path for path in _table_tables(place) if path not in others]
    if place.has_folder(["clips"]) and _commonvoice(place):
        return ""
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


def _pair(place: Place) -> str:
    """A text beside a sound of its name; "" where there is none."""
    sounds = {os.path.splitext(path)[0] for path in place.sample if _is(path, SOUNDS)}
    pairs = (path for path in place.sample if _is(path, TEXTS))
    return next((path.name for path in pairs if os.path.splitext(path)[0] in sounds), "")


def _is(path: Path, suffixes: tuple[str, ...]) -> bool:
    return path.name.lower().endswith(suffixes)


def _plain(place: Place) -> str:
    return _own_table(place) or _pair(place)


# ---- readers


Reader = Callable[[Place, Tally], Iterable[Clip]]


def _read_librispeech(place: Place, tally: Tally) -> Iterable[Clip]:
    return librispeech_clips(place.folder, place.settings, tally)


def _read_libritts(place: Place, tally: Tally) -> Iterable[Clip]:
    return libritts_clips(place.folder, place.settings, tally)


def _read_vctk(place: Place, tally: Tally) -> Iterable[Clip]:
    return vctk_clips(place.folder, place.settings, tally)


def _read_kaldi(place: Place, tally: Tally) -> Iterable[Clip]:
    return kaldi_clips(place.folder, place.settings, tally)


def _read_commonvoice(place: Place, tally: Tally) -> Iterable[Clip]:
    tables = _commonvoice_tables(place)
    _check_tables(tables, place, "a table such as validated.tsv beside clips/")
    return commonvoice_clips(tables, place.settings, tally)


def _read_nemo(place: Place, tally: Tally) -> Iterable[Clip]:
    tables = _nemo_tables(place)
    _check_tables(tables, place, "a manifest (.jsonl or .json) of lines with audio_filepath")
    return manifest_clips(tables, place.settings, tally)


def _read_ljspeech(place: Place, tally: Tally) -> Iterable[Clip]:
    tables = _piped_tables(place)
    _check_tables(tables, place, "a metadata.csv of cells between pipes")
    clips = list(piped_clips(tables, place.settings, tally))
    if place.path.is_dir() and not place.settings.train:
        count_unused(clips, place.folder)
    return clips


def _read_audiofolder(place: Place, tally: Tally) -> Iterable[Clip]:
    tables = _audiofolder_tables(place)
    _check_tables(tables, place, "a metadata.csv, .jsonl or .parquet, in it or below it")
    clips = list(audiofolder_clips(place.folder, tables, place.settings, tally))
    count_unused(clips, place.folder)
    return clips


def _read_table(place: Place, tally: Tally) -> Iterable[Clip]:
    tables = [place.path] if not place.path.is_dir() else _table_tables(place)
    _check_tables(tables, place, "a table with the columns file and text")
    return manifest_clips(tables, place.settings, tally)


def _check_tables(tables: list[Path], place: Place, wanted: str) -> None:
    if not tables:
        raise UserError(f"{place.path}: this layout wants {wanted}, and there is none")


def _read_plain(place: Place, tally: Tally) -> Iterable[Clip]:
    """NAME.txt or NAME.lab beside NAME.wav, or one table in the folder."""
    folder = folder_at(place.path, "SpeechFolder", WANTED)
    found = walk(folder, SOUNDS, companions=COMPANIONS)
    if found.left_out:
        warnings.warn(found.note(), stacklevel=3)
    if not found.files:
        raise UserError(f"{folder}: no sound files ({', '.join(SUFFIXES)}) in it")
    transcripts = Transcripts(found, place.settings, tally)
    return [transcripts.clip(path) for path in found.files]


LAYOUTS: tuple[Layout[Place, Reader], ...] = (
    Layout("plain", "NAME.txt or NAME.lab beside NAME.wav, or transcripts.csv", _plain,
           _read_plain, plain=True),
    Layout("audiofolder", "metadata.csv with file_name, in folders", _audiofolder,
           _read_audiofolder),
    Layout("ljspeech", "metadata.csv between pipes, wavs/", _ljspeech, _read_ljspeech),
    Layout("librispeech", "SPEAKER/CHAPTER folders with .trans.txt", _librispeech,
           _read_librispeech),
    Layout("libritts", ".normalized.txt beside each sound", _libritts, _read_libritts),
    Layout("vctk", "the trees txt/ and wav48*/", _vctk, _read_vctk),
    Layout("commonvoice", "clips/ and validated.tsv", _commonvoice, _read_commonvoice),
    Layout("kaldi", "wav.scp and text", _kaldi, _read_kaldi),
    Layout("nemo", "JSON lines with audio_filepath", _nemo, _read_nemo),
    Layout("table", "any table with columns of files and texts", _table, _read_table),
)  # fmt: skip
WITHOUT_COLUMNS = ("librispeech", "libritts", "vctk", "kaldi")
OF_ONE_TEXT = ("librispeech", "vctk", "kaldi")
TREES = ("librispeech", "libritts", "vctk", "commonvoice", "kaldi")  # beside which none is plain


def list_clips(path: str | Path, layout: str, settings: ReadSettings) -> list[Clip]:
    """The clips of a corpus: a folder, or a table that names files.

    Args:
        path: of the folder or table.
        layout: its name; "" finds it out, and says which unless it is the plain one.
        settings: what the user says of it.

    Raises UserError where nothing is there, where two layouts are, and for what a layout refuses.
    """
    place = Place(_place_at(path), settings)
    found = chosen_layout(_choices(place), place, layout, place.path)
    if found is None and not place.path.is_dir():
        raise UserError(
            f"{place.path}: is no table that is known here; name the folder of the corpus, or a"
            f" table ({', '.join(TABLES)})"
        )
    if found is None:
        _look_below(place)
    chosen = found or LAYOUTS[0]
    _check_settings(place, chosen.name)
    with Tally("transcripts") as tally:
        clips = list(chosen.reader(place, tally))
        if chosen.name != "plain":
            clips = in_order(clips, tally)
    if not clips:
        raise UserError(f"{place.path}: no sound file with a transcript in it")
    if chosen.name != "plain":
        _say_splits(place, clips)
    return wanted_clips(clips, settings.train, settings.heldout)


def _check_settings(place: Place, layout: str) -> None:
    """Raise UserError for a setting that means nothing in a layout."""
    if place.settings.columns and layout in WITHOUT_COLUMNS:
        raise UserError(
            f"{place.path}: is read as {layout}, which has no columns; leave columns out, or name"
            " the layout that has them (--layout table)"
        )
    if place.settings.transcript != "original" and layout in OF_ONE_TEXT:
        raise UserError(
            f"{place.path}: is read as {layout}, which has one text of a clip; leave transcript out"
        )


def _place_at(path: str | Path) -> Path:
    """The folder or the table that a user named. Raises UserError where there is none."""
    is_table = suffix_of(Path(path), named=True) is not None
    place = Path(os.path.expanduser(path))
    if str(path) and not place.is_dir() and (is_table or place.exists()):
        return file_at(path, "SpeechFolder", "a table that names sound files, or their folder")
    return folder_at(path, "SpeechFolder", WANTED)


def _look_below(place: Place) -> None:
    """Raise UserError where a folder has no layout itself, and one below it has."""
    below = [place.path / name for name in place.names]
    for path in [path for path in below if path.is_dir()][:N_BELOW]:
        inner = Place(path, place.settings)
        for layout in LAYOUTS:
            evidence = "" if layout.plain else layout.evidence(inner)
            if evidence:
                raise UserError(
                    f"{place.path}: has no layout itself, but {path.name} in it could be read as"
                    f" {layout.name} ({evidence}); name that folder"
                )


def _choices(place: Place) -> tuple[Layout[Place, Reader], ...]:
    """The layouts; the plain one is one among others where a tree has transcripts of its own."""
    if not place.path.is_dir() or not _plain(place):
        return LAYOUTS
    trees = any(layout.evidence(place) for layout in LAYOUTS if layout.name in TREES)
    return tuple(replace(x, plain=x.plain and not trees) for x in LAYOUTS)


def _say_splits(place: Place, clips: list[Clip]) -> None:
    """Say that a corpus has splits of its own, which are not used unless they are named."""
    if place.settings.train or place.settings.heldout:
        return
    names = sorted({clip.split for clip in clips} - {""})
    if len(names) > 1:
        warnings.warn(
            f"{place.path}: its parts {listed(names)} are read as one, and a tenth is held out;"
            " train and heldout (--sources.0.train NAME) use the corpus's own splits",
            stacklevel=3,
        )
