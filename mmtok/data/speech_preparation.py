"""Clips before they are tokenised: one channel, or the mix of all, at the tokenizer's rate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from mmtok.errors import UserError
from mmtok.io import memory_budget
from mmtok.io.tally import Tally
from mmtok.nn.resample import n_resampled, resample
from mmtok.sources.base import Sound
from mmtok.sources.sound_files import open_sound

NAMED: dict[int | str, int] = {"left": 0, "right": 1}
SAMPLE_BYTES = 16  # of memory per sample, while rates are changed and spectrograms made
MOST_CHANNELS = 64  # an array with more columns is transposed by mistake
# The mix of two unrelated channels loses 3.01 dB of their power, and so does that of a channel and
# a silent one. A mix that loses more has channels that cancel each other.
LOSS_DB = 3.1


@dataclass(frozen=True)
class SpeechPreparation:
    """How a clip becomes one channel at the tokenizer's rate.

    Attributes:
        channel: mix: the mean of all; left, right, or a number from 0: that one alone. Does not
            matter for clips of one channel.
    """

    modality: ClassVar[str] = "speech"

    channel: int | Literal["mix", "left", "right"] = "mix"

    def __post_init__(self) -> None:
        if isinstance(self.channel, int) and self.channel < 0:
            raise UserError(
                f"SpeechPreparation: channel is {self.channel}; "
                "it must be mix, left, right or a number from 0"
            )

    def prepare(
        self, sound: Sound | np.ndarray, name: str, tally: Tally, rate_hz: int
    ) -> np.ndarray:
        """A clip -> float32 (N,) at rate_hz.

        An array (N,) or (N, channels) instead of a `Sound` is at that rate already.

        Raises UserError for what is no clip, a missing channel, a rate that cannot be resampled,
        and more memory than the budget.
        """
        if not isinstance(sound, Sound):
            sound = Sound(np.asarray(sound), rate_hz)
        samples = self._mono(_checked(sound.samples), name, tally)
        if sound.rate_hz == rate_hz:
            return samples
        n_samples = n_resampled(len(samples), sound.rate_hz, rate_hz)
        memory_budget.check(
            SAMPLE_BYTES * n_samples, "sound", f"{n_samples:,} samples at {rate_hz:,} Hz"
        )
        out = resample(samples, sound.rate_hz, rate_hz)
        tally.add(f"resampled from {sound.rate_hz:,} to {rate_hz:,} Hz", name)
        return out

    def _mono(self, samples: np.ndarray, name: str, tally: Tally) -> np.ndarray:
        """(N, channels) -> (N,)."""
        n_channels = samples.shape[1]
        if n_channels == 1:
            return samples[:, 0]
        if self.channel != "mix":
            index = int(NAMED.get(self.channel, self.channel))
            if index >= n_channels:
                raise UserError(
                    f"it has {n_channels} channels, numbered from 0, "
                    f"but channel {self.channel} was asked for"
                )
            tally.add(f"cut to channel {self.channel} of {n_channels}", name)
            return samples[:, index]
        tally.add(f"mixed down from {n_channels} channels", name)
        mix = samples.mean(1)
        if mix_loss_db(samples, mix) > LOSS_DB:
            tally.add(
                "made more than 3 dB weaker than the channels by the mix, as they cancel each"
                " other; the preparation's channel, left, right or a number, takes one alone",
                name,
            )
        return mix


@dataclass(frozen=True)
class VoicePreparation(SpeechPreparation):
    """The same for a clip that only tells who speaks."""

    modality: ClassVar[str] = "voice"


def mix_loss_db(samples: np.ndarray, mix: np.ndarray) -> float:
    """The power that a mix (N,) loses against the mean of its channels (N, channels), in dB.

    0 for silence.
    """
    power = float(np.square(samples, dtype=np.float64).mean())
    left = float(np.square(mix, dtype=np.float64).mean())
    if power == 0:
        return 0.0
    return 10 * np.log10(power / max(left, power * 1e-20))


def _checked(samples: np.ndarray) -> np.ndarray:
    """Samples as (N, channels). Raises UserError for another shape, and for integers."""
    has_channels = samples.ndim == 2 and 1 <= samples.shape[1] <= MOST_CHANNELS
    if samples.ndim != 1 and not has_channels:
        raise UserError(
            f"speech: expected samples of shape (n,) or (n, channels), got {samples.shape}"
        )
    if samples.dtype.kind != "f":
        raise UserError(
            f"speech: expected floating samples within [-1, 1], got {samples.dtype}; "
            "divide 16-bit samples by 32768"
        )
    if not len(samples):
        return samples.reshape(0, 1)
    return samples.reshape(len(samples), -1)


def read_sound(
    path: str | Path, rate_hz: int = 16_000, channel: int | Literal["mix", "left", "right"] = "mix"
) -> np.ndarray:
    """A sound file -> float32 (N,) at rate_hz: the mix of its channels, or one of them.

    One warning reports what was done to it.

    Raises UserError as `open_sound` does, and for a channel that is not there.
    """
    sound = open_sound(path)
    with Tally("clips") as tally:
        tally.count()
        try:
            return SpeechPreparation(channel).prepare(sound, str(path), tally, rate_hz)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
