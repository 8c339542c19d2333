"""Clips in tars, as webdataset writes them: 0001.flac with 0001.txt or 0001.json."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmtok.errors import UserError
from mmtok.io.patterns import named_places
from mmtok.io.tally import Tally
from mmtok.io.tars import PACKED_TARS, MemberFile, Span, TarIndex, read_span
from mmtok.io.walk import walk
from mmtok.sources.base import Sound
from mmtok.sources.clips import Clip
from mmtok.sources.media import SUFFIXES
from mmtok.sources.sound_files import decode_sound, seconds_of
from mmtok.sources.speech_columns import SPELLINGS, ReadSettings
from mmtok.sources.speech_evidence import Place
from mmtok.sources.tar_samples import Caption, Tars, tars_of

TAR = ".tar"


def is_tars(path: str | Path) -> bool:
    """Whether a user names tars: one, or several by a pattern."""
    return str(path).lower().endswith(TAR)


def tars_evidence(place: Place) -> str:
    """The first tar in the folder, or those that the user named."""
    if is_tars(place.path):
        return place.path.name
    return next((name for name in place.names if is_tars(name)), "")


def tar_clips(path: Path, settings: ReadSettings, tally: Tally) -> Iterable[Clip]:
    """The clips in tars: a file, a pattern, or all in a folder. Their texts are read.

    Raises UserError where they hold no sounds or no texts.
    """
    if path.is_dir():
        folder = path
        files = tars_of(walk(path, (TAR, *PACKED_TARS)).files)
    else:
        files = named_places(str(path), "SpeechFolder", "tars of sounds with texts")
        folder = Path(os.path.commonpath([file.parent for file in files]))
    tars = Tars(files, settings.tolerance, str(path))
    known = [suffix.lstrip(".") for suffix in SUFFIXES]
    suffixes = tars.suffixes("file", known, settings.columns)
    named = settings.columns.get("speaker")
    speaker = tars.known_key(SPELLINGS["speaker"])
    if named is not None:
        speaker = tars.caption({"caption": named})
    texts = _Texts(tars.caption(settings.columns), speaker, named is not None)
    for index in tars.indices:
        split = index.path.relative_to(folder).as_posix()
        yield from _clips(index, suffixes, texts, split, tally)


@dataclass(frozen=True)
class _Texts:
    """Where the texts of samples are.

    Attributes:
        caption: the transcript.
        speaker: who speaks; None where no sample says so.
        needs_speaker: whether a sample without it cannot be used, as the user named it.
    """

    caption: Caption
    speaker: Caption | None
    needs_speaker: bool

    def speaker_of(self, index: TarIndex, k: int) -> str:
        """Who speaks in a sample; "" where that is unknown."""
        if self.speaker is None:
            return ""
        try:
            return _text(index, k, self.speaker)
        except UserError:
            if self.needs_speaker:
                raise
            return ""


def _clips(
    index: TarIndex, suffixes: list[str], texts: _Texts, split: str, tally: Tally
) -> Iterator[Clip]:
    has_sound = np.zeros(len(index), bool)
    for suffix in suffixes:
        for k in np.flatnonzero(index.having(suffix)).tolist():
            where = f"{index.path}: {index.key(k)}.{suffix}"
            tally.count()
            if has_sound[k]:
                raise UserError(f"{where}: a second sound; say which: --columns file=SUFFIX")
            span = index.span(k, suffix)
            assert span is not None  # such are looped over
            clip = Clip(where, "", split=split, member=(str(index.path), *span))
            try:
                clip = clip._replace(caption=_text(index, k, texts.caption))
                clip = clip._replace(speaker=texts.speaker_of(index, k))
            except UserError as error:
                clip = clip._replace(fault=str(error))
            yield clip
        has_sound |= index.having(suffix)
    if not has_sound.all():
        first = f"{index.path}: {index.key(int(np.argmin(has_sound)))}"
        tally.add("left out: they have no sound", first, int((~has_sound).sum()))


def _text(index: TarIndex, k: int, text: Caption) -> str:
    """A text of a sample. Raises UserError where it has none."""
    where = f"{index.path}: {index.key(k)}.{text.suffix}"
    span = index.span(k, text.suffix)
    if span is None:
        raise UserError(f"{where}: no such member, which has the text")
    return text.text(read_span(index.path, span, where), where)


def member_seconds(clip: Clip) -> float:
    """The length of a clip in a tar, from its header."""
    return seconds_of(_file(clip), clip.name)


def open_member(clip: Clip) -> Sound:
    """The sound of a clip in a tar. Raises UserError as `decode_sound` does."""
    return decode_sound(_file(clip), clip.name)


def _file(clip: Clip) -> io.BufferedReader:
    assert clip.member is not None  # only such are asked for
    path, offset, size = clip.member
    if not size:
        raise UserError(f"{clip.name}: the file is empty")
    return io.BufferedReader(MemberFile(Path(path), Span(offset, size), clip.name))
