"""Which vocoders the package has: the configs that a speech tokenizer's `vocoder` may be.

`mmtok.tokenizers.vocoder_base` is their contract. A vocoder changes no code, so it is in no
fingerprint: tokens that were made with one can be decoded with any other.
"""

from __future__ import annotations

from mmtok.tokenizers.griffin_lim import GriffinLimConfig
from mmtok.tokenizers.hifigan import HiFiGANConfig
from mmtok.tokenizers.istft import ISTFTConfig

AnyVocoder = GriffinLimConfig | ISTFTConfig | HiFiGANConfig

__all__ = ["AnyVocoder", "GriffinLimConfig", "HiFiGANConfig", "ISTFTConfig"]
