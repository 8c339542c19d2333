"""Ways of speech through a tokenizer and a vocoder, by the names that a command line gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch

from mmtok.errors import UserError
from mmtok.io.terminal import print_status
from mmtok.nn.audio import MelSpec, log_mel
from mmtok.tokenizers import load
from mmtok.tokenizers.dequantiser import DequantiserConfig
from mmtok.tokenizers.other_vocoder import NAMED
from mmtok.tokenizers.speech import DMelConfig

RATE_HZ = 16_000


@dataclass(frozen=True)
class Trip:
    """One way: encode to what is kept of a clip, decode to sound.

    Attributes:
        tokenizer: of the frames.
        vocoder: its name in the table.
        continuous: whether the spectrogram goes to the vocoder as it is, without levels.
    """

    tokenizer: Any
    vocoder: str
    continuous: bool = False

    @property
    def spec(self) -> MelSpec:
        """Of the spectrogram."""
        return self.tokenizer.config.mel

    @property
    def frames_per_s(self) -> float:
        """Frames of the spectrogram."""
        return self.spec.rate_hz / self.spec.hop_samples

    @property
    def n_levels(self) -> int:
        """0 without levels."""
        if self.continuous:
            return 0
        return getattr(self.tokenizer.config, "n_levels", 0)

    @property
    def kbps(self) -> float:
        """Bits of the codes per millisecond; 0 without levels."""
        if self.continuous:
            return 0.0
        return getattr(self.tokenizer.config, "kbps", 0.0)

    @property
    def tokens(self) -> str:
        """What is kept, in words."""
        levels = f"{self.n_levels} levels" if self.n_levels else "log-mel"
        return f"{self.frames_per_s:g} Hz, {levels}"

    @property
    def facts(self) -> dict[str, Any]:
        """For the file."""
        return {
            "hz": self.frames_per_s,
            "bins": self.n_levels,
            "vocoder": self.vocoder,
            "kbps": self.kbps,
        }

    def encode(self, clip: np.ndarray) -> Any:
        """A clip (N,) -> its segment, or its spectrogram and N."""
        if self.continuous:
            return log_mel([torch.from_numpy(clip)], self.spec)[0], len(clip)
        return self.tokenizer.encode(clip)

    def decode(self, kept: Any) -> np.ndarray:
        """What `encode` gave -> sound (N,)."""
        if not self.continuous:
            return self.tokenizer.decode(kept)
        mel, n_samples = kept
        sound = self.tokenizer.vocoder([mel], [n_samples])[0]
        return (sound / sound.abs().max().clamp_min(1)).numpy()


def trips(
    bins: Sequence[int], hz: Sequence[float], vocoders: Sequence[str], dequantiser: str = ""
) -> Iterator[Trip]:
    """Every vocoder with every rate and number of levels; a tokenizer's folder has its own.

    Rates whose spectrograms a vocoder does not take are left out, which is said.

    A de-quantiser is put before the vocoder of codes that it was made for, beside the way without.

    Raises UserError for an unknown vocoder, and for numbers that no tokenizer has.
    """
    for name in vocoders:
        if (Path(name) / "tokenizer.json").is_file():
            yield Trip(load(Path(name)), Path(name).name)
            continue
        for config in _configs(vocoder_named(name), hz):
            for n_levels in bins:
                if n_levels:
                    levels = replace(config, n_levels=n_levels)
                    yield Trip(levels.build(), name)
                    yield from _dequantised(levels, name, dequantiser)
                else:
                    yield Trip(config.build(), name, continuous=True)


def _configs(vocoder: Any, hz: Sequence[float]) -> Iterator[DMelConfig]:
    """dMel with a vocoder at every rate of frames that it takes, of which there must be one."""
    errors = []
    for frames_per_s in hz:
        config = replace(config_of(frames_per_s), vocoder=vocoder)
        try:
            config.check()
        except UserError as error:
            errors.append(error)
            print_status(f"not at {frames_per_s:g} Hz: {error}")
        else:
            yield config
    if len(errors) == len(hz):
        raise errors[0]


def _dequantised(config: DMelConfig, vocoder: str, folder: str) -> Iterator[Trip]:
    """The way through the de-quantiser in a folder, where it is of this spectrogram's levels."""
    if not folder:
        return
    config = replace(config, dequantiser=DequantiserConfig(folder))
    try:
        config.check()
        yield Trip(config.build(), f"{vocoder} after the de-quantiser")
    except UserError as error:
        print_status(f"no de-quantiser at {config.mel.hop_samples} samples a frame: {error}")


def config_of(frames_per_s: float) -> DMelConfig:
    """dMel at a rate of frames: the presets', else with a window of two hops."""
    presets = (DMelConfig.dmel_80hz(), DMelConfig.dmel_40hz(), DMelConfig.inkling_20hz())
    for config in presets:
        if config.mel.rate_hz == frames_per_s * config.mel.hop_samples:
            return config
    if not 1 <= frames_per_s <= 1000:
        raise UserError(f"--hz {frames_per_s:g}: frames per second must be 1 to 1000")
    hop = round(RATE_HZ / frames_per_s)
    window = max(800, 2 * hop)
    n_fft = 1 << (window - 1).bit_length()
    return DMelConfig(mel=MelSpec(n_fft=n_fft, window_samples=window, hop_samples=hop))


def vocoder_named(name: str) -> Any:
    """The config of a vocoder: with a name, of a kind, or of a kind with the folder of weights."""
    if name in NAMED:
        return NAMED[name]()
    kinds = vocoder_kinds()
    kind, _, folder = name.partition("=")
    kind = kind.replace("-", "")
    if kind not in kinds:
        raise UserError(
            f"--vocoder {name}: it is {' or '.join(kinds)}, with =FOLDER for weights of your own,"
            f" {' or '.join(NAMED)}, or the folder of a tokenizer"
        )
    if folder:
        return kinds[kind](folder)
    return kinds[kind]()


def vocoder_kinds() -> dict[str, type]:
    """Name -> config of every vocoder that dMel can have: griffinlim -> GriffinLimConfig."""
    hint = get_type_hints(DMelConfig)["vocoder"]
    choices = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return {config.__name__.removesuffix("Config").lower(): config for config in choices}
