"""Sound files, folders of them with transcripts, and spoken digits that the package makes with
espeak-ng.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from mmtok.errors import UserError, reason_of
from mmtok.io import memory_budget
from mmtok.io.arrays import read_npz
from mmtok.io.files import atomic_write, write_bytes
from mmtok.io.progress import Progress
from mmtok.io.tally import Tally
from mmtok.io.walk import folder_at, walk
from mmtok.nn.resample import check_rate
from mmtok.preparation import Preparer
from mmtok.preparation.speech import Sound, SpeechPreparation
from mmtok.sources.base import Example
from mmtok.sources.screen import Limit, Screen, Screened, remembered
from mmtok.sources.transcripts import BESIDE, Transcripts

SUFFIXES = (".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc", ".au", ".snd", ".caf", ".w64",
            ".rf64", ".sph", ".voc")  # fmt: skip
SAMPLE_BYTES = 8  # of memory per sample, while channels are mixed and rates changed
UNREADABLE = (
    RuntimeError,
    ValueError,
    TypeError,
    OverflowError,
    MemoryError,
)  # what soundfile raises on damaged files
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


# Files


def read_sound(path: str | Path, rate_hz: int = 16_000, channel: int | str = "mix") -> np.ndarray:
    """A sound file -> float32 (N,) at rate_hz: its channels' mix, or one of them.

    What was done is said in one warning.

    Raises UserError as `open_sound` does, and for a channel that is not there.
    """
    return Preparer("speech", SpeechPreparation(channel), {"rate_hz": rate_hz})(open_sound(path))


def open_sound(path: str | Path) -> Sound:
    """A sound file as it is: float32 (N, channels) at its own rate.

    Raises UserError for a file that is missing, empty, not sound, truncated to nothing, or holds
    NaN or infinite samples.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"{path}: is a folder, not a sound file" if path.is_dir() else f"{path}: no such file"
        )
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty")
    return decode_sound(path, str(path))


@remembered
def sound_seconds(path: Path) -> float:
    """How long a sound file is, by its header.

    Raises UserError as `open_sound` does, but for what only its samples tell.
    """
    return seconds_of(path, str(path))


def seconds_of(source: Path | BinaryIO, name: str) -> float:
    """As `sound_seconds`, of a path or an open file, which messages call `name`."""
    import soundfile

    try:
        with soundfile.SoundFile(source) as file:
            frames, rate_hz, log = file.frames, file.samplerate, file.extra_info
    except UNREADABLE as error:
        raise UserError(
            f"{name}: not a sound file that libsndfile can read ({reason_of(error)})"
        ) from None
    if frames < 1:
        raise UserError(f"{name}: the file holds no samples")
    _check_rate(name, rate_hz)
    if _cut_short(log):
        raise UserError(f"{name}: truncated, its header promises more samples than are there")
    return frames / rate_hz


def decode_sound(source: Path | BinaryIO, name: str) -> Sound:
    """As `open_sound`, of a path or an open file, which messages call `name`."""
    import soundfile

    try:
        with soundfile.SoundFile(source) as file:
            from_hz, promised, log = file.samplerate, file.frames, file.extra_info
            _check_size(name, promised, file.channels)
            samples = file.read(dtype="float32", always_2d=True)  # (N, channels)
    except UserError:
        raise
    except UNREADABLE as error:
        raise UserError(
            f"{name}: not a sound file that libsndfile can read ({reason_of(error)})"
        ) from None
    if not len(samples):
        raise UserError(f"{name}: the file holds no samples")
    _check_rate(name, from_hz)
    if len(samples) < promised or _cut_short(log):
        raise UserError(
            f"{name}: truncated, its header promises more samples than the {len(samples)} that are"
            " there"
        )
    if not np.isfinite(samples).all():
        raise UserError(f"{name}: holds NaN or infinite samples")
    return Sound(samples, from_hz, name)


def _check_size(name: str, frames: int, channels: int) -> None:
    """Raise UserError for a sound that would take more memory than is allowed, or does not say how
    much it holds.
    """
    if frames >= 2**62:  # libsndfile's word for a length that no header tells
        raise UserError(
            f"{name}: its header does not say how long it is; convert it first, e.g. ffmpeg -i IN"
            " OUT.wav"
        )
    memory_budget.check(
        SAMPLE_BYTES * frames * (channels + 2),
        name,
        f"a sound of {frames:,} samples in {channels} channels",
    )


def _check_rate(name: str, rate_hz: int) -> None:
    try:
        check_rate(rate_hz)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def _cut_short(log: str) -> bool:
    """Whether libsndfile's log of a wav file says that its data chunk is shorter than its header
    says.

    Sizes near 2^31 and 2^32 are what programs write that could not know the length (a pipe): no
    sign of a cut.
    """
    found = re.search(r"^data\s*:\s*(\d+) \(should be (\d+)\)", log, re.MULTILINE)
    return bool(found) and int(found[2]) < int(found[1]) < 2**31 - 2**16


def write_sound(path: str | Path, samples: np.ndarray, rate_hz: int = 16_000) -> None:
    """Samples (N,) within [-1, 1] -> a 16-bit file, whose format is the suffix's (wav, flac, ...).

    What lies outside is clipped, with a warning. Raises UserError for what cannot be written; no
    half-written file stays behind.
    """
    import soundfile

    path, samples = Path(path), np.asarray(samples)
    if samples.ndim != 1 or samples.dtype.kind != "f" or not np.isfinite(samples).all():
        raise UserError(
            f"{path}: expected finite floating samples of shape (n,), got {samples.dtype}"
            f" {samples.shape}"
        )
    if len(samples) and np.abs(samples).max() > 1:
        warnings.warn(f"{path}: peak {np.abs(samples).max():.2f} clipped to 1", stacklevel=2)
    subtype, sound = (
        ("PCM_16" if path.suffix.lower() in (".wav", ".flac", ".aiff") else None),
        io.BytesIO(),
    )
    try:
        soundfile.write(
            sound, np.clip(samples, -1, 1), rate_hz, subtype=subtype, format=path.suffix[1:].upper()
        )
        write_bytes(path, sound.getvalue())
    except (soundfile.LibsndfileError, OSError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})"
        ) from None


@dataclass(frozen=True)
class SpeechFolder(Screened):
    """A folder of sound files with transcripts: NAME.txt beside NAME.wav, or one table,
    transcripts.csv or metadata.csv (also .tsv, .psv, .jsonl, each also .gz, and .parquet) with the
    columns file (or file_name) and text (or transcript); or between pipes without a header.

    A tenth of the files (at least one of two), chosen by the hash of their names, is held out.

    min_duration_s, max_duration_s  of a clip; others are left out and counted. 0: any
    min_chars, max_chars            of its transcript, likewise
    """

    path: str = ""
    min_duration_s: float = 0.0
    max_duration_s: float = 0.0
    min_chars: int = 0
    max_chars: int = 0

    def __post_init__(self):
        super().__post_init__()
        self._limits()

    @property
    def fields(self) -> dict[str, str]:
        return {"caption": "text", "speech": "speech"}

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "heldout")

    def examples(self, split: str, cache: Path) -> Iterator[dict]:
        """{"caption": str, "speech": Sound} by file name; nothing is cached.

        Raises UserError where more files than `on_error` passes over have no transcript or cannot
        be read.
        """
        check_split(self, split)
        screen, transcripts = self._screen()
        heldout = _held_out(screen.items)
        mine = [path for path in screen.items if (path in heldout) == (split == "heldout")]
        yield from screen.read(
            mine,
            lambda path: Example(
                {"caption": transcripts.text(path), "speech": open_sound(path)}, path
            ),
        )

    def check(self) -> None:
        """Raise UserError when the files or their transcripts are not there or, by their headers,
        too many cannot be used.
        """
        self._screen()

    def transcripts(self) -> list[tuple[Path, str]]:
        """(file, text) of every sound file that can be used, ordered by name."""
        screen, transcripts = self._screen()
        return [(path, transcripts.text(path)) for path in screen.items]

    def _limits(self) -> tuple[Limit, ...]:
        return (
            Limit("duration_s", self.min_duration_s, self.max_duration_s),
            Limit("chars", self.min_chars, self.max_chars),
        )

    def _screen(self) -> tuple[Screen[Path], Transcripts]:
        folder = folder_at(
            self.path, "SpeechFolder", "sound files with transcripts (NAME.txt beside NAME.wav)"
        )
        found = walk(folder, SUFFIXES, beside=BESIDE)
        if found.left_out:
            warnings.warn(found.note(), stacklevel=3)
        if not found.files:
            raise UserError(f"{folder}: no sound files ({', '.join(SUFFIXES)}) in it")
        with Tally("transcripts") as tally:
            transcripts = Transcripts(found, tally)
        look = lambda path: {
            "chars": len(transcripts.text(path)),
            "duration_s": sound_seconds(path),
        }
        return Screen(found.files, look, self, "clips", self._limits()), transcripts


def _held_out(files: list[Path]) -> set[Path]:
    """A tenth of the files, at least one of two, by the hash of their names; what differs in its
    suffix alone stays together.
    """
    by_hash = sorted(
        files, key=lambda path: (hashlib.sha256(path.stem.encode()).digest(), path.parts)
    )
    n = max(1, len(files) // 10) if len(files) > 1 else 0
    while 0 < n < len(files) and by_hash[n].with_suffix("") == by_hash[n - 1].with_suffix(""):
        n += 1
    return set(by_hash[:n]) if n < len(files) else set()


def check_split(source, split: str) -> str:
    """The split itself. Raises UserError when the source has no such split."""
    if split not in source.splits:
        raise UserError(
            f"{type(source).__name__} has no split {split!r}; it has {', '.join(source.splits)}"
        )
    return split


# Spoken digits

# Each differs from the others by its variant (formants, pitch, breath), some by accent too;
# tests/metrics/test_speech.py tells them apart.
VOICES = (
    "en-us", "en+m1", "en-us+m2", "en-gb-scotland+m3", "en+m4", "en+m7", "en-us+m8",
    "en+f1", "en-us+f2", "en-gb-scotland+f3", "en+f5", "en-us+steph",
)  # fmt: skip
UNSEEN_VOICES = ("en-gb-x-gbcwmd+m5", "en-us+f4")
SPEEDS_WPM = (150, 170, 190, 210)
PITCHES = (36, 44, 52, 60)
HELDOUT_SETTINGS = ((150, 52), (210, 44))  # for single words


class Utterance(NamedTuple):
    """What is said, by which voice of espeak-ng, how fast, and how high (espeak's own 0 to 100)."""

    caption: str
    voice: str
    words_per_minute: int
    pitch: int


@dataclass(frozen=True)
class SpokenDigits:
    """One to three digit names per utterance (a third each), by 12 voices x 4 speeds x 4 pitches of
    espeak-ng.

    train          eight tenths of the utterances
    heldout        one tenth: the same voices, and digit strings that training never holds (a tenth
                   of all of length 2 and of 3). Single words cannot be held out as strings; there,
                   settings (speed, pitch) are that training never gives single words.
    unseen_voices  one tenth: two voices that training never holds, any string

    Silence before and after is cut to 50 ms, and the level is set to an RMS of 0.1 (-20 dB), less
    where the peak would pass 0.9.
    """

    seed: int = 0
    n_utterances: int = 3000

    def __post_init__(self):
        if self.n_utterances < 30:
            raise UserError(
                f"SpokenDigits: n_utterances must be at least 30, got {self.n_utterances}"
            )

    @property
    def fields(self) -> dict[str, str]:
        return {"caption": "text", "speech": "speech"}

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "heldout", "unseen_voices")

    def utterances(self, split: str, cache: Path | None = None) -> list[Utterance]:
        """What `examples` yields, in its order, with voice, speed and pitch.

        Drawn from the seed alone; `cache` is not used.
        """
        check_split(self, split)
        strings = heldout_strings(self.seed)
        tenth = self.n_utterances // 10
        n = self.n_utterances - 2 * tenth if split == "train" else tenth
        rng = np.random.default_rng([self.seed, self.splits.index(split)])
        voices = UNSEEN_VOICES if split == "unseen_voices" else VOICES
        drawn = []
        for length in (1, 2, 3):
            pool = list(product(_strings(length), voices, SPEEDS_WPM, PITCHES))
            if split != "unseen_voices":
                held = (
                    (lambda u: u[2:] in HELDOUT_SETTINGS)
                    if length == 1
                    else (lambda u: u[0] in strings)
                )
                pool = [u for u in pool if held(u) == (split == "heldout")]
            share = n // 3 + (length <= n % 3)
            drawn += [pool[i] for i in rng.choice(len(pool), share, replace=share > len(pool))]
        return [
            Utterance(" ".join(words), *rest)
            for words, *rest in (drawn[i] for i in rng.permutation(len(drawn)))
        ]

    def count(self, split: str, cache: Path | None = None) -> int:
        """How many examples a split has."""
        return len(self.utterances(split))

    def examples(self, split: str, cache: Path) -> Iterator[dict]:
        """{"caption": str, "speech": Sound} as the engine speaks; made once and kept in `cache` as
        16-bit samples.
        """
        from mmtok.sources.espeak import RATE_HZ

        utterances = self.utterances(split)
        key = hashlib.sha256(json.dumps([asdict(self), utterances, 3]).encode()).hexdigest()[
            :12
        ]  # 3: of the code below
        path = Path(cache) / f"spoken-digits-{split}-{key}.npz"
        if not path.is_file():
            self._make(utterances, path)
        try:
            samples, stops = read_npz(path, ("samples", "stops"), "clips")
        except UserError as error:
            raise UserError(
                f"{error}: the cached clips cannot be read; delete the file to make them anew"
            ) from None
        for utterance, start, stop in zip(utterances, [0, *stops[:-1]], stops):
            clip = samples[start:stop].astype(np.float32) / 32768
            yield {
                "caption": utterance.caption,
                "speech": Sound(clip, RATE_HZ, f"{utterance.caption!r} by {utterance.voice}"),
            }

    def _make(self, utterances: list[Utterance], path: Path) -> None:
        from mmtok.sources.espeak import RATE_HZ, Espeak, set_level, trim

        path.parent.mkdir(
            parents=True, exist_ok=True
        )  # first: a folder that cannot be made is known before the work
        engine, clips = Espeak(), []
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
    """A tenth of the strings of two digit names, and of three, that training never holds (10 and
    100).
    """
    rng = np.random.default_rng([seed, 99])
    pools = [_strings(2), _strings(3)]
    return {
        pool[i] for pool in pools for i in rng.choice(len(pool), len(pool) // 10, replace=False)
    }
