"""Judges of speech that come with their weights in a package: quality, phonemes, voices.

| judge | package, extra `judges` | what it hears |
|---|---|---|
| `MOSJudge` | distillmos | the mean opinion score that people would give, 1 to 5 |
| `PhonemeJudge` | hama | the phonemes of English speech, and those of an English text |
| `SpeakerJudge` | resemblyzer | whose voice it is, as a vector |

No package is imported before its judge is made. A clip is (N,) at any rate; silence and empty clips
have no figure (NaN, or no phonemes).
"""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from mmtok.core.spoken_form import spoken_form
from mmtok.errors import UserError, missing_extra
from mmtok.metrics.speech_text import EditCounts, edit_counts
from mmtok.nn.resample import resample

RATE_HZ = 16_000  # of all three
PIECE_S = 30.0  # longer clips are heard in pieces of at most so many seconds, to bound memory
LEAST_VOICE_S = 0.3  # of speech, below which a voice has no vector
EXTRA = "judges"
# module that may be missing -> the package that brings it
NEEDED = {"webrtcvad": "webrtcvad-wheels", "pkg_resources": "webrtcvad-wheels"}


class MOSJudge:
    """DistillMOS: the mean opinion score (1 to 5) of a clip by itself.

    Source: Stahl and Gamper 2025, "Distillation and pruning for scalable self-supervised
    representation-based speech quality assessment". A clip is padded to 7.7 s, so a short one costs
    as much as a long one: some 0.7 s of one core.

    Raises UserError without the package distillmos.
    """

    package = "distillmos"

    def __init__(self) -> None:
        module = _imported(self.package, "the judge of quality (DistillMOS)")
        with contextlib.redirect_stdout(io.StringIO()):  # it says where its weights are
            self.net = module.ConvTransformerSQAModel().eval()

    def __call__(self, clips: Sequence[np.ndarray], rate_hz: int) -> np.ndarray:
        """Scores (n,) of n clips (N_i,); NaN of silence. A long one's is the mean of its pieces."""
        return np.array([self._score(clip) for clip in _at_16_khz(clips, rate_hz)]).reshape(-1)

    @torch.inference_mode()
    def _score(self, clip: np.ndarray) -> float:
        if not clip.any():
            return math.nan
        pieces = _pieces(clip)
        scores = [float(self.net(torch.from_numpy(piece)[None])) for piece in pieces]
        return float(np.average(scores, weights=[len(piece) for piece in pieces]))


class PhonemeJudge:
    """hama: a recogniser of the phonemes of English speech, and of those of English words.

    It is a small model: of clean speech it mistakes a tenth or more of the phonemes of a text,
    which is why its errors are to be read beside those of recordings.

    Raises UserError without the package hama.
    """

    package = "hama"

    def __init__(self) -> None:
        module = _imported(self.package, "the judge of phonemes (hama)")
        self._recogniser = module.ASRModel()
        self._reader = module.G2PModel()
        tokens = {token for token in self._recogniser.decoder_tokens if not token.startswith("<")}
        self._symbols = sorted(tokens, key=len, reverse=True)
        self._words: dict[str, list[str]] = {}

    def heard(self, clips: Sequence[np.ndarray], rate_hz: int) -> list[list[str]]:
        """The phonemes of each clip (N_i,); none of silence."""
        return [self._heard(clip) for clip in _at_16_khz(clips, rate_hz)]

    def read(self, texts: Sequence[str]) -> list[list[str] | None]:
        """The phonemes of each text, word by word.

        None of a text that has anything but English letters in its `spoken_form`, which the reader
        would take for other languages.
        """
        return [self._read(spoken_form(text)) for text in texts]

    def error(
        self, references: Sequence[Sequence[str] | None], clips: Sequence[np.ndarray], rate_hz: int
    ) -> EditCounts:
        """Edits of the phonemes of clips (N_i,) against references, as `heard` or `read` give them.

        Pairs without a reference (None, or no phonemes) are left out.
        """
        heard = self.heard(clips, rate_hz)
        pairs = [(a, b) for a, b in zip(references, heard, strict=True) if a]
        return edit_counts([a for a, _ in pairs], [b for _, b in pairs])

    def _heard(self, clip: np.ndarray) -> list[str]:
        if not clip.any():
            return []
        found: list[str] = []
        for piece in _pieces(clip):
            found += self._recogniser(piece, RATE_HZ).phonemes
        return found

    def _read(self, text: str) -> list[str] | None:
        words = text.split()
        if not all(word.replace("'", "").isascii() and _has_letters_only(word) for word in words):
            return None
        phonemes: list[str] = []
        for word in words:
            if word not in self._words:
                self._words[word] = list(_cut(self._reader(word).ipa, self._symbols))
            phonemes += self._words[word]
        return phonemes


class SpeakerJudge:
    """resemblyzer: a voice as a vector (256,) of length 1. Source: Wan et al. 2018, "GE2E".

    Raises UserError without the package resemblyzer.
    """

    package = "resemblyzer"

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it takes scipy's names from an older module
            module = _imported(self.package, "the judge of voices (resemblyzer)")
        self._prepared: Callable[..., np.ndarray] = module.preprocess_wav
        self._encoder = module.VoiceEncoder("cpu", verbose=False)

    def vectors(self, clips: Sequence[np.ndarray], rate_hz: int) -> np.ndarray:
        """Vectors (n, 256) of n clips (N_i,); rows of NaN where less than 0.3 s is a voice."""
        rows = [self._vector(clip) for clip in _at_16_khz(clips, rate_hz)]
        return np.array(rows, np.float32).reshape(len(rows), 256)

    def similarity(
        self, clips: Sequence[np.ndarray], others: Sequence[np.ndarray], rate_hz: int
    ) -> np.ndarray:
        """The cosine (n,) of each clip's vector with that of the other in the same place."""
        return similarities(self.vectors(clips, rate_hz), self.vectors(others, rate_hz))

    def _vector(self, clip: np.ndarray) -> np.ndarray:
        nothing = np.full(256, np.nan, np.float32)
        if not clip.any() or len(clip) < LEAST_VOICE_S * RATE_HZ:
            return nothing
        peak = max(1.0, float(np.abs(clip).max()))
        voice = self._prepared(clip / peak)  # louder, and without what is no voice
        if len(voice) < LEAST_VOICE_S * RATE_HZ:
            return nothing
        return self._encoder.embed_utterance(voice)


def similarities(vectors: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Cosines (n,) of two sets of vectors (n, D) of length 1, pair by pair."""
    return (vectors * others).sum(1)


JUDGES: tuple[type[MOSJudge] | type[PhonemeJudge] | type[SpeakerJudge], ...] = (
    MOSJudge,
    PhonemeJudge,
    SpeakerJudge,
)


def missing_judges() -> list[str]:
    """The packages of judges that are not installed."""
    return [judge.package for judge in JUDGES if find_spec(judge.package) is None]


def _imported(package: str, what: str) -> Any:
    """A package of the extra. Raises UserError that names the extra, or what is wrong with it."""
    try:
        return __import__(package)
    except ModuleNotFoundError as error:
        if error.name == package:
            raise missing_extra(what, EXTRA) from None
        # webrtcvad of its own asks for a part that new versions of setuptools lack
        needed = NEEDED.get(error.name or "", error.name)
        raise UserError(
            f"{what}: the package {package} needs {error.name}, which is missing: pip install"
            f" {needed}"
        ) from None


def _at_16_khz(clips: Sequence[np.ndarray], rate_hz: int) -> Iterator[np.ndarray]:
    """Clips (N_i,) as contiguous float32 at RATE_HZ."""
    for clip in clips:
        yield resample(np.asarray(clip, np.float32), rate_hz, RATE_HZ)


def _pieces(clip: np.ndarray) -> list[np.ndarray]:
    """A clip (N,) in pieces of about equal length, of at most PIECE_S."""
    n_pieces = max(1, math.ceil(len(clip) / (PIECE_S * RATE_HZ)))
    return np.array_split(clip, n_pieces)


def _has_letters_only(word: str) -> bool:
    return word.replace("'", "").isalpha()


def _cut(ipa: str, symbols: Sequence[str]) -> Iterator[str]:
    """A word's transcription as the recogniser's symbols, the longest that fits first.

    What is none of them (stress, spaces) is left out.
    """
    i = 0
    while i < len(ipa):
        symbol = next((s for s in symbols if ipa.startswith(s, i)), "")
        if symbol.strip():
            yield symbol
        i += max(1, len(symbol))
