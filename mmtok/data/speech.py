"""Sound files, folders of them with transcripts, and spoken digits that the package makes with espeak-ng."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from mmtok.files import in_place_when_whole, write_bytes
from mmtok.nn.resample import resample
from mmtok.progress import Progress
from mmtok.segment import BadInput
from mmtok.walk import folder_at, walk

SUFFIXES = (".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc", ".au", ".snd", ".caf", ".w64",
            ".rf64", ".sph", ".voc")  # fmt: skip
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


# Files


def read_sound(path: str | Path, rate_hz: int = 16_000) -> np.ndarray:
    """A sound file -> float32 (N,) mono at rate_hz. Channels are averaged and other rates resampled, and one warning says so.

    Raises BadInput for a file that is missing, empty, not sound, truncated to nothing, or holds NaN or infinite samples.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"{path}: is a folder, not a sound file" if path.is_dir() else f"{path}: no such file")
    if path.stat().st_size == 0:
        raise BadInput(f"{path}: the file is empty")
    return decode_sound(path, str(path), rate_hz)


def decode_sound(source: Path | BinaryIO, name: str, rate_hz: int = 16_000) -> np.ndarray:
    """As `read_sound`, of a path or an open file, which messages call `name`."""
    import soundfile

    try:
        with soundfile.SoundFile(source) as file:
            from_hz, promised, log = file.samplerate, file.frames, file.extra_info
            samples = file.read(dtype="float32", always_2d=True)  # (N, channels)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise BadInput(f"{name}: not a sound file that libsndfile can read ({error})") from None
    if not len(samples):
        raise BadInput(f"{name}: the file holds no samples")
    if len(samples) < promised or _cut_short(log):
        raise BadInput(f"{name}: truncated, its header promises more samples than the {len(samples)} that are there")
    if not np.isfinite(samples).all():
        raise BadInput(f"{name}: holds NaN or infinite samples")
    done = [f"{samples.shape[1]} channels averaged"] if samples.shape[1] > 1 else []
    done += [f"{from_hz} Hz resampled to {rate_hz} Hz"] if from_hz != rate_hz else []
    if done:
        warnings.warn(f"{name}: {', '.join(done)}", stacklevel=3)
    try:
        return resample(samples.mean(1), from_hz, rate_hz)
    except BadInput as error:
        raise BadInput(f"{name}: {error}") from None


def _cut_short(log: str) -> bool:
    """Whether libsndfile's log of a wav file says that its data chunk is shorter than its header says.

    Sizes near 2^31 and 2^32 are what programs write that could not know the length (a pipe): no sign of a cut.
    """
    found = re.search(r"^data\s*:\s*(\d+) \(should be (\d+)\)", log, re.MULTILINE)
    return bool(found) and int(found[2]) < int(found[1]) < 2**31 - 2**16


def write_sound(path: str | Path, samples: np.ndarray, rate_hz: int = 16_000) -> None:
    """Samples (N,) within [-1, 1] -> a 16-bit file, whose format is the suffix's (wav, flac, ...).

    What lies outside is clipped, with a warning. Raises BadInput for what cannot be written; no half-written file stays behind.
    """
    import soundfile

    path, samples = Path(path), np.asarray(samples)
    if samples.ndim != 1 or samples.dtype.kind != "f" or not np.isfinite(samples).all():
        raise BadInput(f"{path}: expected finite floating samples of shape (n,), got {samples.dtype} {samples.shape}")
    if len(samples) and np.abs(samples).max() > 1:
        warnings.warn(f"{path}: peak {np.abs(samples).max():.2f} clipped to 1", stacklevel=2)
    subtype, sound = "PCM_16" if path.suffix.lower() in (".wav", ".flac", ".aiff") else None, io.BytesIO()
    try:
        soundfile.write(sound, np.clip(samples, -1, 1), rate_hz, subtype=subtype, format=path.suffix[1:].upper())
        write_bytes(path, sound.getvalue())
    except (soundfile.LibsndfileError, OSError, TypeError, ValueError) as error:
        raise BadInput(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})") from None


@dataclass(frozen=True)
class SpeechFolder:
    """A folder of sound files with transcripts: NAME.txt beside NAME.wav, or one transcripts.csv or metadata.csv with the columns
    file (or file_name) and text (or transcript).

    A tenth of the files (at least one of two), chosen by the hash of their names, is held out."""

    path: str = ""
    rate_hz: int = 16_000

    @property
    def fields(self) -> dict[str, str]:
        return {"caption": "text", "speech": "speech"}

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "heldout")

    def examples(self, split: str, cache: Path) -> Iterator[dict]:
        """{"caption": str, "speech": float32 (N,)} by file name; nothing is cached. Raises BadInput on files without a transcript."""
        check_split(self, split)
        pairs = self.transcripts()
        by_hash = sorted(pairs, key=lambda pair: hashlib.sha256(pair[0].stem.encode()).digest())
        heldout = {path for path, _ in by_hash[: max(1, len(pairs) // 10)]} if len(pairs) > 1 else set()
        for path, caption in pairs:
            if (path in heldout) == (split == "heldout"):
                yield {"caption": caption, "speech": read_sound(path, self.rate_hz)}

    def check(self) -> None:
        """Raise BadInput when the files or their transcripts are not there."""
        self.transcripts()

    def transcripts(self) -> list[tuple[Path, str]]:
        """(file, text) of every sound file, ordered by name."""
        folder = folder_at(self.path, "SpeechFolder", "sound files with transcripts (NAME.txt beside NAME.wav)")
        found = walk(folder, SUFFIXES, beside=(".txt", ".csv"))
        if found.left_out:
            warnings.warn(found.note(), stacklevel=2)
        files = found.files
        if not files:
            raise BadInput(f"{folder}: no sound files ({', '.join(SUFFIXES)}) in it")
        table = next((folder / name for name in ("transcripts.csv", "metadata.csv") if (folder / name).is_file()), None)
        texts = _read_table(table) if table else {}
        pairs = []
        for path in files:
            beside = path.with_suffix(".txt")
            text = texts.get(path.relative_to(folder).as_posix(), texts.get(path.stem))
            if text is None and beside.is_file():
                text = _read_utf8(beside).strip()
            if text is None:
                raise BadInput(f"{path}: no transcript; put {beside.name} beside it, or name it in {folder / 'transcripts.csv'}")
            pairs.append((path, text))
        return pairs


def _read_table(path: Path) -> dict[str, str]:
    """A csv with the columns file and text -> {file name or stem: text}."""
    rows, texts = csv.DictReader(io.StringIO(_read_utf8(path), newline="")), {}
    columns = rows.fieldnames or []
    file = next((c for c in ("file", "file_name", "path") if c in columns), None)
    text = next((c for c in ("text", "transcript", "transcription", "caption") if c in columns), None)
    if file is None or text is None:
        raise BadInput(f"{path}: needs the columns file and text, has {', '.join(columns) or 'none'}")
    for row in rows:
        if row[file] is None or row[text] is None:
            raise BadInput(f"{path}: line {rows.line_num} ends before its {file if row[file] is None else text}; complete or remove it")
        texts[row[file]] = row[text].strip()
    return texts


def _read_utf8(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 text (byte {error.start}); convert it first, e.g. iconv -f latin1 -t utf-8") from None


def check_split(source, split: str) -> str:
    """The split itself. Raises BadInput when the source has no such split."""
    if split not in source.splits:
        raise BadInput(f"{type(source).__name__} has no split {split!r}; it has {', '.join(source.splits)}")
    return split


# Spoken digits

# Each differs from the others by its variant (formants, pitch, breath), some by accent too; tests/metrics/test_speech.py tells them apart.
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
    """One to three digit names per utterance (a third each), by 12 voices x 4 speeds x 4 pitches of espeak-ng.

    train          eight tenths of the utterances
    heldout        one tenth: the same voices, and digit strings that training never holds (a tenth of all of length 2 and of 3).
                   Single words cannot be held out as strings; there, settings (speed, pitch) are that training never gives single words.
    unseen_voices  one tenth: two voices that training never holds, any string

    Silence before and after is cut to 50 ms, and the level is set to an RMS of 0.1 (-20 dB), less where the peak would pass 0.9.
    """

    seed: int = 0
    n_utterances: int = 3000
    rate_hz: int = 16_000

    def __post_init__(self):
        if self.n_utterances < 30:
            raise BadInput(f"SpokenDigits: n_utterances must be at least 30, got {self.n_utterances}")

    @property
    def fields(self) -> dict[str, str]:
        return {"caption": "text", "speech": "speech"}

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "heldout", "unseen_voices")

    def utterances(self, split: str, cache: Path | None = None) -> list[Utterance]:
        """What `examples` yields, in its order, with voice, speed and pitch. Drawn from the seed alone; `cache` is not used."""
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
                held = (lambda u: u[2:] in HELDOUT_SETTINGS) if length == 1 else (lambda u: u[0] in strings)
                pool = [u for u in pool if held(u) == (split == "heldout")]
            share = n // 3 + (length <= n % 3)
            drawn += [pool[i] for i in rng.choice(len(pool), share, replace=share > len(pool))]
        return [Utterance(" ".join(words), *rest) for words, *rest in (drawn[i] for i in rng.permutation(len(drawn)))]

    def examples(self, split: str, cache: Path) -> Iterator[dict]:
        """{"caption": str, "speech": float32 (N,) at rate_hz}; made once and kept in `cache` as 16-bit samples."""
        utterances = self.utterances(split)
        key = hashlib.sha256(json.dumps([asdict(self), utterances, 2]).encode()).hexdigest()[:12]  # 2: of the code below
        path = Path(cache) / f"spoken-digits-{split}-{key}.npz"
        if not path.is_file():
            self._make(utterances, path)
        try:
            with np.load(path) as file:
                samples, stops = file["samples"], file["stops"]  # read once: each look-up in an npz reads the member anew
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise BadInput(f"{path}: the cached clips cannot be read ({type(error).__name__}); delete the file to make them anew") from None
        for utterance, start, stop in zip(utterances, [0, *stops[:-1]], stops):
            yield {"caption": utterance.caption, "speech": samples[start:stop].astype(np.float32) / 32768}

    def _make(self, utterances: list[Utterance], path: Path) -> None:
        from mmtok.data.espeak import RATE_HZ, Espeak, set_level, trim

        path.parent.mkdir(parents=True, exist_ok=True)  # first: a folder that cannot be made is known before the work
        engine, clips = Espeak(), []
        with Progress("speaking", len(utterances), "clips") as progress:
            for utterance in utterances:
                clip = resample(engine.say(*utterance) / np.float32(32768), RATE_HZ, self.rate_hz)
                clips.append(np.round(set_level(trim(clip, self.rate_hz)) * 32767).astype(np.int16))
                progress.advance()
        try:
            with in_place_when_whole(path) as temporary, temporary.open("wb") as file:
                np.savez(file, samples=np.concatenate(clips), stops=np.cumsum([len(clip) for clip in clips]))
        except OSError as error:
            raise BadInput(f"{path}: cannot be written ({error.strerror or error})") from None


def _strings(length: int) -> list[tuple[str, ...]]:
    return list(product(DIGITS, repeat=length))


def heldout_strings(seed: int) -> set[tuple[str, ...]]:
    """A tenth of the strings of two digit names, and of three, that training never holds (10 and 100)."""
    rng = np.random.default_rng([seed, 99])
    pools = [_strings(2), _strings(3)]
    return {pool[i] for pool in pools for i in rng.choice(len(pool), len(pool) // 10, replace=False)}
