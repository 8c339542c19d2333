"""The Free Spoken Digit Dataset: ten words by six speakers, and strings of them.

https://github.com/Jakobovski/free-spoken-digit-dataset, CC BY-SA 4.0: 3,000 recordings of 8 kHz,
22 minutes, named DIGIT_SPEAKER_INDEX.wav. By its README indices 0 to 4 are for testing.
"""

from __future__ import annotations

import io
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import cycle, product
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from mmtok.errors import UserError, reason_of
from mmtok.sources.base import Example, Sound, Source
from mmtok.sources.sound_files import decode_sound, open_sound
from mmtok.sources.speech import DIGITS

NAME = re.compile(r"(\d)_([a-z]+)_(\d+)\.wav")
N_TEST = 5  # recordings of each word by each speaker: those of the lowest indices
N_HELDOUT_STRINGS = 100  # of three words
TARS = (".tar", ".tar.gz", ".tgz")

Take = tuple[str, str, int]  # word, speaker, index
Words = tuple[str, ...]
Read = Callable[[], Sound]


class Said(NamedTuple):
    """One recording, or several of a speaker one after another."""

    takes: tuple[Take, ...]

    @property
    def caption(self) -> str:
        """The words."""
        return " ".join(word for word, _, _ in self.takes)

    @property
    def speaker(self) -> str:
        """Who says them."""
        return self.takes[0][1]


@dataclass(frozen=True)
class FSDD(Source):
    """Recordings of single digits, and strings of two or three by one speaker, joined.

    The splits:

    Attributes:
        train: indices from 5 on, and `n_strings` strings of them.
        heldout: indices 0 to 4, and 100 strings of three of them that training does not have.
        path: of the folder with the recordings (or the folder above it), or a tar of it.
        n_strings: joined for training.
        seed: of the strings.
    """

    path: str = ""
    n_strings: int = 2400
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n_strings < 0:
            raise UserError(f"FSDD: n_strings is {self.n_strings}; it must be at least 0")

    @property
    def fields(self) -> dict[str, str]:
        """A clip, the digit names in it, and the name of who says them."""
        return {"caption": "text", "speech": "speech", "speaker": "text"}

    def check(self) -> None:
        """Raise UserError where the recordings are not there."""
        found = {split_of(take) for take in self._takes()}
        for split in self.splits:
            if split not in found:
                raise UserError(
                    f"{self.path}: no recording of the split {split}; indices 0 to 4 are held out,"
                    " those from 5 on are for training"
                )

    def said(self, split: str) -> list[Said]:
        """What `examples` yields, in its order: single words first. A function of the seed."""
        self.check_split(split)
        takes = sorted(take for take in self._takes() if split_of(take) == split)
        return [Said((take,)) for take in takes] + list(self._strings(takes, split))

    def voices(self, split: str, cache: Path | None = None) -> list[str]:
        """The speaker of each example."""
        return [said.speaker for said in self.said(split)]

    def count(self, split: str, cache: Path | None = None) -> int:
        """The number of examples of a split."""
        return len(self.said(split))

    def examples(self, split: str, cache: Path | None = None) -> Iterator[dict[str, Any]]:
        """{"caption": str, "speech": Sound, "speaker": str}; nothing is cached."""
        said_here = self.said(split)
        sounds: dict[Take, Sound] = {}
        for take, read in self._readers():
            if split_of(take) == split:
                sounds[take] = read()
        for said in said_here:
            parts = [sounds[take] for take in said.takes]
            rates = {part.rate_hz for part in parts}
            if len(rates) > 1:
                raise UserError(f"{self.path}: recordings of {min(rates)} and {max(rates)} Hz")
            samples = np.concatenate([part.samples for part in parts])
            name = " + ".join(part.name for part in parts)
            fields = {
                "caption": said.caption,
                "speech": Sound(samples, parts[0].rate_hz, name),
                "speaker": said.speaker,
            }
            yield Example(fields, name, said.speaker)

    def found(self) -> str:
        """How many recordings of how many speakers."""
        takes = self._takes()
        speakers = {speaker for _, speaker, _ in takes}
        return f"{len(takes)} recordings of digits by {len(speakers)} speakers"

    def _strings(self, takes: list[Take], split: str) -> Iterator[Said]:
        """Strings of a split's recordings, each of one speaker, all speakers equally often.

        A held-out one of which a speaker lacks a word is left out.
        """
        rng = np.random.default_rng([self.seed, self.splits.index(split)])
        kept = heldout_strings(self.seed)
        pools: dict[str, dict[str, list[Take]]] = {}  # speaker -> word -> recordings
        for take in takes:
            word, speaker, _ = take
            pools.setdefault(speaker, {}).setdefault(word, []).append(take)
        speakers = cycle(sorted(pools))
        wanted: Iterator[Words] = iter(kept)
        if split == "train":
            wanted = _training_strings(rng, set(kept), self.n_strings)
        for words, speaker in zip(wanted, speakers, strict=False):
            own = pools[speaker]
            if own.keys() >= set(words):
                yield Said(tuple(own[word][rng.integers(len(own[word]))] for word in words))

    def _takes(self) -> list[Take]:
        return [take for take, _ in self._readers()]

    def _readers(self) -> Iterator[tuple[Take, Read]]:
        """Each recording, and how to read it. Raises UserError where there is none."""
        path = Path(self.path)
        if not self.path:
            raise UserError("FSDD: no path; name the folder of its recordings, or a tar of them")
        readers = _in_folder
        if path.is_file() and path.name.lower().endswith(TARS):
            readers = _in_tar
        elif not path.is_dir():
            raise UserError(f"{path}: no folder, and no tar ({', '.join(TARS)})")
        n = 0
        for name, read in readers(path):
            match = NAME.fullmatch(name)
            if match:
                n += 1
                digit, speaker, index = match.groups()
                yield (DIGITS[int(digit)], speaker, int(index)), read
        if not n:
            raise UserError(
                f"{path}: no recordings named DIGIT_SPEAKER_INDEX.wav; name the folder"
                " recordings of the Free Spoken Digit Dataset, or a tar of it"
            )


def split_of(take: Take) -> str:
    """The split of a recording by the dataset's README."""
    return "heldout" if take[2] < N_TEST else "train"


def heldout_strings(seed: int) -> list[Words]:
    """The strings of three words that training does not have."""
    every = list(product(DIGITS, repeat=3))
    chosen = np.random.default_rng([seed, 99]).choice(len(every), N_HELDOUT_STRINGS, replace=False)
    return [every[i] for i in chosen]


def _training_strings(rng: np.random.Generator, kept: set[Words], n: int) -> Iterator[Words]:
    """Strings of two or three words, none of those that are kept from training."""
    n_made = 0
    while n_made < n:
        words = tuple(rng.choice(DIGITS, rng.integers(2, 4)).tolist())
        if words not in kept:
            n_made += 1
            yield words


def _in_folder(path: Path) -> Iterator[tuple[str, Read]]:
    """(name, how to read it) of each file of a folder, or of its folder recordings."""
    below = path / "recordings"
    if below.is_dir():
        path = below
    for file in sorted(path.iterdir()):
        yield file.name, partial(open_sound, file)


def _in_tar(path: Path) -> Iterator[tuple[str, Read]]:
    """The same of a tar, packed or not, whose members are read in its order."""
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                content = tar.extractfile(member)
                if content is not None:
                    name = PurePosixPath(member.name).name
                    yield name, partial(_decoded, content.read(), f"{path}: {member.name}")
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read as a tar ({reason_of(error)})") from None


def _decoded(content: bytes, name: str) -> Sound:
    return decode_sound(io.BytesIO(content), name)
