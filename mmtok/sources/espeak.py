"""The espeak-ng engine through ctypes, text -> samples, half a millisecond a word.

espeak-ng is under the GPL-3: it is loaded as a tool, from the optional package `espeakng-loader`,
and no part of it is in this package.
"""

from __future__ import annotations

import ctypes
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mmtok.errors import UserError, missing_extra

RATE_HZ = 22_050
# constants of espeak-ng's speak_lib.h
RETRIEVE_SYNCHRONOUSLY = 2
RATE = 1
PITCH = 3
CHARS_UTF8 = 1
IPA = 2
CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


class Espeak:
    """An engine of its own: the same calls in the same order give the same samples.

    The engine keeps state from call to call (a second "one" differs from the first by some
    milliseconds), even through its own terminate and initialise, and its random numbers start from
    the clock. So each instance loads a fresh copy of the library and seeds it.
    """

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError:
            raise missing_extra("espeak-ng (spoken digits, phonemes)", "demo") from None
        data = Path(espeakng_loader.get_data_path())
        library = Path(espeakng_loader.get_library_path())
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            self._engine = ctypes.CDLL(shutil.copy(library, folder))
        rate_hz = self._engine.espeak_Initialize(RETRIEVE_SYNCHRONOUSLY, 0, str(data).encode(), 0)
        if rate_hz != RATE_HZ:
            raise UserError(
                f"espeak-ng does not start with the data in {data}; install espeakng-loader again"
            )
        self._engine.espeak_ng_SetRandSeed(ctypes.c_long(1))
        self._pieces: list[np.ndarray] = []
        self._callback = CALLBACK(self._receive)  # kept: the engine holds no reference of its own
        self._engine.espeak_SetSynthCallback(self._callback)
        self.languages = {p.name.lower() for p in (data / "lang").rglob("*") if p.is_file()}
        self.variants = {p.name for p in (data / "voices" / "!v").iterdir()}

    def _receive(self, wave: Any, n_samples: int, events: Any) -> int:
        if wave and n_samples > 0:
            self._pieces.append(np.ctypeslib.as_array(wave, (n_samples,)).copy())
        return 0

    def say(
        self, text: str, voice: str, words_per_minute: int = 170, pitch: int = 50
    ) -> np.ndarray:
        """Text -> int16 (N,) at 22,050 Hz.

        voice: LANGUAGE or LANGUAGE+VARIANT. pitch: from 0 to 99.

        Raises UserError for an unknown voice, for which the engine would take another one.
        """
        language, _, variant = voice.partition("+")
        if language not in self.languages or (variant and variant not in self.variants):
            raise UserError(
                f"espeak-ng has no voice {voice!r}; languages are e.g. en, en-us, variants e.g."
                " m1, f2"
            )
        if self._engine.espeak_SetVoiceByName(voice.encode()):
            raise UserError(f"espeak-ng refuses the voice {voice!r}")
        self._engine.espeak_SetParameter(RATE, words_per_minute, 0)
        self._engine.espeak_SetParameter(PITCH, pitch, 0)
        self._pieces.clear()
        encoded = text.encode()
        self._engine.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, CHARS_UTF8, None, None)
        self._engine.espeak_Synchronize()
        return np.concatenate([np.zeros(0, np.int16), *self._pieces])

    def phonemes(self, text: str, language: str) -> str:
        """Text -> its phonemes in the IPA, with stress; words have blanks between them.

        Numbers are said; punctuation is gone.

        Raises UserError for an unknown language.
        """
        if language not in self.languages or self._engine.espeak_SetVoiceByName(language.encode()):
            raise UserError(
                f"espeak-ng has no language {language!r}; languages are e.g. en-us, en, de, fr-fr"
            )
        translate = self._engine.espeak_TextToPhonemes
        translate.restype = ctypes.c_char_p
        encoded = ctypes.c_char_p(text.encode())
        left = ctypes.c_void_p.from_buffer(encoded)  # moved on by each call, NULL at the end
        clauses = []
        while left.value:
            found = translate(ctypes.byref(left), CHARS_UTF8, IPA)
            clauses.append((found or b"").decode().strip())
        return " ".join(filter(None, clauses))


@lru_cache(maxsize=1)
def phonemiser() -> Espeak:
    """An engine that this process keeps for phonemes: they do not depend on what it did before."""
    return Espeak()


def trim(
    samples: np.ndarray, rate_hz: int, keep_s: float = 0.05, threshold: float = 0.02
) -> np.ndarray:
    """Cut silence, below `threshold` times the peak, at both ends to keep_s seconds."""
    loud = np.flatnonzero(np.abs(samples) > threshold * np.abs(samples).max(initial=0))
    if not len(loud):
        return samples
    keep = round(keep_s * rate_hz)
    return samples[max(0, loud[0] - keep) : loud[-1] + keep]


def set_level(samples: np.ndarray, rms: float = 0.1, peak: float = 0.9) -> np.ndarray:
    """Scale to a root mean square of `rms`, or less where the peak would pass `peak`."""
    gain = min(rms / max(samples.std(), 1e-9), peak / max(np.abs(samples).max(initial=0), 1e-9))
    return samples * np.float32(gain)
