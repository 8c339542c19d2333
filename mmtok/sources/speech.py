"""Corpora of sound files with transcripts, and spoken digits made with espeak-ng."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from mmtok.errors import UserError
from mmtok.io.arrays import read_npz
from mmtok.io.columns import check_named
from mmtok.io.files import atomic_write
from mmtok.io.messages import counted
from mmtok.io.progress import Progress
from mmtok.sources.base import Example, Listing, Sound, Source
from mmtok.sources.clips import Clip, split_clips
from mmtok.sources.layouts import check_layout, found_text
from mmtok.sources.leaks import Content, FilePart, check_leaks
from mmtok.sources.screen import Limit, Screen, ScreenedSource
from mmtok.sources.sound_files import ROUNDING_S, open_sound, sound_seconds
from mmtok.sources.speech_columns import FIELDS, ReadSettings
from mmtok.sources.speech_layouts import LAYOUTS, find_clips, list_clips
from mmtok.sources.speech_tars import member_seconds, open_member
from mmtok.sources.speech_trees import LIBRITTS, MICS

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class SpeechFolder(ScreenedSource):
    """A corpus of sound files with transcripts: a folder, or a table that names files.

    A transcript is NAME.txt or NAME.lab beside NAME.wav, or a row of one table in the folder:
    transcripts.csv or metadata.csv (also .tsv, .psv, .jsonl, each also .gz, and .parquet) with the
    columns file (or file_name) and text (or transcript), or cells between pipes without a header.
    Corpora as they are published are read likewise; see `layout`. A tenth of the files (at least
    one of two), chosen by the hash of their names, is held out, unless `train` and `heldout` name
    the corpus's own splits.

    Attributes:
        path: of the folder or table.
        min_duration_s: of a clip; shorter ones are left out and counted. 0: any.
        max_duration_s: the most, likewise.
        min_chars: of its transcript, likewise.
        max_chars: the most, likewise.
        layout: plain, audiofolder, ljspeech, librispeech, libritts, vctk, commonvoice, kaldi, nemo,
            webdataset or table; "": found out.
        columns: field -> column of a table: file, caption, speaker, start_s, end_s, duration_s,
            split; in tars the suffix of a member, or a key of its JSON. Others are found by their
            usual names.
        transcript: original or normalized, where a corpus has both (LJSpeech, LibriTTS).
        mic: mic1, mic2 or both, of VCTK's recordings.
        train: the corpus's own split to train on: the name of a folder, a table, or a cell of the
            column split. "": all that is not held out; of Common Voice validated.tsv, or train.tsv
            with `heldout` alone.
        heldout: that to hold out. "": a tenth.
        with_speaker: whether examples have the field speaker, a text, where it is known; so they
            do where `columns` names it.
        numbers: columns of numbers that are fields too, such as age, each a modality of its own; or
            names of which `columns` says the column.
    """

    path: str = ""
    min_duration_s: float = 0.0
    max_duration_s: float = 0.0
    min_chars: int = 0
    max_chars: int = 0
    layout: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    transcript: Literal["original", "normalized"] = "original"
    mic: Literal["mic1", "mic2", "both"] = "mic2"
    train: str = ""
    heldout: str = ""
    with_speaker: bool = False
    numbers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self._limits()
        check_layout(LAYOUTS, self.layout, "SpeechFolder")
        for name, value, choices in (
            ("transcript", self.transcript, tuple(LIBRITTS)),
            ("mic", self.mic, MICS),
        ):
            if value not in choices:
                raise UserError(f"SpeechFolder: {name} is {value!r}; it is {' or '.join(choices)}")
        if taken := {"speech", *FIELDS}.intersection(self.numbers):
            raise UserError(
                f"SpeechFolder: numbers names {', '.join(sorted(taken))}, which is a field of its"
                " own; give the number another name, and its column (--columns NAME=COLUMN)"
            )
        check_named(self.columns, (*FIELDS, *self.numbers), "SpeechFolder")

    @property
    def fields(self) -> dict[str, str]:
        """A clip and its transcript, and who speaks where that is asked for."""
        fields = {"caption": "text", "speech": "speech"}
        if self._gives_speaker:
            fields["speaker"] = "text"
        return fields | {name: name for name in self.numbers}

    @property
    def _gives_speaker(self) -> bool:
        return self.with_speaker or "speaker" in self.columns

    def listing(self, split: str, cache: Path | None = None) -> Listing:
        """{"caption": str, "speech": Sound} by file name; nothing is cached."""
        self.check_split(split)
        screen = self._screen()
        clips = self._parts(screen)[split]
        reader = _read_clip
        if self._gives_speaker:
            reader = _read_clip_and_speaker
        return screen.listing(clips, reader, _name_of, _file_of)

    def check(self) -> None:
        """Raise UserError where files or transcripts are missing, or too many are unusable."""
        screen = self._screen()
        parts = self._parts(screen)
        heldout = parts["heldout"]
        self._say_empty(parts)
        contents = {split: list(map(_content_of, clips)) for split, clips in parts.items()}

        def name(i: int) -> str:
            return heldout[i].name

        check_leaks(contents["train"], contents["heldout"], name, self, "clips")
        if self._gives_speaker and not any(clip.speaker for clip in screen.items):
            raise UserError(
                f"{self.path}: the speakers of its clips are unknown; name their column (--columns"
                " speaker=COLUMN), or leave with_speaker out"
            )

        for number in self.numbers:
            if not any(number == name for clip in screen.items for name, _ in clip.numbers):
                raise UserError(
                    f"{self.path}: none of its clips has the number {number!r}, which is read from"
                    " the corpus's tables; name its column (--columns"
                    f" {number}=COLUMN), or leave it out of numbers"
                )

    def _say_empty(self, parts: Mapping[str, list[Clip]]) -> None:
        """Say that no clip is held out, where all are of one recording."""
        n = sum(map(len, parts.values()))
        if not parts["heldout"]:
            warnings.warn(
                f"{self.path}: none of its {counted(n, 'usable clip')} is for heldout, as all are"
                " of one recording, so nothing can be compared with it; two recordings are needed",
                stacklevel=3,
            )

    def voices(self, split: str, cache: Path | None = None) -> list[str] | None:
        """The speaker of each example of a split; None where one is unknown."""
        self.check_split(split)
        speakers = [clip.speaker for clip in self._parts(self._screen())[split]]
        return speakers if all(speakers) else None

    def transcripts(self) -> list[tuple[Path, str]]:
        """(file, text) of every clip that can be used, ordered by name."""
        return [(Path(clip.path), clip.caption) for clip in self._screen().items]

    def _limits(self) -> tuple[Limit, ...]:
        return (
            Limit("duration_s", self.min_duration_s, self.max_duration_s),
            Limit("chars", self.min_chars, self.max_chars),
        )

    def _parts(self, screen: Screen[Clip]) -> dict[str, list[Clip]]:
        """The usable clips of each split."""
        return split_clips(screen.items, self.train, self.heldout, self.max_leak_share, screen.lost)

    def found(self) -> str:
        """The layout, and the clips of each split before their headers are looked at."""
        layout, listed = find_clips(self.path, self.layout, replace(self._settings(), looks=False))
        clips = [clip for clip in listed if not clip.fault]
        if not clips:
            raise UserError(listed[0].fault)
        lost = [(clip, clip.fault) for clip in listed if clip.fault]
        parts = split_clips(clips, self.train, self.heldout, self.max_leak_share, lost)
        return found_text(layout, {name: len(part) for name, part in parts.items()}, "clips")

    def _settings(self) -> ReadSettings:
        return ReadSettings(
            self.columns,
            self.transcript,
            self.mic,
            self.train,
            self.heldout,
            self.numbers,
            tolerance=self,
        )

    def _screen(self) -> Screen[Clip]:
        clips = list_clips(self.path, self.layout, self._settings())
        return Screen(clips, _look, self, "clips", self._limits(), _name_of)


def _content_of(clip: Clip) -> Content:
    """What a clip holds, for `check_leaks`: its file, or its member of a tar."""
    if clip.member is not None:
        return FilePart(*clip.member)
    return clip.path


def _look(clip: Clip) -> dict[str, float]:
    """The sizes of a clip. Raises UserError where it cannot be used.

    A header is read where the corpus does not say how long the clip is.
    """
    if clip.fault:
        raise UserError(clip.fault)
    length = clip.length_s
    if not length:
        in_file = member_seconds(clip) if clip.member else sound_seconds(Path(clip.path))
        length = clip.duration_s or in_file - clip.start_s
        if clip.start_s + length > in_file + ROUNDING_S or length <= 0:
            raise UserError(
                f"{clip.name}: is said to last {length:g} s, and the file ends at {in_file:.2f} s"
            )
    return {"chars": len(clip.caption), "duration_s": length}


def _read_clip(clip: Clip) -> Example:
    if clip.member:
        sound = open_member(clip)
    else:
        sound = open_sound(clip.path, clip.start_s, clip.duration_s)
    fields = {"caption": clip.caption, "speech": sound, **dict(clip.numbers)}
    return Example(fields, clip.name, clip.speaker)


def _read_clip_and_speaker(clip: Clip) -> Example:
    example = _read_clip(clip)
    if clip.speaker:
        example["speaker"] = clip.speaker
    return example


def _name_of(clip: Clip) -> str:
    return clip.name


def _file_of(clip: Clip) -> str:
    if clip.member is not None:
        return clip.member[0]
    return clip.path


# ---- spoken digits

# Each differs from the others by its variant (formants, pitch, breath), some by accent too;
# tests/metrics/test_speech.py tells them apart.
VOICES = (
    "en-us", "en+m1", "en-us+m2", "en-gb-scotland+m3", "en+m4", "en+m7", "en-us+m8",
    "en+f1", "en-us+f2", "en-gb-scotland+f3", "en+f5", "en-us+steph",
)  # fmt: skip
UNSEEN_VOICES = ("en-gb-x-gbcwmd+m5", "en-us+f4")
SPEEDS_WPM = (150, 170, 190, 210)
PITCHES = (36, 44, 52, 60)
HELDOUT_SETTINGS = ((150, 52), (210, 44))  # (speed, pitch) of held-out single words
CLIPS_VERSION = 3  # of the code that makes clips: a change makes cached ones anew


class Utterance(NamedTuple):
    """What is said by which voice of espeak-ng, how fast and how high (pitch from 0 to 99)."""

    caption: str
    voice: str
    words_per_minute: int
    pitch: int


@dataclass(frozen=True)
class SpokenDigits(Source):
    """Utterances of one to three digit names, a third each, made with espeak-ng.

    Each has one of 12 voices, 4 speeds and 4 pitches. Silence before and after is cut to 50 ms; the
    level is set to an RMS of 0.1 (-20 dB), less where the peak would pass 0.9. The splits:

    Attributes:
        train: eight tenths of the utterances.
        heldout: one tenth: the same voices, and digit strings that training does not have (a tenth
            of all strings of length 2 and of 3). Single words are held out by (speed, pitch)
            instead.
        unseen_voices: one tenth: two voices that training does not have, any string.
        seed: of the choice of utterances.
        n_utterances: in all splits together.
    """

    seed: int = 0
    n_utterances: int = 3000

    def __post_init__(self) -> None:
        if self.n_utterances < 30:
            raise UserError(
                f"SpokenDigits: n_utterances must be at least 30, got {self.n_utterances}"
            )

    @property
    def fields(self) -> dict[str, str]:
        """A clip and the digit names in it."""
        return {"caption": "text", "speech": "speech"}

    @property
    def splits(self) -> tuple[str, ...]:
        """One more than others have: voices that training does not have."""
        return ("train", "heldout", "unseen_voices")

    def utterances(self, split: str, cache: Path | None = None) -> list[Utterance]:
        """What `examples` yields, in its order, with voice, speed and pitch.

        A function of the seed; `cache` is not used.
        """
        self.check_split(split)
        tenth = self.n_utterances // 10
        n = tenth
        if split == "train":
            n = self.n_utterances - 2 * tenth
        rng = np.random.default_rng([self.seed, self.splits.index(split)])
        drawn = []
        for length in (1, 2, 3):
            pool = self._pool(split, length)
            share = n // 3 + (length <= n % 3)
            drawn += [pool[i] for i in rng.choice(len(pool), share, replace=share > len(pool))]
        return [
            Utterance(" ".join(words), voice, words_per_minute, pitch)
            for words, voice, words_per_minute, pitch in (
                drawn[i] for i in rng.permutation(len(drawn))
            )
        ]

    def voices(self, split: str, cache: Path) -> list[str]:
        """The voice of each example of a split."""
        return [utterance.voice for utterance in self.utterances(split)]

    def _pool(self, split: str, length: int) -> list[tuple[tuple[str, ...], str, int, int]]:
        """All (words, voice, speed, pitch) of a split that have so many words."""
        if split == "unseen_voices":
            return list(product(_strings(length), UNSEEN_VOICES, SPEEDS_WPM, PITCHES))
        pool = list(product(_strings(length), VOICES, SPEEDS_WPM, PITCHES))
        if length == 1:
            is_heldout = [(speed, pitch) in HELDOUT_SETTINGS for _, _, speed, pitch in pool]
        else:
            strings = heldout_strings(self.seed)
            is_heldout = [words in strings for words, *_ in pool]
        wanted = split == "heldout"
        return [item for item, held in zip(pool, is_heldout, strict=True) if held == wanted]

    def count(self, split: str, cache: Path | None = None) -> int:
        """The number of examples of a split."""
        return len(self.utterances(split))

    def examples(self, split: str, cache: Path) -> Iterator[dict[str, Any]]:
        """{"caption": str, "speech": Sound}, made once and kept in `cache` as 16-bit samples."""
        from mmtok.sources.espeak import RATE_HZ

        utterances = self.utterances(split)
        settings = json.dumps([asdict(self), utterances, CLIPS_VERSION])
        key = hashlib.sha256(settings.encode()).hexdigest()[:12]
        path = Path(cache) / f"spoken-digits-{split}-{key}.npz"
        if not path.is_file():
            self._make(utterances, path)
        try:
            samples, stops = read_npz(path, ("samples", "stops"), "clips")
        except UserError as error:
            raise UserError(
                f"{error}: the cached clips cannot be read; delete the file to make them anew"
            ) from None
        starts = [0, *stops[:-1]]
        for utterance, start, stop in zip(utterances, starts, stops, strict=True):
            clip = samples[start:stop].astype(np.float32) / 32768
            yield {
                "caption": utterance.caption,
                "speech": Sound(clip, RATE_HZ, f"{utterance.caption!r} by {utterance.voice}"),
            }

    def _make(self, utterances: list[Utterance], path: Path) -> None:
        from mmtok.sources.espeak import RATE_HZ, Espeak, set_level, trim

        # first: a folder that cannot be made is known before the work
        path.parent.mkdir(parents=True, exist_ok=True)
        engine = Espeak()
        clips = []
        with Progress("speaking", len(utterances), "clips") as progress:
            for utterance in utterances:
                clip = trim(engine.say(*utterance) / np.float32(32768), RATE_HZ)
                clips.append(np.round(set_level(clip) * 32767).astype(np.int16))
                progress.advance()
        try:
            with atomic_write(path) as temporary, temporary.open("wb") as file:
                np.savez(
                    file,
                    samples=np.concatenate(clips),
                    stops=np.cumsum([len(clip) for clip in clips]),
                )
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None


def _strings(length: int) -> list[tuple[str, ...]]:
    return list(product(DIGITS, repeat=length))


def heldout_strings(seed: int) -> set[tuple[str, ...]]:
    """A tenth of the strings of two digit names, and of three (10 and 100 strings).

    Training does not have them.
    """
    rng = np.random.default_rng([seed, 99])
    pools = [_strings(2), _strings(3)]
    return {
        pool[i] for pool in pools for i in rng.choice(len(pool), len(pool) // 10, replace=False)
    }
