"""Spoken English sentences that a fresh machine makes: a grammar's texts, synthesised voices."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmtok.errors import UserError
from mmtok.io.arrays import read_npz
from mmtok.io.files import atomic_write
from mmtok.sources import espeak, hibari
from mmtok.sources.base import CHUNK, Example, Listing, Sound, Source, Unusable, batched_lists
from mmtok.sources.sentence_grammar import sentences

# of hibari's one voice at other rates: larger and smaller speakers
NATURAL_VOICES = (
    "heart@19200", "heart@20000", "heart@22500", "heart@24000", "heart@25600", "heart@28000",
)  # fmt: skip
# of the GPL's engine: a second kind, for voices_heard=(*NATURAL_VOICES, *ESPEAK_VOICES)
ESPEAK_VOICES = ("en-us", "en-us+m2", "en+m4", "en-us+f2", "en-gb-scotland+f3", "en-us+m7")
SPEEDS = (1.0, 1.12, 1.25)
ESPEAK_WPM = 165  # at speed 1
CLIPS_VERSION = 1  # of the code that makes clips: a change makes cached ones anew


class Spoken(NamedTuple):
    """What is said by which voice, how fast (1 is a voice's usual tempo), with which noise."""

    caption: str
    voice: str
    speed: float
    seed: int


@dataclass(frozen=True)
class SpokenSentences(Source):
    """Sentences of `mmtok.sources.sentence_grammar`, no one twice, read by synthetic voices.

    A voice's name is that of `hibari-tts` ("heart@22500", natural and under Apache-2.0) or of
    espeak-ng ("en-us+f2"). Silence at the ends is cut to 50 ms and the level is set as in
    `SpokenDigits`. The field voice is another clip of the same voice and split, for a model that
    is told who speaks. The splits:

    Attributes:
        train: all but two twentieths; a part of it are phrases of one to four words, from which
            words are learned earlier.
        heldout: a twentieth: sentences that training does not have, by the same voices.
        unseen_voices: a twentieth: other sentences still, by voices that training does not have.
        seed: of texts and voices.
        n_utterances: in all splits together; 10,000 are some 4.7 hours.
        phrase_share: of the utterances of training.
        voices_heard: of training and of heldout, in equal shares.
        voices_unseen: of unseen_voices.
    """

    seed: int = 0
    n_utterances: int = 10_000
    phrase_share: float = 0.2
    voices_heard: tuple[str, ...] = NATURAL_VOICES
    voices_unseen: tuple[str, ...] = ("heart@21000",)

    def __post_init__(self) -> None:
        if self.n_utterances < 40:
            raise UserError(
                f"SpokenSentences: n_utterances must be at least 40, got {self.n_utterances}"
            )
        if not 0 <= self.phrase_share < 1:
            raise UserError(
                f"SpokenSentences: phrase_share is {self.phrase_share}; it is a share, from 0 to"
                " below 1"
            )
        if not self.voices_heard or not self.voices_unseen:
            raise UserError("SpokenSentences: name at least one voice of each kind")
        for voice in (*self.voices_heard, *self.voices_unseen):
            if is_natural(voice):
                hibari.rate_of(voice)  # refuses a rate that is none
        if both := set(self.voices_heard).intersection(self.voices_unseen):
            raise UserError(
                f"SpokenSentences: {', '.join(sorted(both))} is in voices_heard and in"
                " voices_unseen; name it in one"
            )

    @property
    def fields(self) -> dict[str, str]:
        """A clip, what is said in it, and another clip of who says it."""
        return {"caption": "text", "speech": "speech", "voice": "voice"}

    @property
    def splits(self) -> tuple[str, ...]:
        """One more than others have: voices that training does not have."""
        return ("train", "heldout", "unseen_voices")

    def count(self, split: str, cache: Path | None = None) -> int:
        """The number of examples of a split."""
        self.check_split(split)
        twentieth = self.n_utterances // 20
        if split != "train":
            return twentieth
        return self.n_utterances - 2 * twentieth

    def utterances(self, split: str) -> list[Spoken]:
        """What `examples` yields, in its order; a function of the seed."""
        n = self.count(split)
        captions = self._captions()[split]
        rng = np.random.default_rng([self.seed, self.splits.index(split), 1])
        heard = self.voices_unseen if split == "unseen_voices" else self.voices_heard
        voices = [heard[i] for i in rng.permutation(np.arange(n) % len(heard))]
        speeds = rng.choice(SPEEDS, n)
        seeds = rng.integers(2**31, size=n)
        return [
            Spoken(caption, voice, float(speed), int(seed))
            for caption, voice, speed, seed in zip(captions, voices, speeds, seeds, strict=True)
        ]

    def voices(self, split: str, cache: Path) -> list[str]:
        """The voice of each example of a split."""
        return [utterance.voice for utterance in self.utterances(split)]

    def _captions(self) -> dict[str, list[str]]:
        """The texts of each split; no text is in two."""
        rng = np.random.default_rng([self.seed, 0])
        taken: set[str] = set()
        found = {
            split: list(islice(sentences(rng, "sentence", taken), self.count(split)))
            for split in ("heldout", "unseen_voices")
        }
        n = self.count("train")
        n_phrases = int(n * self.phrase_share)
        texts = list(islice(sentences(rng, "phrase", taken), n_phrases))
        texts += islice(sentences(rng, "sentence", taken), n - n_phrases)
        return {**found, "train": [texts[i] for i in rng.permutation(n)]}

    def examples(self, split: str, cache: Path) -> Iterator[dict[str, Any]]:
        """{"caption": str, "speech": Sound, "voice": Sound}, made once and kept in `cache`."""
        return self.listing(split, cache).examples()

    def listing(self, split: str, cache: Path | None = None) -> Listing:
        """The same as chunks, each of which is spoken by the process that reads it first."""
        utterances = self.utterances(split)
        plain = json.dumps([asdict(self), utterances, CLIPS_VERSION])
        key = hashlib.sha256(plain.encode()).hexdigest()[:12]
        folder = Path(cache or Path()) / f"spoken-sentences-{split}-{key}"
        parts = batched_lists(utterances, CHUNK)
        chunks = (SpokenChunk(part, folder / f"{i:04d}.npz") for i, part in enumerate(parts))
        return Listing(chunks, n=len(utterances))


@dataclass(frozen=True)
class SpokenChunk:
    """Some utterances, and the file that keeps them as 16-bit samples."""

    utterances: Sequence[Spoken]
    path: Path

    def read(self) -> Iterator[dict[str, Any] | Unusable]:
        """The examples, spoken now where the file is not there yet."""
        if not self.path.is_file():
            self._make()
        try:
            samples, stops, rates = read_npz(self.path, ("samples", "stops", "rates"), "clips")
        except UserError as error:
            raise UserError(
                f"{error}: the cached clips cannot be read; delete the file to make them anew"
            ) from None
        clips = [
            Sound(clip.astype(np.float32) / 32768, int(rate), f"{said.caption!r} by {said.voice}")
            for clip, rate, said in zip(
                np.split(samples, stops[:-1]), rates, self.utterances, strict=True
            )
        ]
        for i, said in enumerate(self.utterances):
            fields = {"caption": said.caption, "speech": clips[i]}
            other = self._other(i)
            if other is not None:
                fields["voice"] = clips[other]
            yield Example(fields, clips[i].name, said.voice)

    def _other(self, i: int) -> int | None:
        """Another utterance of the same voice, the next one around; None where there is none."""
        n = len(self.utterances)
        for k in range(1, n):
            j = (i + k) % n
            if self.utterances[j].voice == self.utterances[i].voice:
                return j
        return None

    def _make(self) -> None:
        # first: a folder that cannot be made is known before the work
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            clips, rates = spoken(self.utterances)
        except UserError:
            with suppress(OSError):  # other clips are in it
                self.path.parent.rmdir()
            raise
        try:
            with atomic_write(self.path) as temporary, temporary.open("wb") as file:
                np.savez(
                    file,
                    samples=np.concatenate(clips),
                    stops=np.cumsum([len(clip) for clip in clips]),
                    rates=np.array(rates),
                )
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror or error})") from None


def is_natural(voice: str) -> bool:
    """Whether hibari speaks a voice, not espeak-ng."""
    return voice.partition("@")[0] == hibari.VOICE


def spoken(utterances: Sequence[Spoken]) -> tuple[list[np.ndarray], list[int]]:
    """Utterances -> clips, int16 (N,) each, and the rate of each in Hz."""
    natural = hibari.Hibari() if any(is_natural(said.voice) for said in utterances) else None
    # its own instance here: espeak-ng's samples depend on what it said before
    formant = espeak.Espeak() if not all(is_natural(said.voice) for said in utterances) else None
    clips = []
    rates = []
    for said in utterances:
        if natural is not None and is_natural(said.voice):
            rate_hz = hibari.rate_of(said.voice)
            samples = natural.say(said.caption, said.voice, said.speed, said.seed)
        elif formant is not None:
            rate_hz = espeak.RATE_HZ
            words_per_minute = round(ESPEAK_WPM * said.speed)
            said_now = formant.say(said.caption, said.voice, words_per_minute)
            samples = said_now / np.float32(32768)
        clip = espeak.set_level(espeak.trim(samples, rate_hz))
        clips.append(np.round(clip * 32767).astype(np.int16))
        rates.append(rate_hz)
    return clips, rates
