"""Which vocoders the package has: the configs that a speech tokenizer's `vocoder` may be.

`mmtok.tokenizers.vocoder_base` is their contract. A vocoder changes no code, so it is in no
fingerprint: tokens that were made with one can be decoded with any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mmtok.nn.audio import MelSpec
from mmtok.tokenizers.griffin_lim import GriffinLimConfig
from mmtok.tokenizers.hifigan import HiFiGANConfig
from mmtok.tokenizers.istft import ISTFTConfig, has_own
from mmtok.tokenizers.vocoder_base import Vocoder, VocoderConfig


@dataclass(frozen=True)
class PackageVocoderConfig(VocoderConfig):
    """The package's own iSTFT vocoder where it has one of the spectrogram, else Griffin-Lim."""

    def build(self, spec: MelSpec, saved: Path | None = None) -> Vocoder:
        """The vocoder of spectrograms of these settings."""
        if has_own(spec, saved):
            return ISTFTConfig().build(spec, saved)
        return GriffinLimConfig().build(spec)


AnyVocoder = GriffinLimConfig | ISTFTConfig | HiFiGANConfig | PackageVocoderConfig

__all__ = [
    "AnyVocoder",
    "GriffinLimConfig",
    "HiFiGANConfig",
    "ISTFTConfig",
    "PackageVocoderConfig",
]
