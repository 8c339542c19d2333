"""The layouts in which corpora of speech are published: LAYOUTS, and the clips of a corpus.

What tells a layout from the others is in `speech_evidence`; what reads them is in `speech_trees`,
`speech_tables`, `speech_tars` and, for the plain one, `transcripts`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from mmtok.errors import UserError
from mmtok.io.messages import listed
from mmtok.io.tables import SUFFIXES as TABLES
from mmtok.io.tables import suffix_of
from mmtok.io.tally import Tally
from mmtok.io.walk import file_at, folder_at, walk
from mmtok.sources.clips import Clip, in_order, wanted_clips
from mmtok.sources.layouts import Layout, check_layout, chosen_layout
from mmtok.sources.media import SOUNDS
from mmtok.sources.speech_columns import ReadSettings
from mmtok.sources.speech_evidence import (
    Place,
    audiofolder_evidence,
    audiofolder_tables,
    commonvoice_evidence,
    commonvoice_tables,
    kaldi_evidence,
    librispeech_evidence,
    libritts_evidence,
    ljspeech_evidence,
    nemo_evidence,
    nemo_tables,
    own_table,
    pair_in,
    piped_tables,
    plain_evidence,
    table_evidence,
    tables_with_columns,
    vctk_evidence,
)
from mmtok.sources.speech_tables import (
    audiofolder_clips,
    commonvoice_clips,
    count_unused,
    manifest_clips,
    nemo_clips,
    piped_clips,
)
from mmtok.sources.speech_tars import is_tars, tar_clips, tars_evidence
from mmtok.sources.speech_trees import kaldi_clips, librispeech_clips, libritts_clips, vctk_clips
from mmtok.sources.speech_unread import (
    check_held,
    check_no_columns,
    check_no_table,
    check_packed,
    check_tables,
)
from mmtok.sources.transcripts import COMPANIONS, TEXTS, Transcripts, stem_of

WANTED = "sound files with transcripts (NAME.txt beside NAME.wav)"
N_BELOW = 20  # folders that are looked at where a folder has no layout itself


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
    tables = commonvoice_tables(place)
    wanted = "a table such as validated.tsv, with path, sentence and up_votes, beside clips/"
    check_tables(place, "commonvoice", tables, wanted)
    clips = commonvoice_clips(tables, place.settings, tally)
    if place.settings.heldout:
        return clips  # the tables that are not read name other sounds
    return _with_unused(place, clips)


def _read_nemo(place: Place, tally: Tally) -> Iterable[Clip]:
    tables = nemo_tables(place)
    wanted = "a manifest (.jsonl or .json) of lines with audio_filepath"
    check_tables(place, "nemo", tables, wanted)
    return _with_unused(place, nemo_clips(tables, place.settings, tally))


def _read_ljspeech(place: Place, tally: Tally) -> Iterable[Clip]:
    tables = piped_tables(place)
    check_tables(place, "ljspeech", tables, "a metadata.csv of cells between pipes")
    return _with_unused(place, piped_clips(tables, place.settings, tally))


def _read_audiofolder(place: Place, tally: Tally) -> Iterable[Clip]:
    tables = audiofolder_tables(place)
    wanted = "a metadata.csv, .jsonl or .parquet, in it or below it"
    check_tables(place, "audiofolder", tables, wanted)
    clips = list(audiofolder_clips(place.folder, tables, place.settings, tally))
    count_unused(clips, place.folder)
    return clips


def _read_table(place: Place, tally: Tally) -> Iterable[Clip]:
    tables = [place.path] if not place.path.is_dir() else tables_with_columns(place)
    if place.path.is_dir():
        check_held(place, place.path)
    check_tables(place, "table", tables, "a table with the columns file and text")
    return _with_unused(place, manifest_clips(tables, place.settings, tally))


def _with_unused(place: Place, found: Iterable[Clip]) -> list[Clip]:
    """The clips of tables; sounds of the folder that no row names are counted."""
    clips = list(found)
    if place.path.is_dir() and not place.settings.train:  # else other tables may name them
        count_unused(clips, place.folder)
    return clips


def _read_tars(place: Place, tally: Tally) -> Iterable[Clip]:
    return tar_clips(place.path, place.settings, tally)


def _read_plain(place: Place, tally: Tally) -> Iterable[Clip]:
    """NAME.txt or NAME.lab beside NAME.wav, or one table in the folder."""
    folder = folder_at(place.path, "SpeechFolder", WANTED)
    found = walk(folder, SOUNDS, companions=COMPANIONS)
    if found.left_out:
        warnings.warn(found.note(), stacklevel=3)
    if not found.files:
        raise UserError(f"{folder}: no sound files ({', '.join(SOUNDS)}) in it")
    transcripts = Transcripts(found, place.settings, tally)
    return [*(transcripts.clip(path) for path in found.files), *transcripts.missing]


LAYOUTS: tuple[Layout[Place, Reader], ...] = (
    Layout("plain", "NAME.txt or NAME.lab beside NAME.wav, or transcripts.csv", plain_evidence,
           _read_plain, plain=True),
    Layout("audiofolder", "metadata.csv with file_name, in folders", audiofolder_evidence,
           _read_audiofolder),
    Layout("ljspeech", "metadata.csv between pipes, wavs/", ljspeech_evidence, _read_ljspeech),
    Layout("librispeech", "SPEAKER/CHAPTER folders with .trans.txt", librispeech_evidence,
           _read_librispeech),
    Layout("libritts", ".normalized.txt beside each sound", libritts_evidence, _read_libritts),
    Layout("vctk", "the trees txt/ and wav48*/", vctk_evidence, _read_vctk),
    Layout("commonvoice", "clips/ and validated.tsv", commonvoice_evidence, _read_commonvoice),
    Layout("kaldi", "wav.scp and text", kaldi_evidence, _read_kaldi),
    Layout("nemo", "JSON lines with audio_filepath", nemo_evidence, _read_nemo),
    Layout("webdataset", "tars of sounds with txt or json", tars_evidence, _read_tars),
    Layout("table", "any table with columns of files and texts", table_evidence, _read_table),
)  # fmt: skip
WITHOUT_COLUMNS = ("librispeech", "libritts", "vctk", "kaldi")
OF_FOLDERS = ("librispeech", "libritts", "vctk", "kaldi", "audiofolder")
OF_ONE_TEXT = ("librispeech", "vctk", "kaldi")
# what the readers count, where that is not the rows of tables
UNITS = {
    "plain": "transcripts",
    "librispeech": "sounds",
    "libritts": "sounds",
    "vctk": "sounds",
    "kaldi": "utterances",
    "webdataset": "samples",
}
TREES = ("librispeech", "libritts", "vctk", "commonvoice", "kaldi")  # beside which none is plain


def list_clips(path: str | Path, layout: str, settings: ReadSettings) -> list[Clip]:
    """The clips of a corpus: see `find_clips`."""
    return find_clips(path, layout, settings)[1]


def find_clips(path: str | Path, layout: str, settings: ReadSettings) -> tuple[str, list[Clip]]:
    """The layout and the clips of a corpus: a folder, or a table that names files.

    Args:
        path: of the folder or table.
        layout: its name; "" finds it out, and says which unless it is the plain one.
        settings: what the user says of it.

    Raises UserError where nothing is there, where two layouts are, and for what a layout refuses.
    """
    place = Place(_place_at(path), settings)
    choices = _choices(place)
    if is_tars(place.path) and not place.path.is_dir():
        choices = tuple(x for x in LAYOUTS if x.name == "webdataset")
        check_layout(choices, layout, str(path))
    found = chosen_layout(choices, place, layout, place.path)
    if found is None and not place.path.is_dir():
        raise UserError(
            f"{place.path}: is no table that is known here; name the folder of the corpus, or a"
            f" table ({', '.join(TABLES)})"
        )
    if found is None:
        _look_below(place)
        check_no_table(place)
    chosen = found or LAYOUTS[0]
    _check_settings(place, chosen.name)
    with Tally(UNITS.get(chosen.name, "rows")) as tally:
        clips = list(chosen.reader(place, tally))
        if chosen.name != "plain":
            clips = in_order(clips, tally, bool(settings.train or settings.heldout))
    if not clips:
        raise UserError(f"{place.path}: no sound file with a transcript in it")
    if found is None and all(clip.fault for clip in clips):
        check_no_columns(place)
    if chosen.name != "plain":
        if not layout:
            _check_loose(place, chosen, clips)
        _say_splits(place, clips)
    return chosen.name, wanted_clips(clips, settings.train, settings.heldout)


def _check_settings(place: Place, layout: str) -> None:
    """Raise UserError for a setting that means nothing in a layout, or a file that has none."""
    if layout in OF_FOLDERS and not place.path.is_dir():
        raise UserError(
            f"{place.path}: is a file, and the layout {layout} is of folders; name the folder of"
            " the corpus, or leave layout out"
        )
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
    check_packed(place)
    if is_tars(path) and not place.is_dir():
        return place
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
            if evidence and layout.name == "table":
                check_held(inner, place.path)
            if evidence:
                raise UserError(
                    f"{place.path}: has no layout itself, but {path.name} in it could be read as"
                    f" {layout.name} ({evidence}); name that folder"
                )


def _choices(place: Place) -> tuple[Layout[Place, Reader], ...]:
    """The layouts; the plain one is one among others where a tree has transcripts of its own."""
    if not place.path.is_dir() or not plain_evidence(place):
        return LAYOUTS
    others = [x for x in LAYOUTS if x.name in TREES or (own_table(place) and not x.plain)]
    asks = any(layout.evidence(place) for layout in others)
    return tuple(replace(x, plain=x.plain and not asks) for x in LAYOUTS)


def _check_loose(place: Place, chosen: Layout[Place, Reader], clips: list[Clip]) -> None:
    """Count the texts beside sounds that a table or tars name, which are passed over.

    Raises UserError where sounds that they do not name have texts: that is a second layout.
    """
    if not place.path.is_dir() or not pair_in(place):
        return
    found = walk(place.path, SOUNDS, companions=TEXTS)
    stems = {stem_of(path) for path in found.companions}
    sounds = [path for path in found.files if stem_of(path) in stems]
    used = {clip.path for clip in clips}
    loose = [path for path in sounds if str(path) not in used]
    is_part = bool(place.settings.train)  # of the corpus: other tables may name those sounds
    if loose and not is_part:
        raise UserError(
            f"{place.path}: could be read as {chosen.name} ({chosen.evidence(place)}) and plain"
            f" ({len(loose):,} other sounds have texts of their own, such as {loose[0].name}); say"
            f" which: --layout {chosen.name} or --layout plain"
        )
    with Tally("sounds with a text beside them") as tally:
        tally.count(len(sounds))
        if n := len(sounds) - len(loose):
            first = next(path for path in sounds if str(path) in used)
            tally.add(f"captioned by {chosen.name}, and the text passed over", first, n)
        if loose:
            tally.add("left out: no table that is read names them", loose[0], len(loose))


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
