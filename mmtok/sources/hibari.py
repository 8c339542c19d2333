"""The engine of `hibari-tts` (Apache-2.0), text -> samples, some 75 times real time a core.

Its package holds one voice, "heart", a woman's. Played at another rate it has another pitch and
other formants, as a larger or smaller speaker has; the engine's own speed makes up for the tempo.
So voices here are "heart", or "heart" and the rate in Hz: "heart@19200" is lower by a fifth.
"""

from __future__ import annotations

import importlib.util

import numpy as np

from mmtok.errors import UserError, missing_extra

RATE_HZ = 24_000
VOICE = "heart"  # others would be downloaded


class Hibari:
    """One voice; the same call gives the same samples, on the same machine."""

    def __init__(self) -> None:
        try:
            from hibari import Hibari as Engine
        except ImportError:
            raise missing_extra("speaking with a natural voice", "voices") from None
        self._engine = Engine(voice=VOICE, threads=1)

    def say(self, text: str, voice: str, speed: float = 1.0, seed: int = 0) -> np.ndarray:
        """Text -> float32 (N,), to be played at `rate_of(voice)`.

        Args:
            text: English; numbers are read as numbers.
            voice: "heart" or "heart@RATE".
            speed: of the tempo, 1 the usual one, whatever the rate.
            seed: of the voice's noise.
        """
        samples = self._engine(text, speed=speed * RATE_HZ / rate_of(voice), seed=seed)
        return np.asarray(samples, np.float32)


def rate_of(voice: str) -> int:
    """The rate at which a voice is played, in Hz.

    Raises UserError for a voice that is not "heart" or "heart@RATE".
    """
    name, at, rate = voice.partition("@")
    if name != VOICE or (at and not rate.isdigit()):
        raise UserError(f"hibari has no voice {voice!r}; name {VOICE}, or {VOICE}@RATE with Hz")
    rate_hz = int(rate or RATE_HZ)
    if not RATE_HZ / 2 <= rate_hz <= RATE_HZ * 2:
        raise UserError(
            f"hibari's voice {voice!r} is played at {rate_hz} Hz; the rate must be"
            f" {RATE_HZ // 2} to {RATE_HZ * 2}"
        )
    return rate_hz


def is_installed() -> bool:
    """Whether the engine's package is there."""
    return importlib.util.find_spec("hibari") is not None
