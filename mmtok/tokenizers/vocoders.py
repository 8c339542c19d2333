"""Which vocoders the package has: the configs that a speech tokenizer's `vocoder` may be.

`mmtok.tokenizers.vocoder_base` is their contract. A vocoder changes no code, so it is in no
fingerprint: tokens that were made with one can be decoded with any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mmtok.nn.audio import MelSpec
from mmtok.tokenizers.griffin_lim import GriffinLimConfig
from mmtok.tokenizers.harmonic import HarmonicConfig
from mmtok.tokenizers.hifigan import HiFiGANConfig
from mmtok.tokenizers.istft import ISTFTConfig
from mmtok.tokenizers.vocoder_base import Vocoder, VocoderConfig


@dataclass(frozen=True)
class PackageVocoderConfig(VocoderConfig):
    """The package's own network for the spectrograms that it is better at, else Griffin-Lim.

    Better: by 0.5 of DistillMOS on voices and languages that it never heard, as the card beside its
    weights says. A source-filter vocoder goes before an iSTFT vocoder.
    """

    def build(self, spec: MelSpec, saved: Path | None = None) -> Vocoder:
        """The vocoder of spectrograms of these settings."""
        return best_vocoder(spec, saved).build(spec, saved)


def best_vocoder(spec: MelSpec, saved: Path | None = None) -> VocoderConfig:
    """The network in `saved`, else the package's own default, else Griffin-Lim."""
    networks = (HarmonicConfig(), ISTFTConfig())
    for config in networks:
        if saved is not None and config.kind.is_in(saved):
            return config
    for config in networks:
        if config.is_default(spec):
            return config
    return GriffinLimConfig()


AnyVocoder = GriffinLimConfig | HarmonicConfig | ISTFTConfig | HiFiGANConfig | PackageVocoderConfig
DEFAULT_VOCODER = PackageVocoderConfig  # of every tokenizer of spectrograms

__all__ = [
    "DEFAULT_VOCODER",
    "AnyVocoder",
    "GriffinLimConfig",
    "HarmonicConfig",
    "HiFiGANConfig",
    "ISTFTConfig",
    "PackageVocoderConfig",
    "best_vocoder",
]
